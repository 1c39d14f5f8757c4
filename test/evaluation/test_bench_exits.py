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
"""`ee_seg bench exits`: the arithmetic of its rows and claims by hand, and the whole bench on tiny bundles."""
import json
from types import SimpleNamespace

import numpy as np
import pytest
from tiny import CLASSES, EXITS, HEIGHT, WIDTH, tiny_bundle

from ee_seg_ros.data import datasets
from ee_seg_ros.data.scenes import StreetDrive
from ee_seg_ros.evaluation import bench_exits, report
from ee_seg_ros.evaluation.bench_exits import (
    against_final,
    chosen_by_fit,
    claims_of,
    end_to_end,
    measure,
    policy_row,
    reference_of,
    static_row,
)
from ee_seg_ros.evaluation.evaluate import Observations, observe
from ee_seg_ros.evaluation.pair import run_pair
from ee_seg_ros.evaluation.timing import median_times, stopping_at, ways
from ee_seg_ros.inference.bundle import Bundle, BundleError
from ee_seg_ros.inference.criteria import CRITERIA
from ee_seg_ros.inference.engine import Engine


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A tiny bundle with exits on both sides, whose curves have two points, and two single-exit ones."""
    folder = tmp_path_factory.mktemp('bundles')
    path = tiny_bundle(folder / 'early') / 'bundle.json'
    document = json.loads(path.read_text())
    for entry in document['criteria'].values():
        entry['curve'] = [{'thresholds': [value] * 4, 'miou': value, 'mean_macs': 1e9} for value in (0.4, 0.6)]
    path.write_text(json.dumps(document))
    tiny_bundle(folder / 'single', None, ('final',))
    tiny_bundle(folder / 'fine', None, ('final',))
    tiny_bundle(folder / 'smaller', 'stage4', ('exit1', 'final'))
    return folder


@pytest.fixture(scope='module')
def early(folder):
    return Engine(Bundle.load(folder / 'early'), threads=1)


@pytest.fixture(scope='module')
def samples():
    scenes = [StreetDrive(5).frame(50 * index) for index in range(2)]
    return [(scene.image, np.minimum(scene.labels, CLASSES - 1)) for scene in scenes]


def row(name, kind, miou, latency_ms, fit_miou=None, fit_gmac=None):
    return {'name': name, 'kind': kind, 'miou': miou, 'latency_ms': latency_ms, 'fit_miou': fit_miou,
            'fit_gmac': fit_gmac}


ROWS = [row('other', 'single', 0.6, 40.0), row('little', 'smaller', 0.5, 12.0), row('ours', 'final', 0.7, 30.0),
        row('exit1 alone', 'static', 0.58, 10.0), row('exit2 alone', 'static', 0.62, 16.0),
        row('entropy fast', 'operating_point', 0.6, 12.5, 0.66, 1.0),
        row('entropy curve 3', 'curve', 0.71, 25.0, 0.71, 2.0), row('region curve 1', 'curve', 0.64, 20.0, 0.72, 1.5)]


def test_claims_by_hand():
    claims, behind = claims_of(ROWS)
    assert claims == {'single_exit_miou': 0.6, 'speedup_at_equal_miou': pytest.approx(3.2), 'early_exit_miou': 0.6,
                      'speedup_over_own_final': pytest.approx(1.2), 'miou_gain_pp_at_equal_cost': pytest.approx(8)}
    assert behind == {'speedup_at_equal_miou': 'entropy fast', 'speedup_over_own_final': 'entropy curve 3',
                      'miou_gain_pp_at_equal_cost': 'exit1 alone'}


def test_claims_for_which_no_row_qualifies_are_absent():
    poor = [row('other', 'single', 0.8, 40.0), row('little', 'smaller', 0.5, 9.0), row('ours', 'final', 0.7, 30.0),
            row('exit1 alone', 'static', 0.58, 10.0)]
    assert claims_of(poor) == ({'single_exit_miou': 0.8}, {})
    without = [entry for entry in ROWS if entry['kind'] != 'smaller']
    assert 'miou_gain_pp_at_equal_cost' not in claims_of(without)[0]


@pytest.mark.parametrize('fine_miou, reference', [(0.605, 'other'), (0.625, 'fine')])
def test_a_finer_network_is_compared_with_only_if_clearly_better(fine_miou, reference):
    """It is never one of ours, though it is good and, here, fast."""
    rows = [*ROWS, row('fine', 'single_fine', fine_miou, 11.0)]
    compared = reference_of(rows)
    assert compared['name'] == reference
    claims, behind = claims_of(rows)
    assert claims['single_exit_miou'] == compared['miou']
    fastest = 'entropy fast' if reference == 'other' else 'region curve 1'
    assert behind['speedup_at_equal_miou'] == fastest
    assert claims['speedup_at_equal_miou'] == pytest.approx(40 / 12.5 if reference == 'other' else 11 / 20)
    assert behind['miou_gain_pp_at_equal_cost'] == 'exit1 alone'


def test_the_row_one_would_have_chosen_is_the_cheapest_that_was_good_enough_before():
    fitted = {'dataset': 'camvid', 'split': 'train', 'images': 50}

    def bundle(**calibration):
        return SimpleNamespace(document={'calibration': calibration} if calibration else {})
    found = chosen_by_fit(ROWS, bundle(**fitted, full_miou=0.7), bundle(**fitted, full_miou=0.65))
    assert found == {
        'speedup_at_equal_miou': {'row': 'entropy fast', 'speedup': pytest.approx(3.2), 'miou_change_pp': 0},
        'speedup_over_own_final': {'row': 'region curve 1', 'speedup': pytest.approx(1.5),
                                   'miou_change_pp': pytest.approx(-6)}}
    alone = [row('exit1 alone', 'static', 0.58, 10.0, 0.66, 0.9) if entry['name'] == 'exit1 alone' else entry
             for entry in ROWS]    # an exit alone counts where its mIoU is stored
    assert chosen_by_fit(alone, bundle(**fitted, full_miou=0.7), bundle(**fitted, full_miou=0.65))[
        'speedup_at_equal_miou'] == {'row': 'exit1 alone', 'speedup': pytest.approx(4),
                                     'miou_change_pp': pytest.approx(-2)}
    other = bundle(**{**fitted, 'split': 'val'}, full_miou=0.65)
    assert set(chosen_by_fit(ROWS, bundle(**fitted, full_miou=0.7), other)) == {'speedup_over_own_final'}
    assert chosen_by_fit(ROWS, bundle(), bundle()) == {}


def test_rows_by_hand(early):
    """Of two images one stops at the first exit, right, the other goes to the end, where it is right, too."""
    right, wrong = np.diag([4, 4, 4]), np.roll(np.diag([4, 4, 4]), 1, 1)
    matrices = np.pad([[right, wrong, wrong, wrong, wrong], [wrong, wrong, wrong, wrong, right]],
                      ((0, 0), (0, 0), (0, 0), (0, 1)))
    observed = Observations(matrices, {'entropy': np.array([[0.1] * 4, [0.9] * 4])})
    point = {'thresholds': [0.5] * 4, 'miou': 0.3, 'mean_macs': 2e9}
    times = {('entropy', 0): 10.0, ('entropy', 4): 50.0}
    found = policy_row('curve', 'entropy curve 0', early.bundle, observed, times, 'entropy', point)
    graphs = early.bundle.graphs
    first, whole = graphs['stage1']['macs'] + graphs['exit1']['macs'], sum(graph['macs'] for graph in graphs.values())
    assert found == {
        'name': 'entropy curve 0', 'kind': 'curve', 'criterion': 'entropy', 'thresholds': [0.5] * 4, 'miou': 1.0,
        'mean_gmac': pytest.approx((first + whole) / 2e9), 'latency_ms': 30.0, 'exit_shares': [0.5, 0, 0, 0, 0.5],
        'fit_miou': 0.3, 'fit_gmac': 2.0}
    alone = static_row('static', 'exit1 alone', early.bundle, observed, 0, 7.0)
    assert alone['fit_miou'] is alone['fit_gmac'] is None
    early.bundle.document['calibration'] = {'exits': [{'name': 'exit1', 'miou': 0.4}]}
    stored = static_row('static', 'exit1 alone', early.bundle, observed, 0, 7.0)
    del early.bundle.document['calibration']
    assert (stored['fit_miou'], stored['fit_gmac']) == (0.4, stored['mean_gmac'])
    assert alone['latency_ms'] == 7 and alone['mean_gmac'] == first / 1e9
    assert alone['miou'] == pytest.approx(1 / 3)    # half of each class is right; as much is missed, as much too much


def test_exits_alone_are_held_against_the_final_output_with_intervals(early):
    """exit1 is right in all of six images, exit2 in half of them, the final output in none."""
    right, wrong = np.diag([4, 4, 4]), np.roll(np.diag([4, 4, 4]), 1, 1)
    matrices = np.array([[right, right if image % 2 else wrong, wrong, wrong, wrong] for image in range(6)])
    found = against_final(early.bundle, Observations(np.pad(matrices, ((0, 0), (0, 0), (0, 0), (0, 1))), {}))
    assert list(found) == list(EXITS[:4])
    assert found['exit1'] == {'miou_change_pp': 100, 'intervals': {'90': [100, 100], '95': [100, 100]}}
    assert found['exit3'] == {'miou_change_pp': 0, 'intervals': {'90': [0, 0], '95': [0, 0]}}
    low, high = found['exit2']['intervals']['90']    # half of each class is right: 4 of 12 in the union
    assert found['exit2']['miou_change_pp'] == pytest.approx(100 / 3) and 0 <= low < 20 and 50 < high < 100


def test_every_way_stops_where_it_should_with_all_heads_passed(early, samples):
    found = ways(early, observe(early, samples))
    assert {index for criterion, index in found if criterion is None} == {0, 1, 2, 3, 4}
    # Nothing to compare with behind the camera.
    assert {index for criterion, index in found if criterion == 'region'} == {1, 2, 3, 4}
    assert {index for criterion, index in found if criterion == 'confidence'} == {0, 1, 2, 3, 4}
    image = samples[0][0]
    for criterion, index in found:
        if criterion is not None:
            result = run_pair(early, image, criterion, stopping_at(CRITERIA[criterion], index, 4)).sides[-1]
            passed = EXITS[:2] if index < 2 else EXITS[2:]
            assert [output.exit.name for output in result.outputs] == [name for name in passed
                                                                       if EXITS.index(name) <= index]
        assert found[criterion, index](image).shape == image.shape[:2]


def test_all_jobs_take_turns_on_every_image():
    calls = []
    jobs = {key: lambda image, key=key: calls.append((image, key)) for key in 'abc'}
    times = median_times(jobs, [1, 2], rounds=2)
    assert set(times) == set('abc') and all(value >= 0 for value in times.values())
    assert calls[:3] == [(1, 'a'), (1, 'b'), (1, 'c')]    # the first run of each is not timed
    groups = [calls[start:start + 3] for start in range(3, len(calls), 3)]
    assert [{image for image, _ in group} for group in groups] == [{1}, {2}, {1}, {2}]
    assert all({key for _, key in group} == set('abc') for group in groups)


@pytest.mark.parametrize('name, kind, criterion, expected', [
    ('exit2 alone', 'static', None, 'exit2'), ('final output alone', 'final', None, 'final'),
    ('entropy fast', 'operating_point', 'entropy', None)])
def test_end_to_end_really_runs_the_row(folder, early, samples, monkeypatch, name, kind, criterion, expected):
    single, alone, policies = Engine(Bundle.load(folder / 'single'), threads=1), [], []
    run_exit, segment = early.run_exit, early.segment
    monkeypatch.setattr(early, 'run_exit', lambda image, exit_: alone.append(exit_) or run_exit(image, exit_))
    monkeypatch.setattr(early, 'segment', lambda *given: policies.append(given[1:3]) or segment(*given))
    chosen = {'name': name, 'kind': kind, 'criterion': criterion, 'thresholds': [0.2] * 4 if criterion else None}
    found = end_to_end(early, single, chosen, samples, rounds=1)
    assert found['row'] == name and found['images'] == 2
    assert found['speedup'] == found['single_exit_ms'] / found['early_exit_ms'] > 0
    assert set(alone) == ({expected} if expected else set())
    assert policies == ([('entropy', [0.2] * 4)] * 4 if criterion else [])    # per image one to warm up, one timed


class Noise:
    """A data set in the classes of the tiny bundles."""

    class_names = tuple(f'class{number}' for number in range(CLASSES))

    def __init__(self, root, split):
        self._rng = np.random.default_rng(int(split))

    def __len__(self):
        return 2

    def __getitem__(self, index):
        return (self._rng.integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8),
                self._rng.integers(0, CLASSES, (HEIGHT, WIDTH), dtype=np.uint8))


def test_the_whole_bench(folder, tmp_path, monkeypatch):
    monkeypatch.setitem(datasets.FOLDERS, 'noise', Noise)
    monkeypatch.setattr(datasets, 'DATASETS', (*datasets.DATASETS, 'noise'))
    monkeypatch.setattr(bench_exits, 'ROUNDS', 1)
    steps = []
    found = measure(str(folder / 'early'), str(folder / 'single'), str(folder / 'smaller'), 'noise', '.', '5', 2,
                    threads=1, report=lambda done, total: steps.append((done, total)), single_fine=str(folder / 'fine'))
    json.dumps(found, allow_nan=False)
    kinds = [entry['kind'] for entry in found['rows']]
    assert kinds[:4] == ['single', 'single_fine', 'smaller', 'final'] and kinds.count('static') == 4
    criteria = [name for name, rule in CRITERIA.items() if rule.score and not rule.needs]
    assert kinds.count('operating_point') == 3 * len(criteria) and kinds.count('curve') == 2 * len(criteria)
    assert len({entry['name'] for entry in found['rows']}) == len(found['rows'])
    assert found['control_ratio'] > 0
    assert all(entry['latency_ms'] > 0 and 0 <= entry['miou'] <= 1 for entry in found['rows'])
    assert all(sum(entry['exit_shares']) == pytest.approx(1, abs=1e-3) and len(entry['exit_shares']) == 5
               for entry in found['rows'] if entry['exit_shares'])
    assert found['reference'] == reference_of(found['rows'])['name'] == 'single (single)'    # fine is no better
    assert (found['claims'], found['rows_behind_claims']) == claims_of(found['rows'])
    assert ('end_to_end' in found) == ('speedup_at_equal_miou' in found['claims'])
    assert steps[-1][0] == steps[-1][1] and steps == sorted(steps)
    tables = report.exits_tables(bench_exits.shown(found))
    assert list(found['against_final']) == list(EXITS[:4]) and tables[2].row_count == 4
    assert tables[0].row_count == len(found['rows']) - kinds.count('curve')
    pytest.importorskip('matplotlib', reason='matplotlib is not installed (make demo)')
    from ee_seg_ros.evaluation.plots import plot_exits
    plot_exits(found, tmp_path / 'exits.png')
    assert (tmp_path / 'exits.png').stat().st_size > 10_000


def test_networks_of_other_classes_are_not_compared(folder):
    with pytest.raises(BundleError, match='early and street have different classes'):
        measure(str(folder / 'early'), 'street', None, 'scenes', None, '5', 1)


def test_a_data_set_of_other_classes_is_refused(folder):
    with pytest.raises(ValueError, match='bundle early has 3 classes .* data set scenes 11 '):
        measure(str(folder / 'early'), str(folder / 'single'), None, 'scenes', None, '5', 1)
