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
"""Argmax of class planes that are resized bilinearly, without resizing what cannot win."""
import math
import threading

import cv2
import numpy as np

_kept = threading.local()


def _row_spans(planes):
    """(class id, first row of cells in which it may win, last one), for each class that may win anywhere.

    A cell lies between four neighbouring values. What bilinear interpolation makes of them is convex, so a class whose
    largest corner is below another's smallest loses everywhere in the cell.
    """
    top, bottom = planes[:, :-1], planes[:, 1:]
    low, high = np.minimum(top, bottom), np.maximum(top, bottom)
    floor = np.minimum(low[..., :-1], low[..., 1:]).max(0)
    # A column of values belongs to the cells on its left and right: a class may win where it reaches either's floor.
    reach = np.full(high.shape[1:], np.inf, np.float32)
    reach[:, :-1] = floor
    np.minimum(reach[:, 1:], floor, out=reach[:, 1:])
    rows = (high >= reach).any(2)
    first, last = rows.argmax(1).tolist(), (rows.shape[1] - 1 - rows[:, ::-1].argmax(1)).tolist()
    return [(class_id, first[class_id], last[class_id]) for class_id in np.flatnonzero(rows.any(1)).tolist()]


def _bands(planes, height):
    """(class id, rows of the plane, rows of the output that these become, those of them to compare), each (first, end).

    Rows of the plane are cut where both they and those of the output are whole, so that a part is resized as it would
    be within the whole: anywhere if `height` is a multiple of them, every 7th row where 42 rows become 360.
    """
    count = planes.shape[1]
    if count < 2 or planes.shape[2] < 2:
        return [(class_id, (0, count), (0, height), (0, height)) for class_id in range(len(planes))]
    parts = math.gcd(count, height)
    cut, become = count // parts, height // parts
    bands = []
    for class_id, first, last in _row_spans(planes):
        begin, end = first // cut, -(-(last + 2) // cut)
        # Rows of the output whose centres lie in these cells; those beyond the outermost values belong to them.
        start = 0 if first == 0 else -(-((2 * first + 1) * height - count) // (2 * count))
        stop = height if last == count - 2 else ((2 * last + 3) * height - count) // (2 * count) + 1
        bands.append((class_id, (begin * cut, end * cut), (begin * become, end * become), (start, stop)))
    return bands


def _buffers(height, width):
    """Two float32 and a uint8 (height, width) array, kept for the next call of this thread.

    Fresh arrays of this size may be fresh memory, whose page faults cost as much as the work.
    """
    if getattr(_kept, 'shape', None) != (height, width):
        _kept.shape = (height, width)
        _kept.arrays = tuple(np.empty(_kept.shape, kind) for kind in (np.float32, np.float32, np.uint8))
    return _kept.arrays


def argmax_resized(planes: np.ndarray, width: int, height: int) -> np.ndarray:
    """uint8 (height, width): argmax over float32 (C, h, w) planes resized to that size; the first of equals wins.

    Same result as resizing every plane as a whole (but for rounding, where `height` is no multiple of h). A plane is
    resized only in the rows in which its class may win: sky above, road below.
    """
    bands = _bands(planes, height)
    best, buffer, wins = _buffers(height, width)
    first_id = bands[0][0] if bands else 0    # no bands: all is NaN
    cv2.resize(planes[first_id], (width, height), dst=best, interpolation=cv2.INTER_LINEAR)
    ids = np.full((height, width), first_id, np.uint8)
    for class_id, (first, end), (begin, finish), (start, stop) in bands[1:]:
        rows = finish - begin
        cv2.resize(planes[class_id, first:end], (width, rows), dst=buffer[:rows], interpolation=cv2.INTER_LINEAR)
        plane, top, won = buffer[start - begin:stop - begin], best[start:stop], wins[start:stop]
        cv2.compare(plane, top, cv2.CMP_GT, dst=won)
        cv2.max(plane, top, dst=top)
        # Class ids only grow along this loop, so a maximum does what a slower masked copy would.
        np.bitwise_and(won, np.uint8(class_id), out=won)
        np.maximum(ids[start:stop], won, out=ids[start:stop])
    return ids
