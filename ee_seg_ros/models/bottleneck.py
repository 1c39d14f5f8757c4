# Copyright 2026 The ee_seg_ros authors
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
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
    """Squeeze what the offboard side needs into small maps of `levels` levels each.

    features: (channels) at the split. skips: (channels, stride) of finer features that offboard heads take, if any.
    `encode` runs on the robot: (skips ..., features) -> levels 0..levels-1 as float: `low` (N, low, ..) at the coarsest
    skip's size, left out without skips, and `high` (N, high, h, w). `decode` runs offboard and restores the features
    and `restored` channels of finer ones.
    The range is +-`reach` standard deviations: a batch norm in front keeps the values near N(0, 1).
    """

    def __init__(self, features: int, skips: tuple = (), low: int = 16, high: int = 64, levels: int = 16,
                 restored: int = 48, reach: float = 2.5):
        super().__init__()
        self.levels, self.reach = levels, reach
        self.high = nn.Sequential(nn.Conv2d(features, high, 1, bias=False), nn.BatchNorm2d(high))
        self.unfold_high = nn.Sequential(nn.Conv2d(high, features, 1, bias=False), nn.BatchNorm2d(features))
        self.has_skips = bool(skips)
        if skips:
            coarsest = max(stride for _, stride in skips)
            # finer skips are folded to the coarsest one's size, keeping what lies between
            self.folds = nn.ModuleList([
                nn.Identity() if stride == coarsest else nn.Conv2d(
                    channels, channels, 3, coarsest // stride, 1, bias=False) for channels, stride in skips])
            self.low = nn.Sequential(nn.Conv2d(sum(channels for channels, _ in skips), low, 1, bias=False),
                                     nn.BatchNorm2d(low))
            self.unfold_low = conv_bn(low, restored)

    def _quantise(self, values):
        scaled = (values.clamp(-self.reach, self.reach) + self.reach) * ((self.levels - 1) / (2 * self.reach))
        return Quantise.apply(scaled)

    def _restore(self, levels):
        return levels * (2 * self.reach / (self.levels - 1)) - self.reach

    def forward(self, features):
        """The features as they are restored; finer ones are left out."""
        return self.unfold_high(self._restore(self._quantise(self.high(features))))

    def encode(self, *tensors):
        """(skips ..., features) -> (low, high), or (high,) without skips; floats that are whole levels."""
        *skips, features = tensors
        high = self._quantise(self.high(features))
        if not self.has_skips:
            return (high,)
        return self._quantise(self.low(torch.cat([fold(skip) for fold, skip in zip(self.folds, skips)], 1))), high

    def decode(self, *levels):
        """(low, high) or (high,) -> (finer features, features), or (features,)."""
        features = self.unfold_high(self._restore(levels[-1]))
        return (self.unfold_low(self._restore(levels[0])), features) if self.has_skips else (features,)
