# Copyright 2026 The ee_seg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Argmax of class planes that are resized bilinearly, without resizing what cannot win."""
import cv2
import numpy as np


def _row_spans(planes):
    """For each class (first, last) row of cells in which it may win, or None if it can nowhere.

    A cell lies between four neighbouring values. What bilinear interpolation makes of them is convex, so a class whose
    largest corner is below another's smallest loses everywhere in the cell.
    """
    top, bottom = planes[:, :-1], planes[:, 1:]
    low, high = np.minimum(top, bottom), np.maximum(top, bottom)
    low = np.minimum(low[..., :-1], low[..., 1:]).max(0)
    high = np.maximum(high[..., :-1], high[..., 1:])
    for rows in (high >= low).any(2):
        found = np.flatnonzero(rows)
        yield (int(found[0]), int(found[-1])) if len(found) else None


def _bands(planes, height):
    """(class id, first row of the plane, last + 1, first row of the output, last + 1) of what has to be resized."""
    count = planes.shape[1]
    stride, rest = divmod(height, count)
    if rest or count < 2 or planes.shape[2] < 2:
        yield from ((class_id, 0, count, 0, height) for class_id in range(len(planes)))
        return
    for class_id, span in enumerate(_row_spans(planes)):
        if span is not None:
            # Rows of the output whose centres lie in these cells; those beyond the outermost values belong to them.
            start = 0 if span[0] == 0 else (2 * span[0] + 1) * stride // 2
            stop = height if span[1] == count - 2 else ((2 * span[1] + 3) * stride + 1) // 2
            yield class_id, span[0], span[1] + 2, start, stop


def argmax_resized(planes: np.ndarray, width: int, height: int) -> np.ndarray:
    """uint8 (height, width): argmax over float32 (C, h, w) planes resized to that size; the first of equals wins.

    Same result as resizing every plane as a whole. Where `height` is a multiple of h, a plane is resized only in the
    rows in which its class may win: sky above, road below.
    """
    stride = height // planes.shape[1]
    best = np.full((height, width), -np.inf, np.float32)
    ids, wins = np.zeros((height, width), np.uint8), np.empty((height, width), bool)
    buffer = np.empty((height, width), np.float32)
    for class_id, first, last, start, stop in _bands(planes, height):
        rows = (last - first) * stride if last - first < planes.shape[1] else height
        cv2.resize(planes[class_id, first:last], (width, rows), dst=buffer[:rows], interpolation=cv2.INTER_LINEAR)
        plane, top = buffer[start - first * stride:stop - first * stride], best[start:stop]
        won = wins[start:stop]
        np.greater(plane, top, out=won)
        np.maximum(plane, top, out=top)
        # Class ids only grow along this loop, so a maximum does what a slower masked copy would.
        candidates = np.multiply(won.view(np.uint8), np.uint8(class_id), out=won.view(np.uint8))
        np.maximum(ids[start:stop], candidates, out=ids[start:stop])
    return ids
