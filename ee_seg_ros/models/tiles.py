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
"""The network on tiles: every stage but the first sees its input cut up, as the engine runs it on unsettled tiles."""
from collections.abc import Iterable

import torch
from torch.nn import functional

from ee_seg_ros.models.multi_exit import MultiExitNet


def cut(tensor: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """(N, C, H, W) as tiles (N * rows * columns, C, H / rows, W / columns), row by row. Raises ValueError."""
    count, channels, height, width = tensor.shape
    if height % rows or width % columns:
        raise ValueError(f'a map of {width}x{height} cannot be cut into {columns}x{rows} equal tiles')
    tiles = tensor.reshape(count, channels, rows, height // rows, columns, width // columns)
    return tiles.permute(0, 2, 4, 1, 3, 5).reshape(-1, channels, height // rows, width // columns)


def join(tiles: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """The map that `cut` made these tiles of."""
    _, channels, height, width = tiles.shape
    grid = tiles.reshape(-1, rows, columns, channels, height, width).permute(0, 3, 1, 4, 2, 5)
    return grid.reshape(-1, channels, rows * height, columns * width)


def tiled_logits(net: MultiExitNet, image: torch.Tensor, tile: tuple, exits: Iterable | None = None) -> dict:
    """Logits by exit name, as of `net(image)`, but on tiles from the second stage on, with no halo.

    Each tile sees nothing of its neighbours but what the first stage made of them. The bottleneck sees whole maps.
    tile: (height, width) of one, in cells of the second stage's input. exits: names wanted, none behind the first
    stage among them (default: all others). Raises ValueError where the map is no multiple of the tile.
    """
    return _run(net, image, tile, exits, lambda levels, logits: levels)


def partial_logits(net: MultiExitNet, image: torch.Tensor, exits: Iterable, limit: float,
                   tile: tuple | None = None) -> tuple:
    """(logits by exit name, settled) where only the features of unsettled cells pass the split.

    A cell is settled where the last exit before the split gives all its pixels a top-1 probability above `limit`; the
    mean levels of its class in this batch stand in for its own, as in a run those of the training set do. exits: names
    wanted, all of them behind the split. tile: as of `tiled_logits`; None: whole maps. settled: bool (N, rows,
    columns).
    """
    found = []

    def fill(levels, logits):
        top, classes = logits.softmax(1).max(1)
        size = levels[-1].shape[-2:]
        sure = functional.adaptive_avg_pool2d((top > limit).float()[:, None], size)[:, 0] > 0.999
        classes = functional.interpolate(classes[:, None].float(), size=size)[:, 0].long()
        found.append(sure)
        return tuple(_with_means(level, sure, classes) for level in levels)
    return _run(net, image, tile, exits, fill), found[0]


def _with_means(level, settled, classes):
    """Levels (N, C, h, w) whose settled cells have the rounded mean of their class; settled, classes: (N, ..)."""
    size, count = level.shape[-2:], int(classes.max()) + 1
    settled, classes = (functional.interpolate(each[:, None].float(), size=size)[:, 0] for each in (settled, classes))
    one_hot = functional.one_hot(classes.long(), count).float()
    means = torch.einsum('nchw,nhwk->kc', level.detach(), one_hot) / one_hot.sum((0, 1, 2)).clamp(min=1)[:, None]
    return torch.where(settled[:, None] > 0, means.round()[classes.long()].permute(0, 3, 1, 2), level)


def _run(net, image, tile, exits, change):
    """Logits of some exits; `change` makes other levels of (those of the encoder, logits of the exit before it)."""
    first, *rest = net.parts
    whole = {'image': image}
    whole.update(zip(first.outputs, first.module(image)))
    height, width = whole[first.outputs[-1]].shape[-2:]
    tile = (height, width) if tile is None else tile
    rows, columns = height // tile[0], width // tile[1]
    if (rows * tile[0], columns * tile[1]) != (height, width):
        raise ValueError(f'a map of {width}x{height} cells has no whole number of tiles of {tile[1]}x{tile[0]}')
    behind_first = {part.name for part in rest if part.inputs[0] == first.outputs[-1] and part.kind == 'exit'}
    wanted = set(net.exit_names) - behind_first if exits is None else set(exits)
    before_split = {exit_['name'] for exit_ in net.spec['exits']
                    if net.split_unit is not None and exit_['unit'] <= net.split_unit}
    onboard = [name for name in net.exit_names if name in before_split][-1:]    # by depth: the spec has any order
    tiles, logits = {name: cut(tensor, rows, columns) for name, tensor in whole.items() if name != 'image'}, {}
    for part in rest:
        if part.kind == 'exit':
            if part.name in wanted or part.name in onboard:
                logits[part.name] = join(part.module(*[tiles[name] for name in part.inputs]), rows, columns)
                if wanted <= set(logits):
                    break
        elif part.kind == 'stage':
            tiles.update(zip(part.outputs, part.module(*[tiles[name] for name in part.inputs])))
        else:
            for name in part.inputs:
                whole.setdefault(name, join(tiles[name], rows, columns) if name in tiles else None)
            outputs = part.module(*[whole[name] for name in part.inputs])
            if part.kind == 'encode':
                outputs = change(outputs, logits[onboard[0]])
            whole.update(zip(part.outputs, outputs))
            if part.kind == 'decode':
                tiles.update((name, cut(whole[name], rows, columns)) for name in part.outputs)
    return {name: logits[name] for name in logits if name in wanted}
