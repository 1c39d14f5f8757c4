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

from ee_seg_ros.data.labelled import LabelledImages, Split, id_table, list_of_file, list_of_folder, locate

NAMES = ['a_0', 'a_1', 'b_0', 'b_1', 'b_2']


class Pairs(LabelledImages):
    """ROOT/NAME.jpg with labels ROOT/NAME.png."""

    layout = 'pairs of files'
    table = id_table({0: 0, 1: 1, 9: 255})

    def _names(self):
        return ['one']

    def _image_path(self, name):
        return self._first_file(name, [self.root / f'{name}.jpg'])

    def _labels_path(self, name):
        return self._first_file(name, [self.root / f'{name}.png'])


@pytest.fixture
def pairs(tmp_path):
    cv2.imwrite(str(tmp_path / 'one.jpg'), np.full((8, 16, 3), (0, 0, 255), np.uint8))
    cv2.imwrite(str(tmp_path / 'one.png'), np.repeat(np.uint8([[0, 1, 9, 1]]), 8, 0).repeat(4, 1))
    return Pairs(tmp_path, 'all')


@pytest.mark.parametrize('text, chosen', [
    ('val', NAMES),
    ('val:b', NAMES[2:]),
    ('val:!b', NAMES[:2]),
    ('val:b[1:]', NAMES[3:]),
    ('val[:2]', NAMES[:2]),
    ('val[1:3]', NAMES[1:3]),
    ('val[2:90]', NAMES[2:]),
    ('val[0:0]', []),
])
def test_a_split_chooses_by_prefix_and_then_by_place(text, chosen):
    split = Split.parse(text)
    assert split.list_name == 'val' and split.choose(NAMES) == chosen


@pytest.mark.parametrize('text', ['', 'val[3]', 'val[-2:]', 'val:', '[1:2]', 'val[1:2]:b'])
def test_other_splits_are_not_understood(text):
    with pytest.raises(ValueError, match=r'is not understood: give LIST, .* for example train:0006R0\[:50\]'):
        Split.parse(text)


def test_an_item_is_the_image_and_its_mapped_labels(pairs):
    image, labels = pairs[0]
    assert len(pairs) == 1 and image.dtype == labels.dtype == np.uint8
    assert image.shape == (8, 16, 3) and image[0, 0, 0] > 250 and image[0, 0, 2] < 5
    assert labels.shape == (8, 16) and labels[3, ::4].tolist() == [0, 1, 255, 1]
    with pytest.raises(IndexError):
        pairs[1]


def test_the_orientation_tag_of_a_photo_is_ignored(pairs):
    plain = (pairs.root / 'one.jpg').read_bytes()
    tiff = b'MM\0*\0\0\0\x08' + b'\0\x01' + b'\x01\x12\0\x03\0\0\0\x01\0\x06\0\0' + b'\0\0\0\0'    # a quarter turn
    segment = b'Exif\0\0' + tiff
    turned = plain[:2] + b'\xff\xe1' + (len(segment) + 2).to_bytes(2, 'big') + segment + plain[2:]
    (pairs.root / 'one.jpg').write_bytes(turned)
    assert cv2.imread(str(pairs.root / 'one.jpg')).shape == (16, 8, 3)
    assert pairs.image(0).shape == (8, 16, 3)


@pytest.mark.parametrize('file, content, says', [
    ('one.jpg', 'no picture', r'one\.jpg is not an image that OpenCV can read'),
    ('one.png', 'no picture', r'one\.png is not a label image: expected an 8-bit grey PNG'),
    ('one.png', np.zeros((8, 16, 3), np.uint8), 'is not a label image'),
    ('one.png', np.zeros((8, 16), np.uint16), 'is not a label image'),
    ('one.png', np.full((8, 16), 7, np.uint8), r'one\.png holds the value 7, .* expected pairs of files'),
    ('one.png', np.zeros((8, 15), np.uint8), 'the image is 16x8, its labels are 15x8'),
])
def test_wrong_files_are_named(pairs, file, content, says):
    if isinstance(content, str):
        (pairs.root / file).write_text(content)
    else:
        cv2.imwrite(str(pairs.root / file), content)
    with pytest.raises(ValueError, match=says):
        pairs[0]


def test_a_missing_file_is_named(pairs):
    (pairs.root / 'one.png').unlink()
    with pytest.raises(FileNotFoundError, match=r"one of split 'all' has no file in .*: looked for one\.png"):
        pairs.labels(0)


def test_a_split_without_images_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"split 'all\[5:\]' of .* has no images"):
        Pairs(tmp_path, 'all[5:]')


def test_a_data_set_may_lie_in_a_folder_below(tmp_path):
    (tmp_path / 'Set/images').mkdir(parents=True)
    for root in (tmp_path, tmp_path / 'Set'):
        assert locate(root, ('', 'Set'), ('images',), 'images/') == tmp_path / 'Set'


def test_a_wrong_folder_is_explained_by_what_is_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'\(there: nothing\): expected images/'):
        locate(tmp_path, ('',), ('images',), 'images/')
    with pytest.raises(FileNotFoundError, match='no such folder'):
        locate(tmp_path / 'else', ('',), ('images',), 'images/')
    for index in range(9):
        (tmp_path / f'f{index}').touch()
    with pytest.raises(FileNotFoundError, match=r'\(there: f0, .*f7, \.\.\.\)'):
        locate(tmp_path, ('',), ('images',), 'images/')


def test_lists_hold_names_or_paths(tmp_path):
    (tmp_path / 'val.txt').write_text('one\n\n/there/val/two.v1.png /there/valannot/two.v1.png\nthree.jpg\n')
    names = ['one', 'two.v1', 'three']
    assert list_of_file(tmp_path, 'val', '') == names
    assert list_of_file(tmp_path / 'else', str(tmp_path / 'val.txt'), '') == names
    with pytest.raises(FileNotFoundError, match=r'no list test\.txt in .* \(lists there: val\); expected lists'):
        list_of_file(tmp_path, 'test', 'lists')


def test_folders_list_their_images_in_order(tmp_path):
    for name in ('val/b/2_x.png', 'val/b/1_x.png', 'val/a/9_x.png', 'val/a/9_y.png', 'train/a/3_x.png'):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert list_of_folder(tmp_path, 'val', '_x.png') == ['a/9', 'b/1', 'b/2']
    with pytest.raises(FileNotFoundError, match=r"no split 'walk' in .* \(splits there: train, val\)"):
        list_of_folder(tmp_path, 'walk', '_x.png')
