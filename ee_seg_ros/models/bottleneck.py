# Copyright 2026 The ee_seg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The feature bottleneck: what is sent over the link, quantised inside the network."""
import torch
from torch import nn

from ee_seg_ros.models.heads import conv_bn


class Quantise(torch.autograd.Function):
    """Round to the nearest level; the gradient passes straight through inside the range."""

    @staticmethod
    def forward(ctx, values):
        return values.round()

    @staticmethod
    def backward(ctx, gradient):
        return gradient


class Bottleneck(nn.Module):
    """Squeeze detail (strides 4 and 8) and context (stride 16) into two small maps of `levels` levels each.

    `encode` runs on the robot: (N, 24, 4h, 4w), (N, 32, 2h, 2w), (N, 96, h, w) -> levels 0..levels-1 as float:
    `low` (N, low, 2h, 2w) and `high` (N, high, h, w). `decode` runs offboard and undoes the scaling.
    The range is +-`reach` standard deviations: a batch norm in front keeps the values near N(0, 1).
    """

    def __init__(self, low: int = 16, high: int = 64, levels: int = 16, reach: float = 2.5):
        super().__init__()
        self.levels, self.reach = levels, reach
        self.fold = nn.Conv2d(24, 24, 3, 2, 1, bias=False)     # stride 4 -> 8, keeping what lies between
        self.low = nn.Sequential(nn.Conv2d(24 + 32, low, 1, bias=False), nn.BatchNorm2d(low))
        self.high = nn.Sequential(nn.Conv2d(96, high, 1, bias=False), nn.BatchNorm2d(high))
        self.unfold_low = conv_bn(low, 48)
        self.unfold_high = nn.Sequential(nn.Conv2d(high, 96, 1, bias=False), nn.BatchNorm2d(96))

    def _quantise(self, values):
        scaled = (values.clamp(-self.reach, self.reach) + self.reach) * ((self.levels - 1) / (2 * self.reach))
        return Quantise.apply(scaled)

    def _restore(self, levels):
        return levels * (2 * self.reach / (self.levels - 1)) - self.reach

    def encode(self, detail, stage1, stage3):
        low = self.low(torch.cat([self.fold(detail), stage1], 1))
        return self._quantise(low), self._quantise(self.high(stage3))

    def decode(self, low, high):
        return self.unfold_low(self._restore(low)), self.unfold_high(self._restore(high))
