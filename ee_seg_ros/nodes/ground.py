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
"""The node `ground`: from a mask, the camera's calibration and its pose to drivable ground and obstacles, for Nav2.

For robots without a depth camera that is aligned with the image. Takes a mask (`ee_seg/final_mask`; remap it to take
another) and `ee_seg/camera_info`, or the camera's own. Publishes in the robot's base frame, with the mask's stamp:
`~/grid` (static layer), `~/obstacles` (obstacle layer) and `~/free` (the same, for clearing).
"""
import threading
import time

import numpy as np
from nav_msgs.msg import OccupancyGrid
from rclpy.node import Node
from sensor_msgs.msg import CameraInfo, Image, PointCloud2
from std_msgs.msg import Header

from ee_seg_ros.inference.bundle import Bundle, BundleError
from ee_seg_ros.inference.ground import GroundView, meanings
from ee_seg_ros.inference.poses import OPTICAL_IN_BODY, StaticFrames, from_angles, from_quaternion
from ee_seg_ros.nodes.conversions import ImageError, scaled_camera_info
from ee_seg_ros.nodes.diagnostics import OK, WARN, Diagnostics, Finding
from ee_seg_ros.nodes.ground_messages import cloud_message, grid_message, mask_pixels, pinhole_of
from ee_seg_ros.nodes.lifecycle import Notices
from ee_seg_ros.nodes.outputs import wanted
from ee_seg_ros.nodes.parameters import GROUND, ParameterError, declare
from ee_seg_ros.nodes.qos import IMAGE, LATCHED, LATCHED_BY_SEVERAL, MASK, overridable
from ee_seg_ros.nodes.running import run

QUIET_S = 2.0    # without a mask for so long, diagnostics warn


class Waiting(Exception):
    """What is missing for the ground of a mask, and what to do about it."""


