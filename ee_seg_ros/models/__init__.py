# Copyright 2026 The ee_seg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""torch models: backbones, exit heads, the multi-exit network, the feature bottleneck, export to a bundle."""
