# Copyright 2026 The ee_seg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The whole search on a tiny network with random weights: what it promises is what the written bundle gives."""
import json

import pytest

torch = pytest.importorskip('torch', reason='torch is not installed (make train-env)')
pytest.importorskip('ee_seg_ros.models.torchvision_compat')    # torchmetrics imports torchvision
pytest.importorskip('torchmetrics', reason='torchmetrics is not installed (make train-env)')
pytest.importorskip('matplotlib', reason='matplotlib is not installed (make demo)')
pytest.importorskip('safetensors', reason='safetensors is not installed (make train-env)')

from ee_seg_ros.data.datasets import samples_of  # noqa: E402
from ee_seg_ros.evaluation.evaluate import cascade, observe  # noqa: E402
from ee_seg_ros.inference.bundle import Bundle  # noqa: E402
from ee_seg_ros.inference.engine import Engine  # noqa: E402
from ee_seg_ros.models.multi_exit import MultiExitNet, save_network  # noqa: E402
from ee_seg_ros.search.find import Goal  # noqa: E402
from ee_seg_ros.search.observations import Candidates  # noqa: E402
from ee_seg_ros.search.search import search  # noqa: E402

CARD = {'data': 'none', 'licence': 'none'}
SPLIT, IMAGES = '5', 3


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp('training') / 'weights.pt'
    save_network(MultiExitNet({
        'backbone': {'name': 'mobilenet_v2'}, 'classes': 11,
        'exits': [{'name': f'u{unit}_{kind}', 'unit': unit, 'head': head} for unit in (8, 12, 14) for kind, head in (
            ('context', {'kind': 'context', 'width': 8, 'rates': [1, 2]}), ('fcn', {'kind': 'fcn', 'reduction': 8}))],
        'split': {'unit': 12, 'low': 4, 'high': 8, 'levels': 16, 'skips': [3, 6], 'restored': 12},
        'final': {'kind': 'decoder', 'width': 16}}), path)
    return path


def run(weights, out, goal):
    found = search(weights, 'scenes', None, SPLIT, out, 'tiny', CARD, goal, 96, 80, IMAGES, threads=1)
    assert json.loads((out / 'search.json').read_text()) == found
    assert (out / 'search.png').stat().st_size > 0
    return found, Bundle.load(out / 'tiny')


@pytest.mark.parametrize('split', [True, False])
def test_the_bundle_keeps_what_the_search_promised(weights, tmp_path, split):
    found, bundle = run(weights, tmp_path, Goal(limits={'macs': 1e9}, criteria=('entropy', 'region'), split=split))
    chosen = found['chosen']
    assert len(bundle.exits) == len(chosen['exits']) and (bundle.split is not None) == (chosen['split'] == 12)
    _, samples = samples_of('scenes', None, SPLIT, IMAGES)
    thresholds = bundle.thresholds(chosen['criterion'], 'searched')
    kept = cascade(bundle, observe(Engine(bundle, threads=1), samples), chosen['criterion'], thresholds)
    assert kept['miou'] == pytest.approx(chosen['miou'], abs=1e-9)
    assert kept['mean_macs'] == pytest.approx(chosen['macs'])
    assert bundle.document['search'] == chosen and len(found['candidates']) == 7
    assert Candidates.load(tmp_path / 'observations.npz').names.tolist() == [
        candidate['name'] for candidate in found['candidates']]
    temperatures = {candidate['name']: candidate['temperature'] for candidate in found['candidates']}
    assert [exit_.temperature for exit_ in bundle.exits] == [temperatures[name] for name in chosen['exits']]


def test_everything_on_one_computer_can_go_behind_the_split(weights, tmp_path):
    """The final output alone is a static network whose stages include encoder and decoder."""
    from ee_seg_ros.models.multi_exit import load_network
    from ee_seg_ros.search.search import export_chosen
    classes = [{'name': f'class{number}', 'color': [number] * 3} for number in range(11)]
    chosen = {'exits': ['final'], 'split': False}
    bundle = Bundle.load(export_chosen(load_network(weights), chosen, tmp_path, 'one', CARD, classes, (96, 80)))
    assert bundle.split is None and {'encode', 'decode'} < set(bundle.stages) and len(bundle.exits) == 1
    _, samples = samples_of('scenes', None, SPLIT, 1)
    engine = Engine(bundle, threads=1)
    for image, _ in samples:
        assert engine.segment(image, 'never').exit_name == 'final'


def test_a_static_network_within_a_budget(weights, tmp_path):
    found, bundle = run(weights, tmp_path, Goal('budgeted', cost='ms', limits={'ms': 1e4}))
    best = max(found['candidates'], key=lambda candidate: candidate['miou'])
    assert found['chosen']['miou'] == best['miou'] and len(bundle.exits) == 1 and bundle.split is None
