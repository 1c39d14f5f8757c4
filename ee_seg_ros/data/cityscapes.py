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
"""Cityscapes with its 19 training classes: leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip, unpacked."""
from ee_seg_ros.data.labelled import UNLABELLED, LabelledImages, id_table, list_of_folder, locate

# As cityscapesScripts' helpers/labels.py has them: name, colour, and the id in *_labelIds.png; the place is the
# training id.
_CLASSES = (
    ('road', (128, 64, 128), 7), ('sidewalk', (244, 35, 232), 8), ('building', (70, 70, 70), 11),
    ('wall', (102, 102, 156), 12), ('fence', (190, 153, 153), 13), ('pole', (153, 153, 153), 17),
    ('traffic light', (250, 170, 30), 19), ('traffic sign', (220, 220, 0), 20), ('vegetation', (107, 142, 35), 21),
    ('terrain', (152, 251, 152), 22), ('sky', (70, 130, 180), 23), ('person', (220, 20, 60), 24),
    ('rider', (255, 0, 0), 25), ('car', (0, 0, 142), 26), ('truck', (0, 0, 70), 27), ('bus', (0, 60, 100), 28),
    ('train', (0, 80, 100), 31), ('motorcycle', (0, 0, 230), 32), ('bicycle', (119, 11, 32), 33))
CLASS_NAMES = tuple(name for name, _, _ in _CLASSES)
CLASS_COLORS = tuple(color for _, color, _ in _CLASSES)

_TABLES = {
    # 0..33 are all ids that a file may hold; those of no training class are not evaluated.
    'labelIds': id_table(dict.fromkeys((*range(34), UNLABELLED), UNLABELLED)
                         | {id_: index for index, (_, _, id_) in enumerate(_CLASSES)}),
    'labelTrainIds': id_table({index: index for index in range(19)} | {UNLABELLED: UNLABELLED}),
}


class Cityscapes(LabelledImages):
    """One split of Cityscapes: `ROOT/leftImg8bit/LIST/CITY/*_leftImg8bit.png`, `ROOT/gtFine/LIST/CITY/*.png`.

    Labels are the official `*_gtFine_labelIds.png`, mapped to training ids, or, where only those are there,
    `*_gtFine_labelTrainIds.png`. Names are `CITY/CITY_SEQUENCE_FRAME`. split: `train`, `val` or `test` (whose
    official labels are all 255), `train:aachen`, `train:!aachen[:50]`, ..., see `labelled.Split`.
    """

    class_names, class_colors = CLASS_NAMES, CLASS_COLORS
    layout = ('the folder with leftImg8bit/SPLIT/CITY/*_leftImg8bit.png and gtFine/SPLIT/CITY/*_gtFine_labelIds.png '
              '(or *_gtFine_labelTrainIds.png): leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip, unpacked')

    def _locate(self, root):
        return locate(root, ('',), ('leftImg8bit', 'gtFine'), self.layout)

    def _names(self):
        return list_of_folder(self.root / 'leftImg8bit', self.list_name, '_leftImg8bit.png')

    def _image_path(self, name):
        return self._first_file(name, [self.root / 'leftImg8bit' / self.list_name / f'{name}_leftImg8bit.png'])

    def _labels_path(self, name):
        return self._first_file(name, [self.root / 'gtFine' / self.list_name / f'{name}_gtFine_{kind}.png'
                                       for kind in _TABLES])

    def _table_for(self, path):
        return _TABLES[path.stem.rpartition('_')[2]]
