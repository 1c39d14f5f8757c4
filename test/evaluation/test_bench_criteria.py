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
"""`ee_seg bench criteria`: outcomes of a criterion by hand, and the whole command on a tiny bundle and drawn scenes."""
import json
from types import SimpleNamespace

import numpy as np
import pytest
from tiny import CLASSES, tiny_bundle

from ee_seg_ros.data import datasets
from ee_seg_ros.data.scenes import StreetDrive
from ee_seg_ros.evaluation import bench_criteria, report
from ee_seg_ros.evaluation.bench_criteria import criteria_of, fitted_sweep, outcomes_of, savings_of
from ee_seg_ros.evaluation.evaluate import Ends, Observations, cascade, exit_costs, observe
from ee_seg_ros.evaluation.metrics import mean_iou
from ee_seg_ros.evaluation.savings import Sweep
from ee_seg_ros.inference.bundle import Bundle, BundleError
from ee_seg_ros.inference.criteria import CRITERIA
from ee_seg_ros.inference.engine import Engine

FRAME_LEVEL = [name for name, rule in CRITERIA.items() if rule.score and not rule.pixelwise and not rule.needs]


class Drawn:
    """Drawn street scenes in the classes of the tiny bundles; split: where the drive begins."""

    class_names = tuple(f'class{number}' for number in range(CLASSES))

    def __init__(self, root, split):
        self._start, self._drive = int(split), StreetDrive(5)

    def __len__(self):
        return 3

    def __getitem__(self, index):
        scene = self._drive.frame(self._start + 40 * index)
        return scene.image, np.minimum(scene.labels, CLASSES - 1)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A tiny bundle whose curves are from other scenes than those of the bench: three points, from dear to cheap."""
    folder = tiny_bundle(tmp_path_factory.mktemp('bundles') / 'early')
    bundle = Bundle.load(folder)
    observed = observe(Engine(bundle, threads=1), [Drawn('.', '1000')[index] for index in range(3)])
    document = json.loads((folder / 'bundle.json').read_text())
    for name in FRAME_LEVEL:
        scores = observed.scores[name]
        known = scores[np.isfinite(scores)]
        places = np.quantile(known, (0.3, 0.6, 0.9))[::1 if CRITERIA[name].direction == 'below' else -1]
        document['criteria'][name]['curve'] = [
            {'thresholds': [float(place)] * 4, **{key: cascade(bundle, observed, name, [place] * 4)[key]
                                                  for key in ('miou', 'mean_macs')}} for place in places]
        document['criteria'][name]['cross_validated'] = {
            'full_miou': mean_iou(observed.matrices[:, -1].sum(0)), 'full_macs': exit_costs(bundle)[-1],
            'points': [{'loss': 0.0, **point} for point in document['criteria'][name]['curve']]}
    document['calibration'] = {'bundle_fingerprint': bundle.fingerprint, 'dataset': 'drawn', 'split': '1000',
                               'images': 3, 'full_miou': mean_iou(observed.matrices[:, -1].sum(0)),
                               'full_macs': exit_costs(bundle)[-1]}
    (folder / 'bundle.json').write_text(json.dumps(document))
    return folder


@pytest.fixture
def drawn(monkeypatch):
    monkeypatch.setitem(datasets.FOLDERS, 'drawn', Drawn)
    monkeypatch.setattr(datasets, 'DATASETS', (*datasets.DATASETS, 'drawn'))
    monkeypatch.setattr(bench_criteria, 'ROUNDS', 1)


def test_outcomes_by_hand(folder):
    """Of two images one stops at the first exit at the only stored point; before it there is that of no frame."""
    bundle = Bundle.load(folder)
    bundle.document['criteria']['entropy']['curve'] = [{'thresholds': [0.5] * 4, 'miou': 0.3, 'mean_macs': 2e9}]
    bundle.document['calibration'] |= {'full_miou': 0.4, 'full_macs': 5e9}
    matrices = np.arange(2 * 5)[:, None, None].repeat(3, 1).repeat(4, 2).reshape(2, 5, 3, 4)
    observed = Observations(matrices, {'entropy': np.array([[0.1] * 4, [0.9, np.nan, 0.9, 0.9]])})
    times = {('entropy', 0): 10.0, ('entropy', 4): 50.0}
    never, point = outcomes_of(bundle, observed, times, 'entropy')
    assert never.setting == {'name': 'entropy, no frame settles', 'criterion': 'entropy', 'thresholds': None,
                             'exit_shares': [0, 0, 0, 0, 1], 'fit_miou': 0.4, 'fit_macs': 5e9}
    assert point.setting == {'name': 'entropy curve 0', 'criterion': 'entropy', 'thresholds': [0.5] * 4,
                             'exit_shares': [0.5, 0, 0, 0, 0.5], 'fit_miou': 0.3, 'fit_macs': 2e9}
    graphs = bundle.graphs
    first, whole = graphs['stage1']['macs'] + graphs['exit1']['macs'], sum(graph['macs'] for graph in graphs.values())
    assert never.matrices[:, 0, 0].tolist() == [4, 9] and point.matrices[:, 0, 0].tolist() == [0, 9]
    assert never.costs['macs'].tolist() == [whole, whole] and point.costs['macs'].tolist() == [first, whole]
    assert never.costs['ms'].tolist() == [50, 50] and point.costs['ms'].tolist() == [10, 50]
    # Where what an image gives and costs at an exit depends on the criterion, that counts.
    own = Ends(100 + matrices, np.arange(10.0).reshape(2, 5), np.zeros(2))
    _, point = outcomes_of(bundle, Observations(matrices, observed.scores, {'entropy': own}), times, 'entropy')
    assert point.matrices[:, 0, 0].tolist() == [100, 109] and point.costs['macs'].tolist() == [0, 9]


def swept(*points):
    """A `Sweep` of (mIoU, cost); R = 2, the resample like the images."""
    mious, costs = zip(*points)
    both = np.array([costs, costs], float)
    return Sweep(({},) * len(points), np.array([mious, mious]), {'macs': both, 'ms': 2 * both})


def test_savings_are_of_these_images_and_apart_from_them_of_the_fitting_ones():
    sweeps = {'entropy': swept((0.6, 10), (0.5, 0)), 'region': swept((0.6, 10), (0.58, 2))}
    validated = {'entropy': [{'miou': 0.6, 'mean_macs': 0}], 'region': [{'miou': 0.5, 'mean_macs': 0}]}
    bundle = SimpleNamespace(document={
        'criteria': {name: {'cross_validated': {'full_miou': 0.7, 'full_macs': 10, 'points': points}}
                     for name, points in validated.items()}})
    found = savings_of(bundle, sweeps)
    assert set(found) == {'region'}
    assert found['region']['macs']['mean']['saved'] == pytest.approx(3.5)
    assert found['region']['ms']['mean']['saved'] == pytest.approx(7)
    # There entropy costs 10 less the loss in pp, region 10 less half of it.
    assert [level['saved'] for level in found['region']['fit']['macs']['levels']] == pytest.approx([-0.25, -0.5, -1])
    assert 'intervals' not in found['region']['fit']['macs']['mean']
    assert savings_of(bundle, {'region': sweeps['region']}) == {}
    del bundle.document['criteria']['region']['cross_validated']
    assert fitted_sweep(bundle, 'region') is None and fitted_sweep(bundle, 'entropy') is not None
    assert set(savings_of(bundle, sweeps)['region']) == {'macs', 'ms'}


def test_the_command(folder, drawn, tmp_path, capsys):
    cli = pytest.importorskip('ee_seg_ros.cli', reason='typer is not installed (extra `demo`)')
    with pytest.raises(SystemExit) as left:
        cli.main(['bench', 'criteria', '--bundle', str(folder), '--dataset', 'drawn', '--root', '.', '--split', '0',
                  '--threads', '1', '--out', str(tmp_path)])
    assert left.value.code == 0
    found = json.loads((tmp_path / 'criteria.json').read_text())
    assert [row['name'] for row in found['rows']] == [
        name for criterion in FRAME_LEVEL for name in (
            f'{criterion}, no frame settles', *(f'{criterion} curve {place}' for place in range(3)))]
    finals = [row for row in found['rows'] if row['thresholds'] is None]
    assert {(row['miou'], row['mean_macs']) for row in finals} == {(finals[0]['miou'], found['whole_macs'])}
    for row in found['rows']:
        low, high = row['miou_intervals']['90']
        assert 0 <= low <= high <= 1 and row['latency_ms'] > 0 and 0 < row['mean_macs'] <= found['whole_macs']
        assert sum(row['exit_shares']) == pytest.approx(1, abs=1e-3)
    # The thresholds are those of other scenes, along which the images here end at other exits.
    of = {row['name']: row for row in found['rows']}
    assert of['entropy curve 2']['mean_macs'] < of['entropy curve 0']['mean_macs'] < found['whole_macs']
    assert found['fitted_on'] == '1000' and found['images'] == 3 and found['threads'] == 1
    assert set(found['savings']) == set(FRAME_LEVEL) - {'entropy'}
    shares = {name: entry['fit']['macs']['mean']['saved_share'] for name, entry in found['savings'].items()}
    assert found['claims']['best_criterion'] == max(shares, key=shares.get)
    assert set(found['intervals']) == set(found['claims']) - {'best_criterion'}
    mean = found['savings']['region']['macs']['mean']
    assert found['claims']['region_vs_entropy_macs_saved'] == mean['saved']
    assert found['claims']['region_vs_entropy_saved_share'] == mean['saved'] / found['whole_macs']
    printed = capsys.readouterr().out
    assert 'multiply-accumulates at equal mIoU' in printed and 'best_criterion' in printed
    tables = report.criteria_tables(found)
    assert [entry.row_count for entry in tables] == [
        *[4 * len(found['savings'])] * 2, len(FRAME_LEVEL), len(found['claims'])]
    assert set(found['judging']) == set(FRAME_LEVEL)
    assert all(entry['ms'] > 0 < entry['share_of_stage'] and entry['in_run_ms'] > 0
               for entry in found['judging'].values())
    pytest.importorskip('matplotlib', reason='matplotlib is not installed (make demo)')
    assert (tmp_path / 'criteria.png').stat().st_size > 10_000


def test_only_criteria_with_a_curve():
    curves = {'entropy': [1], 'region': [], 'class_threshold': [1]}
    bundle = SimpleNamespace(name='some', document={'criteria': {
        name: {'curve': curve} for name, curve in curves.items()}})
    assert criteria_of(bundle) == ['entropy', 'class_threshold']
    for entry in bundle.document['criteria'].values():
        entry['curve'] = []
    with pytest.raises(BundleError, match='bundle some stores no curve of any criterion'):
        criteria_of(bundle)


def test_a_data_set_of_other_classes_is_refused(folder):
    with pytest.raises(ValueError, match='bundle early has 3 classes .* data set scenes 11 '):
        bench_criteria.measure(str(folder), 'scenes', None, '5', 1)
