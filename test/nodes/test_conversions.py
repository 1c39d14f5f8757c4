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
"""Messages to arrays and back, with hand-made pixels."""
import sys

import cv2
import numpy as np
import pytest

pytest.importorskip('sensor_msgs', reason='needs ROS 2: source a distribution, or install its wheels')

from sensor_msgs.msg import CameraInfo, Image, RegionOfInterest  # noqa: E402
from std_msgs.msg import Header  # noqa: E402

from ee_seg_ros.nodes import conversions  # noqa: E402
from ee_seg_ros.nodes.conversions import (  # noqa: E402
    ImageError,
    compressed_message,
    image_message,
    jpeg_message,
    key_of,
    mask_of,
    plane_of,
    png_message,
    scaled_camera_info,
    to_rgb,
)

RGB = np.array([[[10, 20, 30], [40, 50, 60]], [[70, 80, 90], [100, 110, 120]], [[1, 2, 3], [4, 5, 6]]], np.uint8)


def message(encoding_, pixels, padding=0, **changes):
    """An Image whose rows end in `padding` bytes of 255."""
    height, width = pixels.shape[:2]
    rows = pixels.reshape(height, -1)
    data = np.hstack([rows, np.full((height, padding), 255, np.uint8)])
    made = Image(encoding=encoding_, width=width, height=height, step=data.shape[1], data=data.tobytes())
    for name, value in changes.items():
        setattr(made, name, value)
    return made


@pytest.mark.parametrize('padding', [0, 5])
def test_colour_images_become_rgb(padding):
    alpha = np.full((3, 2, 1), 200, np.uint8)
    for encoding, pixels in (('rgb8', RGB), ('bgr8', RGB[..., ::-1]), ('rgba8', np.dstack([RGB, alpha])),
                             ('bgra8', np.dstack([RGB[..., ::-1], alpha]))):
        found = to_rgb(message(encoding, np.ascontiguousarray(pixels), padding))
        assert found.dtype == np.uint8 and found.flags.c_contiguous
        np.testing.assert_array_equal(found, RGB, encoding)


@pytest.mark.parametrize('padding', [0, 3])
def test_grey_images_become_rgb(padding):
    grey = RGB[..., 0]
    np.testing.assert_array_equal(to_rgb(message('mono8', grey, padding)), np.dstack([grey] * 3))


def test_rgb_without_padding_is_not_copied():
    source = message('rgb8', RGB)
    assert np.shares_memory(to_rgb(source), np.frombuffer(source.data, np.uint8))


def test_byte_order_does_not_matter_to_bytes():
    np.testing.assert_array_equal(to_rgb(message('rgb8', RGB, is_bigendian=1)), RGB)


@pytest.mark.parametrize('kind, hint, changes', [
    ('empty', '0x3 pixels', {'width': 0}), ('empty', '0 bytes', {'data': b''}),
    ('step', 'at least width x channels', {'step': 5}), ('truncated', 'truncated', {'data': bytes(17)}),
    ('truncated', '30 rows of 6 bytes', {'height': 30}), ('encoding', 'rgb8, bgr8, rgba8, bgra8, mono8',
                                                          {'encoding': 'nonsense'})])
def test_contradictory_images_are_refused_in_words(kind, hint, changes):
    with pytest.raises(ImageError, match=hint) as caught:
        to_rgb(message('rgb8', RGB, **changes))
    assert caught.value.kind == kind


def test_other_encodings_go_through_cv_bridge():
    pytest.importorskip('cv_bridge', reason='cv_bridge is not installed')
    red = np.zeros((4, 4), np.uint8)
    red[::2, ::2] = 200    # the red pixels of the mosaic
    found = to_rgb(message('bayer_rggb8', red))
    assert found.shape == (4, 4, 3) and found.dtype == np.uint8
    assert found[..., 0].max() == 200 and not found[..., 1:].any()
    with pytest.raises(ImageError, match="'32FC2' are not supported: publish one of rgb8") as caught:
        to_rgb(message('32FC2', RGB, step=16, data=bytes(48)))
    assert caught.value.kind == 'encoding'


def test_a_broken_cv_bridge_is_not_called_missing(monkeypatch, tmp_path):
    (tmp_path / 'cv_bridge.py').write_text("raise AttributeError('_ARRAY_API not found')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, 'cv_bridge', raising=False)
    conversions._cv_bridge.cache_clear()
    conversions._check_encoding.cache_clear()
    try:
        with pytest.raises(ImageError, match='installed but fails .AttributeError: _ARRAY_API not found'):
            conversions._check_encoding('32FC1')
    finally:
        conversions._cv_bridge.cache_clear()
        conversions._check_encoding.cache_clear()


def test_without_cv_bridge_the_error_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, 'cv_bridge', None)    # makes its import fail
    conversions._cv_bridge.cache_clear()
    conversions._check_encoding.cache_clear()
    with pytest.raises(ImageError, match='install cv_bridge'):
        to_rgb(message('yuv422', RGB))
    conversions._cv_bridge.cache_clear()


