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
"""The mask on the ground, against geometry computed by hand.

The camera of most tests is 1 m above the ground and looks straight ahead, f = 100 px, centre (50, 40), 101x81 pixels:
row 40 is the horizon, row 40 + k shows the ground 100 / k metres ahead, column 50 + j there is j / k metres to the
right.
"""
import numpy as np
import pytest

from ee_seg_ros.data.scenes import StreetDrive
from ee_seg_ros.data.sources import SceneSource
from ee_seg_ros.inference.ground import FREE, OCCUPIED, UNKNOWN, GroundView, meanings
from ee_seg_ros.inference.poses import OPTICAL_IN_BODY, from_angles

NAMES = ('Sky', 'Road', 'Car')
SKY, ROAD, CAR, UNLABELLED = 0, 1, 2, 255
TABLE = meanings(NAMES, ['Road'], ['Sky'])
WIDTH, HEIGHT = 101, 81


def view(x=0.0, y=0.0, z=1.0, roll=0.0, pitch=0.0, yaw=0.0, reach=10.0, resolution=0.5):
    return GroundView((100.0, 100.0), (50.0, 40.0), (WIDTH, HEIGHT),
                      from_angles((x, y, z), roll, pitch, yaw) @ OPTICAL_IN_BODY, reach, resolution)


def street(*cars):
    """Road below the horizon, sky above it, and cars: (rows, columns)."""
    mask = np.full((HEIGHT, WIDTH), ROAD, np.uint8)
    mask[:41] = SKY
    for rows, columns in cars:
        mask[rows, columns] = CAR
    return mask


def value(grid, x, y, resolution=0.5):
    """The value of the cell that holds a point."""
    half = len(grid) / 2
    return grid[int(np.floor(y / resolution + half)), int(np.floor(x / resolution + half))]


def test_an_obstacle_stands_where_its_lowest_pixel_meets_the_ground():
    # Rows 30 to 60, columns 40 to 60: 100 / 20 = 5 m ahead, from 10 / 20 = 0.5 m on the left to 0.5 m on the right.
    grid, obstacles, _ = view().project(street((slice(30, 61), slice(40, 61))), TABLE)
    np.testing.assert_allclose(obstacles, [[5, (50 - column) / 20] for column in range(40, 61)], rtol=1e-6, atol=1e-7)
    assert obstacles.dtype == np.float32
    assert {value(grid, 5.1, y) for y in (-0.4, 0.1, 0.4)} == {OCCUPIED}
    assert value(grid, 4.4, 0.1) == FREE                                 # before it
    assert value(grid, 7.1, 0.1) == value(grid, 9.1, 0.1) == UNKNOWN     # behind it
    assert value(grid, 8.1, 2.1) == value(grid, 8.1, -2.1) == FREE       # beside it


def test_the_ground_is_known_where_the_camera_sees_it_and_nowhere_else():
    grid, obstacles, free = view().project(street(), TABLE)
    assert grid.shape == (40, 40) and grid.dtype == np.int8 and len(obstacles) == 0
    assert OCCUPIED not in grid
    middles = (np.arange(40) + 0.5 - 20) * 0.5
    x, y = np.meshgrid(middles, middles)
    # The lowest row, 80, is 100 / 40 = 2.5 m ahead; the columns span a half either side of the axis.
    inside = (x > 2.6) & (np.abs(y) < 0.49 * x) & (np.hypot(x, y) < 9.9)
    outside = (x < 2.4) | (np.abs(y) > 0.51 * x) | (np.hypot(x, y) > 10.1)
    assert (grid[inside] == FREE).all() and (grid[outside] == UNKNOWN).all()
    assert inside.sum() > 100
    # The farthest ground within 10 m in the middle column is row 50, exactly 10 m ahead.
    np.testing.assert_allclose(free[50], (10, 0), atol=1e-6)
    assert (np.hypot(*free.T) <= 10.001).all() and len(free) == WIDTH


def test_free_points_end_before_the_obstacle():
    _, _, free = view().project(street((slice(20, 61), slice(50, 51))), TABLE)
    np.testing.assert_allclose(free[50], (100 / 21, 0), rtol=1e-6, atol=1e-7)    # row 61, the one below the car


def test_the_horizon_and_what_is_beyond_reach_make_no_obstacles():
    mask = street((slice(0, 46), slice(None)))    # a wall 20 m away
    grid, obstacles, _ = view().project(mask, TABLE)
    assert len(obstacles) == 0 and OCCUPIED not in grid
    _, obstacles, _ = view(reach=40).project(mask, TABLE)
    np.testing.assert_allclose(obstacles[:, 0], 20, rtol=1e-6)


def test_what_is_ignored_or_unlabelled_is_neither_free_nor_an_obstacle():
    mask = street()
    mask[60:64, :] = UNLABELLED
    mask[75:, :] = SKY
    grid, obstacles, _ = view(resolution=0.1).project(mask, TABLE)
    assert len(obstacles) == 0
    assert value(grid, 100 / 35.5, 0.01, 0.1) == UNKNOWN == value(grid, 100 / 21.5, 0.01, 0.1)
    assert value(grid, 100 / 30, 0.01, 0.1) == FREE == value(grid, 6.01, 0.01, 0.1)


