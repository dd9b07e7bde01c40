#!/bin/bash
#
# usage: package.sh PACKAGES DEBIAN
#
# In a room with another Debian, see scripts/check-package: the packages in the
# directory PACKAGES take the place of Debian's, libvirt uses them without
# further steps, and those in the directory DEBIAN take their place again.
#
# SPDX-License-Identifier: GPL-2.0-or-later

set -e
packages=$1
debian=$2
root=$(cd "$(dirname "$0")/../.." && pwd)
export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
directory=$(mktemp -d)
log=$directory/log
cd "$directory"
exec </dev/null

die() {
    echo "package.sh: $*"
    exit 1
}

# A command that says what it does only if it fails
quietly() {
    "$@" >"$log" 2>&1 || {
        cat "$log"
        die "$* failed"
    }
}

# What the machine has of QEMU, with versions
installed() {
    dpkg-query -W -f '${db:Status-Abbrev} ${Package} ${Version}\n' |
        sed -n 's/^ii *\(qemu\)/\1/p'
}

assert_refused() {
    if qemu-img info shell.qcow2 >"$log" 2>&1; then
        die "Debian's qemu-img takes a shell: $(cat "$log")"
    fi
    grep -q 'RW backing' "$log" || die "the reason is not named: $(cat "$log")"
}

installed >before
grep -q 'rwbacking' before && die "they are there already: $(cat before)"

# As README says: those of them that the machine has
sed -n '/^cd build\/package$/,/^```$/p' "$root/README.md" |
    sed '1d;$d' >install
[ -s install ] || die 'README does not say how'
echo 'APT::Get::Assume-Yes "true";' >/etc/apt/apt.conf.d/yes
(cd "$packages" && quietly bash -e "$directory/install")
installed >after
[ "$(grep -c rwbacking after)" = 4 ] || die "not installed: $(cat after)"
[ "$(cut -d' ' -f1 before)" = "$(cut -d' ' -f1 after)" ] ||
    die "other packages than before: $(cat after)"
audit=$(dpkg --audit)
[ -z "$audit" ] || die "$audit"
echo "installed: $(grep rwbacking after | cut -d' ' -f1 | xargs)"

# What the guide says for libvirt, with what is installed
"$root/tests/clients/libvirt" --build /usr/bin

# Bitmaps and the data of the disk, before and after
head -c 1M /dev/urandom >disk.raw
quietly qemu-img create -f qcow2 -o rw-backing=disk.raw shell.qcow2
quietly qemu-img bitmap --add shell.qcow2 backup
quietly qemu-io -c 'write -P 1 64k 64k' shell.qcow2
sum=$(sha256sum <disk.raw)

# AppArmor's rules let QEMU at the disk behind the shell
mkdir -p /etc/apparmor.d/libvirt
echo 'profile LIBVIRT_TEMPLATE { }' >/etc/apparmor.d/libvirt/TEMPLATE.qemu
uuid=12345678-1234-1234-1234-123456789abc
/usr/lib/libvirt/virt-aa-helper --dryrun --create --uuid "libvirt-$uuid" \
    >rules 2>&1 <<EOF
<domain type='qemu'>
  <name>vm</name><uuid>$uuid</uuid><memory>65536</memory>
  <os><type arch='x86_64' machine='pc'>hvm</type></os>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2'/>
      <source file='$directory/shell.qcow2'/>
      <target dev='vda' bus='virtio'/>
    </disk>
  </devices>
</domain>
EOF
for name in shell.qcow2 disk.raw; do
    grep -q "\"$directory/$name\" rwk" rules || die "no rule: $(cat rules)"
done
echo "AppArmor's rules know the disk"

quietly apt-get install --yes --allow-downgrades "$debian"/*.deb
installed >again
cmp before again || die "Debian's packages are not back: $(cat again)"
assert_refused
[ "$(sha256sum <disk.raw)" = "$sum" ] || die 'the disk has changed'
echo "back to Debian's packages, which refuse a shell"
mapfile -t names < <(cut -d' ' -f1 before)
quietly apt-get purge --yes "${names[@]}"
[ -z "$(dpkg --audit)" ] || die "$(dpkg --audit)"
[ -z "$(installed)" ] || die "left: $(installed)"
echo 'removed'