def test_masks_are_written_without_padding():
    header = Header(frame_id='camera')
    wide = np.arange(24, dtype=np.uint8).reshape(4, 6)
    made = image_message(header, wide[:, :4], 'mono8')    # not contiguous
    assert (made.encoding, made.width, made.height, made.step, made.is_bigendian) == ('mono8', 4, 4, 4, 0)
    assert made.header is header and bytes(made.data) == wide[:, :4].tobytes()
    assert image_message(header, RGB, 'rgb8').step == 6


def test_png_masks_come_back_as_they_were():
    mask = np.array([[0, 1, 10], [255, 5, 3]], np.uint8)
    sent = png_message(Header(), mask)
    assert sent.format == 'mono8; png compressed'
    np.testing.assert_array_equal(mask_of(sent, 3, 2, 11), mask)


@pytest.mark.parametrize('size, classes, hint', [
    ((2, 3), 11, 'it is 3x2 pixels, expected 2x3'), ((3, 2), 10, 'class id 10')])
def test_masks_of_another_size_or_model_are_refused(size, classes, hint):
    sent = png_message(Header(), np.array([[0, 1, 10], [255, 5, 3]], np.uint8))
    with pytest.raises(ValueError, match=hint):
        mask_of(sent, *size, classes)


def test_broken_masks_are_refused():
    png = bytes(png_message(Header(), np.random.default_rng(0).integers(0, 9, (40, 40), np.uint8)).data)
    jpeg = bytes(jpeg_message(Header(), np.zeros((40, 40, 3), np.uint8)).data)
    colour = bytes(cv2.imencode('.png', np.zeros((40, 40, 3), np.uint8))[1])
    deep = bytes(cv2.imencode('.png', np.zeros((40, 40), np.uint16))[1])
    huge = png[:16] + (2 ** 31 - 1).to_bytes(4, 'big') * 2 + png[24:]
    for bad in (b'', png[:20], png[:60], jpeg, colour, deep, huge, b'garbage' * 100):
        with pytest.raises(ValueError):
            plane_of(compressed_message(Header(), bad, 'mono8; png compressed'), 40, 40)


def test_frames_are_known_by_stamp_and_frame_id():
    header = Header(frame_id='eye')
    header.stamp.sec, header.stamp.nanosec = 12, 34
    assert key_of(header) == (12_000_000_034, 'eye')


def calibration(**changes):
    return CameraInfo(width=640, height=480, k=[500.0, 1.0, 320.0, 0.0, 510.0, 240.0, 0.0, 0.0, 1.0],
                      p=[480.0, 0.0, 316.0, -24.0, 0.0, 490.0, 236.0, 0.0, 0.0, 0.0, 1.0, 0.0], **changes)


def test_a_calibration_is_scaled_with_the_image():
    header = Header(frame_id='camera')
    info = scaled_camera_info(calibration(), header, 320, 120)
    assert (info.header, info.width, info.height) == (header, 320, 120)
    np.testing.assert_allclose(info.k, [250, 0.5, 160, 0, 127.5, 60, 0, 0, 1])
    np.testing.assert_allclose(info.p, [240, 0, 158, -12, 0, 122.5, 59, 0, 0, 0, 1, 0])


def test_a_calibration_loses_its_region_of_interest_and_binning():
    """320x240 pixels from (100, 40) on, read out at half the resolution; masks of 80x60 are a quarter of the region."""
    roi = RegionOfInterest(x_offset=100, y_offset=40, width=320, height=240, do_rectify=True)
    info = scaled_camera_info(calibration(roi=roi, binning_x=2, binning_y=2), Header(), 80, 60)
    np.testing.assert_allclose(info.k, [125, 0.25, 55, 0, 127.5, 50, 0, 0, 1])
    np.testing.assert_allclose(info.p, [120, 0, 54, -6, 0, 122.5, 49, 0, 0, 0, 1, 0])
    assert info.roi == RegionOfInterest() and (info.binning_x, info.binning_y) == (0, 0)


def test_no_calibration_stays_none():
    for info in (CameraInfo(width=640, height=480), CameraInfo()):
        scaled = scaled_camera_info(info, Header(), 320, 240)
        assert (scaled.width, scaled.height) == (320, 240) and not any(scaled.k) and not any(scaled.p)
