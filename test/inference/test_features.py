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
"""The feature payload: what is packed comes back; what is broken, too large or foreign is refused."""
import copy
import json
import shutil

import msgpack
import numpy as np
import pytest
import zstandard

from ee_seg_ros.inference.bundle import Bundle
from ee_seg_ros.inference.engine import Engine
from ee_seg_ros.inference.features import FeatureError, pack, unpack
from ee_seg_ros.inference.pixels import OnboardMap
from ee_seg_ros.inference.windows import grow


@pytest.fixture(scope='module')
def classes(engine, result):
    return engine.onboard_map(result).classes


@pytest.fixture(scope='module')
def payload(bundle, features, result, classes):
    """All cells of a frame."""
    return pack(bundle, features, result.placement, (640, 480), OnboardMap(classes))


def repacked(payload, change, **options):
    document = msgpack.unpackb(zstandard.ZstdDecompressor().decompress(payload))
    document = change(document) or document
    return zstandard.ZstdCompressor(**options).compress(msgpack.packb(document))


def test_round_trip_is_exact(bundle, features, result, classes, payload):
    received = unpack(bundle, payload)
    assert (received.output_width, received.output_height) == (640, 480)
    assert received.placement == result.placement
    assert set(received.tensors) == set(features)
    for name, tensor in features.items():
        np.testing.assert_array_equal(received.tensors[name], tensor)
    assert received.onboard.sent is None and len(np.unique(classes)) > 3
    np.testing.assert_array_equal(received.onboard.classes, classes)


def test_smaller_than_the_plain_image(bundle, payload):
    assert len(payload) < 480 * 360 * 3 / 5


