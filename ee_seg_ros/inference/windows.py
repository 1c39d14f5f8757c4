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
"""Windows of feature maps: later stages run on the rectangle in which most is left to do, not on whole maps."""
from dataclasses import dataclass
from functools import lru_cache
from typing import Optional

import cv2
import numpy as np

_LITTLE = 1e-7    # what each cell costs: of windows with the same sum the smallest is best
HALO = 1    # cells around a window that are run for what lies within, and not used: see docs/criteria.md


@dataclass(frozen=True)
class Window:
    """A rectangle of cells: rows top to bottom and columns left to right, the ends excluded."""

    top: int
    bottom: int
    left: int
    right: int

    @property
    def area(self) -> int:
        """How many cells it has."""
        return (self.bottom - self.top) * (self.right - self.left)

    @property
    def size(self) -> tuple:
        """(rows, columns) of it."""
        return self.bottom - self.top, self.right - self.left

    def of(self, array: np.ndarray, cells: tuple) -> np.ndarray:
        """The view of a map (..., H, W) in this window of a map of (height, width) cells; H, W: multiples of these.

        Of an array, or in training of a tensor.
        """
        rows, columns = array.shape[-2] // cells[0], array.shape[-1] // cells[1]
        return array[..., self.top * rows:self.bottom * rows, self.left * columns:self.right * columns]

    def widened(self, halo: int, within: 'Window') -> 'Window':
        """With `halo` cells around it, as far as they are within another window."""
        return Window(max(self.top - halo, within.top), min(self.bottom + halo, within.bottom),
                      max(self.left - halo, within.left), min(self.right + halo, within.right))

    def inside(self, other: 'Window') -> 'Window':
        """The same cells, counted from the top left of another window."""
        return Window(self.top - other.top, self.bottom - other.top, self.left - other.left, self.right - other.left)


def whole(cells: tuple) -> Window:
    """The window of all of a map of (height, width) cells."""
    return Window(0, cells[0], 0, cells[1])


def bounding_window(cells: np.ndarray) -> Window:
    """The smallest window with all True cells of a bool map (rows, columns), of which there is at least one."""
    rows, columns = (np.flatnonzero(cells.any(axis)) for axis in (1, 0))
    return Window(int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1)


def means(pixels: np.ndarray, cells: tuple) -> np.ndarray:
    """float (rows, columns): the mean of the pixels in each of the cells; pixels: on a finer grid."""
    return cv2.resize(pixels.astype(np.float32, copy=False), cells[::-1], interpolation=cv2.INTER_AREA)


@lru_cache(maxsize=8)
def _pairs(count):
    return np.triu_indices(count, 1)


def best_window(values: np.ndarray) -> Optional[Window]:
    """The smallest window with the largest sum of values, float (rows, columns); None where no sum is above 0.

    The maximum subarray problem in two dimensions: for all pairs of rows at once the best run of columns between them
    (Kadane's algorithm; Bentley, "Programming pearls", Communications of the ACM 27(9), 1984).
    """
    worth = values > _LITTLE
    left, top, columns, rows = cv2.boundingRect(worth.view(np.uint8))    # cells around only cost
    box = Window(top, top + rows, left, left + columns)
    if box.area == 0:
        return None
    values = box.of(values, values.shape)
    if values.min() >= 0:    # no cell costs anything: nothing to search for
        return box
    tops, bottoms = _pairs(rows + 1)
    above = cv2.integral(np.subtract(values, _LITTLE, dtype=float))
    before = above.take(bottoms, 0)
    before -= above.take(tops, 0)    # (pairs, columns + 1): sums from the left
    sums = before[:, 1:] - np.minimum.accumulate(before[:, :-1], 1)
    pair, last = divmod(int(sums.argmax()), columns)
    return Window(top + int(tops[pair]), top + int(bottoms[pair]),
                  left + int(before[pair, :last + 1].argmin()), left + last + 1)


def grow(cells: np.ndarray, height: int, width: int) -> np.ndarray:
    """A bool map at a finer resolution, (height, width): a whole number of values per value of `cells`."""
    return cells.repeat(height // cells.shape[0], 0).repeat(width // cells.shape[1], 1)


def shrink(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """A bool map at a coarser resolution, (height, width): True where any of the values that fall together is."""
    rows, columns = pixels.shape[0] // height, pixels.shape[1] // width
    return np.asarray(pixels.reshape(height, rows, width, columns).any((1, 3)))


def widen(cells: np.ndarray, margin: int) -> np.ndarray:
    """A bool map in which also what lies up to `margin` values beside a True one is True, diagonals included."""
    return cells if margin == 0 else cv2.dilate(cells.astype(np.uint8), None, iterations=margin).astype(bool)
