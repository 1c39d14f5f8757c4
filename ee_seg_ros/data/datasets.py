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
"""The labelled data sets by name: `open_dataset`, and `samples_of` for a run over one.

A reader has `class_names`, `class_colors` (RGB), `names`, `len()`, `image(i)` uint8 (H, W, 3) RGB, `labels(i)` uint8
(H, W) class ids with 255 where unlabelled, and `[i]`, which is both.
"""
import numpy as np

from ee_seg_ros.data import camvid
from ee_seg_ros.data.ade20k import ADE20K
from ee_seg_ros.data.camvid import CamVid
from ee_seg_ros.data.cityscapes import Cityscapes
from ee_seg_ros.data.labelled import LabelledImages, Split
from ee_seg_ros.data.scenes import StreetDrive
from ee_seg_ros.data.voc import VOC

SCENES_LENGTH = 100    # of a drive, which is endless


class Scenes:
    """A stretch of a procedural drive, 480x360, in CamVid's classes.

    split: the seed of the drive, then, if wanted, `[START:STOP]`, its frames (`7[300:400]`); without STOP there are
    `length`. Raises ValueError for another split.
    """

    class_names, class_colors = camvid.CLASS_NAMES, camvid.CLASS_COLORS

    def __init__(self, split: str = '0', length: int = SCENES_LENGTH):
        chosen = Split.parse(split)
        if not chosen.list_name.isdecimal() or chosen.prefix:
            raise ValueError(f'split {split!r} of the scenes must be the seed of a drive, for example 0, or a stretch '
                             'of it, for example 0[50:150]')
        self._drive = StreetDrive(int(chosen.list_name))
        self._frames = range(chosen.start, chosen.start + length if chosen.stop is None else chosen.stop)
        if not self._frames:
            raise ValueError(f'split {split!r} of the scenes has no images')
        self.names = [f'scene_{self._drive.seed}_{index:05d}' for index in self._frames]

    def __len__(self) -> int:
        return len(self._frames)

    def image(self, index: int) -> np.ndarray:
        """The image as uint8 (360, 480, 3) RGB."""
        return self[index][0]

    def labels(self, index: int) -> np.ndarray:
        """The labels as uint8 (360, 480): class ids 0..10."""
        return self[index][1]

    def __getitem__(self, index: int) -> tuple:
        """(image, labels) as from `image` and `labels`."""
        scene = self._drive.frame(self._frames[index])
        return scene.image, scene.labels


FOLDERS: dict[str, type[LabelledImages]] = {'camvid': CamVid, 'cityscapes': Cityscapes, 'ade20k': ADE20K, 'voc': VOC}
DATASETS = (*FOLDERS, 'scenes')


def open_dataset(name: str, root: str | None, split: str, length: int = 0):
    """The reader of a split of a data set.

    name: one of DATASETS. root: its folder (the scenes need none). split: see `labelled.Split` and `Scenes`. length:
    frames of the scenes where the split does not say how many (0: SCENES_LENGTH). Raises ValueError or
    FileNotFoundError that says what was expected.
    """
    if name not in DATASETS:
        raise ValueError(f"data set {name!r} is not known: choose one of {', '.join(DATASETS)}")
    if name == 'scenes':
        return Scenes(split, length or SCENES_LENGTH)
    if root is None:
        raise ValueError(f'data set {name} needs --root: {FOLDERS[name].layout}')
    return FOLDERS[name](root, split)


def bag_samples(root: str | None, split: str, limit: int = 0) -> tuple:
    """(count, iterable of (image, labels or None), whether the bag has labels) of a bag.

    root: BAG or BAG:/topic, see `bags.BagSource`. split: any name, then, if wanted, `[START:STOP]`. limit: as in
    `samples_of`. Raises ValueError or FileNotFoundError.
    """
    from ee_seg_ros.data.bags import BagSource, find_bag
    found = find_bag(root or '')
    if not root or found is None:
        raise FileNotFoundError(f'no bag {root or ""}: data set bag needs --root: the folder of a rosbag2, one of its '
                                'files, or BAG:/topic')
    source, chosen = BagSource(*found), Split.parse(split)
    frames = range(source.count)[chosen.start:chosen.stop]
    if not frames or limit < 0:
        raise ValueError(f'split {split!r} with limit {limit} leaves none of the {source.count} images of {root}')
    count = min(limit or len(frames), len(frames))
    wanted = (source.frame(frames[index * len(frames) // count]) for index in range(count))
    return count, ((frame.image, frame.labels) for frame in wanted), source.labelled


def samples_of(dataset: str, root: str | None, split: str, limit: int = 0) -> tuple:
    """(count, iterable of (image, labels)) of a data set.

    dataset, root, split: as in `open_dataset`. limit: use so many images, spread evenly over the split (0: all; of the
    scenes 100, and without a STOP the first `limit`). Raises ValueError or FileNotFoundError.
    """
    if limit < 0:
        raise ValueError(f'limit {limit} must not be negative (0: no limit)')
    data = open_dataset(dataset, root, split, length=limit)
    count = min(limit or len(data), len(data))
    return count, (data[index * len(data) // count] for index in range(count))