def test_truncated_anywhere(bundle, payload):
    for length in [0, 1, 3, 8, 100, len(payload) // 2, len(payload) - 1]:
        with pytest.raises(FeatureError):
            unpack(bundle, payload[:length])


def test_a_flipped_bit_is_found_or_harmless(bundle, features, classes, payload):
    rng = np.random.default_rng(1)
    refused = 0
    positions = list(range(24)) + sorted(rng.integers(24, len(payload), 150).tolist())
    for position in positions:
        flipped = bytearray(payload)
        flipped[position] ^= 1 << int(rng.integers(8))
        try:
            received = unpack(bundle, flipped)
        except FeatureError:
            refused += 1
        else:    # zstd's frame header has a bit or two without meaning
            for name, tensor in features.items():
                np.testing.assert_array_equal(received.tensors[name], tensor)
            np.testing.assert_array_equal(received.onboard.classes, classes)
    assert refused >= len(positions) - 3


def test_garbage(bundle):
    rng = np.random.default_rng(2)
    for size in (1, 10, 1000, 100000):
        with pytest.raises(FeatureError) as error:
            unpack(bundle, rng.bytes(size))
        assert error.value.kind in ('damaged', 'oversized')


def test_a_bomb_is_refused_by_its_claim(bundle):
    with pytest.raises(FeatureError) as error:
        unpack(bundle, zstandard.compress(bytes(200_000_000)))
    assert error.value.kind == 'oversized'


def test_a_payload_that_is_too_long_is_refused_unread(bundle):
    with pytest.raises(FeatureError) as error:
        unpack(bundle, bytes(10_000_000))
    assert error.value.kind == 'oversized'


def test_a_frame_without_its_size_is_refused(bundle, payload):
    raw = zstandard.ZstdDecompressor().decompress(payload)
    with pytest.raises(FeatureError, match='size'):
        unpack(bundle, zstandard.ZstdCompressor(write_content_size=False).compress(raw))


def test_another_version_is_said(bundle, payload):
    with pytest.raises(FeatureError, match='version 3') as error:
        unpack(bundle, repacked(payload, lambda d: d.update(version=3)))
    assert error.value.kind == 'version'


def test_another_bundle_is_refused(bundle, payload, tmp_path):
    shutil.copytree(bundle.path, tmp_path / 'other')
    document = json.loads((tmp_path / 'other' / 'bundle.json').read_text())
    document['classes'][0]['name'] = 'Ceiling'
    (tmp_path / 'other' / 'bundle.json').write_text(json.dumps(document))
    with pytest.raises(FeatureError, match=bundle.fingerprint) as error:
        unpack(Bundle.load(tmp_path / 'other'), payload)
    assert error.value.kind == 'foreign'


@pytest.fixture(scope='module')
def forwarded(windowed, mixed):
    """(what goes with the features, these, payload) of a frame some of whose cells are settled."""
    engine = Engine(windowed, threads=1)
    robot = engine.segment(mixed, 'never')
    onboard, features = engine.onboard_map(robot), engine.encode(robot)
    assert 0 < onboard.sent.sum() < onboard.sent.size and len(np.unique(onboard.classes)) == 3
    return onboard, features, pack(windowed, features, robot.placement, (64, 48), onboard)


def test_cells_that_were_sent_come_back_exactly_and_of_the_others_the_classes(windowed, forwarded):
    onboard, features, payload = forwarded
    received = unpack(windowed, payload)
    np.testing.assert_array_equal(received.onboard.classes, onboard.classes)
    np.testing.assert_array_equal(received.onboard.sent, onboard.sent)
    for name, tensor in features.items():
        np.testing.assert_array_equal(received.tensors[name][..., onboard.sent], tensor[..., onboard.sent])
        assert not received.tensors[name][..., ~onboard.sent].any() and tensor[..., ~onboard.sent].any()
    document = msgpack.unpackb(zstandard.ZstdDecompressor().decompress(payload))
    assert len(document['tensors']['code']['data']) == 4 * onboard.sent.sum() and len(document['cells']) == 6


def test_cells_of_several_values_come_back_exactly(bundle, features, result, classes):
    """The shipped bundle's shapes: of two feature maps one has four values per cell."""
    document = copy.deepcopy(bundle.document)
    rows, columns = bundle.tensors['high']['shape'][2:]
    means = {name: np.zeros((len(bundle.classes), tensor.shape[1]), int).tolist() for name, tensor in features.items()}
    document.update(
        cells={'rows': rows, 'columns': columns},
        pixels={'limits': {}, 'send': [1.0] * len(bundle.classes)}, codec={**document['codec'], 'class_means': means})
    partial = Bundle(bundle.path, document)
    sent = np.random.default_rng(0).random((rows, columns)) < 0.3
    received = unpack(partial, pack(partial, features, result.placement, (480, 360), OnboardMap(classes, sent)))
    for name, tensor in features.items():
        inside = grow(sent, *tensor.shape[2:])
        np.testing.assert_array_equal(received.tensors[name], np.where(inside, tensor, 0))
    assert {tensor.shape[2] // rows for tensor in features.values()} == {1, 2}


def test_fewer_cells_are_fewer_bytes(windowed, forwarded):
    onboard, features, payload = forwarded
    place = unpack(windowed, payload).placement
    assert len(payload) < len(pack(windowed, features, place, (64, 48), OnboardMap(onboard.classes)))


@pytest.mark.parametrize('change', [
    lambda d: d.update(classes=d['classes'][1:]),
    lambda d: d.update(classes=d['classes'] + b'\0'),
    lambda d: d.update(classes=b'\3' + d['classes'][1:]),    # of three classes
    lambda d: d.update(classes=None),
    lambda d: d.update(classes=list(d['classes'])),
    lambda d: d.update(cells=d['cells'][1:]),
    lambda d: d.update(cells=d['cells'] + b'\0'),
    lambda d: d.update(cells=list(d['cells'])),
    lambda d: d.update(cells=bytes(6)),
    lambda d: d.update(cells=bytes(6), tensors={'code': {'dtype': 'uint8', 'shape': [0, 4, 1, 1], 'data': b''}}),
    lambda d: d.update(cells=b'\xff' * 6),    # more than features came of
    lambda d: d.update(cells=None),
    lambda d: d['tensors']['code'].update(shape=[1, 4, 6, 8]),
    lambda d: d['tensors']['code'].update(data=d['tensors']['code']['data'][4:]),
    lambda d: d['tensors']['code'].update(data=b'\x10' * len(d['tensors']['code']['data'])),    # of 16 levels
    lambda d: d.update(tensors={**d['tensors'], 'more': d['tensors']['code']}),
])
def test_every_field_of_single_cells_is_checked(windowed, forwarded, change):
    _, _, payload = forwarded
    with pytest.raises(FeatureError) as error:
        unpack(windowed, repacked(payload, change))
    assert error.value.kind == 'damaged'


def test_a_bundle_that_needs_all_cells_refuses_some(windowed, forwarded):
    """The fingerprint does not depend on what pixels need to settle."""
    document = copy.deepcopy(windowed.document)
    del document['pixels']
    whole = Bundle(windowed.path, document)
    assert whole.fingerprint == windowed.fingerprint and not whole.forwards_cells
    with pytest.raises(FeatureError, match='only some cells came, and bundle windowed cannot do without') as error:
        unpack(whole, forwarded[2])
    assert error.value.kind == 'damaged'
    assert unpack(whole, repacked(forwarded[2], all_cells)).onboard.sent is None


def all_cells(document):
    """A payload of some cells made one of all."""
    document.update(cells=None)
    document['tensors']['code'].update(shape=[1, 4, 6, 8], data=bytes(192))


def test_other_mean_features_are_another_bundle(windowed, forwarded):
    document = copy.deepcopy(windowed.document)
    document['codec']['class_means']['code'][0][0] ^= 1
    with pytest.raises(FeatureError) as error:
        unpack(Bundle(windowed.path, document), forwarded[2])
    assert error.value.kind == 'foreign'


@pytest.mark.parametrize('change', [
    lambda d: d.update(output=[0, 10]),
    lambda d: d.update(output=[10]),
    lambda d: d.update(image=['wide', 10]),
    lambda d: d.update(image=[True, 10]),
    lambda d: d.update(output=[100000, 100000]),
    lambda d: d.update(tensors={}),
    lambda d: d['tensors']['low'].update(dtype='float32'),
    lambda d: d['tensors']['low'].update(shape=[1, 1, 1, 1]),
    lambda d: d['tensors']['low'].update(data=b'short'),
    lambda d: d['tensors']['low'].update(data=b'\xff' * len(d['tensors']['low']['data'])),
    lambda d: d.update(split='stage9'),
    lambda d: d.update(expert='snow'),
    lambda d: d.update(extra=1),
    lambda d: d.pop('cells') and None,
    lambda d: d.pop('classes') and None,
    lambda d: d.update(classes=d['classes'][:-1]),
    lambda d: d.update(classes=d['classes'].decode('latin1')),
    lambda d: d.update(classes=b'\xfe' + d['classes'][1:]),
    lambda d: [1, 2, 3],
])
def test_every_field_is_checked(bundle, payload, change):
    with pytest.raises(FeatureError):
        unpack(bundle, repacked(payload, change))
