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
"""The whole search on a tiny network with random weights: what it promises is what the written bundle gives."""
import json

import numpy as np
import pytest

torch = pytest.importorskip('torch', reason='torch is not installed (make train-env)')
pytest.importorskip('ee_seg_ros.models.torchvision_compat')    # torchmetrics imports torchvision
pytest.importorskip('torchmetrics', reason='torchmetrics is not installed (make train-env)')
pytest.importorskip('matplotlib', reason='matplotlib is not installed (make demo)')
pytest.importorskip('safetensors', reason='safetensors is not installed (make train-env)')

from ee_seg_ros.data.datasets import open_dataset, samples_of  # noqa: E402
from ee_seg_ros.evaluation.evaluate import cascade, observe  # noqa: E402
from ee_seg_ros.inference.bundle import Bundle  # noqa: E402
from ee_seg_ros.inference.engine import Engine  # noqa: E402
from ee_seg_ros.models.multi_exit import MultiExitNet, load_network, save_network, select_exits  # noqa: E402
from ee_seg_ros.models.splits import add_splits, with_split  # noqa: E402
from ee_seg_ros.search.find import Goal  # noqa: E402
from ee_seg_ros.search.look import Look  # noqa: E402
from ee_seg_ros.search.observations import Candidates  # noqa: E402
from ee_seg_ros.search.search import export_chosen, search, silent  # noqa: E402

CARD = {'data': 'none', 'licence': 'none'}
CLASSES = [{'name': f'class{number}', 'color': [number] * 3} for number in range(11)]
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
        'split_candidates': [{'unit': 9, 'low': 2, 'high': 4, 'levels': 8, 'skips': [6], 'restored': 12},
                             {'unit': 14, 'low': 4, 'high': 16, 'skips': [3, 6], 'restored': 12}],
        'final': {'kind': 'decoder', 'width': 16}}), path)
    return path


def run(weights, out, goal):
    found = search(weights, 'scenes', None, SPLIT, out, 'tiny', CARD, goal, 96, 80, IMAGES, threads=1)
    assert json.loads((out / 'search.json').read_text()) == found
    assert (out / 'search.png').stat().st_size > 0
    return found, Bundle.load(out / 'tiny')


@pytest.mark.parametrize('unit', [12, 9, 14, None])
def test_the_bundle_keeps_what_the_search_promised(weights, tmp_path, unit):
    options = {'split': False} if unit is None else {'splits': (unit,), 'last': 'final'}
    found, bundle = run(weights, tmp_path, Goal(limits={'macs': 1e9}, criteria=('entropy', 'region'), **options))
    chosen = found['chosen']
    assert len(bundle.exits) == len(chosen['exits']) and chosen['split'] == unit
    assert (bundle.split is None) == (unit is None)
    if unit:
        assert bundle.document['network']['split']['unit'] == unit
        assert 'split_candidates' not in bundle.document['network']
    _, samples = samples_of('scenes', None, SPLIT, IMAGES)
    thresholds = bundle.thresholds(chosen['criterion'], 'searched')
    observed = observe(Engine(bundle, threads=1), samples)
    kept = cascade(bundle, observed, chosen['criterion'], thresholds)
    assert kept['miou'] == pytest.approx(chosen['miou'], abs=1e-9)
    assert kept['mean_macs'] == pytest.approx(chosen['macs'])
    assert bundle.document['search'] == chosen
    tried = [12] + [unit] * (unit in (9, 14))
    assert [candidate['split'] for candidate in found['candidates']] == [each for each in tried for _ in range(7)]
    here = [candidate for candidate in found['candidates'] if candidate['split'] == tried[-1]]
    stored = Candidates.load(tmp_path / ('observations.npz' if tried[-1] == 12 else f'observations_split{unit}.npz'))
    assert stored.names.tolist() == [candidate['name'] for candidate in here]
    temperatures = {candidate['name']: candidate['temperature'] for candidate in here}
    assert [exit_.temperature for exit_ in bundle.exits] == [temperatures[name] for name in chosen['exits']]


@pytest.mark.parametrize('unit', [9, 14])
def test_each_split_is_seen_as_if_it_were_the_only_one(weights, unit):
    """Exits that are taken over from the main split are what they would be in a network of that split alone."""
    net = load_network(weights)

    def look(net):
        return Look(net, CLASSES, (96, 80), lambda: samples_of('scenes', None, SPLIT, IMAGES),
                    open_dataset('scenes', None, SPLIT, length=1).image(0), 1, silent)
    taken, alone = look(net).behind(unit, look(net).main()), look(with_split(net, unit)).main()
    np.testing.assert_allclose(taken.candidates.payloads, alone.candidates.payloads, atol=6)    # other fingerprints
    for name in ('names', 'onboard', 'matrices', 'grids'):
        np.testing.assert_array_equal(getattr(taken.candidates, name), getattr(alone.candidates, name))
    places, expected = (np.unique(seen.candidates.places, return_inverse=True)[1] for seen in (taken, alone))
    np.testing.assert_array_equal(places, expected)
    np.testing.assert_allclose(taken.costs['macs'].alone, alone.costs['macs'].alone)
    assert taken.calibration == alone.calibration
    assert taken.candidates.onboard.sum() == (2 if unit == 9 else 6)


def test_a_robot_needs_an_exit_of_its_own(weights):
    net = select_exits(load_network(weights), {'deep': 'u12_fcn'})
    net = add_splits(net, [{'unit': 9, 'low': 2, 'high': 4, 'skips': [6], 'restored': 12}])
    with pytest.raises(ValueError, match='no exit lies before the split behind unit 9'):
        Look(net, CLASSES, (96, 80), None, None, 1, silent).behind(9, None)


def test_everything_on_one_computer_can_go_behind_the_split(weights, tmp_path):
    """The final output alone is a static network whose stages include encoder and decoder."""
    chosen = {'exits': ['final'], 'split': None}
    bundle = Bundle.load(export_chosen(load_network(weights), chosen, tmp_path, 'one', CARD, CLASSES, (96, 80)))
    assert bundle.split is None and {'encode', 'decode'} < set(bundle.stages) and len(bundle.exits) == 1
    assert bundle.cells is None    # encoder and decoder take whole maps only
    _, samples = samples_of('scenes', None, SPLIT, 1)
    engine = Engine(bundle, threads=1)
    for image, _ in samples:
        assert engine.segment(image, 'never').exit_name == 'final'


def test_a_static_network_within_a_budget(weights, tmp_path):
    found, bundle = run(weights, tmp_path, Goal('budgeted', cost='ms', limits={'ms': 1e4}))
    best = max(found['candidates'], key=lambda candidate: candidate['miou'])
    assert found['chosen']['miou'] == best['miou'] and len(bundle.exits) == 1 and bundle.split is None
