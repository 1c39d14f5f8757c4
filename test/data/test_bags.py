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
"""Bags of both storages, written here, and what is said of those that cannot be used."""
import numpy as np
import pytest
from bagging import TYPES, header, png, raw, write

from ee_seg_ros.data.datasets import bag_samples
from ee_seg_ros.data.sources import open_source


def picture(index):
    """uint8 (4, 6, 3) RGB, another one for every index."""
    return np.full((4, 6, 3), (10 * index, 100, 200), np.uint8)


@pytest.fixture(params=['SQLITE3', 'MCAP'])
def bag(request, tmp_path):
    """Five images, labels for the second and the fourth."""
    images = [raw(100 * index, picture(index), 'rgb8') for index in range(5)]
    labels = [raw(100 * index, np.full((4, 6, 1), index, np.uint8), 'mono8') for index in (1, 3)]
    return write(tmp_path / 'drive', {'/front/image_raw': images, '/front/labels': labels}, request.param)


@pytest.mark.parametrize('inside', [False, True], ids=['folder', 'file'])
def test_frames_come_in_order_with_their_labels(bag, inside):
    spec = next(path for path in bag.iterdir() if path.suffix in ('.db3', '.mcap')) if inside else bag
    source = open_source(str(spec))
    assert (source.count, source.name, source.topic) == (5, spec.stem, '/front/image_raw')
    for index in (0, 1, 2, 4, 3, 1, 1):    # forwards, a jump, back
        frame = source.frame(index)
        np.testing.assert_array_equal(frame.image, picture(index))
        assert frame.name == f'{spec.stem}_{index:05d}'
        if index in (1, 3):
            np.testing.assert_array_equal(frame.labels, np.full((4, 6), index))
        else:
            assert frame.labels is None
    with pytest.raises(IndexError):
        source.frame(5)


def test_encodings_and_padding(tmp_path):
    rgb = np.arange(72, dtype=np.uint8).reshape(4, 6, 3)
    grey = rgb[..., :1]
    alpha = np.dstack([rgb[..., ::-1], grey])
    bag = write(tmp_path / 'bag', {'/a': [raw(0, rgb, 'rgb8', 6), raw(1, rgb[..., ::-1], 'bgr8'),
                                          raw(2, alpha, 'bgra8'), raw(3, grey, 'mono8', 2)],
                                   '/b/compressed': [png(4, rgb)]})
    source = open_source(f'{bag}:/a')
    for index in range(3):
        np.testing.assert_array_equal(source.frame(index).image, rgb)
    np.testing.assert_array_equal(source.frame(3).image, np.repeat(grey, 3, 2))
    np.testing.assert_array_equal(open_source(f'{bag}:/b/compressed').frame(0).image, rgb)


def test_a_damaged_message_is_named_and_the_next_one_is_read(tmp_path):
    short, strange = raw(0, picture(0), 'rgb8'), raw(1, picture(1), '32FC3')
    short.data = short.data[:-1]
    bag = write(tmp_path / 'bag', {'/image': [short, strange, raw(2, picture(2), 'rgb8')]})
    source = open_source(str(bag))
    with pytest.raises(ValueError, match='message 0 of /image: 6x4 pixels of rgb8 with step 18 do not fit 71 bytes'):
        source.frame(0)
    with pytest.raises(ValueError, match="encoding '32FC3' is not supported: expected rgb8"):
        source.frame(1)
    np.testing.assert_array_equal(source.frame(2).image, picture(2))


def test_several_topics_have_to_be_chosen_from(tmp_path):
    bag = write(tmp_path / 'bag', {'/left': [raw(0, picture(0), 'rgb8')], '/right': [raw(0, picture(0), 'rgb8')]})
    with pytest.raises(ValueError, match=r'several topics of images: name one, as in .*bag:/left; topics of images '
                                         r'there: /left \(sensor_msgs/msg/Image, 1\), /right'):
        open_source(str(bag))
    with pytest.raises(ValueError, match='has no images on /middle; topics of images there: /left'):
        open_source(f'{bag}:/middle')
    assert open_source(f'{bag}:/right').topic == '/right'


def test_what_is_no_bag_is_explained(tmp_path):
    no_images = write(tmp_path / 'no_images', {'/header': [TYPES['sensor_msgs/msg/Temperature'](header(0), 1.0, 0.0)]})
    with pytest.raises(ValueError, match='has no images; topics of images there: none'):
        open_source(str(no_images))
    cut = write(tmp_path / 'cut', {'/image': [raw(0, picture(0), 'rgb8')]})
    (cut / 'metadata.yaml').unlink()
    with pytest.raises(ValueError, match='the recording was cut off: run `ros2 bag reindex'):
        open_source(str(cut))
    (tmp_path / 'text.mcap').write_text('not a bag')
    with pytest.raises(ValueError, match='text.mcap cannot be read as a rosbag2'):
        open_source(str(tmp_path / 'text.mcap'))


def test_a_stretch_of_a_bag_for_evaluation(bag):
    count, samples, labelled = bag_samples(str(bag), 'all[1:4]')
    found = list(samples)
    assert (count, labelled) == (3, True)
    assert [image[0, 0, 0] for image, _ in found] == [10, 20, 30]
    assert [labels is None for _, labels in found] == [False, True, False]
    assert [image[0, 0, 0] for image, _ in bag_samples(str(bag), 'val', 2)[1]] == [0, 20]
    with pytest.raises(FileNotFoundError, match='data set bag needs --root'):
        bag_samples(None, 'val')
    with pytest.raises(ValueError, match='leaves none of the 5 images'):
        bag_samples(str(bag), 'all[7:9]')
