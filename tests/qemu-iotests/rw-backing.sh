# What common.rc needs to run tests of qcow2 with an RW backing, that is, with
# "./check -qcow2 -o 'rw-backing=$TEST_IMG.rwb'".
#
# Images that cannot have an RW backing, since they have a backing file, a
# data file or encryption, or are of version 2, are left to be plain ones.  So
# are those whose names match the regular expression in PLAIN_IMAGES: a test
# may turn an image into one of these only after it has made it.
#
# SPDX-License-Identifier: GPL-2.0-or-later

# Whether the image $2 with the creation options $1, and with a backing file if
# $3 is 1, is to be a plain one.
_rw_backing_excluded()
{
    local optstr=$1 img=$2 use_backing=$3
    local excluding='(^|,)(backing_file|data_file|encrypt|compat=(0\.10|v2))'

    [[ $use_backing == 1 || $optstr =~ $excluding ]] ||
        [[ -n $PLAIN_IMAGES && ${img##*/} =~ $PLAIN_IMAGES ]]
}

# Prints what the creation options have to be; for arguments see above.
# Removes the RW backing of an older image of this name, since it would keep
# its size.
_rw_backing_opts()
{
    local optstr=$1 img=${2#file:} use_backing=$3 rw_backing

    if [[ $IMGOPTS != *rw-backing=* ]]; then
        echo "$optstr"
    elif _rw_backing_excluded "$optstr" "$img" "$use_backing"; then
        sed -E -e 's/(^|,)rw-backing(-fmt)?=[^,]*//g' -e 's/^,//' <<<"$optstr"
    else
        rw_backing=$(_get_data_file "$img")
        rm -f "$rw_backing"
        # A relative name would be relative to the image's directory
        [[ $rw_backing == /* ]] || rw_backing=$PWD/$rw_backing
        sed -e "s#\\(rw-backing=\\)[^,]*#\\1$rw_backing#" <<<"$optstr"
    fi
}

# Makes the RW backing of the new image $1 as empty as a new qcow2 image is: a
# raw file comes with its first block allocated.
_rw_backing_created()
{
    local rw_backing size

    rw_backing=$(_get_data_file "${1#file:}")
    if [[ $IMGOPTS == *rw-backing=* && -f $rw_backing &&
          $(stat -c %b "$rw_backing") -le 8 ]]; then
        size=$(stat -c %s "$rw_backing")
        truncate -s 0 "$rw_backing"
        truncate -s "$size" "$rw_backing"
    fi
}
