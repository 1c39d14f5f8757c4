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
"""What others rely on, topic by topic: rviz, Nav2's semantic costmap layer, and whoever else subscribes.

`test_pair.py` has what the masks show and that they are the right ones; `test_ground_node.py` the node `ground`.
"""
import numpy as np
import pytest
from harness import NodeProcess, header_of, pixels, scene
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy, qos_profile_sensor_data
from sensor_msgs.msg import CameraInfo, Image

WIDTH, HEIGHT = 240, 180
MASKS = ('ee_seg/mask', 'ee_seg/final_mask')
CONFIDENCES = ('ee_seg/confidence', 'ee_seg/final_confidence')
# As the semantic costmap layer asks for labels.
LATCHED = QoSProfile(depth=5, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL)


@pytest.fixture(scope='module')
def onboard(need, start, peer):
    """The onboard node, all of the network in it, so that final masks differ from onboard ones."""
    process = start('onboard', criterion='never', finish='onboard', deadline_ms=50000)
    peer.listen_to_masks()
    peer.wait_for_onboard()
    return process


@pytest.fixture(autouse=True)
def as_configured(onboard, peer):
    peer.set(output_width=0, output_height=0)
    yield
    assert onboard.running and 'Traceback' not in onboard.text, onboard.text


def show_until_all_came(peer, topics, **named):
    """Show images until one has its message on every topic; its stamp. The first may be ahead of new connections."""
    complete = set()
    for index in range(50):
        stamp = peer.segment(scene(index, WIDTH, HEIGHT), **named)
        peer.finals([stamp])
        complete = set.intersection(*(set(peer.stamps(topic)) for topic in topics))
        if complete:
            return complete.pop()
    raise AssertionError(f'not all of {topics} come')


@pytest.mark.parametrize('reliability', [ReliabilityPolicy.BEST_EFFORT, ReliabilityPolicy.RELIABLE],
                         ids=['best effort', 'reliable'])
def test_subscribers_of_both_kinds_receive(peer, reliability):
    """The costmap layer subscribes best effort with a depth of 50, rviz reliable with 5."""
    topics = (*MASKS, *CONFIDENCES, 'ee_seg/color')
    received = {topic: [] for topic in topics}
    profile = QoSProfile(depth=50, reliability=reliability)
    subscriptions = [peer.node.create_subscription(Image, topic, received[topic].append, profile) for topic in topics]

    def segment_one():
        peer.finals([peer.segment(scene(1, WIDTH, HEIGHT))])
        return all(received.values())
    try:
        assert any(segment_one() for _ in range(50)), {topic: len(messages) for topic, messages in received.items()}
    finally:
        for subscription in subscriptions:
            peer.node.destroy_subscription(subscription)


def test_what_the_costmap_layer_puts_together_fits_together(peer, bundle):
    """Mask and confidence: mono8, step = width, one size, the camera's stamp and frame_id, ids that have a label."""
    subscriptions = peer.listen(Image, *CONFIDENCES)
    try:
        stamp = show_until_all_came(peer, (*MASKS, *CONFIDENCES), frame_id='left_eye')
    finally:
        for subscription in subscriptions:
            peer.node.destroy_subscription(subscription)
    for topic in (*MASKS, *CONFIDENCES):
        message = peer.message(topic, stamp)
        assert message.header == header_of(stamp, 'left_eye'), topic
        assert (message.encoding, message.width, message.height) == ('mono8', WIDTH, HEIGHT), topic
        assert message.step == WIDTH and len(message.data) == WIDTH * HEIGHT and not message.is_bigendian, topic
    for topic in MASKS:
        assert set(np.unique(pixels(peer.message(topic, stamp)))) <= {*range(len(bundle.classes)), 255}, topic
    assert pixels(peer.message('ee_seg/confidence', stamp)).max() > 128


def test_a_late_joiner_gets_the_labels(peer, bundle, need):
    need('vision_msgs')
    from vision_msgs.msg import LabelInfo
    peer.finals([peer.segment(scene(2, WIDTH, HEIGHT))])    # the node has long been at work
    subscription, = peer.listen(LabelInfo, 'ee_seg/label_info', qos=LATCHED)
    try:
        peer.wait(lambda: peer.received['ee_seg/label_info'], 'the labels')
    finally:
        peer.node.destroy_subscription(subscription)
    message, = peer.received['ee_seg/label_info']
    assert [(info.class_id, info.class_name) for info in message.class_map] == [
        (number, info.name) for number, info in enumerate(bundle.classes)]


