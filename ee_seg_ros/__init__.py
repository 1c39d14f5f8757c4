# Copyright 2026 The ee_seg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Early-exit semantic segmentation for robots: stop early onboard, finish the hard frames offboard."""

__version__ = '0.1.0'
