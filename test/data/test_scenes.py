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
"""Tests of the procedural street scenes."""

import numpy as np
import pytest

from ee_seg_ros.data.scenes import Scene, StreetDrive

SKY, ROAD = 0, 3


@pytest.fixture(scope='module')
def samples():
    """Frames of several drives, 12 frames apart so that they reach easy and hard stretches."""
    return [StreetDrive(seed).frame(index) for seed in range(4) for index in range(0, 108, 12)]


def assert_equal(a, b):
    """Two scenes are the same, pixel for pixel."""
    np.testing.assert_array_equal(a.image, b.image)
    np.testing.assert_array_equal(a.labels, b.labels)
    assert a.hard == b.hard


def test_frame_has_the_promised_shapes_and_types():
    scene = StreetDrive().frame(0)
    assert isinstance(scene, Scene)
    assert scene.image.shape == (360, 480, 3) and scene.image.dtype == np.uint8
    assert scene.labels.shape == (360, 480) and scene.labels.dtype == np.uint8
    assert isinstance(scene.hard, bool)


def test_frame_depends_on_seed_and_index_alone():
    assert_equal(StreetDrive(7).frame(33), StreetDrive(7).frame(33))


def test_random_access_equals_sequential_access():
    sequential = StreetDrive(3, 240, 180)
    frames = [sequential.frame(index) for index in range(45)]
    jumping = StreetDrive(3, 240, 180)
    for index in (44, 0, 31, 17):
        assert_equal(jumping.frame(index), frames[index])


def test_seeds_and_frames_differ():
    a, b, later = StreetDrive(0).frame(5), StreetDrive(1).frame(5), StreetDrive(0).frame(6)
    for other in (b, later):
        assert not np.array_equal(a.image, other.image)
        assert not np.array_equal(a.labels, other.labels)


def test_neighbouring_frames_move_little():
    drive = StreetDrive(2)
    same = np.mean(drive.frame(50).labels == drive.frame(51).labels)
    unrelated = np.mean(drive.frame(50).labels == StreetDrive(9).frame(51).labels)
    assert same > 0.85 > unrelated


def test_all_classes_occur_and_no_others(samples):
    seen = np.bincount(np.concatenate([scene.labels.ravel() for scene in samples]), minlength=11)
    assert len(seen) == 11
    assert seen.min() > 0


def test_a_third_of_a_long_drive_is_hard():
    drive = StreetDrive(5, 64, 48)
    hard = np.array([drive.frame(index).hard for index in range(0, 900, 3)])
    assert 0.25 < hard.mean() < 0.42
    stretches = 1 + np.count_nonzero(hard[1:] != hard[:-1])
    assert stretches < 30  # it does not flicker


def test_hard_frames_are_noisier(samples):
    def noise(scene):  # what differs between neighbours on the flat road in front of the car
        patch = scene.image[-20:, 200:280].astype(float)
        return np.abs(np.diff(patch, axis=1)).mean() / patch.mean()

    hard = [noise(scene) for scene in samples if scene.hard]
    easy = [noise(scene) for scene in samples if not scene.hard]
    assert np.mean(hard) > 1.5 * np.mean(easy)


def test_labels_lie_where_a_street_has_them(samples):
    labels = np.stack([scene.labels for scene in samples])
    assert not np.any(labels[:, 300:] == SKY)
    assert not np.any(labels[:, :120] == ROAD)
    assert np.mean(labels[:, -5:, 215:265] == ROAD) > 0.9


def test_labels_agree_with_the_picture(samples):
    # A border in the labels is a border in the picture: brightness changes more across it than elsewhere.
    for scene in samples:
        if scene.hard:
            continue  # noise hides the borders
        grey = scene.image.astype(float).mean(2)
        step, border = np.abs(np.diff(grey, axis=1)), np.diff(scene.labels, axis=1) != 0
        assert step[border].mean() > 2 * step[~border].mean()


@pytest.mark.parametrize('width, height', [(97, 61), (64, 48), (120, 320), (641, 200), (33, 17)])
def test_any_size_works(width, height):
    scene = StreetDrive(4, width, height).frame(70)
    assert scene.image.shape == (height, width, 3)
    assert scene.labels.shape == (height, width)
    assert scene.labels.max() <= 10


def test_scale_does_not_change_the_view():
    small, large = StreetDrive(6, 240, 180).frame(12), StreetDrive(6, 480, 360).frame(12)
    assert np.mean(small.labels == large.labels[1::2, 1::2]) > 0.9
