# The machine: packages that a build and its tests need, QEMU's source, and the
# kernel of the guests, all from Debian.
#
# SPDX-License-Identifier: GPL-2.0-or-later
