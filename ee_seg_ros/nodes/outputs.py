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
"""What the onboard node publishes; what nobody subscribes to is not computed."""
import cv2
import numpy as np
from diagnostic_msgs.msg import DiagnosticArray
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from ee_seg_ros.inference.bundle import Bundle
from ee_seg_ros.nodes.conversions import image_message, jpeg_message, scaled_camera_info
from ee_seg_ros.nodes.diagnostics import OK, status_array
from ee_seg_ros.nodes.final_masks import Frame
from ee_seg_ros.nodes.qos import IMAGE, LATCHED, MASK, TRACE, overridable

try:
    from vision_msgs.msg import LabelInfo, VisionClass
except ImportError:
    LabelInfo = None

UNLABELLED = 255


def wanted(publisher) -> bool:
    """Whether anybody listens."""
    return publisher.get_subscription_count() > 0


class Outputs:
    """The publishers of the onboard node, all but the features."""

    def __init__(self, node, bundle: Bundle):
        self._node, self._bundle = node, bundle
        self._publishers = []

        def publisher(type_, topic, qos):
            self._publishers.append(node.create_publisher(type_, topic, **overridable(qos)))
            return self._publishers[-1]

        self._mask = publisher(Image, '~/mask', MASK)
        self._final_mask = publisher(Image, '~/final_mask', MASK)
        self._confidence = publisher(Image, '~/confidence', MASK)
        self._final_confidence = publisher(Image, '~/final_confidence', MASK)
        self._color = publisher(Image, '~/color', MASK)
        self._final_color = publisher(Image, '~/final_color', MASK)
        self._overlay = publisher(Image, '~/overlay', MASK)
        self._overlay_jpeg = publisher(CompressedImage, '~/overlay/compressed', MASK)
        self._camera_info = publisher(CameraInfo, '~/camera_info', MASK)
        self._trace = publisher(DiagnosticArray, '~/trace', TRACE)
        self._label_info = publisher(LabelInfo, '~/label_info', LATCHED) if LabelInfo else None
        if LabelInfo is None:
            node.notices.warn('labels', 'vision_msgs is not installed: ~/label_info is off (Nav2 needs it: install '
                                        'ros-DISTRO-vision-msgs)')

        self._calibration = self._calibrations = None

    def close(self) -> None:
        """Take all topics away."""
        self._follow_calibration(False)
        for publisher in self._publishers:
            self._node.destroy_publisher(publisher)

    def publish_labels(self) -> None:
        """Publish the class names, latched."""
        if self._label_info is not None:
            message = LabelInfo()
            message.header.stamp = self._node.get_clock().now().to_msg()
            message.class_map = [VisionClass(class_id=number, class_name=info.name)
                                 for number, info in enumerate(self._bundle.classes)]
            self._label_info.publish(message)

    def look(self) -> None:
        """See whether anybody wants the calibration; from the executor, some times a second."""
        self._follow_calibration(wanted(self._camera_info))

    def _follow_calibration(self, follow):
        """Subscribe to camera_info, or stop: each message keeps the executor from the frame that came with it."""
        if follow and self._calibrations is None:
            self._calibrations = self._node.create_subscription(CameraInfo, 'camera_info', self._on_camera_info,
                                                                **overridable(IMAGE))
        elif not follow and self._calibrations is not None:
            self._node.destroy_subscription(self._calibrations)
            self._calibration = self._calibrations = None

    def _on_camera_info(self, message):
        self._calibration = message

    def publish_mask(self, frame: Frame) -> None:
        """Publish the onboard mask of a frame, and the camera's last calibration scaled to its size."""
        self._mask.publish(frame.mask)
        calibration = self._calibration
        if calibration is not None:
            self._camera_info.publish(scaled_camera_info(calibration, frame.header, frame.mask.width,
                                                         frame.mask.height))

    def publish_pictures(self, frame: Frame, image: np.ndarray) -> None:
        """Confidence, colour mask and overlays of a frame; image: its uint8 (H, W, 3) RGB pixels."""
        width, height, header = frame.mask.width, frame.mask.height, frame.header
        if wanted(self._confidence):
            self._confidence.publish(image_message(header, confidence_of(frame.output, width, height), 'mono8'))
        overlays = wanted(self._overlay), wanted(self._overlay_jpeg)
        if not (any(overlays) or wanted(self._color)):
            return
        color = self._bundle.palette[ids_of(frame.mask)]
        if wanted(self._color):
            self._color.publish(image_message(header, color, 'rgb8'))
        if any(overlays):
            if image.shape[:2] != (height, width):
                image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
            blend = cv2.addWeighted(image, 0.5, color, 0.5, 0)
            if overlays[0]:
                self._overlay.publish(image_message(header, blend, 'rgb8'))
            if overlays[1]:
                self._overlay_jpeg.publish(jpeg_message(header, blend))

    @property
    def final_confidence_wanted(self) -> bool:
        """Whether anybody listens to the confidence of final masks."""
        return wanted(self._final_confidence)

    def publish_final(self, frame: Frame, mask, confidence) -> None:
        """Publish a final mask with its confidence (None: not wanted) and the frame's trace.

        mask: the message of the onboard mask, or a refined mask as uint8 (H, W).
        """
        self._final_mask.publish(mask if isinstance(mask, Image) else image_message(frame.header, mask, 'mono8'))
        if wanted(self._final_color):
            ids = ids_of(mask) if isinstance(mask, Image) else mask
            self._final_color.publish(image_message(frame.header, self._bundle.palette[ids], 'rgb8'))
        if confidence is not None:
            self._final_confidence.publish(image_message(frame.header, confidence, 'mono8'))
        self._trace.publish(status_array(frame.header.stamp, frame.header.frame_id, OK,
                                         self._node.get_fully_qualified_name()[1:], frame.trace['final_source'],
                                         frame.trace))


def ids_of(mask: Image) -> np.ndarray:
    """The class ids of a mask that this node made, uint8 (H, W), as a view of the message's data."""
    return np.frombuffer(mask.data, np.uint8).reshape(mask.height, mask.width)


def confidence_of(output, width: int, height: int) -> np.ndarray:
    """Confidence of an ExitOutput as uint8 (height, width); zeros where segmentation failed (None)."""
    return np.zeros((height, width), np.uint8) if output is None else output.confidence(width, height)


def output_size(width: int, height: int, wanted_width: int, wanted_height: int) -> tuple:
    """Size (width, height) of the masks of an image: its own where 0 is wanted; its shape is kept if one is given."""
    if wanted_width and wanted_height:
        return wanted_width, wanted_height
    if wanted_width:
        return wanted_width, max(1, round(height * wanted_width / width))
    if wanted_height:
        return max(1, round(width * wanted_height / height)), wanted_height
    return width, height
