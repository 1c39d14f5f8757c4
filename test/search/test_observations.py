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
"""Stored observations hold what the running engine says, and survive being stored."""
import numpy as np
import pytest
from tiny import CLASSES, EXITS, HEIGHT, WIDTH, tiny_bundle

from ee_seg_ros.evaluation.evaluate import observe
from ee_seg_ros.inference.bundle import Bundle
from ee_seg_ros.inference.engine import Engine
from ee_seg_ros.inference.features import pack
from ee_seg_ros.search.observations import PAIRED, SINGLE, Candidates, join_candidates, observe_candidates


def _samples():
    """Images of two shapes, so that their grids differ."""
    rng = np.random.default_rng(2)
    return [(rng.integers(0, 256, (height, WIDTH, 3), np.uint8), rng.integers(0, CLASSES, (height, WIDTH), np.uint8))
            for height in (HEIGHT, HEIGHT // 2, HEIGHT)]


@pytest.fixture(scope='module')
def engine(tmp_path_factory):
    return Engine(Bundle.load(tiny_bundle(tmp_path_factory.mktemp('bundle') / 'tiny')), threads=1)


@pytest.fixture(scope='module')
def observed(engine):
    return observe_candidates(engine, _samples())


def test_scores_and_matrices_are_those_of_the_evaluation(engine, observed):
    expected = observe(engine, _samples())
    np.testing.assert_array_equal(observed.matrices, expected.matrices)
    before = [None, 0, 1, 2]    # exits 1 and 2 onboard, 3 and 4 behind the split
    for criterion in (*SINGLE, *PAIRED):
        for index, earlier in enumerate(before):
            np.testing.assert_array_equal(observed.score(criterion, earlier, index),
                                          expected.scores[criterion][:, index])


def test_any_two_exits_can_be_compared(observed):
    """Across what lies between them, over the image's content only."""
    share = observed.score('region_change', 0, 4)
    for image, rows in enumerate((3, 2, 3)):    # of every 16th pixel
        before, now = observed.grids[image, [0, 4], :rows]
        assert share[image] == np.mean(before != now)


def test_payloads_are_the_bytes_that_would_be_sent(engine, observed):
    image = _samples()[0][0]
    result = engine.segment(image, 'never')
    assert observed.payloads[0] == len(pack(engine.bundle, engine.encode(result), result.placement, (WIDTH, HEIGHT),
                                            engine.onboard_map(result)))


def test_store_and_load(observed, tmp_path):
    observed.save(tmp_path / 'observations.npz')
    loaded = Candidates.load(tmp_path / 'observations.npz')
    np.testing.assert_array_equal(loaded.matrices, observed.matrices)
    np.testing.assert_array_equal(loaded.score('region', 1, 3), observed.score('region', 1, 3))
    np.testing.assert_array_equal(loaded.score('entropy', None, 3), observed.score('entropy', None, 3))
    assert loaded.names.tolist() == observed.names.tolist() and loaded.onboard.tolist() == [True] * 2 + [False] * 3


def test_part_of_the_images(observed):
    part = observed.subset(np.array([2, 0]))
    np.testing.assert_array_equal(part.score('region', 0, 1), observed.score('region', 0, 1)[[2, 0]])
    np.testing.assert_array_equal(part.matrices, observed.matrices[[2, 0]])


def test_exits_that_another_split_leaves_alone_need_not_run_again(tmp_path, observed):
    """Split one stage later: the first two exits stay as they are, the rest is observed anew, beside the first."""
    later, rest = (observe_candidates(Engine(Bundle.load(tiny_bundle(tmp_path / name, 'stage3', exits)), threads=1),
                                      _samples())
                   for name, exits in (('all', EXITS), ('rest', ('exit1', 'exit3', 'exit4', 'final'))))
    joined = join_candidates(observed, 2, rest)
    for name in ('names', 'onboard', 'matrices', 'grids'):
        np.testing.assert_array_equal(getattr(joined, name), getattr(later, name))
    np.testing.assert_array_equal(joined.payloads, rest.payloads)
    for name in SINGLE:
        np.testing.assert_array_equal(joined.single[name], later.single[name])
    assert (np.diff(joined.places) > 0).all() and (later.onboard != observed.onboard).any()
    assert (later.matrices[:, 3] != observed.matrices[:, 3]).any()


def test_no_images(engine):
    with pytest.raises(ValueError, match='no images'):
        observe_candidates(engine, [])
