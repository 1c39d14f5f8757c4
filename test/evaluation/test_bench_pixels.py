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
"""The part of `ee_seg bench criteria` about single pixels: claims by hand, and all of it on a tiny bundle."""
import numpy as np
import pytest
from tiny import CLASSES, mixed_image, tiny_bundle

from ee_seg_ros.evaluation import bench_pixels
from ee_seg_ros.evaluation.bench_pixels import (
    ADP_C,
    CBT,
    CELLS,
    DENSE,
    UNIFORM,
    WHOLE,
    claims_of,
    dense_loss,
    least_sure,
    measure,
)
from ee_seg_ros.evaluation.evaluate import to_the_end
from ee_seg_ros.evaluation.pair import run_pair
from ee_seg_ros.evaluation.savings import Outcome, resamples
from ee_seg_ros.inference.bundle import Bundle
from ee_seg_ros.inference.engine import Engine
from ee_seg_ros.inference.windows import Window


@pytest.fixture(scope='module')
def engine(tmp_path_factory):
    return Engine(Bundle.load(tiny_bundle(tmp_path_factory.mktemp('bundles') / 'windowed', cells=True)), threads=1)


@pytest.fixture(scope='module')
def samples():
    rng = np.random.default_rng(3)
    return [(mixed_image(seed), rng.integers(0, CLASSES, (48, 64), dtype=np.uint8)) for seed in range(4)]


def outcome(right, macs, ms=1.0, sent=0.0):
    """Of four images, each with 100 pixels of one class, `right` of which are told."""
    matrix = np.array([[right, 100 - right, 0], [0, 100, 0]])
    return Outcome({}, np.stack([matrix] * 4), {key: np.full(4, float(value)) for key, value in (
        ('macs', macs), ('ms', ms), ('bytes', sent))})


def test_claims_by_hand():
    found = {WHOLE: outcome(90, 10, 20.0, 1000), CELLS: outcome(88, 9, 18.0, 400), CBT: outcome(80, 6, 12.0, 300),
             DENSE: outcome(91, 8, 15.0, 900)}
    found |= {name: outcome(90 - 10 * place, 10 - 2 * place, 20.0) for place, name in enumerate(UNIFORM)}
    claims, around, more = claims_of(found, resamples(4))
    assert claims['cbt_vs_uniform_macs_saved_share'] == pytest.approx(0.4)    # 6 instead of 10
    assert claims['cbt_vs_uniform_time_saved_share'] == pytest.approx(0.4)
    assert claims['unsettled_bytes_saved_share'] == pytest.approx(0.6)
    # The first class has IoU right / 100, the second 100 / (100 + what is wrong).
    assert claims['unsettled_miou_change_pp'] == pytest.approx(50 * (0.88 + 100 / 112 - 0.9 - 100 / 110))
    # At equal mIoU the uniform rule has its second limit, which costs 8.
    assert more['cbt_vs_uniform_swept_macs_saved_share']['value'] == pytest.approx(1 - 6 / 8)
    assert more['cbt_vs_dense_time_saved_share']['value'] == pytest.approx(0.2)    # of the same exits
    assert set(around) == set(claims) and around['unsettled_bytes_saved_share']['90'] == pytest.approx([0.6, 0.6])


def test_the_whole_section(engine, samples, monkeypatch):
    monkeypatch.setattr(bench_pixels, 'UNIFORM', {ADP_C: 0.998, 'uniform 0.5': 0.5})
    seen = []
    found = measure(engine, samples, [image for image, _ in samples[:2]], resamples(4), 1, 1, lambda: seen.append(1))
    rows = {row['name']: row for row in found['rows']}
    assert len(seen) == 4 and list(rows) == [WHOLE, CELLS, DENSE, CBT, ADP_C, 'uniform 0.5']
    whole = sum(graph['macs'] for graph in engine.bundle.graphs.values())
    assert rows[WHOLE]['mean_macs'] == whole >= rows[ADP_C]['mean_macs'] >= rows['uniform 0.5']['mean_macs']
    assert rows[CBT]['mean_macs'] < whole and rows[CELLS]['bytes'] < rows[WHOLE]['bytes']
    assert found['claims']['sparse_time_ratio_at_quarter'] == found['sparse_time_ratios']['all'] > 0
    assert {'dense_path_loss_share', 'unsettled_bytes_saved_share'} <= set(found['claims'])
    shares = found['active_shares']
    assert 0 < shares['mean'] <= 1 and sum(shares['histogram']) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize('seed', range(4))
def test_the_window_that_is_timed_has_a_quarter_of_the_cells_and_the_least_sure_ones(engine, seed):
    output = engine.segment(mixed_image(seed), 'never').outputs[0]
    window, doubt = least_sure(output, 0.25), 1 - output.grid_probabilities.max(0)
    others = [Window(top, top + height, left, left + width) for height, width in ((2, 6), (3, 4), (4, 3), (6, 2))
              for top in range(7 - height) for left in range(9 - width)]
    assert window in others
    sums = [other.of(doubt, (6, 8)).sum() for other in others]
    assert window.of(doubt, (6, 8)).sum() == pytest.approx(max(sums)) and max(sums) / 12 > 1.5 * doubt.mean()


@pytest.mark.parametrize('image, share', [(mixed_image(), None), (mixed_image(1, ((8, 120), (30, 120))), 'onboard')])
def test_shares_of_the_last_stage_that_ran(engine, image, share):
    frame = to_the_end(engine, image, CBT)
    found = bench_pixels._last_share(frame)
    assert found == (0.0 if share else frame.sides[-1].window.area / 48) and found < 1
    assert bench_pixels._last_share(to_the_end(engine, image, partial=False)) == 1


def test_where_no_pixel_stops_whole_maps_are_run(engine, monkeypatch):
    """An image of which no exit is so sure that a probability is 1 in float32."""
    image, frames = np.full((48, 64, 3), 128, np.uint8), []
    monkeypatch.setattr(bench_pixels, 'to_the_end', lambda *given, **named: frames.append(
        to_the_end(*given, **named)) or frames[-1])
    assert dense_loss(engine, [image], 1, 1) > -1
    frame = next(frame for frame in frames if frame.outputs[0].stopped is not None)
    assert not any(output.stopped.any() for output in frame.outputs)
    plain = run_pair(engine, image, 'never', (0.0,) * 4, partial=False)
    assert frame.macs_at == plain.macs_at
    np.testing.assert_array_equal(frame.mask(64, 48), plain.mask(64, 48))
