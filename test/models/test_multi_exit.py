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
"""The multi-exit network: every supported backbone as a chain, heads and their knobs, choosing exits afterwards."""
import itertools

import pytest

torch = pytest.importorskip('torch', reason='torch is not installed (make train-env)')

from ee_seg_ros.models.backbones import (  # noqa: E402
    NETWORKS,
    build_backbone,
    candidate_units,
    read_weights,
    unit_macs,
)
from ee_seg_ros.models.heads import build_head, enlarged  # noqa: E402
from ee_seg_ros.models.multi_exit import (  # noqa: E402
    MultiExitNet,
    add_exits,
    load_network,
    save_network,
    select_exits,
)
from ee_seg_ros.models.torchvision_compat import torchvision  # noqa: E402

IMAGE = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(0)) * 2 - 1


def spec(**changes):
    """MobileNetV2 with two exits on the robot, one behind the split."""
    return {
        'backbone': {'name': 'mobilenet_v2'}, 'classes': 5, 'skip': 6,
        'exits': [{'name': 'exit1', 'unit': 8, 'head': {'kind': 'context', 'width': 16, 'rates': [1, 2], 'skip': True}},
                  {'name': 'exit2', 'unit': 10, 'head': {'kind': 'fcn', 'reduction': 2}},
                  {'name': 'exit3', 'unit': 14, 'head': {'kind': 'decoder', 'width': 16}}],
        'split': {'unit': 10, 'low': 4, 'high': 8, 'levels': 16, 'skips': [3, 6], 'restored': 12},
        'final': {'kind': 'decoder', 'width': 16}, **changes}


@pytest.fixture(scope='module')
def net():
    torch.manual_seed(0)
    return MultiExitNet(spec()).eval()


@pytest.mark.parametrize('name', [name for name in NETWORKS if 'resnet101' not in name])
def test_a_network_as_a_chain_computes_what_torchvision_computes(name):
    torch.manual_seed(0)
    if name == 'mobilenet_v2':
        original = torchvision.models.mobilenet_v2(weights=None).eval()
        backbone = build_backbone(name)
        backbone.units.load_state_dict(dict(original.features[:18].state_dict()))
        # dilation instead of the last stride keeps the weights, not the values: compare up to there
        expected, units = original.features[:14](IMAGE), backbone.units[:14]
    else:
        original = getattr(torchvision.models.segmentation, name)(weights=None, weights_backbone=None,
                                                                  num_classes=5).eval()
        backbone = build_backbone(name, classes=5)
        net = MultiExitNet({'backbone': {'name': name}, 'classes': 5, 'exits': [], 'final': {'kind': 'own'},
                            'skip': backbone.low_unit}).eval()
        net.units.load_state_dict(dict(zip(net.units.state_dict(), original.backbone.state_dict().values())))
        net.final.layers.load_state_dict(original.classifier.state_dict())
        expected, units = original.backbone(IMAGE)[list(original.backbone.return_layers.values())[-1]], net.units
        logits = torch.nn.functional.interpolate(net(IMAGE)['final'], IMAGE.shape[-2:], mode='bilinear',
                                                 align_corners=False)
        torch.testing.assert_close(logits, original(IMAGE)['out'], rtol=1e-4, atol=1e-4)
    tensor = IMAGE
    for unit in units.eval():
        tensor = unit(tensor)
    torch.testing.assert_close(tensor, expected, rtol=1e-4, atol=1e-4)


def test_weights_of_a_local_file_reach_the_units(tmp_path):
    torch.manual_seed(3)
    original = torchvision.models.mobilenet_v2(weights=None)
    torch.save(original.state_dict(), tmp_path / 'weights.pth')
    net = MultiExitNet(spec(), tmp_path / 'weights.pth')
    torch.testing.assert_close(net.units[5].state_dict(), original.features[5].state_dict())
    with pytest.raises(ValueError, match='keys missing'):
        MultiExitNet(spec(backbone={'name': 'fcn_resnet50'}, skip=None, split=None, exits=[],
                          final={'kind': 'own'}), tmp_path / 'weights.pth')


