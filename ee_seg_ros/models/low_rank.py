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
"""A k x k convolution as two one-dimensional ones: a fraction of the cost, and nearly the same function."""
import torch
from torch import nn


def low_rank(inputs: int, outputs: int, kernel: int, rank: int) -> nn.Sequential:
    """Along columns, (kernel, 1) to `rank` channels, then along rows, (1, kernel); no bias, 'same' padding."""
    return nn.Sequential(nn.Conv2d(inputs, rank, (kernel, 1), padding=(kernel // 2, 0), bias=False),
                         nn.Conv2d(rank, outputs, (1, kernel), padding=(0, kernel // 2), bias=False))


@torch.no_grad()
def approximate(pair: nn.Sequential, whole: nn.Conv2d) -> None:
    """Set the weights of a `low_rank` pair to the best approximation of a convolution without bias, in place.

    Best in the sum of squares of the kernels' differences: the truncated singular value decomposition of the kernel as
    a matrix of (input channel, row) x (output channel, column). Source: Jaderberg, Vedaldi, Zisserman, "Speeding up
    convolutional neural networks with low rank expansions", BMVC 2014 (scheme 2); solved in closed form by Tai et al.,
    ICLR 2016.
    """
    outputs, inputs, height, width = whole.weight.shape
    rank = pair[0].out_channels
    left, values, right = torch.linalg.svd(whole.weight.permute(1, 2, 0, 3).reshape(inputs * height, outputs * width),
                                           full_matrices=False)
    scale = values[:rank].sqrt()
    pair[0].weight.copy_((left[:, :rank] * scale).reshape(inputs, height, rank).permute(2, 0, 1).unsqueeze(3))
    pair[1].weight.copy_((scale[:, None] * right[:rank]).reshape(rank, outputs, width).permute(1, 0, 2).unsqueeze(2))
