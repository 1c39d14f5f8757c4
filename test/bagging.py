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
"""Small bags, written by the library rosbags; what imports this is skipped where that is not installed."""
import cv2
import numpy as np
import pytest

rosbag2 = pytest.importorskip('rosbags.rosbag2', reason='rosbags is not installed (extra `demo`)')
typesys = pytest.importorskip('rosbags.typesys')
STORE = typesys.get_typestore(typesys.Stores.ROS2_HUMBLE)
TYPES = STORE.types
IMAGE, COMPRESSED = 'sensor_msgs/msg/Image', 'sensor_msgs/msg/CompressedImage'


def header(stamp):
    """A header with a stamp in ns."""
    return TYPES['std_msgs/msg/Header'](TYPES['builtin_interfaces/msg/Time'](*divmod(stamp, 10 ** 9)), 'camera')


def raw(stamp, pixels, encoding, padding=0):
    """An Image of uint8 (H, W, C) pixels whose rows are `padding` bytes longer than they need to be."""
    height, width, channels = pixels.shape
    data = np.pad(pixels.reshape(height, width * channels), ((0, 0), (0, padding)), constant_values=77)
    return TYPES[IMAGE](header(stamp), height, width, encoding, 0, data.shape[1], data.reshape(-1))


def png(stamp, pixels):
    """A CompressedImage of uint8 (H, W, 3) RGB pixels."""
    data = cv2.imencode('.png', pixels[..., ::-1])[1].reshape(-1)
    return TYPES[COMPRESSED](header(stamp), 'rgb8; png compressed bgr8', data)


def write(path, topics, storage='SQLITE3'):
    """A bag of {topic: [messages]}."""
    with rosbag2.Writer(path, version=9, storage_plugin=rosbag2.StoragePlugin[storage]) as writer:
        for topic, messages in topics.items():
            connection = writer.add_connection(topic, messages[0].__msgtype__, typestore=STORE)
            for message in messages:
                stamp = message.header.stamp.sec * 10 ** 9 + message.header.stamp.nanosec
                writer.write(connection, stamp, STORE.serialize_cdr(message, message.__msgtype__))
    return path
