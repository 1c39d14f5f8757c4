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
"""Between the messages of the node `ground` and numpy arrays."""
from array import array

import numpy as np
from nav_msgs.msg import OccupancyGrid
from sensor_msgs.msg import CameraInfo, Image, PointCloud2, PointField

from ee_seg_ros.nodes.conversions import ImageError, bytes_field, check_image


def pinhole_of(info: CameraInfo):
    """((fx, fy), (cx, cy)) of rectified images, in pixels: from P, or from K where P is empty; None: not calibrated."""
    fx, _, cx, _, _, fy, cy = info.p[:7] if info.p[0] > 0 else (*info.k[:3], 0.0, *info.k[3:6])
    return ((float(fx), float(fy)), (float(cx), float(cy))) if fx > 0 and fy > 0 else None


def mask_pixels(message: Image) -> np.ndarray:
    """The class ids of a mask message as uint8 (height, width). Raises ImageError."""
    if message.encoding != 'mono8':
        raise ImageError('encoding', f'a mask has the encoding {message.encoding!r}: expected mono8, class ids')
    check_image(message)
    size = message.step * message.height
    return np.frombuffer(message.data, np.uint8, size).reshape(message.height, message.step)[:, :message.width]


def grid_message(header, grid: np.ndarray, resolution: float) -> OccupancyGrid:
    """An OccupancyGrid around its frame's origin: int8 (rows along y, columns along x), cells of `resolution` m."""
    message = OccupancyGrid(header=header)
    info, (height, width) = message.info, grid.shape
    info.map_load_time, info.resolution, info.width, info.height = header.stamp, resolution, width, height
    info.origin.position.x, info.origin.position.y = -width / 2 * resolution, -height / 2 * resolution
    message.data = array('b', grid.tobytes())
    return message


def cloud_message(header, points: np.ndarray) -> PointCloud2:
    """An unordered PointCloud2 of float32 points (n, 3): x, y, z."""
    points = np.ascontiguousarray(points, np.float32)
    message = PointCloud2(header=header, height=1, width=len(points), is_dense=True, is_bigendian=False, point_step=12,
                          row_step=12 * len(points))
    message.fields = [PointField(name=name, offset=4 * index, datatype=PointField.FLOAT32, count=1)
                      for index, name in enumerate('xyz')]
    message.data = bytes_field(points.tobytes())
    return message
