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
import json

import cv2
import numpy as np
import pytest

from ee_seg_ros.data.sources import open_source


def write_images(folder, names, height=24, width=32):
    folder.mkdir(parents=True, exist_ok=True)
    for value, name in enumerate(names):
        image = np.zeros((height, width, 3), np.uint8)
        image[..., 2] = 10 * value    # OpenCV writes BGR, so this is red
        assert cv2.imwrite(str(folder / name), image)


@pytest.fixture
def video(tmp_path):
    path = tmp_path / 'drive.avi'
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*'MJPG'), 10, (64, 48))
    if not writer.isOpened():
        pytest.skip('this OpenCV writes no MJPG video')
    for value in range(6):
        writer.write(np.full((48, 64, 3), (0, 0, 40 * value), np.uint8))
    writer.release()
    return path


def test_scenes_are_endless_labelled_and_seeded():
    source = open_source('scenes', seed=3)
    frame = source.frame(7)
    assert source.count is None and source.name == 'scenes'
    assert frame.image.shape == (360, 480, 3) and frame.image.dtype == np.uint8
    assert frame.labels.shape == (360, 480) and frame.labels.max() <= 10
    assert np.array_equal(frame.image, open_source('scenes', seed=3).frame(7).image)
    assert not np.array_equal(frame.image, open_source('scenes', seed=4).frame(7).image)


def test_folder_is_read_as_rgb_in_natural_order(tmp_path):
    write_images(tmp_path, ['frame2.png', 'frame10.png', 'frame1.png', '.hidden.png'])
    (tmp_path / 'notes.txt').write_text('not an image')
    source = open_source(str(tmp_path))
    frames = [source.frame(index) for index in range(source.count)]
    assert [frame.name for frame in frames] == ['frame1', 'frame2', 'frame10']
    assert [frame.image[0, 0].tolist() for frame in frames] == [[20, 0, 0], [0, 0, 0], [10, 0, 0]]
    assert all(frame.labels is None for frame in frames)
    with pytest.raises(IndexError):
        source.frame(3)


@pytest.mark.parametrize('split', ['val', ''])
def test_labels_are_found_beside_the_images(tmp_path, split):
    write_images(tmp_path / 'images' / split, ['a.jpg', 'b.jpg'])
    labels = np.array([[0, 3], [11, 255]], np.uint8)
    (tmp_path / 'labels' / split).mkdir(parents=True)
    cv2.imwrite(str(tmp_path / 'labels' / split / 'a.png'), labels)
    source = open_source(str(tmp_path / 'images' / split))
    assert source.frame(0).labels.tolist() == [[0, 3], [11, 255]]
    assert source.frame(1).labels is None    # this one has none
    (tmp_path / 'classes.json').write_text(json.dumps({'ignore_id': 11}))
    assert open_source(str(tmp_path / 'images' / split)).frame(0).labels.tolist() == [[0, 3], [255, 255]]


def test_colour_labels_are_refused(tmp_path):
    write_images(tmp_path / 'images', ['a.png'])
    write_images(tmp_path / 'labels', ['a.png'])
    with pytest.raises(ValueError, match='8-bit grey PNG whose pixels are class ids'):
        open_source(str(tmp_path / 'images')).frame(0)


def test_video_forwards_jumps_and_back(video):
    source = open_source(str(video))
    assert source.count == 6 and source.name == 'drive'
    for index in (0, 1, 4, 2, 5, 5):
        frame = source.frame(index)
        assert frame.image.shape == (48, 64, 3) and frame.labels is None
        red, green, blue = frame.image.reshape(-1, 3).mean(0)
        assert abs(red - 40 * index) < 12 and green < 12 and blue < 12
    with pytest.raises(IndexError):
        source.frame(6)


@pytest.mark.parametrize('make, error, says', [
    (lambda folder: folder / 'nowhere', FileNotFoundError, 'give scenes, a folder of images, a video file, or'),
    (lambda folder: folder, ValueError, 'no images in'),
    (lambda folder: folder / 'text.mp4', ValueError, 'not a video'),
    (lambda folder: folder / 'one.png', ValueError, 'single image'),
])
def test_bad_specs_are_explained(tmp_path, make, error, says):
    if make(tmp_path) != tmp_path:
        (tmp_path / 'text.mp4').write_text('not a video')
        write_images(tmp_path, ['one.png'])
    with pytest.raises(error, match=says):
        open_source(str(make(tmp_path)))


def test_a_folder_one_level_up_is_hinted_at(tmp_path):
    write_images(tmp_path / 'val', ['a.png'])
    with pytest.raises(ValueError, match=r'there are some in .*val'):
        open_source(str(tmp_path))


def test_a_broken_image_is_named(tmp_path):
    (tmp_path / 'broken.jpg').write_bytes(b'no image')
    with pytest.raises(ValueError, match='broken.jpg is not an image'):
        open_source(str(tmp_path)).frame(0)


def test_a_negative_seed_is_refused():
    with pytest.raises(ValueError, match='seed -1'):
        open_source('scenes', seed=-1)


def test_distorted_frames_are_seeded_by_frame_and_keep_their_labels(tmp_path):
    clean, noisy, again = (open_source('scenes', 3, text) for text in ('', 'noise:20', 'noise:20'))
    assert noisy.name == 'scenes noise:20' and noisy.count is None
    change = [noisy.frame(index).image.astype(int) - clean.frame(index).image for index in (2, 3)]
    assert np.std(change[0]) == pytest.approx(20, rel=0.15) and not np.array_equal(*change)
    assert np.array_equal(noisy.frame(2).image, again.frame(2).image)
    assert np.array_equal(noisy.frame(2).labels, clean.frame(2).labels)
    assert type(open_source('scenes', 3, 'clean')) is type(clean)
    with pytest.raises(ValueError, match='expected clean, or NAME:LEVEL'):
        open_source('scenes', 3, 'snow:3')
