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
"""Between ROS messages and numpy arrays: images in, masks and pictures out."""
import struct
from array import array
from functools import lru_cache

import cv2
import numpy as np
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

CHANNELS = {'rgb8': 3, 'bgr8': 3, 'rgba8': 4, 'bgra8': 4, 'mono8': 1}
_TO_RGB = {'bgr8': cv2.COLOR_BGR2RGB, 'rgba8': cv2.COLOR_RGBA2RGB, 'bgra8': cv2.COLOR_BGRA2RGB,
           'mono8': cv2.COLOR_GRAY2RGB}
MASK_FORMAT = 'mono8; png compressed'
_PNG = b'\x89PNG\r\n\x1a\n'
_JPEG, _JPEG_END = b'\xff\xd8\xff', b'\xff\xd9'


class ImageError(ValueError):
    """An image message that cannot be used. kind: 'empty', 'encoding', 'step', 'truncated' or 'damaged'."""

    def __init__(self, kind: str, message: str):
        super().__init__(message)
        self.kind = kind


def stamp_ns(header) -> int:
    """The stamp of a header in nanoseconds."""
    return header.stamp.sec * 1_000_000_000 + header.stamp.nanosec


def key_of(header) -> tuple:
    """What a frame is known by on both sides of the link: (stamp in ns, frame_id)."""
    return stamp_ns(header), header.frame_id


def check_image(message) -> None:
    """Raise ImageError, in the user's words, for an image that cannot be whole.

    An Image whose fields contradict each other, or a CompressedImage that is not a whole JPEG or PNG file. Cheap:
    nothing is decoded.
    """
    if isinstance(message, CompressedImage):
        _check_file(message)
        return
    encoding, width, height = message.encoding, message.width, message.height
    if width == 0 or height == 0 or len(message.data) == 0:
        raise ImageError('empty', f'an empty image came ({width}x{height} pixels, {len(message.data)} bytes): '
                                  'check the camera driver')
    _check_encoding(encoding)
    least = width * CHANNELS.get(encoding, 0)
    if message.step < least:
        raise ImageError('step', f'an image has a step of {message.step} bytes, but {width} pixels of {encoding} take '
                                 f'{least}: step must be at least width x channels')
    if len(message.data) < message.step * height:
        raise ImageError('truncated', f'an image of {height} rows of {message.step} bytes has only '
                                      f'{len(message.data)} bytes of data: it was truncated, or its step is wrong')


def _check_file(message):
    start = bytes(message.data[:8])
    if not start:
        raise ImageError('empty', f'an empty compressed image came (format {message.format!r}): check the camera '
                                  'driver')
    if not start.startswith((_JPEG, _PNG)):
        raise ImageError('encoding', f'a compressed image of format {message.format!r} is neither JPEG nor PNG: '
                                     'publish one of these, or take raw images with image_transport:=raw')
    # Without its end OpenCV decodes as much as there is, and makes the rest grey.
    if start.startswith(_JPEG) and bytes(message.data).rfind(_JPEG_END) < 0:
        raise ImageError('truncated', f'a JPEG image of {len(message.data)} bytes has no end: it was truncated')


def to_rgb(message) -> np.ndarray:
    """The pixels of an Image or a CompressedImage as uint8 (height, width, 3) RGB. Raises ImageError.

    Of Images rgb8, bgr8, rgba8, bgra8 and mono8 by own code, others through cv_bridge where it is installed. For rgb8
    without padding the array is a view of the message's data, not a copy.
    """
    check_image(message)
    if isinstance(message, CompressedImage):
        return _decoded(message)
    channels = CHANNELS.get(message.encoding)
    if channels is None:
        return _through_cv_bridge(message)
    rows = np.frombuffer(message.data, np.uint8, message.step * message.height).reshape(message.height, message.step)
    pixels = rows[:, :message.width * channels].reshape(message.height, message.width, channels)
    if message.encoding == 'rgb8':
        return np.ascontiguousarray(pixels)
    return cv2.cvtColor(pixels, _TO_RGB[message.encoding])


