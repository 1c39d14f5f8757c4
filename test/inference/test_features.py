# Copyright 2026 The ee_seg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The feature payload: what is packed comes back; what is broken, too large or foreign is refused."""
import json
import shutil

import msgpack
import numpy as np
import pytest
import zstandard

from ee_seg_ros.inference.bundle import Bundle
from ee_seg_ros.inference.features import FeatureError, pack, unpack


@pytest.fixture(scope='module')
def payload(bundle, features, result):
    return pack(bundle, features, result.placement, (640, 480))


def repacked(payload, change, **options):
    document = msgpack.unpackb(zstandard.ZstdDecompressor().decompress(payload))
    document = change(document) or document
    return zstandard.ZstdCompressor(**options).compress(msgpack.packb(document))


def test_round_trip_is_exact(bundle, features, result, payload):
    received = unpack(bundle, payload)
    assert (received.output_width, received.output_height) == (640, 480)
    assert received.placement == result.placement
    assert set(received.tensors) == set(features)
    for name, tensor in features.items():
        np.testing.assert_array_equal(received.tensors[name], tensor)


def test_smaller_than_the_plain_image(bundle, payload):
    assert len(payload) < 480 * 360 * 3 / 5


def test_truncated_anywhere(bundle, payload):
    for length in [0, 1, 3, 8, 100, len(payload) // 2, len(payload) - 1]:
        with pytest.raises(FeatureError):
            unpack(bundle, payload[:length])


def test_a_flipped_bit_is_found_or_harmless(bundle, features, payload):
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
    with pytest.raises(FeatureError, match='version 2') as error:
        unpack(bundle, repacked(payload, lambda d: d.update(version=2)))
    assert error.value.kind == 'version'


def test_another_bundle_is_refused(bundle, payload, tmp_path):
    shutil.copytree(bundle.path, tmp_path / 'other')
    document = json.loads((tmp_path / 'other' / 'bundle.json').read_text())
    document['classes'][0]['name'] = 'Ceiling'
    (tmp_path / 'other' / 'bundle.json').write_text(json.dumps(document))
    with pytest.raises(FeatureError, match=bundle.fingerprint) as error:
        unpack(Bundle.load(tmp_path / 'other'), payload)
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
    lambda d: d.update(expert='blur'),
    lambda d: d.update(extra=1),
    lambda d: d.pop('cells') and None,
    lambda d: [1, 2, 3],
])
def test_every_field_is_checked(bundle, payload, change):
    with pytest.raises(FeatureError):
        unpack(bundle, repacked(payload, change))