class Ground(Node):
    """Projects each mask in the executor as it comes: with everything precomputed that takes a millisecond or two."""

    def __init__(self):
        super().__init__('ground')
        self.done = threading.Event()
        self.values = declare(self, GROUND)
        self.notices = Notices(self.get_logger())
        self._info, self._view, self._seen_from = None, None, None
        self._frames = StaticFrames()
        self._last_mask, self._problem, self._refused, self._projected = time.monotonic(), '', 0, 0

    def start(self) -> None:
        """Read the class names, then subscribe. Raises ParameterError."""
        values = self.values
        try:
            bundle = Bundle.load(values['bundle'])
            self._meanings = meanings([info.name for info in bundle.classes], values['drivable'], values['ignored'])
        except (BundleError, ValueError) as error:
            raise ParameterError(str(error)) from None
        if values['pose'] == 'tf':
            self._listen_to_tf()
        elif not values['camera_z'] > 0:
            raise ParameterError("pose is 'parameters' and camera_z is 0: give the camera's height above the ground")
        self._grid = self.create_publisher(OccupancyGrid, '~/grid', **overridable(LATCHED))
        self._obstacles = self.create_publisher(PointCloud2, '~/obstacles', **overridable(MASK))
        self._free = self.create_publisher(PointCloud2, '~/free', **overridable(MASK))
        self._infos = self.create_subscription(CameraInfo, 'ee_seg/camera_info', self._on_info, **overridable(IMAGE))
        self._masks = self.create_subscription(Image, 'ee_seg/final_mask', self._on_mask, **overridable(MASK))
        self._diagnostics = Diagnostics(self, (), lambda: {'': self._examine()})
        self._diagnostics.setHardwareID(f'{bundle.name} {bundle.fingerprint}')

    def stop(self) -> None:
        """Nothing to put away."""

    def _listen_to_tf(self):
        try:
            from tf2_msgs.msg import TFMessage
        except ImportError:
            raise ParameterError("pose is 'tf', but tf2_msgs is not installed: install ros-DISTRO-tf2-msgs, or give "
                                 'pose:=parameters with camera_x to camera_yaw') from None
        self.create_subscription(TFMessage, '/tf_static', self._on_tf, LATCHED_BY_SEVERAL)

    def _on_tf(self, message):
        for transform in message.transforms:
            place, turn = transform.transform.translation, transform.transform.rotation
            try:
                matrix = from_quaternion((place.x, place.y, place.z), turn.x, turn.y, turn.z, turn.w)
            except ValueError as error:
                self.notices.warn(('tf', transform.child_frame_id), f'/tf_static: {transform.child_frame_id}: {error}')
                continue
            self._frames.add(transform.child_frame_id, transform.header.frame_id, matrix)

    def _on_info(self, message):
        self._info = message

    def _on_mask(self, message):
        self._last_mask = time.monotonic()
        try:
            mask = mask_pixels(message)
            view = self._view_of(message)
        except ImageError as error:
            self._refused += 1
            self._problem = 'masks are refused: see the log'
            self.notices.error(error.kind, f'mask refused: {error} (further ones are counted in /diagnostics)')
            return
        except (Waiting, ValueError) as error:
            self._problem = str(error)
            self.notices.warn(self._problem, f'{error}; nothing is published until then')
            return
        self._problem = ''
        self._projected += 1
        self._publish(message.header.stamp, view, *view.project(mask, self._meanings))

    def _publish(self, stamp, view, grid, obstacles, free):
        header = Header(stamp=stamp, frame_id=self.values['base_frame'])
        self._grid.publish(grid_message(header, grid, view.resolution))
        for publisher, points in ((self._obstacles, obstacles), (self._free, free)):
            if wanted(publisher):
                heights = np.full((len(points), 1), self.values['point_height'], np.float32)
                publisher.publish(cloud_message(header, np.hstack([points, heights])))

    def _view_of(self, message):
        """The GroundView of a mask's size, the camera's calibration and pose. Raises Waiting or ValueError."""
        if self._info is None:
            raise Waiting(f'no camera_info on {self._infos.topic_name}: check that the camera publishes it, and remap '
                          'the topic if it has another name')
        info = scaled_camera_info(self._info, message.header, message.width, message.height)
        pinhole, pose = pinhole_of(info), self._pose(message.header.frame_id)
        if pinhole is None:
            raise Waiting(f'{self._infos.topic_name} comes from a camera that is not calibrated (its K and P are 0): '
                          'calibrate it, for example with camera_calibration')
        seen_from = (pinhole, message.width, message.height, pose.tobytes())
        if seen_from != self._seen_from:
            self._view = GroundView(*pinhole, (message.width, message.height), pose, self.values['reach'],
                                    self.values['resolution'])
            self._seen_from = seen_from
            if not self._view.sees_ground:
                self.notices.warn(seen_from, f"the camera sees no ground within {self.values['reach']:g} m: check its "
                                             'pose')
        return self._view

    def _pose(self, frame):
        """The pose of the camera's optical frame in the base frame. Raises Waiting."""
        values = self.values
        if values['pose'] == 'parameters':
            place = values['camera_x'], values['camera_y'], values['camera_z']
            return from_angles(place, values['camera_roll'], values['camera_pitch'],
                               values['camera_yaw']) @ OPTICAL_IN_BODY
        pose = self._frames.lookup(values['base_frame'], frame)
        if pose is None:
            raise Waiting(f"/tf_static does not join {values['base_frame']} and {frame}, the frame_id of the mask: "
                          'publish it (robot_state_publisher, static_transform_publisher), or give pose:=parameters')
        return pose

    def _examine(self):
        values = {'masks': self._projected, 'refused': self._refused}
        if time.monotonic() - self._last_mask > QUIET_S:
            return Finding(WARN, f'no masks on {self._masks.topic_name}', values)
        return Finding(WARN, self._problem, values) if self._problem else Finding(OK, 'working', values)


def main(args=None) -> int:
    """Run the node until it is told to stop; the exit status of the process."""
    return run(Ground, 'ground', args)
