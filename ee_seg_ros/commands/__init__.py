# Copyright 2026 The ee_seg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The sub-commands of `ee_seg`. Each imports what it needs when it runs, so that --help is quick."""
