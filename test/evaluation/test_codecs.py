# Copyright 2026 The ee_seg_ros authors
# SPDX-License-Identifier: Apache-2.0
import cv2
import numpy as np

from ee_seg_ros.data.scenes import StreetDrive
from ee_seg_ros.evaluation.codecs import image_bytes


def test_sizes_are_those_of_opencv_at_the_size_asked_for():
    image = StreetDrive(1).frame(0).image
    sizes = image_bytes(image, 480, 360)
    bgr = np.ascontiguousarray(image[..., ::-1])
    assert sizes['jpeg'] == len(cv2.imencode('.jpg', bgr, [cv2.IMWRITE_JPEG_QUALITY, 75])[1])
    assert sizes['webp'] == len(cv2.imencode('.webp', bgr, [cv2.IMWRITE_WEBP_QUALITY, 75])[1])
    assert image_bytes(image, 240, 180)['jpeg'] < sizes['jpeg']


def test_chroma_is_subsampled_as_stated():
    image = StreetDrive(1).frame(0).image
    data = cv2.imencode('.jpg', image, [cv2.IMWRITE_JPEG_QUALITY, 75])[1].tobytes()
    start = data.index(b'\xff\xc0')    # the start-of-frame segment states each component's sampling factors
    assert data[start + 9] == 3 and [data[start + 11 + 3 * k] for k in range(3)] == [0x22, 0x11, 0x11]
