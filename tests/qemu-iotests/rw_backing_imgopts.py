# What iotests.py needs to run tests of qcow2 with an RW backing, that is,
# with "./check -qcow2 -o 'rw-backing=$TEST_IMG.rwb'".  rw-backing.sh is the
# same for common.rc, and says which images do not get one.
#
# SPDX-License-Identifier: GPL-2.0-or-later

import argparse
import os
import re
from typing import Optional, Sequence


def in_use() -> bool:
    """Whether images in IMGFMT have an RW backing unless told otherwise."""
    return 'rw-backing=' in os.environ.get('IMGOPTS', '')


def imgopts(args: Sequence[str], opts: Sequence[str]) -> Optional[str]:
    """
    IMGOPTS for an image that "qemu-img create" makes with the arguments
    @args, among them the values @opts of its -o options.  Removes the RW
    backing of an older image of this name, since it would keep its size.
    """
    options = os.environ.get('IMGOPTS')
    if not options or not in_use():
        return options

    parser = argparse.ArgumentParser(allow_abbrev=False, add_help=False)
    parser.add_argument('-b')
    parser.add_argument('-F')
    parser.add_argument('--object')
    parser.add_argument('-u', action='store_true')
    parser.add_argument('-q', action='store_true')
    parser.add_argument('image')
    parser.add_argument('size', nargs='?')
    parsed = parser.parse_args(args)

    if parsed.b or _excluded(parsed.image, ','.join([options, *opts])):
        return re.sub(r'(^|,)rw-backing(-fmt)?=[^,]*', '',
                      options).lstrip(',')

    options = options.replace('$TEST_IMG', os.path.abspath(parsed.image))
    stored = re.search(r'(?:^|,)rw-backing=([^,]*)', options)
    if stored and os.path.exists(stored[1]):
        os.remove(stored[1])
    return options


def _excluded(image: str, options: str) -> bool:
    """Whether @image with the creation @options is to be a plain one."""
    plain = os.environ.get('PLAIN_IMAGES')
    return bool(re.search(r'(^|,)(backing_file|data_file|encrypt|'
                          r'compat=(0\.10|v2))', options)
                or plain and re.search(plain, os.path.basename(image)))
