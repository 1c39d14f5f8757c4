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
import math

import numpy as np
import pytest

from ee_seg_ros.evaluation.metrics import confusion, iou, mean_iou, percentiles


def test_confusion_of_hand_counted_pixels():
    labels = np.array([[0, 0, 1], [1, 2, 255]], np.uint8)
    mask = np.array([[0, 1, 1], [1, 0, 2]], np.uint8)
    assert confusion(labels, mask, 3).tolist() == [[1, 1, 0, 0], [0, 2, 0, 0], [1, 0, 0, 0]]


def test_iou_of_hand_counted_pixels():
    labels = np.array([[0, 0, 1], [1, 2, 255]], np.uint8)
    mask = np.array([[0, 1, 1], [1, 0, 2]], np.uint8)
    matrix = confusion(labels, mask, 3)
    # Class 0: 1 hit of 2 labelled and 2 given; class 1: 2 hits of 2 and 3; class 2: no hit of 1 labelled.
    assert iou(matrix).tolist() == pytest.approx([1 / 3, 2 / 3, 0])
    assert mean_iou(matrix) == pytest.approx(1 / 3)


def test_unlabelled_pixels_and_label_ids_beyond_the_classes_do_not_count():
    labels = np.array([[0, 255, 11]], np.uint8)
    assert mean_iou(confusion(labels, np.array([[0, 1, 1]], np.uint8), 2)) == 1


def test_a_class_that_no_label_has_is_left_out_but_its_pixels_are_missed_elsewhere():
    labels = np.zeros((1, 4), np.uint8)
    matrix = confusion(labels, np.array([[0, 0, 0, 1]], np.uint8), 2)
    values = iou(matrix)
    assert values[0] == 0.75 and math.isnan(values[1])
    assert mean_iou(matrix) == 0.75


def test_a_pixel_without_a_class_is_missed_not_ignored():
    labels = np.zeros((1, 2), np.uint8)
    matrix = confusion(labels, np.array([[0, 255]], np.uint8), 2)
    assert matrix.tolist() == [[1, 0, 1], [0, 0, 0]]
    assert mean_iou(matrix) == 0.5


def test_a_mask_of_another_size_is_measured_at_the_size_of_the_labels():
    labels = np.repeat(np.repeat(np.array([[0, 1], [1, 0]], np.uint8), 2, 0), 2, 1)
    matrix = confusion(labels, np.array([[0, 1], [1, 0]], np.uint8), 2)
    assert matrix.sum() == 16 and mean_iou(matrix) == 1


def test_matrices_of_several_images_add_up():
    first = confusion(np.zeros((1, 4), np.uint8), np.zeros((1, 4), np.uint8), 2)
    second = confusion(np.ones((1, 2), np.uint8), np.zeros((1, 2), np.uint8), 2)
    assert iou(first + second).tolist() == pytest.approx([4 / 6, 0])


def test_nothing_labelled_has_no_mean():
    assert math.isnan(mean_iou(confusion(np.full((2, 2), 255, np.uint8), np.zeros((2, 2), np.uint8), 2)))


def test_percentiles():
    assert percentiles(list(range(101))) == {'p50': 50, 'p95': 95}
    assert percentiles([3.0]) == {'p50': 3, 'p95': 3}
