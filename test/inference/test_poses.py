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
"""Poses by hand: REP-103 axes, quaternions, chains of static transforms."""
import numpy as np
import pytest

from ee_seg_ros.inference.poses import OPTICAL_IN_BODY, StaticFrames, from_angles, from_quaternion, pose

QUARTER = np.pi / 2
HALF = np.sqrt(0.5)


def moved(matrix, *point):
    """A point (x, y, z) of a frame, in its parent."""
    return (matrix @ [*point, 1])[:3]


@pytest.mark.parametrize('optical, body', [((0, 0, 2), (2, 0, 0)), ((1, 0, 0), (0, -1, 0)), ((0, 1, 0), (0, 0, -1))])
def test_optical_axes_are_those_of_rep_103(optical, body):
    """Ahead of the lens is forward, right is minus left, down is minus up."""
    np.testing.assert_allclose(moved(OPTICAL_IN_BODY, *optical), body)


@pytest.mark.parametrize('angles, forward, left', [
    ((0, 0, 0), (1, 0, 0), (0, 1, 0)),
    ((QUARTER, 0, 0), (1, 0, 0), (0, 0, 1)),                # leans to the right: its left is up
    ((0, QUARTER, 0), (0, 0, -1), (0, 1, 0)),               # looks down
    ((0, 0, QUARTER), (0, 1, 0), (-1, 0, 0)),               # looks to the left
    ((0, QUARTER, QUARTER), (0, 0, -1), (-1, 0, 0)),        # tilted first, then turned about the upright axis
])
def test_angles_turn_as_in_urdf(angles, forward, left):
    matrix = from_angles((3, 4, 5), *angles)
    np.testing.assert_allclose(moved(matrix, 1, 0, 0) - (3, 4, 5), forward, atol=1e-12)
    np.testing.assert_allclose(moved(matrix, 0, 1, 0) - (3, 4, 5), left, atol=1e-12)


@pytest.mark.parametrize('quaternion, angles', [
    ((0, 0, 0, 1), (0, 0, 0)), ((HALF, 0, 0, HALF), (QUARTER, 0, 0)), ((0, HALF, 0, HALF), (0, QUARTER, 0)),
    ((0, 0, 2, 2), (0, 0, QUARTER)), ((0.5, -0.5, 0.5, -0.5), (-QUARTER, 0, -QUARTER))])
def test_quaternions_say_what_angles_say(quaternion, angles):
    """The last one is the rotation of optical frames that every camera's URDF has, the one before is not normalised."""
    np.testing.assert_allclose(from_quaternion((1, 2, 3), *quaternion), from_angles((1, 2, 3), *angles), atol=1e-12)


def test_the_rotation_of_optical_frames_is_that_of_urdf():
    np.testing.assert_allclose(from_angles((0, 0, 0), -QUARTER, 0, -QUARTER), OPTICAL_IN_BODY, atol=1e-12)


def test_no_rotation_is_not_four_zeros():
    with pytest.raises(ValueError, match='quaternion 0, 0, 0, 0'):
        from_quaternion((0, 0, 0), 0, 0, 0, 0)


def test_static_frames_are_followed_up_and_down():
    """base_footprint -> base_link (0.1 up) -> mast (turned left) -> camera (2 ahead of the mast)."""
    frames = StaticFrames()
    frames.add('camera', 'mast', pose((2, 0, 0), np.eye(3)))
    frames.add('/mast', 'base_link', from_angles((0, 0, 1), 0, 0, QUARTER))
    frames.add('base_link', 'base_footprint', pose((0, 0, 0.1), np.eye(3)))
    np.testing.assert_allclose(moved(frames.lookup('base_footprint', 'camera'), 0, 0, 0), (0, 2, 1.1), atol=1e-12)
    np.testing.assert_allclose(moved(frames.lookup('base_link', '/camera'), 1, 0, 0), (0, 3, 1), atol=1e-12)
    np.testing.assert_allclose(moved(frames.lookup('camera', 'base_link'), 0, 2, 1), (0, 0, 0), atol=1e-12)
    np.testing.assert_allclose(frames.lookup('mast', 'mast'), np.eye(4))
    frames.add('wheel', 'base_link', pose((0, 1, 0), np.eye(3)))
    np.testing.assert_allclose(moved(frames.lookup('wheel', 'camera'), 0, 0, 0), (0, 1, 1), atol=1e-12)


def test_frames_that_nothing_joins_have_no_pose():
    frames = StaticFrames()
    frames.add('camera', 'gimbal', np.eye(4))
    frames.add('base_link', 'base_footprint', np.eye(4))
    assert frames.lookup('base_link', 'camera') is None
    frames.add('gimbal', 'camera', np.eye(4))    # a loop
    assert frames.lookup('base_link', 'camera') is None
