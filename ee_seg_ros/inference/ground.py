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
"""From a mask to the ground: where the robot can drive, and where obstacles stand.

The ground is the plane z = 0 of the robot's base frame (REP-103: x forward, y left, z up; metres). A pixel is the ray
of a pinhole camera through its centre, whole numbers being pixel centres as in OpenCV and ROS: images are rectified.
"""
from typing import Sequence

import cv2
import numpy as np

DRIVABLE, OBSTACLE, IGNORED = 0, 1, 2    # what a class means on the ground
FREE, OCCUPIED, UNKNOWN = 0, 100, -1     # values of nav_msgs/OccupancyGrid


def meanings(names: Sequence[str], drivable: Sequence[str], ignored: Sequence[str]) -> np.ndarray:
    """uint8 (256,): what each class id means on the ground; every class that is in neither list is an obstacle.

    names: the classes in the order of their ids; ids without a class, 255 (unlabelled) among them, are IGNORED.
    Raises ValueError that lists the names for one that is not among them, is in both lists, or if nothing is drivable.
    """
    known = f"the classes are {', '.join(names)}"
    for what, given in (('drivable', drivable), ('ignored', ignored)):
        for name in given:
            if name not in names:
                raise ValueError(f'{what} has the class {name!r}, which the bundle does not know: {known}')
    both = set(drivable) & set(ignored)
    if both:
        raise ValueError(f"{', '.join(sorted(both))} cannot be both drivable and ignored")
    if not drivable:
        raise ValueError(f'drivable is empty: name at least one class that the robot can drive on; {known}')
    table = np.full(256, IGNORED, np.uint8)
    for class_id, name in enumerate(names):
        table[class_id] = DRIVABLE if name in drivable else IGNORED if name in ignored else OBSTACLE
    return table


class GroundView:
    """What a camera of fixed calibration and pose sees of the ground; all that no mask changes is computed once.

    focal, centre: (fx, fy), (cx, cy) in pixels of the mask. size: (width, height) of the mask. pose: float64 (4, 4),
    the camera's optical frame in the base frame. reach: metres from the base frame's origin up to which the ground
    counts. resolution: metres of a cell. Raises ValueError if the camera is not above the ground.

    cells: number of cells on each side of the square grid, whose middle is the base frame's origin.
    """

    def __init__(self, focal: tuple, centre: tuple, size: tuple, pose: np.ndarray, reach: float, resolution: float):
        if not pose[2, 3] > 0:
            raise ValueError(f'the camera is {pose[2, 3]:g} m above the ground: expected more than 0')
        # Of an upside-down camera the image is turned by half: then what is lower in it is always nearer.
        self._turned = bool(pose[2, 1] > 0)
        if self._turned:
            centre, pose = (size[0] - 1 - centre[0], size[1] - 1 - centre[1]), pose @ np.diag([-1.0, -1.0, 1.0, 1.0])
        self.focal, self.centre, self.size, self.pose = focal, centre, size, pose
        self.reach, self.resolution = reach, resolution
        self.cells = 2 * int(np.ceil(reach / resolution))
        self._points, self._seen = self._cast()
        # Above this row no pixel shows ground within reach: nothing there is looked at.
        rows = np.flatnonzero(self._seen.any(1))
        self._top = int(rows[0]) if len(rows) else size[1]
        self._points, self._seen = self._points[self._top:], self._seen[self._top:]
        self._visible, self._rows, self._columns = self._look_up()

    @property
    def sees_ground(self) -> bool:
        """Whether any pixel shows ground within reach."""
        return len(self._seen) > 0

    def _cast(self):
        """(float32 (H, W, 2): x, y where each pixel's ray meets the ground; bool (H, W): that it does in reach)."""
        width, height = self.size
        across = (np.arange(width) - self.centre[0]) / self.focal[0]
        down = (np.arange(height) - self.centre[1]) / self.focal[1]
        rays = np.stack([*np.meshgrid(across, down), np.ones((height, width))], 2) @ self.pose[:3, :3].T
        falling = rays[..., 2] < -1e-9    # at the horizon and above it a ray never comes down
        steps = np.divide(-self.pose[2, 3], rays[..., 2], out=np.zeros(falling.shape), where=falling)
        points = self.pose[:2, 3] + steps[..., None] * rays[..., :2]
        seen = falling & (np.hypot(points[..., 0], points[..., 1]) <= self.reach)
        return points.astype(np.float32), seen

    def _look_up(self):
        """(indices into the flat grid of the cells that the camera sees, row from `_top` and column of their pixels).

        From cells to pixels, because far away many cells share one pixel: the other way would leave holes.
        """
        middles = (np.arange(self.cells) + 0.5 - self.cells / 2) * self.resolution
        x, y = (plane.ravel() for plane in np.meshgrid(middles, middles))    # rows of the grid run along y
        from_base = np.linalg.inv(self.pose)
        across, down, ahead = from_base[:3, :2] @ np.stack([x, y]) + from_base[:3, 3:]
        in_front = (ahead > 1e-3) & (np.hypot(x, y) <= self.reach)
        ahead = np.where(in_front, ahead, 1.0)
        columns = np.rint(across / ahead * self.focal[0] + self.centre[0])
        rows = np.rint(down / ahead * self.focal[1] + self.centre[1]) - self._top
        seen = in_front & (columns >= 0) & (columns < self.size[0]) & (rows >= 0) & (rows < len(self._seen))
        return np.flatnonzero(seen), rows[seen].astype(np.intp), columns[seen].astype(np.intp)

    def project(self, mask: np.ndarray, table: np.ndarray) -> tuple:
        """(grid, obstacles, free) of a mask, uint8 (H, W) of class ids; table: `meanings` of the ids.

        grid: int8 (cells, cells) of FREE, OCCUPIED and UNKNOWN; row by row along y, columns along x. obstacles: float32
        (n, 2), x and y where the lowest obstacle pixel of each image column meets the ground: the nearest obstacle
        stands there. Behind it the ground is unknown: what stands up hides it. free: float32 (m, 2), the farthest
        drivable point before that of each image column.
        """
        grid = np.full(self.cells * self.cells, UNKNOWN, np.int8)
        if not self.sees_ground:
            return grid.reshape(self.cells, self.cells), np.empty((0, 2), np.float32), np.empty((0, 2), np.float32)
        if self._turned:
            mask = mask[::-1, ::-1]
        meaning = cv2.LUT(np.ascontiguousarray(mask[self._top:]), table)
        lowest = _last_true((meaning == OBSTACLE) & self._seen)
        drivable = (self._rows > lowest[self._columns]) & (meaning[self._rows, self._columns] == DRIVABLE)
        grid[self._visible[drivable]] = FREE
        standing = np.flatnonzero(lowest >= 0)
        obstacles = self._points[lowest[standing], standing]
        grid[self._cell(obstacles)] = OCCUPIED
        before = np.arange(len(meaning))[:, None] > lowest
        open_ground = (meaning == DRIVABLE) & self._seen & before
        leading = np.flatnonzero(open_ground.any(0))
        free = self._points[open_ground.argmax(0)[leading], leading]
        return grid.reshape(self.cells, self.cells), obstacles, free

    def _cell(self, points):
        """Indices into the flat grid of points (n, 2) within reach."""
        indices = np.floor(points / self.resolution + self.cells / 2).astype(np.intp).clip(0, self.cells - 1)
        return indices[:, 1] * self.cells + indices[:, 0]


def _last_true(planes):
    """intp (W,): the last row of bool (H, W) that is true in each column, -1 where none is."""
    return np.where(planes.any(0), len(planes) - 1 - planes[::-1].argmax(0), -1)
