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
"""Compressed images, as image_transport has them, from a camera to masks."""
import cv2
import numpy as np
import pytest
from harness import header_of, pixels, scene
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import CompressedImage

from ee_seg_ros.nodes.conversions import compressed_message, jpeg_message, stamp_ns


@pytest.fixture(scope='module')
def onboard(start, peer):
    process = start('onboard', image_transport='compressed', criterion='always')
    peer.listen_to_masks()
    peer.compressed = peer.node.create_publisher(CompressedImage, 'image/compressed', qos_profile_sensor_data)
    peer.wait(lambda: peer.compressed.get_subscription_count() > 0 and 'ee_seg' in peer.diagnostics
              and peer.node.count_publishers('ee_seg/final_mask') > 0, 'the onboard node')
    return process


def show(peer, encode, image):
    """Publish an image as `encode` makes it; its stamp."""
    peer.stamp += 100_000_000
    header = header_of(peer.stamp, 'right_eye')
    peer.compressed.publish(encode(header, image))
    return peer.stamp


def png(header, image):
    return compressed_message(header, memoryview(cv2.imencode('.png', image[..., ::-1])[1]), 'png')


@pytest.mark.parametrize('encode', [png, jpeg_message])
def test_masks_are_those_of_the_picture(onboard, peer, engine, encode):
    image = scene(3)
    peer.send_until_heard(lambda: show(peer, encode, image), 'ee_seg/mask')
    stamp = peer.stamps('ee_seg/mask')[-1]
    peer.finals([stamp])
    if encode is jpeg_message:
        data = np.frombuffer(encode(header_of(1), image).data, np.uint8)
        image = np.ascontiguousarray(cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1])
    expected = engine.segment(image, 'always').output.mask(240, 180)
    for topic in ('ee_seg/mask', 'ee_seg/final_mask', 'ee_seg/trace'):
        assert peer.message(topic, stamp).header == header_of(stamp, 'right_eye')
    assert (pixels(peer.message('ee_seg/mask', stamp)) == expected).mean() > 0.999
    assert peer.node.count_subscribers('image') == 0    # raw images would cost the network what these save


def test_what_cannot_be_decoded_is_counted_and_the_node_goes_on(onboard, peer):
    image, whole = scene(4), png(header_of(1), scene(4)).data.tobytes()
    jpeg = jpeg_message(header_of(1), image).data.tobytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0x55
    bad = {b'': 'an empty compressed image came', b'BM no such thing': 'neither JPEG nor PNG',
           jpeg[:len(jpeg) // 2]: 'has no end: it was truncated', whole[:len(whole) // 2]: 'cannot be decoded',
           bytes(flipped): 'cannot be decoded'}
    for number, data in enumerate(bad):
        show(peer, lambda header, _, data=data: compressed_message(header, data, 'jpeg'), None)
        peer.wait_for_diagnosis('ee_seg: camera', 'bad_images', str(number + 1))
        peer.finals([show(peer, png, image)])
    assert len(peer.received['ee_seg/mask']) == len(bad)
    for hint in bad.values():
        assert onboard.text.count(hint) == 1
    assert onboard.running and 'Traceback' not in onboard.text, onboard.text


def test_the_camera_node_compresses_for_those_who_ask(start, onboard, peer):
    came = []
    peer.node.create_subscription(CompressedImage, 'image/compressed', came.append, qos_profile_sensor_data)
    camera = start('camera', frames=3, rate=2.0, wait_for=2, frame_id='front', seed=5)
    assert camera.wait() == 0, camera.text
    peer.wait(lambda: len(came) == len(peer.received['ee_seg/final_mask']) == 3, 'the masks of three compressed images')
    assert [stamp_ns(message.header) for message in came] == peer.stamps('ee_seg/final_mask')
    assert {message.header.frame_id for message in peer.received['ee_seg/final_mask']} == {'front'}
    assert {message.format for message in came} == {'rgb8; jpeg compressed bgr8'}
