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

from ee_seg_ros.data.ade20k import ADE20K, CLASS_COLORS, CLASS_NAMES


@pytest.fixture
def root(tmp_path):
    """The folder that holds ADEChallengeData2016, with annotations 0..150 in each of three training images."""
    for kind in ('images', 'annotations'):
        for split in ('training', 'validation'):
            (tmp_path / 'ADEChallengeData2016' / kind / split).mkdir(parents=True)
    (tmp_path / 'ADEChallengeData2016/objectInfo150.txt').touch()
    for index in (3, 1, 2):
        image = np.full((16, 151, 3), (200, 20 * index, 0), np.uint8)
        cv2.imwrite(str(tmp_path / f'ADEChallengeData2016/images/training/ADE_train_0000000{index}.jpg'), image)
        cv2.imwrite(str(tmp_path / f'ADEChallengeData2016/annotations/training/ADE_train_0000000{index}.png'),
                    np.tile(np.arange(151, dtype=np.uint8), (16, 1)))
    return tmp_path


def test_annotation_0_is_unlabelled_and_the_others_count_from_0(root):
    image, labels = ADE20K(root, 'training')[0]
    assert image.shape == (16, 151, 3) and np.abs(image[8, 8].astype(int) - (0, 20, 200)).max() < 4
    assert labels[7].tolist() == [255, *range(150)]


def test_names_are_in_order_and_can_be_chosen(root):
    names = [f'ADE_train_0000000{index}' for index in (1, 2, 3)]
    assert ADE20K(root, 'training').names == names
    assert ADE20K(root / 'ADEChallengeData2016', 'training:ADE_train_00000002').names == names[1:2]


def test_grey_photos_are_rgb_as_well(root):
    path = root / 'ADEChallengeData2016/images/training/ADE_train_00000001.jpg'
    cv2.imwrite(str(path), np.full((16, 151), 99, np.uint8))
    assert ADE20K(root, 'training').image(0)[0, 0].tolist() == [99] * 3


def test_a_value_of_no_class_is_an_error(root):
    path = root / 'ADEChallengeData2016/annotations/training/ADE_train_00000001.png'
    cv2.imwrite(str(path), np.full((16, 151), 151, np.uint8))
    with pytest.raises(ValueError, match='holds the value 151, .* 0..150'):
        ADE20K(root, 'training').labels(0)


@pytest.mark.parametrize('folder, split, error, says', [
    ('ADEChallengeData2016/images', 'training', FileNotFoundError,
     r'\(there: training, validation\): expected ADEChallengeData2016'),
    ('', 'train', FileNotFoundError, r"no split 'train' .*splits there: training, validation"),
    ('', 'validation', ValueError, 'has no images'),
])
def test_a_wrong_layout_is_explained(root, folder, split, error, says):
    with pytest.raises(error, match=says):
        ADE20K(root / folder, split)


def test_there_are_150_classes_with_names_of_their_own():
    assert len(CLASS_NAMES) == len(set(CLASS_NAMES)) == len(CLASS_COLORS) == 150
    assert CLASS_NAMES[:3] + CLASS_NAMES[-1:] == ('wall', 'building', 'sky', 'flag')
    assert CLASS_COLORS[:3] + CLASS_COLORS[-1:] == ((120, 120, 120), (180, 120, 120), (6, 230, 230), (92, 0, 255))
    assert np.array(CLASS_COLORS).shape == (150, 3) and 0 <= np.min(CLASS_COLORS) <= np.max(CLASS_COLORS) <= 255
