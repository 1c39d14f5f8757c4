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

from ee_seg_ros.data.cityscapes import CLASS_COLORS, CLASS_NAMES, Cityscapes

NAMES = ['aachen/aachen_000000_000019', 'aachen/aachen_000001_000019', 'ulm/ulm_000000_000019']


def write(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), image)


@pytest.fixture
def root(tmp_path):
    """Three images of two cities whose labels are the ids 0..33, and one of another split."""
    for name in NAMES:
        write(tmp_path / f'leftImg8bit/train/{name}_leftImg8bit.png', np.full((2, 34, 3), (30, 20, 10), np.uint8))
        write(tmp_path / f'gtFine/train/{name}_gtFine_labelIds.png', np.tile(np.arange(34, dtype=np.uint8), (2, 1)))
        write(tmp_path / f'gtFine/train/{name}_gtFine_color.png', np.zeros((2, 34, 3), np.uint8))
    write(tmp_path / 'leftImg8bit/val/bonn/bonn_000000_000019_leftImg8bit.png', np.zeros((2, 34, 3), np.uint8))
    return tmp_path


def test_ids_become_training_ids(root):
    image, labels = Cityscapes(root, 'train')[2]
    assert image.shape == (2, 34, 3) and image[0, 0].tolist() == [10, 20, 30]
    found = {id_: class_ for id_, class_ in enumerate(labels[1].tolist()) if class_ != 255}
    assert found == {7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10, 24: 11, 25: 12, 26: 13,
                     27: 14, 28: 15, 31: 16, 32: 17, 33: 18}


@pytest.mark.parametrize('split, names', [
    ('train', NAMES),
    ('train:aachen', NAMES[:2]),
    ('train:!aachen', NAMES[2:]),
    ('train[1:]', NAMES[1:]),
    ('val', ['bonn/bonn_000000_000019']),
])
def test_splits(root, split, names):
    assert Cityscapes(root, split).names == names


def test_files_of_training_ids_serve_where_there_are_no_others(root):
    base = root / f'gtFine/train/{NAMES[2]}'
    write(root / f'{base}_gtFine_labelTrainIds.png', np.uint8([[0, 18, 255]]).repeat(2, 0))
    data = Cityscapes(root, 'train')
    assert data.labels(2)[0, :8].tolist() == [255] * 7 + [0]
    (root / f'{base}_gtFine_labelIds.png').unlink()
    assert data.labels(2).tolist() == [[0, 18, 255]] * 2


def test_a_value_of_no_label_is_an_error(root):
    path = root / f'gtFine/train/{NAMES[0]}_gtFine_labelIds.png'
    write(path, np.full((2, 34), 34, np.uint8))
    with pytest.raises(ValueError, match='_labelIds.png holds the value 34'):
        Cityscapes(root, 'train').labels(0)


def test_a_missing_label_file_is_named(root):
    with pytest.raises(FileNotFoundError, match=r'looked for gtFine/val/bonn/\S+_gtFine_labelIds\.png'):
        Cityscapes(root, 'val').labels(0)


def test_a_wrong_layout_is_explained(root):
    with pytest.raises(FileNotFoundError, match=r'\(there: train, val\): expected the folder with leftImg8bit/SPLIT'):
        Cityscapes(root / 'leftImg8bit', 'train')
    with pytest.raises(FileNotFoundError, match=r"no split 'training' in .*leftImg8bit \(splits there: train, val\)"):
        Cityscapes(root, 'training')


def test_classes_have_the_official_colours():
    colors = dict(zip(CLASS_NAMES, CLASS_COLORS))
    assert len(CLASS_NAMES) == len(set(CLASS_COLORS)) == 19
    assert colors['road'] == (128, 64, 128) and colors['car'] == (0, 0, 142) and colors['bicycle'] == (119, 11, 32)
