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
"""Pixels that stop keep what they have: each step by hand, at every resolution that occurs."""
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from ee_seg_ros.inference.frame import Placement
from ee_seg_ros.inference.outputs import ExitOutput, resized, softmax
from ee_seg_ros.inference.pixels import (
    OnboardMap,
    class_logits,
    classes_before,
    fill_means,
    keep_stopped,
    on_grid,
    refine,
)

RNG = np.random.default_rng(0)


def drawn(*shape):
    return RNG.normal(0, 3, shape).astype(np.float32)


def test_stopped_pixels_keep_the_previous_values():
    previous, logits, stopped = drawn(3, 4, 6), drawn(3, 4, 6), RNG.random((4, 6)) < 0.5
    kept = keep_stopped(previous, logits, stopped)
    np.testing.assert_array_equal(kept[:, stopped], previous[:, stopped])
    np.testing.assert_array_equal(kept[:, ~stopped], logits[:, ~stopped])


@pytest.mark.parametrize('before, now, shape', [((2, 3), (8, 12), (8, 12)), ((8, 12), (2, 3), (8, 12)),
                                                ((2, 3), (2, 3), (4, 6))])
def test_logits_of_any_resolution_meet_at_the_finest(before, now, shape):
    """The map of what has stopped, 4x6, is one of the three."""
    previous, logits, stopped = drawn(2, *before), drawn(2, *now), RNG.random((4, 6)) < 0.5
    kept = keep_stopped(previous, logits, stopped)
    assert kept.shape == (2, *shape)
    for row in range(shape[0]):
        for column in range(shape[1]):
            source = previous if stopped[row * 4 // shape[0], column * 6 // shape[1]] else logits
            for channel in range(2):
                plane = cv2.resize(source[channel], shape[::-1], interpolation=cv2.INTER_LINEAR)
                assert kept[channel, row, column] == plane[row, column]


def test_resized_is_a_copy_even_where_nothing_changes():
    logits = drawn(2, 3, 4)
    same = resized(logits, 3, 4)
    assert not np.shares_memory(same, logits)
    np.testing.assert_array_equal(same, logits)


@pytest.mark.parametrize('shape', [(4, 5), (8, 5), (8, 10), (16, 20), (8, 7), (12, 15), (32, 10)])
def test_planes_are_resized_each_for_itself(shape):
    """Also where all of them are resized at once: those that become smaller by a whole number."""
    logits = drawn(3, 8, 10)
    for source in (logits, drawn(3, 9, 12)[:, 1:, :10]):    # and a view, as a part of the image is
        found = resized(source, *shape)
        assert found.shape == (3, *shape)
        for plane, now in zip(source, found):
            np.testing.assert_allclose(now, cv2.resize(plane, shape[::-1], interpolation=cv2.INTER_LINEAR), atol=1e-6)


def test_what_lies_outside_the_image_has_one_value():
    content = np.array([[False, True, False]])
    assert on_grid(content, (2, 4), True).tolist() == [[False, True, False, True], [True] * 4]
    doubt = on_grid(np.array([[0.5, 1]], np.float32), (1, 3), 0)
    assert doubt.tolist() == [[0.5, 1, 0]] and doubt.dtype == np.float32
    assert on_grid(content, (1, 3), True) is content


@pytest.mark.parametrize('content', [(48, 32), (41, 27), (30, 20)])
@pytest.mark.parametrize('stride, size', [(4, 16), (8, 16), (16, 16), (4, 8), (8, 32)])
def test_logits_of_every_so_manieth_pixel(stride, size, content):
    bundle = SimpleNamespace(width=64, height=32)
    logits = drawn(2, 32 // stride, 64 // stride)
    found = ExitOutput(bundle, None, logits, Placement(*content, *content)).sampled(size)
    assert np.shares_memory(found, logits)
    columns, rows = (range(0, length, size) for length in content)
    for row, top in enumerate(rows):
        for column, left in enumerate(columns):
            np.testing.assert_array_equal(found[:, row, column], logits[:, top // stride, left // stride])
    assert found.shape == (2, len(rows), len(columns))
    np.testing.assert_array_equal(ExitOutput(bundle, None, logits, Placement(64, 32, 64, 32)).sampled(stride // 2),
                                  resized(logits, 64 // stride, 128 // stride))


def test_pixels_of_cells_that_are_not_sent():
    classes = np.zeros((4, 6), np.uint8)
    assert OnboardMap(classes).unsent_pixels is None
    unsent = OnboardMap(classes, np.array([[True, False, True], [False, True, True]])).unsent_pixels
    assert unsent.tolist() == [[False, False, True, True, False, False]] * 2 + [[True, True] + [False] * 4] * 2


def test_the_robots_classes_over_the_content():
    classes = np.arange(24, dtype=np.uint8).reshape(4, 6)
    before = classes_before(OnboardMap(classes), Placement(100, 50, 33, 24))    # 33 pixels reach into a fifth cell
    np.testing.assert_array_equal(before.sampled_classes, classes[:3:2, :5:2])    # every 16th pixel


def test_class_logits_say_the_robots_class_and_little_else():
    classes = np.array([[0, 2], [1, 1]], np.uint8)
    probabilities = softmax(class_logits(OnboardMap(classes), 11))
    np.testing.assert_array_equal(probabilities.argmax(0), classes)
    assert probabilities.max(0).min() > 0.9999 and probabilities.shape == (11, 2, 2)


def test_cells_that_did_not_come_have_the_mean_of_the_robots_class_there():
    """Features of two resolutions: cells of 2x3, and two values per cell in a row; classes on a grid of 4x6."""
    means = np.array([[10, 11], [20, 21], [30, 31]], np.uint8)
    classes = np.array([[0, 0, 1, 1, 2, 2], [0, 0, 1, 1, 2, 2], [2, 1, 0, 0, 1, 1], [2, 2, 0, 0, 1, 1]], np.uint8)
    onboard = OnboardMap(classes, np.array([[False, True, True], [False, False, True]]))
    high, low = (np.full((1, 2, *shape), 99, np.uint8) for shape in ((2, 3), (4, 6)))
    filled = fill_means(high, means, onboard)
    assert filled[0, 0].tolist() == [[10, 99, 99], [30, 10, 99]] and filled.dtype == np.uint8
    assert filled[0, 1].tolist() == [[11, 99, 99], [31, 11, 99]]
    filled = fill_means(low, means, onboard)
    assert filled[0, 0].tolist() == [[10, 10, 99, 99, 99, 99]] * 2 + [[30, 20, 10, 10, 99, 99],
                                                                      [30, 30, 10, 10, 99, 99]]
    assert (high == 99).all() and (low == 99).all()


@pytest.mark.parametrize('width, height, content_width, content_height', [
    (32, 24, 32, 24), (64, 48, 32, 24), (33, 10, 32, 10), (5, 7, 17, 24), (100, 75, 32, 24), (1, 1, 32, 24)])
def test_the_final_mask_takes_each_pixel_from_its_own_side(width, height, content_width, content_height):
    """Masks of any size over an input of 32x24: each pixel looks at the cell of 8x8 in which its corner lies."""
    kept = RNG.random((3, 4)) < 0.5
    onboard, refined = np.zeros((height, width), np.uint8), np.ones((height, width), np.uint8)
    found = refine(onboard, refined, kept, Placement(width, height, content_width, content_height))
    for row in range(height):
        for column in range(width):
            cell = int(row * content_height / height) // 8, int(column * content_width / width) // 8
            assert found[row, column] == (0 if kept[cell] else 1)
    assert found.dtype == np.uint8
