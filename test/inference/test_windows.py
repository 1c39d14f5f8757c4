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
"""Windows of maps: the best one is what trying all of them finds; what is cropped is what lies there."""
import cv2
import numpy as np
import pytest

from ee_seg_ros.inference.windows import Window, best_window, bounding_window, grow, means, shrink, whole, widen

CELLS = (4, 6)
WINDOW = Window(1, 3, 2, 6)    # 2x4 cells at the right edge


def numbered(times=1, cells=CELLS):
    """A map (1, 2, H, W) in which no two values are the same, with `times` values per cell in a row."""
    rows, columns = cells
    return np.arange(2 * rows * columns * times ** 2, dtype=np.float32).reshape(1, 2, rows * times, columns * times)


def all_windows(rows, columns):
    return [Window(top, bottom, left, right)
            for top in range(rows) for bottom in range(top + 1, rows + 1)
            for left in range(columns) for right in range(left + 1, columns + 1)]


def test_whole_area_and_size():
    assert whole(CELLS) == Window(0, 4, 0, 6)
    assert (WINDOW.area, WINDOW.size) == (8, (2, 4)) and whole(CELLS).area == 24


@pytest.mark.parametrize('times', [1, 2, 4])
def test_what_is_cropped_is_what_lies_there_at_any_resolution(times):
    array = numbered(times)
    crop = WINDOW.of(array, CELLS)
    assert crop.shape == (1, 2, 2 * times, 4 * times)
    np.testing.assert_array_equal(crop, array[..., times:3 * times, 2 * times:6 * times])
    crop[:] = -1    # it is a view
    inside = grow(np.isin(np.arange(24).reshape(CELLS), [8, 9, 10, 11, 14, 15, 16, 17]), 4 * times, 6 * times)
    assert (array[..., inside] == -1).all() and (array[..., ~inside] >= 0).all()


@pytest.mark.parametrize('window', [WINDOW, Window(0, 4, 0, 6), Window(0, 2, 0, 1), Window(3, 4, 5, 6)])
def test_all_around_a_window_is_set_and_nothing_in_it(window):
    cells, expected = np.zeros(CELLS, bool), np.ones(CELLS, bool)
    window.of(expected, CELLS)[:] = False
    window.fill_around(cells, True)
    np.testing.assert_array_equal(cells, expected)


@pytest.mark.parametrize('halo, expected', [(0, WINDOW), (1, Window(0, 4, 1, 6)), (2, Window(0, 4, 0, 6))])
def test_a_halo_ends_where_the_map_ends(halo, expected):
    assert WINDOW.widened(halo, whole(CELLS)) == expected


def test_a_halo_ends_where_a_window_around_it_ends():
    assert Window(2, 3, 3, 4).widened(1, WINDOW) == Window(1, 3, 2, 5)


@pytest.mark.parametrize('times', [1, 2])
def test_a_window_inside_another_is_cropped_from_its_crop(times):
    inner, array = Window(2, 3, 3, 5), numbered(times)
    place = inner.inside(WINDOW)
    assert place == Window(1, 2, 1, 3) and place.size == inner.size and place.from_inside(WINDOW) == inner
    np.testing.assert_array_equal(place.of(WINDOW.of(array, CELLS), WINDOW.size), inner.of(array, CELLS))


def sum_of(values, window):
    return window.of(values, values.shape).sum(dtype=float)


def largest_sum(values):
    return max(sum_of(values, window) for window in all_windows(*values.shape))


@pytest.mark.parametrize('seed', range(20))
def test_where_doubt_lies_together_the_best_window_is_what_trying_all_of_them_finds(seed):
    rng = np.random.default_rng(seed)
    place, values = all_windows(7, 9)[rng.integers(1260)], np.full((7, 9), -0.2, np.float32)
    place.of(values, values.shape)[:] = rng.uniform(0.01, 0.5, place.size)
    assert best_window(values) == place and sum_of(values, place) == largest_sum(values)


def test_where_it_is_scattered_little_is_missed():
    """And never all of it: wherever a cell is worth it, so is what is found."""
    shares = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        values = cv2.GaussianBlur(rng.normal(0, 0.5, (9, 12)), (0, 0), 1) - rng.uniform(0, 0.2)
        if values.max() > 0:
            shares.append(sum_of(values, best_window(values)) / largest_sum(values))
    assert len(shares) > 50 and np.mean(shares) > 0.93 and min(shares) > 0.4


