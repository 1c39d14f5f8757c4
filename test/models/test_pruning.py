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
"""Hidden channels that go: the least missed, the rest fitted to what the whole network computes."""
import copy
import itertools

import pytest

torch = pytest.importorskip('torch', reason='torch is not installed (make train-env)')
pytest.importorskip('ee_seg_ros.models.torchvision_compat')

from ee_seg_ros.models.backbones import build_backbone, cut_hidden, unit_macs  # noqa: E402
from ee_seg_ros.models.multi_exit import MultiExitNet, load_network, save_network, select_exits  # noqa: E402
from ee_seg_ros.models.pruning import eliminate, prune  # noqa: E402

IMAGES = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0)) * 2 - 1
SPEC = {'backbone': {'name': 'mobilenet_v2', 'units': 8}, 'classes': 5,
        'exits': [{'name': 'exit1', 'unit': 3, 'head': {'kind': 'fcn', 'reduction': 8}},
                  {'name': 'exit2', 'unit': 5, 'head': {'kind': 'fcn', 'reduction': 8}}],
        'final': {'kind': 'fcn', 'reduction': 8}}


@pytest.fixture
def net():
    torch.manual_seed(0)
    net = MultiExitNet(SPEC).train()
    for module in net.modules():    # as after a training: norms know what comes, channels differ in level and spread
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
            torch.nn.init.uniform_(module.bias, -0.5, 1.5)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
    with torch.no_grad():
        net(IMAGES)
    return net.eval()


def images():
    """The images in batches of one."""
    return IMAGES.split(1)


def unit_output(net, unit):
    """What a unit puts out for the images."""
    with torch.no_grad():
        return net.run_units(IMAGES, 0, unit)[-1]


def test_the_variable_that_is_missed_least_goes():
    """The first one is the best of all; weights are those of the best fit to what is left."""
    torch.manual_seed(0)
    values = torch.randn(200, 6, dtype=torch.float64) @ torch.randn(6, 6, dtype=torch.float64)
    others = values @ torch.randn(6, 3, dtype=torch.float64) + torch.randn(200, 3, dtype=torch.float64)

    def best(kept):
        return torch.linalg.lstsq(values[:, kept], others).solution

    def error(kept):
        return float((others - values[:, kept] @ best(kept)).square().sum())
    kept, _ = eliminate(values.T @ values, values.T @ others, 5)
    assert kept.tolist() == min((list(choice) for choice in itertools.combinations(range(6), 5)), key=error)
    kept, weights = eliminate(values.T @ values, values.T @ others, 3)
    torch.testing.assert_close(weights, best(kept))


def test_channels_that_others_can_stand_in_for_cost_nothing(net):
    """Half of unit 2's hidden channels are copies of the others, some of unit 3's do nothing."""
    with torch.no_grad():
        for module in net.units[2].conv[:2].modules():
            for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
                if tensor.dim():
                    tensor[48:] = tensor[:48]
        net.units[3].conv[2].weight[:, ::3] = 0
    said = []
    pruned = prune(net, [{'unit': 3, 'hidden': 96}, {'unit': 2, 'hidden': 48}], images, said.append)
    assert [line.split(':')[0] for line in said] == ['unit 2', 'unit 3']
    assert pruned.units[2].conv[2].in_channels == 48 and pruned.units[3].conv[2].in_channels == 96
    for unit in (2, 3, 7):
        torch.testing.assert_close(unit_output(pruned, unit), unit_output(net, unit), rtol=1e-2, atol=1e-2)
    for one, other in zip(unit_macs(pruned.units, 64, 96)[2:4], unit_macs(net.units, 64, 96)[2:4]):
        assert one < 0.7 * other


def test_what_is_left_makes_up_for_what_went(net):
    """Closer than the same channels with the weights they had; block after block, residual or not."""
    wanted = unit_output(net, 3)
    pruned = prune(net, [{'unit': 2, 'hidden': 64}, {'unit': 3, 'hidden': 112}], images)
    dropped = copy.deepcopy(net)
    for unit in (2, 3):
        weights = pruned.units[unit].conv[1][0].weight
        whole = net.units[unit].conv[1][0].weight
        kept = [next(index for index in range(len(whole)) if torch.equal(whole[index], weight)) for weight in weights]
        cut_hidden(dropped.units, unit, kept)
    fitted, plain = ((unit_output(other, 3) - wanted).square().mean() for other in (pruned, dropped))
    assert 0 < fitted < 0.5 * plain
    assert net.units[2].conv[2].in_channels == 96    # the network itself stays as it was


def test_a_block_that_keeps_all_channels_makes_up_for_those_before(net):
    cut = [{'unit': 2, 'hidden': 32}]
    alone = prune(net, cut, images)
    together = prune(net, [*cut, {'unit': 4, 'hidden': 144}], images)
    assert together.units[4].conv[2].in_channels == 144
    with torch.no_grad():
        wanted, *found = (each.run_units(IMAGES, 0, 4)[-1] for each in (net, alone, together))
    errors = [float((one - wanted).square().mean()) for one in found]
    assert errors[1] < 0.9 * errors[0]


def test_a_pruned_network_is_a_network(net, tmp_path):
    pruned = prune(net, [{'unit': 4, 'hidden': 16}], images)
    pruned = prune(pruned, [{'unit': 2, 'hidden': 32}], images)
    assert pruned.spec['backbone']['pruned'] == [{'unit': 2, 'hidden': 32}, {'unit': 4, 'hidden': 16}]
    assert net.spec == SPEC
    save_network(pruned, tmp_path / 'weights.pt')
    with torch.no_grad():
        logits = pruned(IMAGES)
        torch.testing.assert_close(load_network(tmp_path / 'weights.pt')(IMAGES), logits)
        # cut off before one of the pruned blocks
        torch.testing.assert_close(select_exits(pruned, {}, 'exit1')(IMAGES)['final'], logits['exit1'])
    with pytest.raises(ValueError, match='unit 2 has 96 hidden channels, 128 are to be left'):
        prune(pruned, [{'unit': 2, 'hidden': 128}], images)


@pytest.mark.parametrize('name, unit, hidden, what', [
    ('mobilenet_v2', 1, 16, 'that widens'), ('mobilenet_v2', 18, 16, 'unit 18 cannot be pruned'),
    ('mobilenet_v2', -1, 16, 'unit -1 cannot be pruned'), ('mobilenet_v2', 2, 97, '96 hidden channels, 97 are to be'),
    ('mobilenet_v2', 2, 0, '0 are to be left'), ('lraspp_mobilenet_v3_large', 3, 16, 'no inverted residual block of')])
def test_what_cannot_be_pruned_is_refused(name, unit, hidden, what):
    with pytest.raises(ValueError, match=what):
        cut_hidden(build_backbone(name).units, unit, range(hidden))
