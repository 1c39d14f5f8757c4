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
"""ADE20K as the scene parsing benchmark SceneParse150 has it: ADEChallengeData2016.zip, unpacked."""
import json
from pathlib import Path

from ee_seg_ros.data.labelled import UNLABELLED, LabelledImages, id_table, list_of_folder, locate

# Names: the first of each line of the benchmark's objectInfo150.txt; colours: its color150.mat, in which two classes
# (road, skyscraper) have the same one.
_CLASSES = json.loads(Path(__file__).with_name('ade20k_classes.json').read_text(encoding='utf-8'))
CLASS_NAMES = tuple(entry['name'] for entry in _CLASSES)
CLASS_COLORS = tuple(tuple(entry['color']) for entry in _CLASSES)


class ADE20K(LabelledImages):
    """One split of SceneParse150: `ROOT/images/LIST/NAME.jpg`, `ROOT/annotations/LIST/NAME.png`.

    Annotations are 0 for what is none of the 150 classes (unlabelled here), 1..150 for classes 0..149. root:
    ADEChallengeData2016 or the folder that holds it. split: `training` or `validation`, `validation[:50]`, ..., see
    `labelled.Split`.
    """

    class_names, class_colors = CLASS_NAMES, CLASS_COLORS
    layout = ('ADEChallengeData2016 (or the folder that holds it) with images/training/*.jpg, annotations/training/'
              '*.png (8 bit, 0..150), and the same in validation/: ADEChallengeData2016.zip, unpacked')
    table = id_table({0: UNLABELLED} | {index + 1: index for index in range(150)})

    def _locate(self, root):
        return locate(root, ('', 'ADEChallengeData2016'), ('images', 'annotations'), self.layout)

    def _names(self):
        return list_of_folder(self.root / 'images', self.list_name, '.jpg')

    def _image_path(self, name):
        return self._first_file(name, [self.root / 'images' / self.list_name / f'{name}.jpg'])

    def _labels_path(self, name):
        return self._first_file(name, [self.root / 'annotations' / self.list_name / f'{name}.png'])
