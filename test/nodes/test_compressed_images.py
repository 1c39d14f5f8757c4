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
"""Compressed images to arrays, where their topic is, and that a camera makes none for nobody."""
import io

import cv2
import numpy as np
import pytest

rclpy = pytest.importorskip('rclpy', reason='needs ROS 2: source a distribution, or install its wheels')

from sensor_msgs.msg import CompressedImage  # noqa: E402
from std_msgs.msg import Header  # noqa: E402

from ee_seg_ros.nodes import camera  # noqa: E402
from ee_seg_ros.nodes.conversions import (  # noqa: E402
    ImageError,
    check_image,
    compressed_message,
    compressed_topic,
    jpeg_message,
    to_rgb,
)
from ee_seg_ros.nodes.qos import IMAGE  # noqa: E402

RGB = np.random.default_rng(2).integers(0, 256, (6, 9, 3), np.uint8)


def png(pixels, format_='rgb8; png compressed bgr8'):
    return compressed_message(Header(), memoryview(cv2.imencode('.png', pixels)[1]), format_)


@pytest.mark.parametrize('message, expected', [
    (png(RGB[..., ::-1]), RGB),
    (png(RGB[..., ::-1], 'png'), RGB),
    (png(RGB[..., ::-1], 'bgr8; png compressed bgr8'), RGB),
    (png(RGB, 'rgb8; png compressed rgb8'), RGB),    # red and blue stored in each other's place
    (png(RGB[..., 0], 'mono8; png compressed '), np.dstack([RGB[..., 0]] * 3)),
    (png(np.dstack([RGB[..., ::-1], np.full((6, 9), 99, np.uint8)]), 'bgra8; png compressed bgra8'), RGB),
    (png(RGB[..., ::-1].astype(np.uint16) * 257, 'rgb16; png compressed bgr16'), RGB),
], ids=['as image_transport', 'bare', 'bgr', 'swapped', 'grey', 'alpha', '16 bits'])
def test_pixels_come_out_as_rgb(message, expected):
    found = to_rgb(message)
    assert found.dtype == np.uint8 and found.flags.c_contiguous
    np.testing.assert_array_equal(found, expected)


def test_a_picture_that_says_that_it_is_turned_stays_as_stored():
    image = pytest.importorskip('PIL.Image')
    exif = image.Exif()
    exif[0x0112] = 6    # a quarter turn
    file = io.BytesIO()
    image.fromarray(RGB).save(file, 'JPEG', exif=exif)
    assert to_rgb(compressed_message(Header(), file.getvalue(), 'jpeg')).shape == RGB.shape


def test_jpeg_comes_back_nearly_the_same():
    smooth = np.dstack([np.tile(np.linspace(0, 255, 64), (48, 1))] * 3).astype(np.uint8)
    assert np.abs(to_rgb(jpeg_message(Header(), smooth, 95)).astype(int) - smooth).max() <= 3


@pytest.mark.parametrize('data, kind', [
    (b'', 'empty'), (b'GIF89a..', 'encoding'), (bytes(12) + b'\x89PNG\r\n\x1a\n', 'encoding'),
    (bytes(jpeg_message(Header(), RGB).data)[:-60], 'truncated')])
def test_what_is_no_whole_file_is_seen_before_it_is_decoded(data, kind):
    with pytest.raises(ImageError) as caught:
        check_image(CompressedImage(format='jpeg', data=data))
    assert caught.value.kind == kind


@pytest.mark.parametrize('cut', [slice(0, 20), slice(0, -30)])
def test_a_damaged_file_is_refused_when_it_is_decoded(cut):
    broken = CompressedImage(format='png', data=bytes(png(RGB).data)[cut])
    check_image(broken)
    with pytest.raises(ImageError, match='cannot be decoded') as caught:
        to_rgb(broken)
    assert caught.value.kind == 'damaged'


@pytest.fixture
def world():
    context = rclpy.Context()

    def node(*rules):
        rclpy.init(context=context, args=['--ros-args', *rules])
        return rclpy.create_node('eye', namespace='/robot', context=context)
    yield node
    rclpy.shutdown(context=context)


@pytest.mark.parametrize('rules, topic', [
    ((), '/robot/image/compressed'),
    (('-r', 'image:=/camera/image_raw'), '/camera/image_raw/compressed'),
    (('-r', 'image/compressed:=/jpegs'), '/jpegs')])
def test_remapping_the_image_remaps_the_compressed_one(world, rules, topic):
    node = world(*rules)
    publisher = node.create_publisher(CompressedImage, compressed_topic(node, 'image'), 1)
    assert publisher.topic_name == topic
    node.destroy_node()


def test_the_camera_compresses_nothing_for_nobody(monkeypatch):
    made = []
    monkeypatch.setattr(camera, 'jpeg_message', lambda *arguments: made.append(jpeg_message(*arguments)) or made[-1])
    rclpy.init(args=['--ros-args', '-r', '__ns:=/lazy', '-p', 'wait_for:=0', '-p', 'rate:=1000.0'])
    node = camera.Camera()
    node.start()
    while node._published < 3:
        rclpy.spin_once(node, timeout_sec=1.0)
    assert not made
    came = []
    node.create_subscription(CompressedImage, 'image/compressed', came.append, IMAGE)
    for _ in range(200):
        rclpy.spin_once(node, timeout_sec=1.0)
        if came:
            break
    assert made and came
    node.stop()
    node.destroy_node()
    rclpy.shutdown()