def _decoded(message):
    """The pixels of a JPEG or PNG file, as stored: a camera's calibration knows nothing of EXIF orientation."""
    try:
        pixels = cv2.imdecode(np.frombuffer(message.data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error:    # its header promises more pixels than OpenCV takes
        pixels = None
    if pixels is None:
        raise ImageError('damaged', f'a compressed image of {len(message.data)} bytes (format {message.format!r}) '
                                    'cannot be decoded: it was damaged on its way')
    # image_transport writes "rgb8; jpeg compressed rgb8" where it stored red and blue in each other's place.
    swapped = message.format.partition('compressed')[2].strip().startswith('rgb')
    return pixels if swapped else cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)


@lru_cache(maxsize=None)
def _cv_bridge():
    """(CvBridge, '') or (None, what to do about it); imported when the first image needs it, not before."""
    try:
        from cv_bridge import CvBridge
        return CvBridge(), ''
    except ModuleNotFoundError:
        return None, 'or install cv_bridge for more'
    except Exception as error:    # built against another numpy it fails with whatever numpy raises
        return None, f'or mend cv_bridge, which is installed but fails ({type(error).__name__}: {str(error)[:120]})'


@lru_cache(maxsize=64)
def _check_encoding(encoding):
    """Raise ImageError for an encoding that neither this module nor cv_bridge knows."""
    if encoding in CHANNELS:
        return
    supported = f"encoding {encoding!r} is not supported: publish one of {', '.join(CHANNELS)}"
    bridge, advice = _cv_bridge()
    if bridge is None:
        raise ImageError('encoding', f'{supported}, {advice}')
    try:
        bridge.encoding_to_cvtype2(encoding)
    except Exception as error:    # it raises whatever the step that fails raises
        raise ImageError('encoding', f'{supported} (cv_bridge does not know it either: {str(error)[:80]})') from None


def _through_cv_bridge(message):
    try:
        pixels = _cv_bridge()[0].imgmsg_to_cv2(message, 'rgb8')
        if pixels.dtype != np.uint8 or pixels.shape != (message.height, message.width, 3):
            raise ValueError(f'it made {pixels.dtype} of shape {pixels.shape}')
    except Exception as error:    # it raises whatever the step that fails raises
        ours = ', '.join(CHANNELS)
        raise ImageError('encoding', f'images of encoding {message.encoding!r} are not supported: publish one of '
                                     f'{ours} (cv_bridge could not convert one: {str(error)[:120]})') from None
    return np.ascontiguousarray(pixels)


def bytes_field(data) -> array:
    """Bytes-like data as what the data field of a message takes."""
    # rclpy takes an array('B') as it is (0.04 ms for 900 KB); bytes take 0.5 ms, an ndarray 35.
    field = array('B')
    field.frombytes(data)
    return field


def image_message(header, pixels: np.ndarray, encoding: str) -> Image:
    """An Image of uint8 pixels (H, W) for mono8, (H, W, 3) for rgb8, with step = width x channels."""
    pixels = np.ascontiguousarray(pixels)
    message = Image(header=header, encoding=encoding, height=pixels.shape[0], width=pixels.shape[1],
                    step=pixels.strides[0])
    message.data = bytes_field(pixels.data)
    return message


def camera_info_message(header, width: int, height: int, calibration=None) -> CameraInfo:
    """A CameraInfo of a `sources.Calibration`; without one zeros in K say that it is not calibrated."""
    message = CameraInfo(header=header, width=width, height=height)
    if calibration is not None:
        focal, (x, y) = calibration.focal, calibration.centre
        message.distortion_model, message.d = 'plumb_bob', [0.0] * 5
        message.k = [focal, 0.0, x, 0.0, focal, y, 0.0, 0.0, 1.0]
        message.r = np.eye(3).ravel()
        message.p = [focal, 0.0, x, 0.0, 0.0, focal, y, 0.0, 0.0, 0.0, 1.0, 0.0]
    return message


def scaled_camera_info(info: CameraInfo, header, width: int, height: int) -> CameraInfo:
    """The calibration of a camera for its images resized to width x height, with the given header.

    K and P lose the offset of a region of interest and binning, then are scaled by width and height, as image_proc's
    resize node does: what comes out describes a whole image of that size. Zeros, of an uncalibrated camera, stay zeros.
    """
    roi = info.roi
    left, top = roi.x_offset, roi.y_offset
    across, down = width / (roi.width or info.width or width), height / (roi.height or info.height or height)

    def scaled(matrix, columns):
        rows = np.array(matrix).reshape(3, columns)
        if rows[2, 2]:
            rows[0, 2] -= left
            rows[1, 2] -= top
        return (rows * [[across], [down], [1]]).ravel()

    return CameraInfo(header=header, width=width, height=height, distortion_model=info.distortion_model, d=info.d,
                      k=scaled(info.k, 3), r=info.r, p=scaled(info.p, 4))


def compressed_topic(node, topic: str) -> str:
    """Where image_transport has the compressed images of a topic: `/compressed` behind its remapped name."""
    return f'{node.resolve_topic_name(topic)}/compressed'


def compressed_message(header, data, format_: str) -> CompressedImage:
    """A CompressedImage of bytes-like data."""
    message = CompressedImage(header=header, format=format_)
    message.data = bytes_field(data)
    return message


def png_message(header, plane: np.ndarray) -> CompressedImage:
    """A lossless CompressedImage of a uint8 (H, W) plane: a mask of class ids, or a confidence."""
    _, png = cv2.imencode('.png', plane, (cv2.IMWRITE_PNG_COMPRESSION, 1))
    return compressed_message(header, png.data, MASK_FORMAT)


def jpeg_message(header, image: np.ndarray, quality: int = 80) -> CompressedImage:
    """A CompressedImage of an RGB image, uint8 (H, W, 3), as image_transport writes it."""
    _, jpeg = cv2.imencode('.jpg', cv2.cvtColor(image, cv2.COLOR_RGB2BGR), (cv2.IMWRITE_JPEG_QUALITY, quality))
    return compressed_message(header, jpeg.data, 'rgb8; jpeg compressed bgr8')


def plane_of(message: CompressedImage, width: int, height: int) -> np.ndarray:
    """The uint8 (height, width) plane of a PNG message; ValueError if it is none, or of another size.

    The size is read from the PNG's header first, so that a hostile one costs no memory.
    """
    data = message.data
    if len(data) < 33 or bytes(data[:8]) != _PNG:
        raise ValueError(f'its {len(data)} bytes are not a PNG image')
    found = struct.unpack('>II', bytes(data[16:24]))
    if found != (width, height):
        raise ValueError(f'it is {found[0]}x{found[1]} pixels, expected {width}x{height}')
    try:
        plane = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        plane = None
    if plane is None or plane.dtype != np.uint8 or plane.shape != (height, width):
        raise ValueError('it is not a whole 8-bit grey PNG image')
    return plane


def mask_of(message: CompressedImage, width: int, height: int, classes: int) -> np.ndarray:
    """The mask of a PNG message: uint8 (height, width), ids below `classes` or 255. ValueError otherwise."""
    mask = plane_of(message, width, height)
    known = np.zeros(256, bool)
    known[:classes] = known[255] = True
    if not known[mask].all():
        raise ValueError(f'it has the class id {int(mask[~known[mask]][0])}, this bundle has the classes 0 to '
                         f'{classes - 1}')
    return mask
