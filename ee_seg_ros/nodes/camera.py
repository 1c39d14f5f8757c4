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
"""The node `camera`: publishes street scenes, a folder of images or a video as `image` and `camera_info`.

And as `image/compressed` (JPEG) while somebody subscribes to that.
Of the scenes it knows the camera: they come calibrated and, where tf2_msgs is installed, with its pose on /tf_static.
"""
import json
import threading
import time
from pathlib import Path

from geometry_msgs.msg import TransformStamped
from rclpy.node import Node
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import Header

from ee_seg_ros.data.sources import open_source
from ee_seg_ros.nodes.conversions import (
    camera_info_message,
    compressed_topic,
    image_message,
    jpeg_message,
    stamp_ns,
)
from ee_seg_ros.nodes.outputs import wanted
from ee_seg_ros.nodes.parameters import CAMERA, ParameterError, declare
from ee_seg_ros.nodes.qos import IMAGE, LATCHED_BY_SEVERAL, overridable
from ee_seg_ros.nodes.running import run

# A subscriber that this side knows of may need a moment longer to know this side; and shared memory that holds the last
# image goes away with the process. Best effort has no sign for either.
MATCH_S, LINGER_S = 0.3, 0.5
JPEG_QUALITY = 95    # image_transport's default


class Camera(Node):
    """Publishes one image per period, prepared one ahead so that it leaves on time."""

    def __init__(self):
        super().__init__('camera')
        self.done = threading.Event()
        self.values = declare(self, CAMERA)
        self._log = self._next = None
        self._published = self._index = 0
        self._left_out = set()

    def start(self) -> None:
        """Open the source, prepare the first image, then wait for subscribers. Raises ParameterError."""
        values = self.values
        try:
            self._source = open_source(values['source'], values['seed'], values['distort'])
        except (OSError, ValueError) as error:
            raise ParameterError(str(error)) from None
        self._prepare()
        if self._next is None:
            raise ParameterError(f"source {values['source']} has no image that can be read")
        if values['log']:
            try:
                Path(values['log']).parent.mkdir(parents=True, exist_ok=True)
                self._log = open(values['log'], 'w', encoding='utf-8')
            except OSError as error:
                raise ParameterError(f"log {values['log']} cannot be written: {error.strerror}") from None
        self._image = self.create_publisher(Image, 'image', **overridable(IMAGE))
        self._compressed = self.create_publisher(CompressedImage, compressed_topic(self, 'image'), **overridable(IMAGE))
        self._info = self.create_publisher(CameraInfo, 'camera_info', **overridable(IMAGE))
        self._calibration = getattr(self._source, 'calibration', None)
        if self._calibration is not None:
            self._tell_pose()
        self._matched_at = None
        self._timer = self.create_timer(0.05, self._wait)

    def stop(self) -> None:
        """Close the log."""
        if self._log is not None:
            self._log.close()
            self._log = None

    def _tell_pose(self):
        """The pose of a calibrated camera above the ground, for the node `ground`."""
        try:
            from tf2_msgs.msg import TFMessage
        except ImportError:
            return
        transform = TransformStamped(header=Header(frame_id='base_footprint'), child_frame_id=self.values['frame_id'])
        transform.transform.translation.z = self._calibration.height
        turn = transform.transform.rotation    # of an optical frame that looks straight ahead
        turn.x, turn.y, turn.z, turn.w = -0.5, 0.5, -0.5, 0.5
        self._poses = self.create_publisher(TFMessage, '/tf_static', LATCHED_BY_SEVERAL)
        self._poses.publish(TFMessage(transforms=[transform]))

    def _wait(self):
        now = time.monotonic()
        subscribers = self._image.get_subscription_count() + self._compressed.get_subscription_count()
        if subscribers < self.values['wait_for']:
            self._matched_at = None
            return
        self._matched_at = self._matched_at or now
        if self.values['wait_for'] and now - self._matched_at < MATCH_S:
            return
        self.destroy_timer(self._timer)
        self._timer = self.create_timer(1 / self.values['rate'], self._tick)
        self._tick()

    def _prepare(self):
        """Read the next image that can be read, or None at the end."""
        self._next = None
        if self.values['frames'] and self._published >= self.values['frames']:
            return
        for _ in range((self._source.count or 0) + 1):
            if self._source.count is not None and self._index >= self._source.count:
                if not self.values['loop']:
                    return
                self._index = 0
            index = self._index
            self._index += 1
            try:
                self._next = index, self._source.frame(index)
                return
            except IndexError:    # a video that is shorter than it had promised; its count is right now
                continue
            except (OSError, ValueError) as error:
                if index not in self._left_out:
                    self._left_out.add(index)
                    self.get_logger().error(f'{error}: left out')

    def _tick(self):
        if self._next is None:
            self.destroy_timer(self._timer)
            self._timer = self.create_timer(LINGER_S, self.done.set)
            return
        index, frame = self._next
        header = Header(stamp=self.get_clock().now().to_msg(), frame_id=self.values['frame_id'])
        height, width = frame.image.shape[:2]
        self._image.publish(image_message(header, frame.image, 'rgb8'))
        if wanted(self._compressed):
            self._compressed.publish(jpeg_message(header, frame.image, JPEG_QUALITY))
        self._info.publish(camera_info_message(header, width, height, self._calibration))
        if self._log is not None:
            self._log.write(json.dumps({'index': index, 'name': frame.name, 'stamp': stamp_ns(header)}) + '\n')
            self._log.flush()
        self._published += 1
        self._prepare()


def main(args=None) -> int:
    """Run the camera until its source is out; the exit status of the process."""
    return run(Camera, 'camera', args)