@pytest.mark.parametrize('seed', range(20))
def test_where_no_cell_costs_anything_the_best_window_is_the_smallest_with_all_of_it(seed):
    """Many zeros, as where pixels have stopped: there is nothing to do, and a larger window costs."""
    rng = np.random.default_rng(seed)
    values = np.where(rng.random((5, 7)) < 0.9, 0, rng.integers(1, 3, (5, 7)) / 4).astype(np.float32)
    assert best_window(values) == (bounding_window(values > 0) if values.any() else None)
    rows = np.flatnonzero(values.any(1))
    if len(rows):    # zeros at the edge are left out, too, where others cost something
        values[np.arange(5) < rows[0]] = -0.1
        assert best_window(values).top >= rows[0]


def test_what_has_stopped_all_around_is_left_out_and_what_lies_between_is_not():
    values = np.zeros((5, 7), np.float32)
    values[1, 2], values[3, 4] = 0.1, 0.2
    assert best_window(values) == Window(1, 4, 2, 5)
    assert best_window(values - 0.025) == Window(3, 4, 4, 5)    # 0.3 - 9 * 0.025 is less than 0.2 - 0.025


@pytest.mark.parametrize('values', [np.zeros((3, 4)), np.full((3, 4), -0.5), np.array([[-1.0]])])
def test_where_no_value_is_above_0_there_is_no_best_window(values):
    assert best_window(values.astype(np.float32)) is None


def test_values_are_left_as_they_are():
    values = np.random.default_rng(0).normal(size=(3, 4))
    before = values.copy()
    best_window(values)
    np.testing.assert_array_equal(values, before)


@pytest.mark.parametrize('seed', range(10))
def test_no_best_window_reaches_where_nothing_is_left(seed):
    """As outside of the window before: what has stopped there has no value, or less where a cell has to be worth it."""
    values = np.zeros(CELLS, np.float32)
    WINDOW.of(values, CELLS)[:] = np.random.default_rng(seed).normal(0.1, 0.3, WINDOW.size)
    for worth in (0.0, 0.05):
        window = best_window(values - worth)
        assert window.widened(0, WINDOW) == window


@pytest.mark.parametrize('cells, expected', [
    ([(2, 3)], Window(2, 3, 3, 4)), ([(0, 5), (3, 1)], Window(0, 4, 1, 6)), ([(1, 2), (1, 4), (2, 3)],
                                                                             Window(1, 3, 2, 5))])
def test_a_bounding_window_touches_the_outermost_cells(cells, expected):
    given = np.zeros(CELLS, bool)
    given[tuple(zip(*cells))] = True
    assert bounding_window(given) == expected


def test_means_of_cells_by_hand():
    pixels = np.array([[0, 1, 2, 2], [1, 2, 2, 2], [0, 0, 4, 0], [0, 0, 0, 0]], np.float32)
    assert means(pixels, (2, 2)).tolist() == [[1, 2], [0, 1]]
    assert means(pixels, (4, 1)).tolist() == [[1.25], [1.75], [1], [0]]
    np.testing.assert_array_equal(means(pixels, (4, 4)), pixels)


def test_grow_and_shrink_by_hand():
    cells = np.array([[True, False, False], [False, False, True]])
    assert grow(cells, 2, 6).tolist() == [[True, True, False, False, False, False],
                                          [False, False, False, False, True, True]]
    assert grow(cells, 4, 3).tolist() == [[True, False, False]] * 2 + [[False, False, True]] * 2
    np.testing.assert_array_equal(shrink(grow(cells, 6, 12), 2, 3), cells)
    pixels = np.zeros((4, 6), bool)
    pixels[3, 2] = True    # one of four is enough
    assert shrink(pixels, 2, 3).tolist() == [[False] * 3, [False, True, False]]


def test_widen_reaches_so_many_values_to_all_sides():
    cells = np.zeros((5, 6), bool)
    cells[1, 4] = True
    for margin, rows, columns in ((0, slice(1, 2), slice(4, 5)), (1, slice(0, 3), slice(3, 6)),
                                  (2, slice(0, 4), slice(2, 6))):
        expected = np.zeros_like(cells)
        expected[rows, columns] = True
        np.testing.assert_array_equal(widen(cells, margin), expected)
    assert np.count_nonzero(cells) == 1
