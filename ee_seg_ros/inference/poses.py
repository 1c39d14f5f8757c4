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
"""Where a camera is on its robot: poses as 4x4 matrices, and chains of transforms that do not move.

Frames are those of REP-103: of a body x forward, y left, z up; of an optical frame, which camera images refer to, z
forward, x right, y down. Metres and radians.
"""
from typing import Optional, Sequence

import numpy as np

# Columns: where the axes of an optical frame point in the body frame of the same camera.
OPTICAL_IN_BODY = np.array([[0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1]], float)


def pose(translation: Sequence[float], rotation: np.ndarray) -> np.ndarray:
    """float64 (4, 4) from a translation (3,) and a rotation matrix (3, 3)."""
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = rotation, translation
    return matrix


def from_angles(translation: Sequence[float], roll: float, pitch: float, yaw: float) -> np.ndarray:
    """float64 (4, 4) of a frame turned about the fixed axes x, y, z by roll, pitch, yaw, as in URDF.

    A positive pitch looks down, a positive yaw to the left.
    """
    (cr, sr), (cp, sp), (cy, sy) = ((np.cos(angle), np.sin(angle)) for angle in (roll, pitch, yaw))
    about_x = np.array([[1, 0, 0], [0, cr, -sr], [0, sr, cr]])
    about_y = np.array([[cp, 0, sp], [0, 1, 0], [-sp, 0, cp]])
    about_z = np.array([[cy, -sy, 0], [sy, cy, 0], [0, 0, 1]])
    return pose(translation, about_z @ about_y @ about_x)


def from_quaternion(translation: Sequence[float], x: float, y: float, z: float, w: float) -> np.ndarray:
    """float64 (4, 4) from a translation and a quaternion, which need not be of length 1. ValueError if it is 0."""
    length = np.sqrt(x * x + y * y + z * z + w * w)
    if not length > 0:
        raise ValueError('a rotation has the quaternion 0, 0, 0, 0: no rotation is 0, 0, 0, 1')
    x, y, z, w = x / length, y / length, z / length, w / length
    return pose(translation, np.array([
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)]]))


class StaticFrames:
    """Frames that do not move against their parents, as `/tf_static` tells of them."""

    def __init__(self):
        self._parents = {}    # frame -> (its parent, its pose there)

    def add(self, frame: str, parent: str, matrix: np.ndarray) -> None:
        """Take in, or replace, the pose (4, 4) of a frame in its parent."""
        self._parents[frame.lstrip('/')] = parent.lstrip('/'), matrix

    def lookup(self, base: str, frame: str) -> Optional[np.ndarray]:
        """The pose float64 (4, 4) of a frame in `base`, or None where no known transforms join the two."""
        of_base, of_frame = self._ancestors(base.lstrip('/')), self._ancestors(frame.lstrip('/'))
        for ancestor, matrix in of_frame.items():
            if ancestor in of_base:
                return np.linalg.inv(of_base[ancestor]) @ matrix
        return None

    def _ancestors(self, frame):
        """Each frame above `frame`, nearest first and itself included -> the pose of `frame` in it."""
        found = {frame: np.eye(4)}
        while frame in self._parents:
            parent, matrix = self._parents[frame]
            if parent in found:    # a loop, which no tree has
                break
            found[parent] = matrix @ found[frame]
            frame = parent
        return found
