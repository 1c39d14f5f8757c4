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
"""Images from a rosbag2, SQLite or MCAP, read by the library rosbags: no ROS is needed."""
from pathlib import Path

import cv2
import numpy as np

from ee_seg_ros.data.sources import SourceFrame

FILES = ('.db3', '.mcap')
IMAGE, COMPRESSED = 'sensor_msgs/msg/Image', 'sensor_msgs/msg/CompressedImage'
LABELS = 'labels'    # last name of a topic of labels
# Channels and OpenCV's conversion to RGB by encoding.
_ENCODINGS = {'rgb8': (3, None), 'bgr8': (3, cv2.COLOR_BGR2RGB), 'rgba8': (4, cv2.COLOR_RGBA2RGB),
              'bgra8': (4, cv2.COLOR_BGRA2RGB), 'mono8': (1, cv2.COLOR_GRAY2RGB)}


def find_bag(spec: str) -> tuple | None:
    """(path, topic or None) if `spec` is a rosbag2, its folder or one of its files, or BAG:/topic; else None."""
    path, named, topic = spec.partition(':/')
    folder = Path(path).expanduser()
    is_bag = (folder.is_file() and folder.suffix in FILES or (folder / 'metadata.yaml').is_file()
              or any(file.suffix in FILES for file in (folder.iterdir() if folder.is_dir() else ())))
    return (folder, f'/{topic}' if named else None) if is_bag else None


class BagSource:
    """The images of one topic of a bag, in the order of recording; going back starts again from the first one.

    topic: Image (rgb8, bgr8, rgba8, bgra8, mono8) or CompressedImage; None: the only one there is. Labels are mono8
    Images of class ids (255: unlabelled) with the stamps of the images, on a topic whose last name is `labels`.
    Raises ValueError for a bag that cannot be read, has no such topic or several.
    """

    def __init__(self, path: str | Path, topic: str | None = None):
        self._path = Path(path)
        reader = _open(self._path)
        topics = {name: info for name, info in reader.topics.items()
                  if info.msgtype in (IMAGE, COMPRESSED) and info.msgcount}
        labels = [name for name, info in topics.items() if name.endswith(f'/{LABELS}') and info.msgtype == IMAGE]
        cameras = [name for name in topics if name not in labels]
        self.topic = self._choose(topic, cameras, topics)
        self.name, self.count = self._path.stem, topics[self.topic].msgcount
        self._images = _Messages(reader, topics[self.topic])
        self._labels = _Messages(reader, topics[labels[0]]) if labels else None
        self.labelled = self._labels is not None

    def _choose(self, topic, cameras, topics):
        known = ', '.join(f'{name} ({topics[name].msgtype}, {topics[name].msgcount})' for name in cameras) or 'none'
        if topic is not None and topic not in cameras:
            raise ValueError(f'{self._path} has no images on {topic}; topics of images there: {known}')
        if topic is None and len(cameras) != 1:
            several = f'several topics of images: name one, as in {self._path}:{cameras[0]}' if cameras else 'no images'
            raise ValueError(f'{self._path} has {several}; topics of images there: {known}')
        return topic or cameras[0]

    def frame(self, index: int) -> SourceFrame:
        """Image `index`; IndexError past the end, ValueError for a message that holds no image."""
        if not 0 <= index < self.count:
            raise IndexError(f'frame {index} of a bag of {self.count} images')
        name = f'{self.name}_{index:05d}'
        message = self._images.get(index)
        labels = self._labels.at(_stamp_of(message)) if self.labelled else None
        try:
            return SourceFrame(_rgb_of(message), None if labels is None else _labels_of(labels), name)
        except ValueError as error:
            raise ValueError(f'{self._path}, message {index} of {self.topic}: {error}') from None


class _Messages:
    """The messages of one topic, one after the other; going back starts again."""

    def __init__(self, reader, topic):
        self._reader, self._connections = reader, topic.connections
        self._begin()

    def _begin(self):
        self._coming = self._reader.messages(connections=self._connections)
        self._index, self._message = -1, None

    def _advance(self):
        connection, _, raw = next(self._coming)
        self._index += 1
        return connection, raw

    def get(self, index):
        """Message `index`."""
        if index <= self._index:
            self._begin()
        while True:
            connection, raw = self._advance()
            if self._index == index:
                return self._reader.deserialize(raw, connection.msgtype)

    def at(self, stamp):
        """The message with this stamp, in ns, or None; stamps must not go back in the bag."""
        if self._message is not None and _stamp_of(self._message) > stamp:
            self._begin()
        while self._message is None or _stamp_of(self._message) < stamp:
            try:
                connection, raw = self._advance()
            except StopIteration:
                return None
            self._message = self._reader.deserialize(raw, connection.msgtype)
        return self._message if _stamp_of(self._message) == stamp else None


def _open(path):
    """An open reader of the bag. Raises ValueError."""
    try:
        from rosbags.highlevel import AnyReader
        from rosbags.typesys import Stores, get_typestore
    except ImportError as error:
        raise ValueError(f'{path} is a rosbag, which only the library rosbags reads ({error}): install it with `pip '
                         'install rosbags` or the extra `demo` of this package') from None
    if path.is_dir() and not (path / 'metadata.yaml').is_file():
        raise ValueError(f'{path} has no metadata.yaml, so the recording was cut off: run `ros2 bag reindex {path}`, '
                         'or name one of its files')
    try:
        # SQLite bags of Humble hold no definitions; those of images are the same since.
        reader = AnyReader([path], default_typestore=get_typestore(Stores.ROS2_HUMBLE))
        reader.open()
    except Exception as error:    # of rosbags, SQLite, the decompression, the YAML
        raise ValueError(f'{path} cannot be read as a rosbag2 ({type(error).__name__}: {error})') from None
    return reader


def _stamp_of(message):
    return message.header.stamp.sec * 1_000_000_000 + message.header.stamp.nanosec


def _plane_of(message, channels):
    """uint8 (height, width, channels) of an Image, without the padding of its rows. Raises ValueError."""
    height, width, step = message.height, message.width, message.step
    if not width * channels <= step or len(message.data) < step * height or not height * width:
        raise ValueError(f'{width}x{height} pixels of {message.encoding} with step {step} do not fit '
                         f'{len(message.data)} bytes')
    rows = np.asarray(message.data, np.uint8)[:step * height].reshape(height, step)
    return rows[:, :width * channels].reshape(height, width, channels)


def _labels_of(message):
    """uint8 (H, W) class ids of an Image. Raises ValueError."""
    if message.encoding != 'mono8':
        raise ValueError(f'labels of encoding {message.encoding!r}: expected mono8, class ids')
    return _plane_of(message, 1)[..., 0]


def _rgb_of(message):
    """uint8 (H, W, 3) RGB of an Image or a CompressedImage. Raises ValueError."""
    if message.__msgtype__ == COMPRESSED:
        image = cv2.imdecode(np.asarray(message.data, np.uint8), cv2.IMREAD_COLOR) if len(message.data) else None
        if image is None:
            raise ValueError(f'format {message.format!r} is no image that OpenCV can decode')
        return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
    if message.encoding not in _ENCODINGS:
        raise ValueError(f"encoding {message.encoding!r} is not supported: expected {', '.join(_ENCODINGS)}")
    channels, code = _ENCODINGS[message.encoding]
    pixels = _plane_of(message, channels)
    return np.ascontiguousarray(pixels) if code is None else cv2.cvtColor(np.ascontiguousarray(pixels), code)
