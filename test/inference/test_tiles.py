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
"""Tiles of maps: what is gathered is what lies there, what is scattered comes to lie there, and nothing else moves."""
import numpy as np
import pytest

from ee_seg_ros.inference.tiles import Tiling, grow, shrink

TILING = Tiling(rows=2, columns=3, height=3, width=4)    # 6x12 cells
ACTIVE = np.array([[False, True, False], [True, False, True]])
PLACES = [(0, 1), (1, 0), (1, 2)]    # row by row


def numbered(channels=2, times=1):
    """A map (1, C, H, W) in which no two values are the same, with `times` values per cell in a row."""
    rows, columns = TILING.cells
    return np.arange(channels * rows * columns * times ** 2, dtype=np.float32).reshape(
        1, channels, rows * times, columns * times)


def at(row, column, times=1):
    """Where a tile lies."""
    return (slice(3 * times * row, 3 * times * (row + 1)), slice(4 * times * column, 4 * times * (column + 1)))


def test_cells_of_a_map():
    assert TILING.cells == (6, 12)


@pytest.mark.parametrize('times', [1, 2, 4])
def test_gathered_tiles_are_what_lies_there_row_by_row(times):
    array = numbered(times=times)
    tiles = TILING.gather(array, ACTIVE)
    assert tiles.shape == (3, 2, 3 * times, 4 * times) and tiles.flags.c_contiguous
    for tile, place in zip(tiles, PLACES):
        np.testing.assert_array_equal(tile, array[0][(slice(None), *at(*place, times))])


@pytest.mark.parametrize('times', [1, 2])
def test_scattered_tiles_come_to_lie_there_and_the_rest_stays(times):
    array = numbered(times=times)[0]
    before, tiles = array.copy(), -1 - TILING.gather(array[None], ACTIVE)
    TILING.scatter(tiles, ACTIVE, array)
    expected = before.copy()
    for place in PLACES:
        inside = (slice(None), *at(*place, times))
        expected[inside] = -1 - before[inside]
    np.testing.assert_array_equal(array, expected)


def test_no_tile_and_all_tiles():
    array = numbered()
    assert TILING.gather(array, np.zeros((2, 3), bool)).shape == (0, 2, 3, 4)
    everything, copy = np.ones((2, 3), bool), np.zeros_like(array[0])
    TILING.scatter(TILING.gather(array, everything), everything, copy)
    np.testing.assert_array_equal(copy, array[0])


def test_a_tile_is_active_as_long_as_more_than_a_share_of_it_goes_on():
    stopped = np.ones((12, 24), bool)    # two values per cell: tiles of 6x8
    stopped[0, 7] = False                # 1 of 48 in tile (0, 0)
    stopped[6:9, 16:20] = False          # 12 of 48 in tile (1, 2)
    assert TILING.active(stopped).tolist() == [[True, False, False], [False, False, True]]
    assert TILING.active(stopped, 1 / 48).tolist() == [[False, False, False], [False, False, True]]
    assert not TILING.active(stopped, 0.25).any()    # not more than a quarter


def test_what_is_left_of_a_tile_that_is_not_worth_it_stops():
    stopped = np.ones((12, 24), bool)
    stopped[0, 7] = stopped[6:9, 16:20] = False
    found = TILING.stop_rest(stopped, 0.1)
    assert found[0, 7] and not found[6:9, 16:20].any()
    assert np.count_nonzero(~found) == 12    # what had stopped in the tile that goes on stays so
    assert not stopped[0, 7]    # the map that was given is left alone
    np.testing.assert_array_equal(TILING.stop_rest(stopped, 0.0), stopped)


def test_grow_and_shrink_by_hand():
    cells = np.array([[True, False, False], [False, False, True]])
    assert grow(cells, 2, 6).tolist() == [[True, True, False, False, False, False],
                                          [False, False, False, False, True, True]]
    assert grow(cells, 4, 3).tolist() == [[True, False, False]] * 2 + [[False, False, True]] * 2
    np.testing.assert_array_equal(shrink(grow(cells, 6, 12), 2, 3), cells)
    pixels = np.zeros((4, 6), bool)
    pixels[3, 2] = True    # one of four is enough
    assert shrink(pixels, 2, 3).tolist() == [[False] * 3, [False, True, False]]