@pytest.mark.parametrize('source, what', [('nowhere.pth', 'does not exist'),
                                          ('MobileNet_V2_Weights.NO_SUCH', 'has no weights')])
def test_weights_that_are_not_there(source, what):
    with pytest.raises((ValueError, FileNotFoundError), match=what):
        read_weights(source)


def test_candidate_places_are_equidistant_in_cost():
    assert candidate_units([1] * 12, 3) == [2, 5, 8]
    assert candidate_units([1, 1, 1, 1, 8], 3) == [2, 3, 4]    # the last unit passes two marks: its neighbour as well
    assert candidate_units([9, 1, 1, 1, 1], 2) == [0, 1]
    places = candidate_units(unit_macs(build_backbone('mobilenet_v2').units, 64, 96))
    assert len(places) == 6 and places == sorted(set(places))
    with pytest.raises(ValueError, match='do not fit'):
        candidate_units([1, 1], 2)


@pytest.mark.parametrize('stride', [4, 16])
def test_all_64_heads_of_a_place_work(stride):
    features = torch.rand(2, 16, 8, 12)
    seen = set()
    for kind, reduction, blocks, dilate in itertools.product(('fcn', 'deeplab'), (1, 2, 4, 8), range(4), (False, True)):
        head = build_head({'kind': kind, 'reduction': reduction, 'blocks': blocks, 'dilate': dilate}, 16, 5, stride)
        logits = head(features)
        assert logits.shape == (2, 5, *((4, 6) if stride == 4 else (8, 12)))
        seen.add((kind, reduction, blocks, dilate))
        rates = {module.dilation[0] for block in head.blocks for module in block.modules()
                 if isinstance(module, torch.nn.Conv2d)}
        assert rates == (set() if not blocks else {1} if not dilate else {2 ** (k + 1) for k in range(blocks)})
    assert len(seen) == 64


@pytest.mark.parametrize('head, what', [
    ({'kind': 'fcn', 'reduction': 3}, 'expected fcn or deeplab'), ({'kind': 'pspnet'}, 'not known'),
    ({'kind': 'decoder'}, 'takes finer features'), ({'kind': 'context', 'size': 3}, 'size')])
def test_wrong_heads_are_refused(head, what):
    with pytest.raises(ValueError, match=what):
        build_head(head, 16, 5, 16)


@pytest.mark.parametrize('head', [{'kind': 'fcn'}, {'kind': 'deeplab'}, {'kind': 'context', 'rates': [1, 2]}])
def test_exit_heads_see_only_their_neighbourhood(head):
    """No pooling over the whole map: a change in one corner leaves the far corner alone, as windows need it."""
    torch.manual_seed(0)
    module = build_head(head, 8, 5, 16).eval()
    features = torch.rand(1, 8, 4, 60)
    changed = features.clone()
    changed[..., 0] += 1
    difference = (module(changed) - module(features)).abs().amax((0, 1, 2))
    assert difference[0] > 0 and (difference[-20:] == 0).all()


@pytest.mark.parametrize('size, finer', [((4, 6), (8, 12)), ((4, 6), (16, 24)), ((4, 6), (4, 6)), ((4, 6), (8, 6)),
                                         ((4, 6), (9, 13)), ((1, 1), (2, 2))])
def test_enlarged_is_bilinear_by_any_factor(size, finer):
    features = torch.rand(2, 3, *size)
    expected = torch.nn.functional.interpolate(features, size=finer, mode='bilinear', align_corners=False)
    torch.testing.assert_close(enlarged(features, torch.zeros(2, 1, *finer)), expected)


