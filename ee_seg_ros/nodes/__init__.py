# Copyright 2026 The ee_seg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""ROS 2 nodes: all that imports rclpy."""
