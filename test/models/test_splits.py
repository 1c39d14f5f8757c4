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
"""Several splits in one network: each can become its split, and computes what its bottleneck lets through."""
import pytest

torch = pytest.importorskip('torch', reason='torch is not installed (make train-env)')
pytest.importorskip('ee_seg_ros.models', reason='torchvision is not installed (make train-env)')

from ee_seg_ros.models.bottleneck import Bottleneck  # noqa: E402
from ee_seg_ros.models.multi_exit import MultiExitNet, load_network, save_network, select_exits  # noqa: E402
from ee_seg_ros.models.splits import add_splits, start_bottleneck, with_split  # noqa: E402

IMAGE = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(0)) * 2 - 1
LIGHT = {'kind': 'context', 'width': 8, 'rates': [1, 2]}
SPEC = {
    'backbone': {'name': 'mobilenet_v2'}, 'classes': 5, 'skip': 6,
    'exits': [{'name': f'{name}{unit}', 'unit': unit, 'head': LIGHT | options} for unit in (7, 10, 14)
              for name, options in (('plain', {}), ('finer', {'skip': True}))],
    'split': {'unit': 10, 'low': 4, 'high': 8, 'levels': 16, 'skips': [3, 6], 'restored': 12},
    'final': {'kind': 'decoder', 'width': 16}}
EARLY = {'unit': 8, 'low': 4, 'high': 6, 'levels': 8, 'skips': [3, 6], 'restored': 12}
LATE = {'unit': 15, 'low': 2, 'high': 8, 'skips': [6], 'restored': 12}


@pytest.fixture(scope='module')
def one_split():
    torch.manual_seed(0)
    return MultiExitNet(SPEC).eval()


@pytest.fixture(scope='module')
def net(one_split):
    torch.manual_seed(1)
    return add_splits(one_split, [EARLY, LATE]).eval()


def test_candidates_leave_the_network_as_it_is(one_split, net, tmp_path):
    torch.testing.assert_close(net(IMAGE), one_split(IMAGE))
    state = one_split.state_dict()
    assert not any(key.startswith('bottlenecks.') for key in state) and set(state) < set(net.state_dict())
    save_network(net, tmp_path / 'weights.pt')
    torch.testing.assert_close(load_network(tmp_path / 'weights.pt').state_dict(), net.state_dict())
    assert [split['unit'] for split in net.splits] == [10, 8, 15]


def test_the_main_split_alone_is_the_network_without_candidates(one_split, net):
    alone = with_split(net, 10)
    assert alone.spec == one_split.spec
    torch.testing.assert_close(alone.state_dict(), one_split.state_dict())
    torch.testing.assert_close(select_exits(net, {name: name for name in net.exit_names[:-1]}).state_dict(),
                               one_split.state_dict())


@pytest.mark.parametrize('unit, skips, left_out, levels', [
    (8, [3, 6], {'finer10'}, 8), (15, [6], {'finer14'}, 16)])
def test_another_split_computes_what_its_bottleneck_lets_through(net, unit, skips, left_out, levels):
    """Exits before it see plain features, those behind it what it restores; weights are those of the network."""
    found = with_split(net, unit)
    assert found.split_unit == unit and set(net.exit_names) - set(found.exit_names) == left_out
    features, bottleneck = [], net.bottlenecks[str(unit)]
    for index, module in enumerate(net.units):
        tensor = features[-1] if features else IMAGE
        if index == 11:    # behind the main split all was trained on what its bottleneck makes of the features
            tensor = net.bottleneck.unfold_high(net.bottleneck._restore(net.bottleneck._quantise(
                net.bottleneck.high(tensor))))
        features.append(module(tensor))
        if index == unit:
            sent = bottleneck.encode(*(features[skip] for skip in skips), features[unit])
            assert all(level.max() <= levels - 1 and (level == level.round()).all() for level in sent)
            finer, features[unit] = bottleneck.decode(*sent)
            plain = module(tensor)
    logits = found(IMAGE)
    torch.testing.assert_close(logits['final'], net.final(features[-1], finer))
    torch.testing.assert_close(logits['plain14'], net.exits['plain14'](features[14]))
    torch.testing.assert_close(logits['plain10'], net.exits['plain10'](features[10]))
    torch.testing.assert_close(logits['finer7'], net.exits['finer7'](features[7], features[6]))
    torch.testing.assert_close(found.features(IMAGE)[f'unit{unit}'], plain)


