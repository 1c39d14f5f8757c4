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
"""What the same frame would cost as a compressed image: the baseline of every claim about bytes."""
import cv2
import numpy as np

QUALITY = 75
SUBSAMPLING = '4:2:0'    # libjpeg's default in OpenCV, and the only one that lossy WebP has


def image_bytes(image: np.ndarray, width: int, height: int, quality: int = QUALITY) -> dict:
    """{'jpeg': n, 'webp': n}: bytes of an image, uint8 (H, W, 3) RGB, after scaling it to the size a network sees.

    The size is that of the image's content in the network input, so that neither side sends pixels nobody looks at.
    """
    if (width, height) != image.shape[1::-1]:
        shrinks = width < image.shape[1]
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    image = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    settings = {'jpeg': ('.jpg', cv2.IMWRITE_JPEG_QUALITY), 'webp': ('.webp', cv2.IMWRITE_WEBP_QUALITY)}
    sizes = {}
    for name, (suffix, key) in settings.items():
        encoded, data = cv2.imencode(suffix, image, [key, quality])
        if not encoded:
            raise ValueError(f'this OpenCV cannot write {name}')
        sizes[name] = len(data)
    return sizes
