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
"""What the readers of labelled data sets on disk share: choosing images, reading files, explaining what is wrong."""
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

UNLABELLED = 255

_INVALID = 254    # in a table of ids: a value that no label file of the data set holds
_SPLIT = re.compile(r'(?P<list>[^:\[\]]+)(:(?P<other>!?)(?P<prefix>[^\[\]]+))?(\[(?P<start>\d*):(?P<stop>\d*)\])?')


@dataclass(frozen=True)
class Split:
    """Which images of a data set: `LIST`, `LIST:PREFIX`, `LIST:!PREFIX`, each with `[START:STOP]` if wanted.

    LIST is one of the data set's own splits; PREFIX keeps the names that begin so, !PREFIX all others; START and STOP
    count what is left, as Python's slices do. `train:0006R0[:50]` is the first 50 images of one drive of CamVid.
    """

    list_name: str
    prefix: str | None
    inverted: bool
    start: int
    stop: int | None

    @classmethod
    def parse(cls, text: str) -> 'Split':
        """Read the form above; ValueError for anything else."""
        found = _SPLIT.fullmatch(text)
        if found is None:
            raise ValueError(f'split {text!r} is not understood: give LIST, LIST:PREFIX, LIST:!PREFIX or '
                             'LIST:PREFIX[START:STOP], for example train:0006R0[:50]')
        return cls(found['list'], found['prefix'], found['other'] == '!', int(found['start'] or 0),
                   int(found['stop']) if found['stop'] else None)

    def choose(self, names: list) -> list:
        """The names of LIST that are wanted, in their order."""
        if self.prefix:
            names = [name for name in names if name.startswith(self.prefix) is not self.inverted]
        return names[self.start:self.stop]


class LabelledImages:
    """One split of a data set on disk: `names`, `len()`, and by index (image, labels).

    A reader of one data set sets the attributes below, and has `_names()` (of the whole list `list_name`),
    `_image_path(name)` and `_labels_path(name)`.
    split: see `Split`. Raises FileNotFoundError or ValueError that says what was expected and what is there.
    """

    class_names: Sequence[str] = ()
    class_colors: Sequence = ()
    layout = ''         # what `root` is, for people
    table: np.ndarray = None    # from `id_table`: class ids by the values of the label files

    def __init__(self, root: str | Path, split: str):
        self.root = self._locate(Path(root))
        self.split = split
        chosen = Split.parse(split)
        self.list_name = chosen.list_name
        self.names = chosen.choose(self._names())
        if not self.names:
            raise ValueError(f'split {split!r} of {self.root} has no images')

    def _locate(self, root):
        """The folder that holds the data set, for a reader that lets `root` be one above it."""
        return root

    def _names(self) -> list:
        raise NotImplementedError

    def _image_path(self, name: str) -> Path:
        raise NotImplementedError

    def _labels_path(self, name: str) -> Path:
        raise NotImplementedError

    def __len__(self) -> int:
        return len(self.names)

    def image(self, index: int) -> np.ndarray:
        """The image as uint8 (H, W, 3) RGB."""
        path = self._image_path(self.names[index])
        # The labels belong to the pixels as stored, whatever a camera's orientation tag says.
        image = cv2.imread(str(path), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
        if image is None:
            raise ValueError(f'{path} is not an image that OpenCV can read')
        return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)

    def labels(self, index: int) -> np.ndarray:
        """The labels as uint8 (H, W): class ids, 255 where unlabelled."""
        path = self._labels_path(self.names[index])
        stored = self._read_labels(path)
        labels = cv2.LUT(stored, self._table_for(path))
        wrong = stored[labels == _INVALID]
        if wrong.size:
            raise ValueError(f'{path} holds the value {wrong[0]}, which is no label of this data set: '
                             f'expected {self.layout}')
        return labels

    def __getitem__(self, index: int) -> tuple:
        """(image, labels) as from `image` and `labels`; ValueError where their sizes differ."""
        image, labels = self.image(index), self.labels(index)
        if image.shape[:2] != labels.shape:
            sizes = [f'{shape[1]}x{shape[0]}' for shape in (image.shape, labels.shape)]
            raise ValueError(f'{self.names[index]} of {self.root}: the image is {sizes[0]}, its labels are {sizes[1]}')
        return image, labels

    def _read_labels(self, path):
        labels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        if labels is None or labels.ndim != 2 or labels.dtype != np.uint8:
            raise ValueError(f'{path} is not a label image: expected an 8-bit grey PNG whose pixels are ids')
        return labels

    def _table_for(self, path):
        return self.table

    def _first_file(self, name, paths):
        """The first of `paths` that is a file."""
        for path in paths:
            if path.is_file():
                return path
        tried = [str(path.relative_to(self.root)) for path in paths]
        tried = ', '.join(tried[:4] + ['...'] * (len(tried) > 4))
        raise FileNotFoundError(f'{name} of split {self.split!r} has no file in {self.root}: looked for {tried}')


def id_table(classes: dict) -> np.ndarray:
    """uint8 (256,) for `LabelledImages.table`: class ids by stored value; all values not in `classes` are errors."""
    table = np.full(256, _INVALID, np.uint8)
    table[list(classes)] = list(classes.values())
    return table


def locate(root: Path, places: tuple, folders: tuple, layout: str) -> Path:
    """The first of root/PLACE that has all `folders`; FileNotFoundError with `layout` otherwise."""
    for place in places:
        if all((root / place / folder).is_dir() for folder in folders):
            return root / place
    names = sorted(path.name for path in root.iterdir()) if root.is_dir() else ['no such folder']
    there = ', '.join(names[:8] + ['...'] * (len(names) > 8)) or 'nothing'
    raise FileNotFoundError(f'the data set is not in {root} (there: {there}): expected {layout}')


def list_of_file(folder: Path, name: str, layout: str) -> list:
    """The image names in FOLDER/NAME.txt, or in the file `name` elsewhere: one a line, or its path with a suffix."""
    path = next((path for path in (folder / f'{name}.txt', Path(name)) if path.is_file()), None)
    if path is None:
        known = ', '.join(sorted(file.stem for file in folder.glob('*.txt'))) or 'none'
        raise FileNotFoundError(f'no list {name}.txt in {folder} (lists there: {known}); expected {layout}')
    paths = [line.split()[0] for line in path.read_text(encoding='utf-8').splitlines() if line.strip()]
    return [Path(image).name.removesuffix('.png').removesuffix('.jpg') for image in paths]


def list_of_folder(folder: Path, name: str, suffix: str) -> list:
    """The images anywhere in FOLDER/NAME, in order, as paths relative to it without `suffix`."""
    if not (folder / name).is_dir():
        known = ', '.join(sorted(path.name for path in folder.iterdir() if path.is_dir())) or 'none'
        raise FileNotFoundError(f'no split {name!r} in {folder} (splits there: {known})')
    return sorted(path.relative_to(folder / name).as_posix().removesuffix(suffix)
                  for path in (folder / name).rglob(f'*{suffix}'))
