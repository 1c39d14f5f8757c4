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
"""Expert heads in the torch network: where they begin, that they stay with their exits, and their graphs."""
import numpy as np
import pytest

torch = pytest.importorskip('torch', reason='torch is not installed (make train-env)')
pytest.importorskip('ee_seg_ros.models', reason='torchvision is not installed (make train-env)')
pytest.importorskip('safetensors', reason='safetensors is not installed (make train-env)')

from ee_seg_ros.data.scenes import StreetDrive  # noqa: E402
from ee_seg_ros.inference.bundle import Bundle  # noqa: E402
from ee_seg_ros.inference.engine import Engine  # noqa: E402
from ee_seg_ros.inference.frame import preprocess  # noqa: E402
from ee_seg_ros.models.experts import add_experts, with_experts  # noqa: E402
from ee_seg_ros.models.export import export  # noqa: E402
from ee_seg_ros.models.multi_exit import (  # noqa: E402
    MultiExitNet,
    add_exits,
    load_network,
    save_network,
    select_exits,
)
from ee_seg_ros.models.splits import add_splits, with_split  # noqa: E402

WIDTH, HEIGHT = 96, 80
CONTEXT = {'kind': 'context', 'width': 16, 'rates': [1, 2], 'skip': True}
SPEC = {
    'backbone': {'name': 'mobilenet_v2', 'units': 15}, 'classes': 4, 'skip': 6,
    'exits': [{'name': 'exit1', 'unit': 7, 'head': CONTEXT},
              {'name': 'exit2', 'unit': 10, 'head': {'kind': 'fcn', 'reduction': 4}},
              {'name': 'exit3', 'unit': 13, 'head': {'kind': 'decoder', 'width': 8}}],
    'split': {'unit': 10, 'low': 4, 'high': 8, 'skips': [3, 6], 'restored': 12},
    'final': {'kind': 'decoder', 'width': 8}}