@pytest.mark.parametrize('pitch', [0.2, 0.5])
def test_a_camera_that_looks_down_sees_nearer(pitch):
    """The middle row looks down by the pitch: it meets the ground 1 / tan(pitch) ahead."""
    _, obstacles, _ = view(pitch=pitch).project(street((slice(0, 41), slice(50, 51))), TABLE)
    np.testing.assert_allclose(obstacles, [[1 / np.tan(pitch), 0]], rtol=1e-5, atol=1e-6)


def test_position_and_yaw_move_the_points_along():
    """2 m up, row 60 is 10 m ahead; looking left that is +y; from (1, 3) it ends at (1, 13)."""
    _, obstacles, _ = view(1, 3, 2, yaw=np.pi / 2, reach=20).project(street((slice(0, 61), slice(70, 71))), TABLE)
    np.testing.assert_allclose(obstacles, [[1 + 2, 13]], rtol=1e-6)    # 20 columns right of the middle: 2 m, along +x
    grid, obstacles, _ = view(x=-1, yaw=np.pi).project(street((slice(0, 61), slice(50, 51))), TABLE)
    np.testing.assert_allclose(obstacles, [[-6, 0]], atol=1e-5)    # a camera at the back
    assert value(grid, -4.1, 0.1) == FREE and value(grid, 4.1, 0.1) == UNKNOWN


def test_an_upside_down_camera_sees_the_same():
    mask = street((slice(30, 61), slice(60, 71)))
    expected = view().project(mask, TABLE)
    found = view(roll=np.pi).project(np.ascontiguousarray(mask[::-1, ::-1]), TABLE)
    np.testing.assert_array_equal(found[0], expected[0])
    for points, others in zip(found[1:], expected[1:]):
        np.testing.assert_allclose(points, others, rtol=1e-5, atol=1e-5)


def test_roll_leans_the_horizon():
    """Leaning right by 0.1 rad, the ray of the middle row, j columns to the right, falls by sin(0.1) j / 100."""
    _, obstacles, _ = view(roll=0.1, reach=25).project(street((slice(0, 41), slice(100, 101))), TABLE)
    ahead = 1 / (0.5 * np.sin(0.1))
    np.testing.assert_allclose(obstacles, [[ahead, -ahead * 0.5 * np.cos(0.1)]], rtol=1e-5)


def test_far_cells_have_no_holes():
    """At 9 m a pixel of height covers 0.8 m: cells between two rows are known as well."""
    grid, _, _ = view(resolution=0.05).project(street(), TABLE)
    middles = (np.arange(400) + 0.5 - 200) * 0.05
    row = grid[200]    # along x, just left of the middle
    assert (row[(middles > 2.6) & (middles < 9.9)] == FREE).all()


def test_a_camera_that_sees_no_ground_says_so():
    up = view(pitch=-0.8)
    grid, obstacles, free = up.project(street(), TABLE)
    assert not up.sees_ground and view().sees_ground
    assert (grid == UNKNOWN).all() and obstacles.shape == free.shape == (0, 2)


def test_a_camera_under_the_ground_is_refused():
    for z in (0.0, -0.5, float('nan')):
        with pytest.raises(ValueError, match='above the ground: expected more than 0'):
            view(z=z)


def test_meanings_of_the_classes():
    table = meanings(('Sky', 'Road', 'Pavement', 'Car'), ['Road', 'Pavement'], ['Sky'])
    assert table[:4].tolist() == [2, 0, 0, 1] and set(table[4:]) == {2} and len(table) == 256


@pytest.mark.parametrize('drivable, ignored, says', [
    (['road'], [], "drivable has the class 'road', .*: the classes are Sky, Road, Car"),
    (['Road'], ['Heaven'], "ignored has the class 'Heaven', .*: the classes are Sky, Road, Car"),
    (['Road', 'Car'], ['Car'], 'Car cannot be both drivable and ignored'), ([], ['Sky'], 'drivable is empty')])
def test_wrong_class_names_are_refused_with_the_known_ones(drivable, ignored, says):
    with pytest.raises(ValueError, match=says):
        meanings(NAMES, drivable, ignored)


@pytest.mark.parametrize('seed, side', [(7, 0), (8, 1), (9, 0), (9, 1), (11, 0)])
def test_the_drawn_street_has_its_real_width(seed, side):
    """Of streets that are drawn with a known camera, the edge of the road 12 m ahead, left (0) and right (1)."""
    source, street_ = SceneSource(seed), StreetDrive(seed)
    camera, focal = source.calibration, (source.calibration.focal,) * 2
    table = meanings([f'class {number}' for number in range(11)], ['class 3'], ['class 0'])
    whole = GroundView(focal, camera.centre, (480, 360), from_angles((0, 0, camera.height), 0, 0, 0) @ OPTICAL_IN_BODY,
                       20.0, 0.1)
    middles = (np.arange(whole.cells) + 0.5 - whole.cells / 2) * 0.1
    widths = []
    for index in range(0, 40, 8):
        grid, _, _ = whole.project(source.frame(index).labels, table)
        free = middles[grid[:, whole.cells // 2 + 120] == FREE]
        widths.append(-free.min() if side else free.max())
    # Of what stands on the road some hides the edge, nothing shows road beyond it.
    expected = street_.edge[side] + (-street_.camera.x if side else street_.camera.x)
    assert np.median(widths) == pytest.approx(expected, abs=0.3)
