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
"""PASCAL VOC 2012, segmentation: VOCtrainval_11-May-2012.tar, unpacked."""
import numpy as np

from ee_seg_ros.data.labelled import UNLABELLED, LabelledImages, id_table, list_of_file, locate

CLASS_NAMES = ('background', 'aeroplane', 'bicycle', 'bird', 'boat', 'bottle', 'bus', 'car', 'cat', 'chair', 'cow',
               'diningtable', 'dog', 'horse', 'motorbike', 'person', 'pottedplant', 'sheep', 'sofa', 'train',
               'tvmonitor')


def color_of(index: int) -> tuple:
    """The colour of class `index` in the development kit's colour map (VOCcode/VOClabelcolormap.m).

    Bits 0, 1, 2 of the index are the highest bits of red, green and blue, bits 3, 4, 5 the next ones, and so on.
    """
    return tuple(sum((index >> 3 * place + channel & 1) << 7 - place for place in range(3)) for channel in range(3))


CLASS_COLORS = tuple(color_of(index) for index in range(len(CLASS_NAMES)))


class VOC(LabelledImages):
    """One split of VOC 2012: `JPEGImages/NAME.jpg`, `SegmentationClass/NAME.png`, `ImageSets/Segmentation/LIST.txt`.

    Labels are palette images whose indices are the class ids (0 is background, 255 void); reading them needs Pillow.
    root: VOC2012, or the VOCdevkit that holds it, or the folder that holds VOCdevkit. split: `train`, `val`,
    `trainval`, the path of a list elsewhere, `val:2007[:50]`, ..., see `labelled.Split`.
    """

    class_names, class_colors = CLASS_NAMES, CLASS_COLORS
    layout = ('VOCdevkit/VOC2012 (or a folder above it) with JPEGImages/*.jpg, SegmentationClass/*.png (palette '
              'indices 0..20, 255 is void) and ImageSets/Segmentation/LIST.txt: VOCtrainval_11-May-2012.tar, unpacked')
    table = id_table({index: index for index in range(len(CLASS_NAMES))} | {UNLABELLED: UNLABELLED})

    def _locate(self, root):
        return locate(root, ('', 'VOC2012', 'VOCdevkit/VOC2012'),
                      ('JPEGImages', 'SegmentationClass', 'ImageSets/Segmentation'), self.layout)

    def _names(self):
        return list_of_file(self.root / 'ImageSets/Segmentation', self.list_name, self.layout)

    def _image_path(self, name):
        return self._first_file(name, [self.root / 'JPEGImages' / f'{name}.jpg'])

    def _labels_path(self, name):
        return self._first_file(name, [self.root / 'SegmentationClass' / f'{name}.png'])

    def _read_labels(self, path):
        # OpenCV would turn the indices of a palette image into colours.
        try:
            from PIL import Image
        except ImportError as error:
            raise ImportError(f'the labels of PASCAL VOC are palette images, which only Pillow reads ({error}): '
                              'install it with `pip install pillow` or the extra `demo` of this package') from error
        try:
            with Image.open(path) as image:
                mode, labels = image.mode, np.array(image)
        except OSError as error:
            raise ValueError(f'{path} is not an image that Pillow can read: {error}') from error
        if mode not in ('P', 'L'):
            raise ValueError(f'{path} is not a label image: expected 8-bit palette indices, found mode {mode}')
        return labels
