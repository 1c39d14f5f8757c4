# Copyright 2026 The ee_seg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Heads: what turns features into class logits."""
import torch
from torch import nn
from torch.nn import functional


def conv_bn(inputs: int, outputs: int, kernel: int = 1, dilation: int = 1, groups: int = 1,
            stride: int = 1) -> nn.Sequential:
    """Convolution, batch norm, ReLU6; 'same' padding."""
    padding = dilation * (kernel // 2)
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, groups, bias=False),
        nn.BatchNorm2d(outputs), nn.ReLU6(inplace=True))


def separable(inputs: int, outputs: int, dilation: int = 1) -> nn.Sequential:
    """Depthwise 3x3, then 1x1: what MobileNetV2's blocks are made of."""
    return nn.Sequential(conv_bn(inputs, inputs, 3, dilation, inputs), conv_bn(inputs, outputs))


class ContextHead(nn.Module):
    """A light exit head: reduce, look around at several dilation rates (depthwise), mix, classify.

    Its context is local (no pooling over the whole map), so it can also run on tiles with a halo.
    Input (N, inputs, h, w), output logits (N, classes, h, w).
    """

    def __init__(self, inputs: int, classes: int, width: int = 64, rates: tuple = (1, 4, 8)):
        super().__init__()
        self.reduce = conv_bn(inputs, width)
        self.context = nn.ModuleList([conv_bn(width, width, 3, rate, width) for rate in rates])
        self.mix = conv_bn(width * (len(rates) + 1), width)
        self.dropout = nn.Dropout2d(0.1)
        self.classify = nn.Conv2d(width, classes, 1)

    def forward(self, features):
        reduced = self.reduce(features)
        mixed = self.mix(torch.cat([reduced] + [look(reduced) for look in self.context], 1))
        return self.classify(self.dropout(mixed))


class DecoderHead(nn.Module):
    """The final head: separable ASPP on stride 16, joined with the detail features at stride 8, logits at stride 4.

    The ASPP follows DeepLabV3+ (Chen et al., ECCV 2018) with separable convolutions and without image pooling.
    Input: (N, inputs, h, w) at stride 16 and (N, detail, 2h, 2w) at stride 8; output (N, classes, 4h, 4w).
    """

    def __init__(self, inputs: int, detail: int, classes: int, width: int = 128, rates: tuple = (3, 6, 9)):
        super().__init__()
        self.branches = nn.ModuleList(
            [conv_bn(inputs, width)] + [separable(inputs, width, rate) for rate in rates])
        self.mix = conv_bn(width * (len(rates) + 1), width)
        self.detail = conv_bn(detail, 48, 3)
        self.join = nn.Sequential(conv_bn(width + 48, width, 3), separable(width, width))
        self.dropout = nn.Dropout2d(0.1)
        self.grow = nn.Sequential(nn.Conv2d(width, 4 * 32, 1, bias=False), nn.PixelShuffle(2),
                                  nn.BatchNorm2d(32), nn.ReLU6(inplace=True))
        self.refine = conv_bn(32, 32, 3)
        self.classify = nn.Conv2d(32, classes, 1)

    def forward(self, features, detail):
        context = self.mix(torch.cat([branch(features) for branch in self.branches], 1))
        context = functional.interpolate(context, scale_factor=2, mode='bilinear', align_corners=False)
        joined = self.join(torch.cat([context, self.detail(detail)], 1))
        return self.classify(self.refine(self.grow(self.dropout(joined))))
