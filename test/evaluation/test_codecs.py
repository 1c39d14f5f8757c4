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
