# Copyright 2026 The ee_seg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The multi-exit network: stages with an exit behind each, a bottleneck at the split, and the offboard rest."""
from torch import nn

from ee_seg_ros.models.backbones import mobilenet_v2_stages
from ee_seg_ros.models.bottleneck import Bottleneck
from ee_seg_ros.models.heads import ContextHead, DecoderHead


class StreetNet(nn.Module):
    """MobileNetV2 with three onboard exits and an offboard decoder (the network of bundle `street`).

    Input: float32 (N, 3, H, W), H and W multiples of 16. `forward` returns the logits of exit1 (stride 8), exit2
    (stride 16), exit3 (stride 16) and of the final output (stride 4), each (N, classes, H/stride, W/stride).
    """

    exit_names = ('exit1', 'exit2', 'exit3', 'final')

    def __init__(self, classes: int = 11, weights=None):
        super().__init__()
        self.stages = mobilenet_v2_stages(weights)
        self.exits = nn.ModuleDict({
            'exit1': ContextHead(32, classes, 64, (2, 6, 12)),
            'exit2': ContextHead(64, classes, 96, (1, 4, 8)),
            'exit3': ContextHead(96, classes, 96, (1, 4, 8)),
        })
        self.bottleneck = Bottleneck()
        self.final = DecoderHead(320, 48, classes)

    def forward(self, image):
        detail = self.stages['detail'](image)
        stage1 = self.stages['stage1'](detail)
        stage2 = self.stages['stage2'](stage1)
        stage3 = self.stages['stage3'](stage2)
        logits = [self.exits['exit1'](stage1), self.exits['exit2'](stage2), self.exits['exit3'](stage3)]
        low, high = self.bottleneck.encode(detail, stage1, stage3)
        detail, high = self.bottleneck.decode(low, high)
        return logits + [self.final(self.stages['stage4'](high), detail)]
