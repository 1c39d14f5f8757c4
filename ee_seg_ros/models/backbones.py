# Copyright 2026 The ee_seg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Backbones cut into stages."""
from pathlib import Path

import torch
from torch import nn

from ee_seg_ros.models.torchvision_compat import torchvision


def dilate(blocks: nn.Module, rate: int) -> None:
    """Trade the stride of depthwise convolutions for dilation, so that the output keeps its resolution.

    The strided convolution itself loses its stride; every 3x3 convolution in `blocks` behind it gets dilation `rate`.
    """
    for module in blocks.modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3):
            if module.stride == (2, 2):
                module.stride = (1, 1)
            else:
                module.dilation, module.padding = (rate, rate), (rate, rate)


def mobilenet_v2_stages(weights: str | Path | None = None) -> nn.ModuleDict:
    """MobileNetV2 1.0 (torchvision) up to its 320-channel block at output stride 16, in pieces.

    Returns modules in order, with (channels, stride) of what each puts out: `detail` (24, 4), `stage1` (32, 8),
    `stage2` (64, 16), `stage3` (96, 16), `stage4` (320, 16; dilated instead of strided). Input: float32
    (N, 3, H, W), RGB scaled to x / 127.5 - 1 when the weights are the project's usual ones.

    weights: a state_dict file with torchvision's key names, or None for random weights.
    """
    features = torchvision.models.mobilenet_v2(weights=None)
    if weights is not None:
        state = torch.load(weights, map_location='cpu', weights_only=True)
        state = {key: value for key, value in state.items() if key.startswith('features.')}
        missing, unexpected = features.load_state_dict(state, strict=False)
        missing = [key for key in missing if not key.startswith('classifier.')]
        if missing or unexpected:
            raise ValueError(f"{weights} is not a MobileNetV2 state_dict with torchvision's names: "
                             f'{len(missing)} keys missing, {len(unexpected)} unexpected, e.g. '
                             f'{(missing + unexpected)[0]}')
    blocks = list(features.features.children())
    stages = nn.ModuleDict({
        'detail': nn.Sequential(*blocks[0:4]),
        'stage1': nn.Sequential(*blocks[4:7]),
        'stage2': nn.Sequential(*blocks[7:11]),
        'stage3': nn.Sequential(*blocks[11:14]),
        'stage4': nn.Sequential(*blocks[14:18]),
    })
    dilate(stages['stage4'], rate=2)
    return stages
