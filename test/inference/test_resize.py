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
"""The banded argmax equals that of planes resized as a whole, on every kind of map and size."""
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest

from ee_seg_ros.inference.resize import _bands, _row_spans, argmax_resized


def smooth_planes(seed, classes, rows, columns):
    """Random planes with large regions, as a network puts out."""
    noise = np.random.default_rng(seed).normal(0, 3, (rows, columns, classes)).astype(np.float32)
    return np.ascontiguousarray(cv2.GaussianBlur(noise, (0, 0), 2.5).transpose(2, 0, 1)) * 6


@pytest.mark.parametrize('seed', range(6))
@pytest.mark.parametrize('rows, columns, width, height', [
    (46, 60, 480, 368), (42, 56, 480, 360), (36, 48, 640, 480), (23, 30, 480, 368), (23, 30, 90, 69),
    (10, 12, 97, 61), (1, 8, 64, 8), (8, 1, 8, 64)])
def test_equals_the_argmax_of_whole_planes(seed, rows, columns, width, height):
    planes = smooth_planes(seed, 11, rows, columns)
    whole = np.stack([cv2.resize(plane, (width, height)) for plane in planes]).argmax(0)
    np.testing.assert_array_equal(argmax_resized(planes, width, height), whole)


def test_the_first_of_equals_wins():
    assert (argmax_resized(np.ones((3, 4, 5), np.float32), 20, 16) == 0).all()


def test_masks_handed_out_are_not_written_to_by_later_calls():
    first = argmax_resized(smooth_planes(0, 5, 23, 30), 480, 368)
    before = first.copy()
    for seed, size in [(1, (480, 368)), (2, (240, 184)), (3, (480, 368))]:
        planes = smooth_planes(seed, 5, 23, 30)
        whole = np.stack([cv2.resize(plane, size) for plane in planes]).argmax(0)
        np.testing.assert_array_equal(argmax_resized(planes, *size), whole)
    np.testing.assert_array_equal(first, before)


def test_threads_do_not_share_what_they_work_on():
    planes = [smooth_planes(seed, 11, 46, 60) for seed in range(8)]
    alone = [argmax_resized(each, 480, 368) for each in planes]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda each: argmax_resized(each, 480, 368), planes * 4))
    for index, mask in enumerate(together):
        np.testing.assert_array_equal(mask, alone[index % 8])


def test_not_a_number_gives_a_mask():
    assert argmax_resized(np.full((3, 4, 5), np.nan, np.float32), 20, 16).shape == (16, 20)


@pytest.mark.parametrize('seed', range(4))
def test_no_row_in_which_a_class_may_win_is_left_out(seed):
    planes = np.random.default_rng(seed).normal(0, 1, (7, 6, 5)).astype(np.float32) * 3
    spans = {class_id: (first, last) for class_id, first, last in _row_spans(planes)}
    corners = np.stack([planes[:, :-1, :-1], planes[:, :-1, 1:], planes[:, 1:, :-1], planes[:, 1:, 1:]])
    able = (corners.max(0) >= corners.min(0).max(0)).any(2)
    assert spans == {class_id: (np.flatnonzero(rows)[0], np.flatnonzero(rows)[-1])
                     for class_id, rows in enumerate(able) if rows.any()}


def test_classes_that_cannot_win_are_not_resized():
    planes = np.zeros((3, 8, 4), np.float32)
    planes[0, :3], planes[1, 3:], planes[2] = 5, 5, -1    # sky above, road below, and one that is nowhere
    bands = list(_bands(planes, 64))
    assert [band[0] for band in bands] == [0, 1]
    assert bands[0][1:] == ((0, 4), (0, 32), (0, 28)) and bands[1][1:] == ((2, 8), (16, 64), (20, 64))
    uneven = list(_bands(planes, 60))    # two rows become 15
    assert uneven[0][1:] == ((0, 4), (0, 30), (0, 26)) and uneven[1][1:] == ((2, 8), (15, 60), (19, 60))