def test_exits_can_be_chosen_of_a_network_with_another_split(net):
    """With the last exit before, at and behind the main split, whose bottleneck is then needed no more, or still."""
    early, late = with_split(net, 8), with_split(net, 15)
    for found, last in [(early, name) for name in ('plain7', 'plain10', 'plain14')] + [
            (late, 'plain10'), (late, 'plain14')]:
        torch.testing.assert_close(select_exits(found, {}, last)(IMAGE)['final'], found(IMAGE)[last])


def test_a_split_that_is_not_there(net):
    with pytest.raises(ValueError, match='no split behind unit 9: choose one of 10, 8, 15'):
        with_split(net, 9)


def test_a_network_without_a_split_stays_as_it_is():
    spec = {'backbone': {'name': 'mobilenet_v2', 'units': 3}, 'classes': 5, 'exits': [], 'final': {'kind': 'fcn'}}
    net = MultiExitNet(spec).eval()
    torch.testing.assert_close(with_split(net, None)(IMAGE), net(IMAGE))


def test_candidates_begin_with_the_main_split_s_weights_for_the_same_finer_features(one_split, net):
    main, early, late = net.bottleneck, net.bottlenecks['8'], net.bottlenecks['15']
    for part in ('folds', 'low', 'unfold_low'):
        torch.testing.assert_close(getattr(early, part).state_dict(), getattr(main, part).state_dict())
    assert late.low[0].weight.shape != main.low[0].weight.shape


@pytest.mark.parametrize('high', [4, 12])
def test_a_bottleneck_begins_with_the_principal_components(high):
    """Eight channels that are mixtures of four: four are enough, more are no hindrance, if levels are fine."""
    torch.manual_seed(0)
    sources = torch.rand(2, 4, 16, 24) * torch.tensor([5.0, 2.0, 1.0, 0.5]).view(4, 1, 1)
    features = torch.einsum('oc,nchw->nohw', torch.randn(8, 4), sources) + torch.arange(8.0).view(8, 1, 1)
    bottleneck = Bottleneck(8, high=high, levels=4096).eval()

    @torch.no_grad()
    def error():
        restored, = bottleneck.decode(*bottleneck.encode(features))
        return float((restored - features).square().mean() / features.var((0, 2, 3)).mean())
    before = error()
    start_bottleneck(bottleneck, features)
    assert before > 0.5 and error() < 0.01
    bottleneck.train()
    assert error() < 0.01


@pytest.mark.parametrize('changes, what', [
    ({'split_candidates': [EARLY, {**LATE, 'unit': 8}]}, r'unit of its own: these lie behind \[10, 8, 8\]'),
    ({'split_candidates': [{**EARLY, 'unit': 10}]}, 'unit of its own'),
    ({'split_candidates': [{**EARLY, 'unit': 17}]}, 'before the last'),
    ({'split_candidates': [{**EARLY, 'skips': [3, 9]}]}, 'do not all lie before its unit 8'),
    ({'split_candidates': [{**EARLY, 'restored': 16}]}, 'restores 16 channels at stride 8, the split 12 channels at'),
    ({'split_candidates': [{**EARLY, 'skips': [3]}]}, 'restores 12 channels at stride 4'),
    ({'split_candidates': [{'unit': 8, 'high': 6}]}, 'restores nothing, the split 12 channels'),
    ({'split': None, 'split_candidates': [EARLY]}, 'needs a `split` of its own')])
def test_candidates_that_do_not_fit(changes, what):
    with pytest.raises(ValueError, match=what):
        MultiExitNet({**SPEC, **changes, 'final': LIGHT})
