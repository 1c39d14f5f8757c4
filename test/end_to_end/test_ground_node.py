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
"""The node `ground`: masks, calibration and pose in, grid and points in metres out, against geometry by hand.

The camera is that of test/inference/test_ground.py: f = 100 px, centre (50, 40), 101x81 pixels, 1 m up: row 40 + k of a
camera that looks straight ahead is 100 / k metres away.
"""
import numpy as np
import pytest
from harness import NodeProcess, Peer, header_of, pixels
from nav_msgs.msg import OccupancyGrid
from rclpy.qos import DurabilityPolicy, QoSProfile, qos_profile_sensor_data
from sensor_msgs.msg import CameraInfo, Image, PointCloud2

from ee_seg_ros.data.sources import SceneSource
from ee_seg_ros.inference.ground import GroundView, meanings
from ee_seg_ros.inference.poses import OPTICAL_IN_BODY, from_angles
from ee_seg_ros.nodes.conversions import image_message

SKY, ROAD, CAR = 0, 3, 8
WIDTH, HEIGHT = 101, 81
POSE = {'pose': 'parameters', 'camera_z': 1.0}
LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)    # as Nav2's static layer subscribes
TOPICS = ('ground/obstacles', 'ground/free')


def street(*cars, width=WIDTH, height=HEIGHT):
    mask = np.full((height, width), ROAD, np.uint8)
    mask[:height // 2 + 1] = SKY
    for rows, columns in cars:
        mask[rows, columns] = CAR
    return mask


def calibration(stamp, scale=1, focal=100.0):
    return CameraInfo(header=header_of(stamp), width=WIDTH * scale, height=HEIGHT * scale,
                      p=[focal * scale, 0.0, 50.0 * scale, 0.0, 0.0, focal * scale, 40.0 * scale, 0.0,
                         0.0, 0.0, 1.0, 0.0])


def points(message):
    """float32 (n, 3) of a PointCloud2 of x, y, z."""
    assert [(field.name, field.offset, field.datatype) for field in message.fields] == [
        ('x', 0, 7), ('y', 4, 7), ('z', 8, 7)]
    assert (message.height, message.point_step, message.row_step) == (1, 12, 12 * message.width)
    return np.frombuffer(message.data, np.float32).reshape(-1, 3)


def cells(message):
    """int8 (rows along y, columns along x) of an OccupancyGrid."""
    return np.array(message.data, np.int8).reshape(message.info.height, message.info.width)


def value(message, x, y):
    """The value of a grid at a point of its frame."""
    info = message.info
    row, column = (int((y - info.origin.position.y) // info.resolution),
                   int((x - info.origin.position.x) // info.resolution))
    return cells(message)[row, column]


class Robot(Peer):
    """Plays the onboard node and its camera."""

    def __init__(self, namespace):
        super().__init__(namespace)
        self.masks = self.node.create_publisher(Image, 'ee_seg/final_mask', 5)
        self.infos = self.node.create_publisher(CameraInfo, 'ee_seg/camera_info', qos_profile_sensor_data)
        self.listen(PointCloud2, *TOPICS)
        self.listen(OccupancyGrid, 'ground/grid', qos=LATCHED)

    def wait_for_ground(self):
        self.wait(lambda: self.masks.get_subscription_count() and self.infos.get_subscription_count(), 'the node')

    def show_mask(self, mask, info=calibration, frame_id='test_camera'):
        """Publish a calibration and a mask; the stamp."""
        self.stamp += 100_000_000
        if info:
            self.infos.publish(info(self.stamp))
        self.masks.publish(image_message(header_of(self.stamp, frame_id), mask, 'mono8'))
        return self.stamp

    def ground_of(self, mask, **named):
        """(grid, obstacles, free points) that the node makes of a mask, with the mask's stamp on all three."""
        self.send_until_heard(lambda: self.show_mask(mask, **named), 'ground/free')
        stamp = self.stamps('ground/free')[-1]
        self.wait(lambda: all(stamp in self.stamps(topic) for topic in (*TOPICS, 'ground/grid')), 'the whole ground')
        return self.message('ground/grid', stamp), *(points(self.message(topic, stamp)) for topic in TOPICS)


@pytest.fixture(scope='module')
def peer(namespace):
    robot = Robot(namespace)
    yield robot
    robot.close()


@pytest.fixture(scope='module')
def ground(start, peer):
    process = start('ground', **POSE, base_frame='base_link', reach=10.0, resolution=0.5, point_height=0.25)
    peer.wait_for_ground()
    yield process
    assert process.running and 'Traceback' not in process.text, process.text


def test_a_car_stands_where_geometry_says(ground, peer):
    """Down to row 60: 100 / 20 = 5 m ahead; columns 40 to 60: half a metre to each side."""
    grid, obstacles, free = peer.ground_of(street((slice(30, 61), slice(40, 61))))
    np.testing.assert_allclose(obstacles, [[5, (50 - column) / 20, 0.25] for column in range(40, 61)], rtol=1e-6,
                               atol=1e-6)
    assert (free[:, 2] == 0.25).all() and len(free) == WIDTH
    assert grid.header.frame_id == 'base_link' == peer.received['ground/free'][-1].header.frame_id
    info = grid.info
    assert (info.width, info.height, info.resolution) == (40, 40, 0.5) and info.map_load_time == grid.header.stamp
    assert (info.origin.position.x, info.origin.position.y, info.origin.position.z) == (-10, -10, 0)
    assert info.origin.orientation.w == 1
    assert [value(grid, 5.1, y) for y in (-0.4, 0.1, 0.4)] == [100] * 3
    assert (value(grid, 4.1, 0.1), value(grid, 7.1, 0.1), value(grid, -3.1, 0.1)) == (0, -1, -1)
    assert value(grid, 8.1, 2.1) == value(grid, 8.1, -2.1) == 0


def test_left_in_the_image_is_left_of_the_robot(ground, peer):
    """Down to row 52, 100 / 12 m ahead; columns 20 to 30, from 30 / 12 m to 20 / 12 m on the left."""
    _, obstacles, _ = peer.ground_of(street((slice(0, 53), slice(20, 31))))
    np.testing.assert_allclose(obstacles[:, 0], 100 / 12, rtol=1e-6)
    np.testing.assert_allclose(obstacles[:, 1], [(50 - column) / 12 for column in range(20, 31)], rtol=1e-6)


def test_a_late_joiner_gets_the_last_grid(ground, peer):
    peer.ground_of(street((slice(30, 61), slice(40, 61))))
    stamp, late = peer.stamps('ground/grid')[-1], []
    subscription = peer.node.create_subscription(OccupancyGrid, 'ground/grid', late.append, LATCHED)
    try:
        peer.wait(lambda: late, 'the latched grid')
    finally:
        peer.node.destroy_subscription(subscription)
    assert late[0].header == header_of(stamp, 'base_link') and value(late[0], 5.1, 0.1) == 100


def test_the_calibration_may_be_that_of_a_larger_image(ground, peer):
    """camera_info of the camera itself, four times the mask's size."""
    _, obstacles, _ = peer.ground_of(street((slice(30, 61), slice(40, 61))), info=lambda stamp: calibration(stamp, 4))
    np.testing.assert_allclose(obstacles[:, 0], 5, rtol=1e-6)
    np.testing.assert_allclose(obstacles[0, 1], 0.5, rtol=1e-6)


def test_a_calibration_that_changes_is_followed(ground, peer):
    mask = street((slice(30, 61), slice(50, 51)))
    for focal in (160.0, 100.0):
        expected = [[focal / 20, 0, 0.25]]

        def follows(focal=focal, expected=expected):
            # A mask may overtake the calibration that was published before it.
            _, obstacles, _ = peer.ground_of(mask, info=lambda stamp: calibration(stamp, focal=focal))
            return np.allclose(obstacles, expected, rtol=1e-6, atol=1e-6)
        assert any(follows() for _ in range(20)), focal


def test_masks_that_are_none_are_refused_and_the_node_goes_on(ground, peer):
    peer.ground_of(street())
    for message in (image_message(header_of(1), np.zeros((4, 4, 3), np.uint8), 'rgb8'),
                    Image(header=header_of(2), encoding='mono8', width=10, height=10, step=10, data=[1] * 50)):
        peer.masks.publish(message)
    peer.wait_for_diagnosis('ground', 'refused', '2')
    assert "a mask has the encoding 'rgb8': expected mono8" in ground.text and 'has only 50 bytes' in ground.text
    peer.ground_of(street())
    peer.wait(lambda: peer.diagnostics['ground'][1] == 'working', 'recovery in /diagnostics')


def test_without_a_calibration_it_says_what_is_missing(start, peer, namespace, tmp_path):
    node = NodeProcess(tmp_path / 'log', 'ground', f'{namespace}/other', **POSE)
    other = Robot(f'{namespace}/other')
    try:
        other.wait_for_ground()

        def says(text, info):
            other.show_mask(street(), info)
            other.executor.spin_once(timeout_sec=0.05)
            return text in other.diagnostics['ground'][1]
        for text, info in (('no camera_info on', None),
                           ('not calibrated', lambda stamp: CameraInfo(header=header_of(stamp), width=WIDTH,
                                                                       height=HEIGHT))):
            other.wait(lambda text=text, info=info: says(text, info), f'{text} in /diagnostics')
            assert text in node.text
        assert not other.received['ground/grid']
        other.ground_of(street())
        other.wait(lambda: other.diagnostics['ground'][1] == 'working', 'recovery in /diagnostics')
    finally:
        other.close()
        status = node.end()
        node.clean_up()
    assert status == 0 and 'Traceback' not in node.text, node.text


def test_the_pose_comes_from_static_transforms(need, namespace, tmp_path):
    """base_footprint -> base_link (0.2 up) -> camera_link (0.5 ahead, 0.8 up) -> optical: 1 m above the ground."""
    need('tf2_msgs')
    from geometry_msgs.msg import TransformStamped
    from tf2_msgs.msg import TFMessage
    node = NodeProcess(tmp_path / 'log', 'ground', f'{namespace}/tf')
    robot = Robot(f'{namespace}/tf')
    optical = [-0.5, 0.5, -0.5, 0.5]

    def transform(parent, child, place, turn):
        message = TransformStamped(header=header_of(0, parent), child_frame_id=child)
        (message.transform.translation.x, message.transform.translation.y, message.transform.translation.z) = place
        (message.transform.rotation.x, message.transform.rotation.y, message.transform.rotation.z,
         message.transform.rotation.w) = turn
        return message
    broadcasters = [robot.node.create_publisher(TFMessage, '/tf_static', LATCHED) for _ in range(2)]
    try:
        robot.wait_for_ground()

        def says_what_is_missing():
            robot.show_mask(street(), frame_id='optical')
            robot.executor.spin_once(timeout_sec=0.05)
            return '/tf_static does not join base_footprint and optical' in node.text
        robot.wait(says_what_is_missing, 'a word on the missing transform')
        broadcasters[0].publish(TFMessage(transforms=[
            transform('base_link', 'camera_link', (0.5, 0.0, 0.8), (0.0, 0.0, 0.0, 1.0)),
            transform('camera_link', 'optical', (0.0, 0.0, 0.0), optical)]))
        broadcasters[1].publish(TFMessage(transforms=[
            transform('base_footprint', 'base_link', (0.0, 0.0, 0.2), (0.0, 0.0, 0.0, 1.0))]))
        grid, obstacles, _ = robot.ground_of(street((slice(30, 61), slice(50, 51))), frame_id='optical')
        np.testing.assert_allclose(obstacles, [[5.5, 0, 0.1]], rtol=1e-5, atol=1e-6)
        assert grid.header.frame_id == 'base_footprint'
    finally:
        robot.close()
        node.end()
        node.clean_up()


@pytest.mark.parametrize('parameters, says', [
    ({'drivable': '[road]'}, "drivable has the class 'road', which the bundle does not know: the classes are Sky, "),
    ({'bundle': 'nowhere'}, 'nowhere'), ({'pose': 'parameters', 'camera_z': 0.0}, 'camera_z is 0'),
    ({'pose': 'gps'}, 'choose one of tf, parameters')])
def test_wrong_parameters_end_it_with_a_reason(start, parameters, says):
    process = start('ground', **{**POSE, **parameters})
    assert process.wait() == 1
    assert says in process.text and 'Traceback' not in process.text, process.text


def test_the_street_reaches_the_ground(need, namespace, bundle, tmp_path):
    """The whole chain with defaults: the camera plays a street and says how it is calibrated and where it is."""
    need('tf2_msgs')
    space, seed = f'{namespace}/chain', 7
    peer = Peer(space)
    peer.listen_to_masks()
    peer.listen(OccupancyGrid, 'ground/grid', qos=LATCHED)
    nodes = [NodeProcess(tmp_path / 'onboard', 'onboard', space, threads=1, criterion='always', output_width=240),
             NodeProcess(tmp_path / 'ground', 'ground', space)]
    try:
        peer.wait_for_onboard()
        peer.wait(lambda: peer.node.count_publishers('ground/grid') > 0, 'the node ground')
        nodes.append(NodeProcess(tmp_path / 'camera', 'camera', space, seed=seed, rate=5.0))
        peer.wait(lambda: set(peer.stamps('ground/grid')) & set(peer.stamps('ee_seg/final_mask')), 'a grid of a mask')
        stamp = (set(peer.stamps('ground/grid')) & set(peer.stamps('ee_seg/final_mask'))).pop()
        mask = pixels(peer.message('ee_seg/final_mask', stamp))
        message = peer.message('ground/grid', stamp)
    finally:
        peer.close()
        for node in nodes:
            node.end()
            node.clean_up()
    camera, names = SceneSource(seed).calibration, [info.name for info in bundle.classes]
    pose = from_angles((0, 0, camera.height), 0, 0, 0) @ OPTICAL_IN_BODY
    centre = camera.centre[0] / 2, camera.centre[1] / 2
    view = GroundView((camera.focal / 2, camera.focal / 2), centre, (240, 180), pose, 8.0, 0.1)
    expected, _, _ = view.project(mask, meanings(names, ['Road'], ['Sky']))
    # Numbers went through messages: a cell on the border between two pixels may be seen by the other one.
    assert (cells(message) == expected).mean() > 0.999
    assert message.header.frame_id == 'base_footprint' and (expected == 0).sum() > 1000
