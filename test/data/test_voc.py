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
import sys

import cv2
import numpy as np
import pytest

from ee_seg_ros.data.voc import CLASS_COLORS, CLASS_NAMES, VOC, color_of

Image = pytest.importorskip('PIL.Image')

NAMES = ['2007_000032', '2007_000039', '2008_000001']
IDS = np.tile(np.uint8([*range(21), 255]), (16, 1))


def write_palette(path, ids):
    image = Image.fromarray(ids)
    image.putpalette([value for index in range(256) for value in color_of(index)])
    image.save(path)
    assert Image.open(path).mode == 'P'


@pytest.fixture
def root(tmp_path):
    """The folder that holds VOCdevkit; the labels of every image are all ids."""
    folder = tmp_path / 'VOCdevkit/VOC2012'
    for name in ('JPEGImages', 'SegmentationClass', 'ImageSets/Segmentation', 'Annotations'):
        (folder / name).mkdir(parents=True)
    for name in NAMES:
        cv2.imwrite(str(folder / f'JPEGImages/{name}.jpg'), np.full((16, 22, 3), (0, 100, 200), np.uint8))
        write_palette(folder / f'SegmentationClass/{name}.png', IDS)
    (folder / 'ImageSets/Segmentation/val.txt').write_text('\n'.join(NAMES) + '\n')
    (folder / 'ImageSets/Segmentation/train.txt').write_text('')
    return tmp_path


def test_labels_are_the_indices_of_the_palette(root):
    image, labels = VOC(root, 'val')[1]
    assert image.shape == (16, 22, 3) and np.abs(image[8, 8].astype(int) - (200, 100, 0)).max() < 4
    assert labels.dtype == np.uint8 and np.array_equal(labels, IDS)


@pytest.mark.parametrize('folder', ['', 'VOCdevkit', 'VOCdevkit/VOC2012'])
def test_the_root_may_be_any_of_the_archives_folders(root, folder):
    assert VOC(root / folder, 'val:2007').names == NAMES[:2]


def test_indices_in_a_grey_file_are_read_too(root):
    Image.fromarray(IDS).save(root / f'VOCdevkit/VOC2012/SegmentationClass/{NAMES[0]}.png')
    assert np.array_equal(VOC(root, 'val').labels(0), IDS)


def test_wrong_label_files_are_named(root):
    path = root / f'VOCdevkit/VOC2012/SegmentationClass/{NAMES[0]}.png'
    data = VOC(root, 'val')
    write_palette(path, np.full((16, 22), 21, np.uint8))
    with pytest.raises(ValueError, match=r'holds the value 21, .* 0\.\.20'):
        data.labels(0)
    cv2.imwrite(str(path), np.zeros((16, 22, 3), np.uint8))
    with pytest.raises(ValueError, match='expected 8-bit palette indices, found mode RGB'):
        data.labels(0)
    path.write_text('no picture')
    with pytest.raises(ValueError, match=r'000032\.png is not an image that Pillow can read'):
        data.labels(0)


def test_without_pillow_the_images_are_readable_and_the_labels_say_what_is_missing(root, monkeypatch):
    monkeypatch.setitem(sys.modules, 'PIL', None)
    data = VOC(root, 'val')
    assert data.image(0).shape == (16, 22, 3)
    with pytest.raises(ImportError, match='pip install pillow'):
        data.labels(0)


@pytest.mark.parametrize('folder, split, error, says', [
    ('VOCdevkit/VOC2012/ImageSets', 'val', FileNotFoundError, r'\(there: Segmentation\): expected VOCdevkit/VOC2012'),
    ('', 'test', FileNotFoundError, r'no list test\.txt .*lists there: train, val'),
    ('', 'train', ValueError, 'has no images'),
])
def test_a_wrong_layout_is_explained(root, folder, split, error, says):
    with pytest.raises(error, match=says):
        VOC(root / folder, split)


def test_colours_are_those_of_the_development_kit():
    assert len(CLASS_NAMES) == len(set(CLASS_COLORS)) == 21
    colors = dict(zip(CLASS_NAMES, CLASS_COLORS))
    assert colors['background'] == (0, 0, 0) and colors['person'] == (192, 128, 128)
    assert colors['tvmonitor'] == (0, 64, 128) and color_of(255) == (224, 224, 192)
