# What several tests of qcow2 images with an RW backing need
#
# SPDX-License-Identifier: GPL-2.0-or-later

import os
from typing import List

import iotests
from iotests import qemu_img_check, qemu_img_map

# Granularity of the bitmaps in these tests, in bytes
BLOCK = 64 * 1024


def dirty_blocks(image: str, bitmap: str = 'b') -> List[int]:
    """Which blocks a bitmap that is stored in an image has."""
    result: List[int] = []
    sock = os.path.join(iotests.sock_dir, 'dirty-blocks.sock')
    daemon = iotests.QemuStorageDaemon(
        '--blockdev', 'qcow2,node-name=shell,file.driver=file,'
        f'file.filename={image}',
        '--nbd-server', f'addr.type=unix,addr.path={sock}', '--export',
        'nbd,id=export,node-name=shell,name=disk,writable=on,'
        f'bitmaps.0={bitmap}', instance_id='dirty-blocks', qmp=True)
    for extent in qemu_img_map(
            '--image-opts', 'driver=nbd,server.type=unix,export=disk,'
            f'server.path={sock},x-dirty-bitmap=qemu:dirty-bitmap:{bitmap}'):
        if not extent['data']:
            end = extent['start'] + extent['length']
            result += range(extent['start'] // BLOCK, end // BLOCK)
    daemon.stop()
    return result


def assert_intact(test: iotests.QMPTestCase, shell: str, disk: str,
                  size: int, blocks: List[int]) -> None:
    """
    The image @shell has no errors, and @disk, of @size bytes, has zeroes but
    for @blocks, each of which is filled with its number.
    """
    check = qemu_img_check('-f', 'qcow2', shell)
    test.assertEqual(check['check-errors'], 0)
    test.assertNotIn('corruptions', check)
    test.assertNotIn('leaks', check)
    data = bytearray(size)
    for block in blocks:
        data[block * BLOCK:(block + 1) * BLOCK] = bytes([block]) * BLOCK
    with open(disk, 'rb') as file:
        test.assertTrue(file.read() == data, 'wrong data')
