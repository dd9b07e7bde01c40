#!/bin/sh
#
# usage: room.sh SYSTEM UNPACKED DIRECTORY... -- COMMAND [ARGUMENT...]
#
# Runs COMMAND as root of a room: the system in the directory SYSTEM (the machine
# itself is /) as it is, but with the Debian packages in UNPACKED, if it is there,
# as if they were installed.  What is written stays in the room and ends with it,
# except in each DIRECTORY, and so do all processes.  /run is empty, and the network
# has nothing but a loopback device of its own, so that nobody talks to the machine's
# services or takes their ports.
#
# SPDX-License-Identifier: GPL-2.0-or-later

set -e

# The first process of a PID namespace, which takes care of orphans
if [ $$ != 1 ]; then
    exec unshare --mount --pid --net --fork --kill-child "$0" "$@"
fi

# "ip link set lo up", which not every machine has
python3 - <<EOF
import fcntl, socket, struct
UP, SET_FLAGS = 1, 0x8914
fcntl.ioctl(socket.socket(), SET_FLAGS, struct.pack('16sH14x', b'lo', UP))
EOF

system=$1
unpacked=$2
shift 2
root=/mnt/root

mount -t tmpfs room /mnt
mkdir /mnt/upper /mnt/work $root
if [ -d "$unpacked" ]; then
    cp -a "$unpacked/." /mnt/upper
fi
# Where /lib is a link, this must not become a directory
if [ -L "$system/lib" ] && [ -d /mnt/upper/lib ]; then
    mkdir -p /mnt/upper/usr/lib
    cp -a /mnt/upper/lib/. /mnt/upper/usr/lib
    rm -r /mnt/upper/lib
fi
mount -t overlay -o "lowerdir=$system,upperdir=/mnt/upper,workdir=/mnt/work" \
    room $root
while [ "$1" != -- ]; do
    mkdir -p "$root$1"
    mount --bind "$1" "$root$1"
    shift
done
shift
mount --rbind /dev $root/dev
mount --rbind /sys $root/sys
mount -t proc proc $root/proc
mount -t tmpfs run $root/run

chroot $root "$@" &
wait $!