def calibration(stamp):
    """A camera of 480x360 whose driver publishes images of half that size."""
    return CameraInfo(header=header_of(stamp), width=480, height=360, distortion_model='plumb_bob',
                      d=[0.1, -0.2, 0.0, 0.0, 0.0], k=[400.0, 0.0, 240.0, 0.0, 420.0, 180.0, 0.0, 0.0, 1.0],
                      r=[1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0],
                      p=[380.0, 0.0, 236.0, -40.0, 0.0, 390.0, 172.0, 0.0, 0.0, 0.0, 1.0, 0.0],
                      binning_x=2, binning_y=2)


@pytest.mark.parametrize('size', [(0, 0), (60, 0), (96, 60)])
def test_camera_info_is_that_of_the_masks(peer, size):
    """Same size, stamp and frame_id as the masks, K and P scaled with them; rectification and distortion untouched."""
    peer.set(output_width=size[0], output_height=size[1])
    width, height = {(0, 0): (WIDTH, HEIGHT), (60, 0): (60, 45)}.get(size, size)
    infos = peer.node.create_publisher(CameraInfo, 'camera_info', qos_profile_sensor_data)
    subscription, = peer.listen(CameraInfo, 'ee_seg/camera_info')
    try:
        peer.wait(lambda: infos.get_subscription_count() > 0, 'the subscription of camera_info')

        def both_came():
            infos.publish(calibration(peer.stamp))
            stamp = peer.segment(scene(3, WIDTH, HEIGHT), frame_id='left_eye')
            peer.finals([stamp])
            return stamp in peer.stamps('ee_seg/camera_info')
        assert any(both_came() for _ in range(50)), 'camera_info did not come'
    finally:
        peer.node.destroy_subscription(subscription)
        peer.node.destroy_publisher(infos)
    info = peer.received['ee_seg/camera_info'][-1]
    stamp = peer.stamps('ee_seg/camera_info')[-1]
    for topic in MASKS:
        mask = peer.message(topic, stamp)
        assert (mask.width, mask.height) == (info.width, info.height) == (width, height), topic
    assert info.header == header_of(stamp, 'left_eye') and info.binning_x == info.roi.width == 0
    across, down, sent = width / 480, height / 360, calibration(stamp)
    np.testing.assert_allclose(info.k, [400 * across, 0, 240 * across, 0, 420 * down, 180 * down, 0, 0, 1])
    np.testing.assert_allclose(info.p, [380 * across, 0, 236 * across, -40 * across, 0, 390 * down, 172 * down, 0,
                                        0, 0, 1, 0])
    assert (list(info.d), info.r.tolist(), info.distortion_model) == (list(sent.d), sent.r.tolist(), 'plumb_bob')


def test_one_final_mask_per_frame_in_stamp_order_when_images_come_in_a_burst(peer):
    """Images that overwrite each other get no mask at all; every frame that gets one gets both, in the order taken."""
    shown = [peer.show(scene(index, WIDTH, HEIGHT)) for index in range(12)]
    last = peer.segment(scene(12, WIDTH, HEIGHT))
    peer.wait(lambda: last in peer.stamps('ee_seg/mask'), 'the mask of the last image')
    peer.finals(peer.stamps('ee_seg/mask'))
    masks, finals = peer.stamps('ee_seg/mask'), peer.stamps('ee_seg/final_mask')
    assert masks == finals == sorted(set(masks)) and set(masks) <= {*shown, last}


def test_without_vision_msgs_the_node_works_and_says_once_that_labels_are_off(peer, namespace, tmp_path, monkeypatch):
    (tmp_path / 'vision_msgs').mkdir()
    (tmp_path / 'vision_msgs' / '__init__.py').write_text("raise ImportError('hidden by a test')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv('PYTHONPATH', str(tmp_path), prepend=':')
    node = NodeProcess(tmp_path / 'log', 'onboard', f'{namespace}/bare', threads=1, criterion='always')
    subscription, = peer.listen(Image, 'bare/ee_seg/final_mask')
    images = peer.node.create_publisher(Image, 'bare/image', qos_profile_sensor_data)
    try:
        peer.wait(lambda: images.get_subscription_count() > 0, 'the node without labels')
        published = peer.images
        peer.images = images
        peer.send_until_heard(lambda: peer.show(scene(4, WIDTH, HEIGHT)), 'bare/ee_seg/final_mask')
        assert not any(topic.endswith('bare/ee_seg/label_info') for topic, _ in peer.node.get_topic_names_and_types())
    finally:
        peer.images = published
        peer.node.destroy_subscription(subscription)
        peer.node.destroy_publisher(images)
        node.end()
        node.clean_up()
    assert node.text.count('vision_msgs is not installed: ~/label_info is off') == 1, node.text
