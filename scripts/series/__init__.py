# The series: patches/ as text, as commits of the scratch git tree, and as
# mails.
#
# SPDX-License-Identifier: GPL-2.0-or-later