def stirred(net, seed):
    """The network with other weights in its experts, so that each is told from its exit's own head."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.experts.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return net.eval()


@pytest.fixture(scope='module')
def plain():
    torch.manual_seed(0)
    net = MultiExitNet(SPEC)
    for module in net.modules():    # spread as after training
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        net(torch.rand(4, 3, HEIGHT, WIDTH) * 2 - 1)
    return net.eval()


@pytest.fixture(scope='module')
def net(plain):
    return stirred(add_experts(add_experts(plain, ['blur'], ['exit1'], adapt=1), ['noise'], ['exit2', 'final']), 1)


@torch.no_grad()
def expert_logits(net, image):
    tensors = net.features(image)
    return {part.name: part.module(*[tensors[name] for name in part.inputs]) for part in net.expert_parts}


IMAGE = torch.rand(1, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_experts_begin_as_the_exits_own_heads_also_behind_an_adapter(plain):
    grown = add_experts(plain, ['blur', 'noise'], ['exit1'], adapt=2)
    grown = add_experts(grown, ['noise'], ['exit1', 'final'])    # the first of which is there
    assert grown.spec['experts']['noise']['exit1']['adapt'] == 2
    assert 'experts' not in plain.spec
    own, found = plain(IMAGE), expert_logits(grown, IMAGE)
    assert set(found) == {'exit1_blur', 'exit1_noise', 'final_noise'}
    for name, logits in found.items():
        torch.testing.assert_close(logits, own[name.split('_')[0]])
    torch.testing.assert_close(grown(IMAGE), own)
    twin = stirred(grown, 5)
    begun = add_experts(plain, ['blur', 'weather'], ['exit1'], twin, adapt=2)
    found = expert_logits(begun, IMAGE)
    torch.testing.assert_close(found['exit1_blur'], expert_logits(twin, IMAGE)['exit1_blur'])
    torch.testing.assert_close(found['exit1_weather'], own['exit1'])
    with pytest.raises(ValueError, match='another head than the one that is wanted'):
        add_experts(plain, ['blur'], ['exit1'], twin)


@pytest.mark.parametrize('name', ['exit3', 'final'])
def test_decoders_adapt_what_was_restored_too(plain, name):
    grown = add_experts(plain, ['noise'], [name], adapt=1)
    own, head = plain(IMAGE, [name])[name], grown.experts['noise'][name]
    torch.testing.assert_close(expert_logits(grown, IMAGE)[f'{name}_noise'], own)
    for adapter in (head.adapt, head.adapt_skip):    # either has its say
        with torch.no_grad():
            adapter[0].body[-1].weight.fill_(1)
        assert not torch.allclose(expert_logits(grown, IMAGE)[f'{name}_noise'], own)
        with torch.no_grad():
            adapter[0].body[-1].weight.zero_()


@pytest.mark.parametrize('experts', [{'blur': {'exit9': CONTEXT}}, {'auto': {'exit1': CONTEXT}}])
def test_experts_of_nothing_are_refused(plain, experts):
    with pytest.raises(ValueError, match='expected families of distortions, and exits of exit1'):
        MultiExitNet({**SPEC, 'experts': experts})
    with pytest.raises(ValueError, match='no exit exit9'):
        add_experts(plain, ['blur'], ['exit9'])


def test_experts_stay_with_their_exits(net, tmp_path):
    found = expert_logits(net, IMAGE)
    save_network(net, tmp_path / 'weights.pt')
    torch.testing.assert_close(expert_logits(load_network(tmp_path / 'weights.pt'), IMAGE), found)
    torch.testing.assert_close(expert_logits(add_exits(net, [
        {'name': 'more', 'unit': 12, 'head': {'kind': 'fcn', 'reduction': 8}}]).eval(), IMAGE), found)
    renamed = expert_logits(select_exits(net, {'first': 'exit1', 'last': 'exit3'}), IMAGE)
    torch.testing.assert_close(renamed, {'first_blur': found['exit1_blur'], 'final_noise': found['final_noise']})
    shorter = expert_logits(select_exits(net, {'first': 'exit1'}, 'exit2'), IMAGE)
    torch.testing.assert_close(shorter, {'first_blur': found['exit1_blur'], 'final_noise': found['exit2_noise']})
    assert 'experts' not in select_exits(net, {'second': 'exit3'}, 'exit3').spec
    other = with_split(add_splits(net, [{**SPEC['split'], 'unit': 8}]), 8)
    assert other.spec['experts'].keys() == {'blur', 'noise'}
    torch.testing.assert_close(expert_logits(other, IMAGE)['exit1_blur'], found['exit1_blur'])


def test_the_features_that_are_not_wanted_are_not_computed(net):
    assert set(net.features(IMAGE, {'unit7', 'unit6'})) == {'image', 'unit3', 'unit6', 'unit7'}


def test_experts_and_a_tail_that_was_trained_elsewhere_are_joined(plain, net):
    onboard = stirred(add_experts(plain, ['blur'], ['exit1', 'exit2']), 2)
    tail = add_experts(plain, [], [])
    with torch.no_grad():
        for parameter in (*tail.final.parameters(), *tail.units[12].parameters(), *tail.exits['exit3'].parameters()):
            parameter.mul_(0.9)
    joined = with_experts(tail, onboard)
    torch.testing.assert_close(expert_logits(joined, IMAGE), expert_logits(onboard, IMAGE))
    torch.testing.assert_close(joined(IMAGE), tail(IMAGE))
    with pytest.raises(ValueError, match=r'trained on other features: units\.12\.'):
        with_experts(tail, net)    # an expert of the final output has seen the tail
    with pytest.raises(ValueError, match='has none'):
        with_experts(net, plain)
    with pytest.raises(ValueError, match='exits behind units'):
        with_experts(select_exits(plain, {'exit1': 'exit2'}), onboard)


def test_graphs_of_experts_compute_what_torch_computes(net, tmp_path):
    classes = [{'name': f'class{index}', 'color': [50 * index] * 3} for index in range(4)]
    bundle = Bundle.load(export(net, tmp_path, 'small', {'data': 'none', 'licence': 'none'}, classes, WIDTH, HEIGHT))
    assert bundle.experts == ('blur', 'noise') and bundle.cells == (5, 6)
    image = StreetDrive(seed=3, width=WIDTH, height=HEIGHT).frame(5).image
    expected = expert_logits(net, torch.from_numpy(preprocess(image, bundle)[0]))
    engine = Engine(bundle, threads=1)
    for name, family, allowed in (('exit1', 'blur', 1e-3), ('exit2', 'noise', 1e-3), ('final', 'noise', 2e-2)):
        found = engine.run_exit(image, name, family).output.logits
        wanted = expected[f'{name}_{family}'][0].numpy()
        assert np.abs(found - wanted).max() < allowed * np.abs(wanted).max(), name
    # Where pixels stop, an expert behind the first stage runs in a window as its exit's own head does.
    limits = np.quantile(engine.segment(image, 'never').outputs[0].grid_probabilities.max(0), 0.5)
    result = engine.segment(image, 'class_threshold', (2.0,) * 3, (limits,) * 4, 'noise')
    assert result.outputs[1].exit.graph == 'exit2_noise'
    torch.testing.assert_close(expert_logits(load_network(bundle.path), IMAGE), expert_logits(net, IMAGE))
