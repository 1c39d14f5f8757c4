# Copyright 2026 The ee_seg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The network on tiles: every stage but the first sees its input cut up, as the engine runs it on unsettled tiles."""
from collections.abc import Iterable

import torch

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
    first, *rest = net.parts
    whole = {'image': image}
    whole.update(zip(first.outputs, first.module(image)))
    height, width = whole[first.outputs[-1]].shape[-2:]
    rows, columns = height // tile[0], width // tile[1]
    if (rows * tile[0], columns * tile[1]) != (height, width):
        raise ValueError(f'a map of {width}x{height} cells has no whole number of tiles of {tile[1]}x{tile[0]}')
    behind_first = {part.name for part in rest if part.inputs[0] == first.outputs[-1] and part.kind == 'exit'}
    wanted = set(net.exit_names) - behind_first if exits is None else set(exits)
    tiles, logits = {name: cut(tensor, rows, columns) for name, tensor in whole.items() if name != 'image'}, {}
    for part in rest:
        if part.kind == 'exit':
            if part.name in wanted:
                logits[part.name] = join(part.module(*[tiles[name] for name in part.inputs]), rows, columns)
                if len(logits) == len(wanted):
                    break
        elif part.kind == 'stage':
            tiles.update(zip(part.outputs, part.module(*[tiles[name] for name in part.inputs])))
        else:
            for name in part.inputs:
                whole.setdefault(name, join(tiles[name], rows, columns) if name in tiles else None)
            whole.update(zip(part.outputs, part.module(*[whole[name] for name in part.inputs])))
            if part.kind == 'decode':
                tiles.update((name, cut(whole[name], rows, columns)) for name in part.outputs)
    return logits
