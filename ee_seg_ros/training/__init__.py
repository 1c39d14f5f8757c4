# Copyright 2026 The ee_seg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Training of multi-exit networks: recipes, batches, losses and the two stages."""
# Lightning and torchvision's transforms import torchvision: this makes that work beside every torch.
from ee_seg_ros.models import torchvision_compat  # noqa: F401
