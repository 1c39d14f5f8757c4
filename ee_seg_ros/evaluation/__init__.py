# Copyright 2026 The ee_seg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""How good, how dear and how fast: mIoU, cost, bytes, reports."""
