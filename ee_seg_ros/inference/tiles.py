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
"""Tiles of feature maps: what is not settled is gathered into a batch, later stages run on that alone."""
from dataclasses import dataclass

import cv2
import numpy as np

# A quarter of the tiles takes a third of the time of whole maps (`ee_seg bench criteria`), all of them would take more.
# Above this share of active tiles whole maps are run.
DENSE_ABOVE = 0.75


@dataclass(frozen=True)
class Tiling:
    """How maps are cut: into rows x columns tiles of height x width cells each, with no halo.

    A cell is a value of the coarsest map behind the first exit; finer maps have a whole number of values per cell.
    """

    rows: int
    columns: int
    height: int
    width: int

    @property
    def cells(self) -> tuple:
        """(height, width) of a map in cells."""
        return self.rows * self.height, self.columns * self.width

    def gather(self, array: np.ndarray, active: np.ndarray) -> np.ndarray:
        """The active tiles of a map (1, C, H, W) as a batch (n, C, h, w), row by row; active: bool (rows, columns)."""
        rows, columns = np.nonzero(active)
        return np.ascontiguousarray(self._blocks(array[0])[:, rows, :, columns, :])

    def scatter(self, tiles: np.ndarray, active: np.ndarray, array: np.ndarray) -> None:
        """Write tiles, as `gather` gives them, into a map (C, H, W), in place; the rest of it stays as it is."""
        rows, columns = np.nonzero(active)
        self._blocks(array)[:, rows, :, columns, :] = tiles

    def active(self, stopped: np.ndarray, share: float = 0.0) -> np.ndarray:
        """bool (rows, columns): tiles of which more than a share (0..1) has not stopped; stopped: bool, on the grid."""
        return self._blocks(~stopped[None])[0].mean((1, 3)) > share

    def stop_rest(self, stopped: np.ndarray, share: float) -> np.ndarray:
        """`stopped` with all pixels of those tiles that are not `active`: a few unsure pixels are not worth a tile."""
        return stopped | ~grow(self.active(stopped, share), *stopped.shape)

    def _blocks(self, array):
        """A view (C, rows, h, columns, w) of a contiguous map (C, H, W)."""
        channels, height, width = array.shape
        return array.reshape(channels, self.rows, height // self.rows, self.columns, width // self.columns)


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
