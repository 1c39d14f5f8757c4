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
from typing import NamedTuple, Optional

import cv2
import numpy as np

_LITTLE = 1e-7    # sums of what has stopped are not exactly 0
HALO = 1    # cells around a window that are run for what lies within, and not used: see docs/criteria.md


class Window(NamedTuple):
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

    def crop(self, array: np.ndarray) -> np.ndarray:
        """The view of an array (..., rows, columns) with one value per cell in this window, as far as it reaches."""
        return array[..., self.top:self.bottom, self.left:self.right]

    def fill_around(self, cells: np.ndarray, value) -> None:
        """Set what lies outside of this window, of an array with one value per cell."""
        cells[:self.top] = cells[self.bottom:] = value
        cells[:, :self.left] = cells[:, self.right:] = value

    def widened(self, halo: int, within: 'Window') -> 'Window':
        """With `halo` cells around it, as far as they are within another window."""
        return Window(max(self.top - halo, within.top), min(self.bottom + halo, within.bottom),
                      max(self.left - halo, within.left), min(self.right + halo, within.right))

    def from_inside(self, other: 'Window') -> 'Window':
        """The same cells, where this window is counted from the top left of another one: undoes `inside`."""
        return Window(self.top + other.top, self.bottom + other.top, self.left + other.left, self.right + other.left)

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
    """float (rows, columns): the mean of the pixels in each of the cells; pixels: on a finer grid, or one per cell."""
    if pixels.shape == tuple(cells):
        return pixels
    return cv2.resize(pixels.astype(np.float32, copy=False), cells[::-1], interpolation=cv2.INTER_AREA)


def _best_run(values):
    """(first, end, sum) of the run of 1-D values with the largest sum (Kadane's algorithm); of several a short one."""
    best, total, start, first, end, place = -np.inf, 0.0, 0, 0, 0, 0
    for value in values.tolist():    # a dozen calls of numpy take longer
        if total > 0:
            total += value
        else:
            total, start = value, place
        place += 1
        if total > best:
            best, first, end = total, start, place
    return first, end, best


def _climb(values, left, right):
    """(window, its sum): the best rows for these columns, the best columns for those rows, and the best rows again."""
    ones = np.ones(max(values.shape), values.dtype)    # sums as products: half of the time of sum()
    top, bottom, _ = _best_run(values[:, left:right] @ ones[left:right])
    first, end, found = _best_run(ones[top:bottom] @ values[top:bottom])
    if (first, end) != (left, right):
        top, bottom, found = _best_run(values[:, first:end] @ ones[first:end])
    return Window(top, bottom, first, end), found


def best_window(values: np.ndarray) -> Optional[Window]:
    """A small window with a large sum of values, float (rows, columns); None where no value is above 0.

    The maximum subarray problem in two dimensions (Bentley, "Programming pearls", Communications of the ACM 27(9),
    1984), climbed by turns of rows and columns: from all columns, and from the largest value where that finds less than
    half of all that there is. On frames of a drive that is nearly always the largest sum, on scattered values a little
    less; a search that cannot miss it takes several times as long.
    """
    least, most, _, (column, _) = cv2.minMaxLoc(values)
    if most <= _LITTLE:
        return None
    if least >= 0:    # no cell costs anything
        left, top, columns, rows = cv2.boundingRect((values > _LITTLE).view(np.uint8))
        return Window(top, top + rows, left, left + columns)
    window, found = _climb(values, 0, values.shape[1])
    if 4 * found < cv2.norm(values, cv2.NORM_L1) + cv2.sumElems(values)[0]:    # twice the sum of what is above 0
        other, its = _climb(values, column, column + 1)
        if its > found:
            return other
    return window


def grow(cells: np.ndarray, height: int, width: int) -> np.ndarray:
    """A bool map at a finer resolution, (height, width): a whole number of values per value of `cells`."""
    return cv2.resize(cells.view(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST).view(bool)


def shrink(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """A bool map at a coarser resolution, (height, width): True where any of the values that fall together is."""
    rows, columns = pixels.shape[0] // height, pixels.shape[1] // width
    return np.asarray(pixels.reshape(height, rows, width, columns).any((1, 3)))


def widen(cells: np.ndarray, margin: int) -> np.ndarray:
    """A bool map in which also what lies up to `margin` values beside a True one is True, diagonals included."""
    return cells if margin == 0 else cv2.dilate(cells.astype(np.uint8), None, iterations=margin).astype(bool)
