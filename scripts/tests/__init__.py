# The tests: runs them, counts, compares with what an unpatched QEMU does, and
# builds QEMU with sanitizers and fuzz targets.  Tests of scripts/ itself are
# in tests/scripts.
#
# SPDX-License-Identifier: GPL-2.0-or-later