def test_only_what_is_wanted_is_computed(net):
    logits = net(IMAGE)
    assert tuple(logits) == net.exit_names == ('exit1', 'exit2', 'exit3', 'final')
    assert [tuple(output.shape[-2:]) for output in logits.values()] == [(8, 12), (4, 6), (16, 24), (16, 24)]
    ran = []
    hooks = [unit.register_forward_hook(lambda *_, index=index: ran.append(index))
             for index, unit in enumerate(net.units)]
    torch.testing.assert_close(net(IMAGE, ['exit2']), {'exit2': logits['exit2']})
    for hook in hooks:
        hook.remove()
    assert ran == list(range(11))


def test_file_round_trip(net, tmp_path):
    save_network(net, tmp_path / 'weights.pt')
    torch.testing.assert_close(load_network(tmp_path / 'weights.pt')(IMAGE), net(IMAGE))
    (tmp_path / 'noise.pt').write_bytes(b'noise')
    with pytest.raises(ValueError, match='is neither a weights.pt'):
        load_network(tmp_path / 'noise.pt')


def test_chosen_exits_compute_the_same(net):
    grown = add_exits(net, [{'name': 'extra', 'unit': 12, 'head': {'kind': 'deeplab', 'reduction': 8}}]).eval()
    everything = grown(IMAGE)
    torch.testing.assert_close({name: everything[name] for name in net.exit_names}, net(IMAGE))
    chosen = select_exits(grown, {'a': 'exit1', 'b': 'extra'})
    torch.testing.assert_close(chosen(IMAGE), {'a': everything['exit1'], 'b': everything['extra'],
                                               'final': everything['final']})
    onboard = select_exits(grown, {'a': 'exit1'}, final='exit2')    # a static submodel: no split is left
    assert onboard.split_unit is None and len(onboard.units) == 11
    torch.testing.assert_close(onboard(IMAGE), {'a': everything['exit1'], 'final': everything['exit2']})
    torch.testing.assert_close(select_exits(grown, {}, final='exit3')(IMAGE), {'final': everything['exit3']})
    with pytest.raises(ValueError, match='no exit nowhere'):
        select_exits(net, {'a': 'nowhere'})


@pytest.mark.parametrize('changes, what', [
    ({'exits': [{'name': 'final', 'unit': 3, 'head': {'kind': 'fcn'}}]}, 'names of their own'),
    ({'exits': [{'name': 'exit1', 'unit': 30, 'head': {'kind': 'fcn'}}]}, 'units 0 to 17'),
    ({'split': {'unit': 17, 'low': 4, 'high': 8, 'levels': 16}}, 'before the last'),
    ({'backbone': {'name': 'vgg'}}, 'not known'), ({'final': {'kind': 'own'}}, 'no head of its own'),
    ({'backbone': {'name': 'mobilenet_v2', 'output_stride': 32}}, 'not 8 or 16'),
    ({'split': {'unit': 10, 'skips': [3, 12], 'restored': 12}}, 'do not all lie before its unit 10'),
    ({'backbone': {'name': 'lraspp_mobilenet_v3_large'}, 'final': {'kind': 'own'}, 'exits': []},    # restored is 12
     r'write `skips: \[4\], restored: 40` into its split'),
    ({'backbone': {'name': 'lraspp_mobilenet_v3_large'}, 'final': {'kind': 'own'}, 'exits': [], 'split': None},
     'without a split, `skip: 4`')])
def test_specs_that_make_no_network(changes, what):
    with pytest.raises(ValueError, match=what):
        MultiExitNet(spec(**changes))


def test_looking_at_a_network_leaves_no_trace():
    backbone = build_backbone('mobilenet_v2')
    backbone.units[4].eval()
    before = {name: value.clone() for name, value in backbone.units.state_dict().items()}
    backbone.shapes(), unit_macs(backbone.units, 64, 64)
    torch.testing.assert_close(backbone.units.state_dict(), before)
    assert backbone.units[3].training and not backbone.units[4].training


def test_output_stride_8_keeps_the_weights():
    coarse, fine = build_backbone('mobilenet_v2', 16), build_backbone('mobilenet_v2', 8)
    assert coarse.shapes()[-1] == (320, 16) and fine.shapes()[-1] == (320, 8)
    fine.units.load_state_dict(coarse.units.state_dict())
