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
"""What lies behind the split on part of a frame: in a window of its cells, without the features of settled ones."""
from collections.abc import Iterable

import torch
from torch.nn import functional

from ee_seg_ros.inference.windows import Window
from ee_seg_ros.models.multi_exit import MultiExitNet


def random_window(cells: tuple, shares: tuple) -> Window:
    """A window of some share of a map of (height, width) cells.

    shares: (lowest, highest), of which one is drawn. How much of the share is height is drawn, too, from torch's
    generator; such a window is anywhere in the map.
    """
    share, part, down, right = torch.rand(4).tolist()
    share = shares[0] + share * (shares[1] - shares[0])
    lengths = [max(1, min(size, round(size * share ** power))) for size, power in zip(cells, (part, 1 - part))]
    top, left = (round(place * (size - length)) for place, size, length in zip((down, right), cells, lengths))
    return Window(top, top + lengths[0], left, left + lengths[1])


def settled_cells(logits: torch.Tensor, size: tuple, limit: float) -> tuple:
    """(settled bool, classes int64), (N, rows, columns) each, by the last exit before the split.

    A cell is settled where all its pixels have a top-1 probability above `limit`. size: (rows, columns).
    """
    top, classes = logits.softmax(1).max(1)
    sure = functional.adaptive_avg_pool2d((top > limit).float()[:, None], size)[:, 0] > 0.999
    return sure, functional.interpolate(classes[:, None].float(), size=size)[:, 0].long()


def with_means(level: torch.Tensor, settled: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """A level of the bottleneck (N, C, h, w) whose settled cells have the rounded mean of their class in this batch.

    In a run the means of the training set stand in for what was not sent. settled, classes: of `settled_cells`.
    """
    size, count = level.shape[-2:], int(classes.max()) + 1
    settled, classes = (functional.interpolate(each[:, None].float(), size=size)[:, 0] for each in (settled, classes))
    one_hot = functional.one_hot(classes.long(), count).float()
    means = torch.einsum('nchw,nhwk->kc', level.detach(), one_hot) / one_hot.sum((0, 1, 2)).clamp(min=1)[:, None]
    return torch.where(settled[:, None] > 0, means.round()[classes.long()].permute(0, 3, 1, 2), level)


def tail_logits(net: MultiExitNet, tensors: dict, exits: Iterable) -> dict:
    """Logits by exit name of exits behind the split, from what is restored there: maps of any size.

    tensors: of the part `decode` by name, (N, C, h, w). Nothing is computed that none of the exits needs.
    """
    tensors, wanted, logits = dict(tensors), set(exits), {}
    place = next(index for index, part in enumerate(net.parts) if part.kind == 'decode')
    for part in net.parts[place + 1:]:
        if part.kind == 'stage':
            tensors.update(zip(part.outputs, part.module(*[tensors[name] for name in part.inputs])))
        elif part.name in wanted:
            logits[part.name] = part.module(*[tensors[name] for name in part.inputs])
            if len(logits) == len(wanted):
                break
    return logits
