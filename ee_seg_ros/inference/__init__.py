# Copyright 2026 The ee_seg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What runs on a robot besides ROS: bundles, the engine, criteria, the feature payload and the link policy."""
