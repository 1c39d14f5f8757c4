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
"""Bundles against the torch networks that they were exported from."""
import json

import numpy as np
import pytest

torch = pytest.importorskip('torch', reason='torch is not installed (make train-env)')
pytest.importorskip('ee_seg_ros.models', reason='torchvision is not installed (make train-env)')
pytest.importorskip('safetensors', reason='safetensors is not installed (make train-env)')

from ee_seg_ros.data.scenes import StreetDrive  # noqa: E402
from ee_seg_ros.inference.bundle import Bundle, shipped_folders  # noqa: E402
from ee_seg_ros.inference.criteria import CRITERIA  # noqa: E402
from ee_seg_ros.inference.engine import Engine  # noqa: E402
from ee_seg_ros.inference.features import pack, unpack  # noqa: E402
from ee_seg_ros.inference.frame import preprocess  # noqa: E402
from ee_seg_ros.inference.pixels import OnboardMap  # noqa: E402
from ee_seg_ros.inference.windows import Window  # noqa: E402
from ee_seg_ros.models import export as exporting  # noqa: E402
from ee_seg_ros.models.backbones import build_backbone  # noqa: E402
from ee_seg_ros.models.export import export, parts  # noqa: E402
from ee_seg_ros.models.multi_exit import MultiExitNet, Part, load_network  # noqa: E402

CARD = {'data': 'none', 'licence': 'none'}
CLASSES = [{'name': f'class{index}', 'color': [50 * index] * 3} for index in range(4)]
WIDTH, HEIGHT = 96, 64
SPEC = {
    'backbone': {'name': 'mobilenet_v2'}, 'classes': 4, 'skip': 6,
    'exits': [{'name': 'exit1', 'unit': 7, 'head': {'kind': 'fcn', 'reduction': 4}},
              {'name': 'exit2', 'unit': 10, 'head': {'kind': 'context', 'width': 16, 'rates': [1, 2], 'skip': True}},
              {'name': 'exit3', 'unit': 14, 'head': {'kind': 'deeplab', 'reduction': 8}}],
    'split': {'unit': 10, 'low': 4, 'high': 8, 'skips': [3, 6], 'restored': 12},
    'final': {'kind': 'decoder', 'width': 16}}
SHIPPED = sorted({path.parent.name for folder in shipped_folders() for path in folder.glob('*/bundle.json')})


def random_net(spec):
    """A network whose features and logits are spread as after training: its batch norms have seen an image."""
    torch.manual_seed(0)
    net = MultiExitNet(spec)
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None    # the plain mean of what was seen
    with torch.no_grad():
        net(torch.rand(4, 3, HEIGHT, WIDTH) * 2 - 1)
    return net.eval()


def assert_same_in_window(bundle, net, window):
    """Whatever can run in windows computes there what torch computes on the same crops."""
    engine, pieces = Engine(bundle, threads=1), {part.name: part for part in parts(net)}
    with torch.no_grad():
        tensors, ran = net.features(torch.rand(1, 3, HEIGHT, WIDTH) * 2 - 1), []
    for name, described in bundle.graphs.items():
        if name in ('stage1', 'exit1', 'encode', 'decode'):
            continue
        crops = [window.of(tensors[each], bundle.cells).contiguous() for each in described['inputs']]
        with torch.no_grad():
            expected = pieces[name].module(*crops)
        given = {tensor: each.numpy() for tensor, each in zip(described['inputs'], crops)}
        found = engine._graphs.run(name, given)
        expected = expected if isinstance(expected, tuple) else (expected,)
        assert list(found) == described['outputs'] and len(found) == len(expected)
        for output, torchs in zip(found.values(), expected):
            assert output.shape == torchs.shape
            assert np.abs(output - torchs.numpy()).max() < 1e-3 * torchs.abs().max(), name
        ran.append(name)
    return ran


def both(bundle, net, image):
    """(exit, logits of torch, output of the engine) of all exits: onboard part, message, offboard part."""
    tensor, placement = preprocess(image, bundle)
    with torch.no_grad():
        expected = {name: logits[0].numpy() for name, logits in net(torch.from_numpy(tensor)).items()}
    behind = [expected[exit_.name] for exit_ in bundle.offboard_exits]    # one stride, where any is averaged
    expected |= {exit_.name: np.mean(behind[:place + 1], 0) for place, exit_ in enumerate(bundle.offboard_exits)
                 if exit_.averaged}
    robot = Engine(bundle, threads=1, part='onboard')
    result = robot.segment(image, 'never')
    outputs = result.outputs
    if bundle.split is not None:
        height, width = image.shape[:2]
        onboard = OnboardMap(robot.onboard_map(result).classes)    # all cells are sent
        received = unpack(bundle, pack(bundle, robot.encode(result), placement, (width, height), onboard))
        outputs = outputs + Engine(bundle, threads=1, part='offboard').finish(
            received.tensors, received.placement, onboard=received.onboard).outputs
    assert [output.exit.name for output in outputs] == list(expected)
    return [(output.exit, expected[output.exit.name], output) for output in outputs]


def assert_same(exit_, expected, output, onboard=1e-3, offboard=2e-2):
    """Differences as shares of the largest logit.

    Behind the split more is allowed: a feature on the edge between two levels may round either way.
    """
    largest = np.abs(output.logits - expected).max() / np.abs(expected).max()
    assert largest < (onboard if exit_.onboard else offboard), (exit_.name, largest)


@pytest.fixture(scope='module')
def net():
    return random_net(SPEC)


@pytest.fixture(scope='module')
def bundle(net, tmp_path_factory):
    return Bundle.load(export(net, tmp_path_factory.mktemp('bundles') / 'small', 'small', CARD, CLASSES, WIDTH, HEIGHT))


@pytest.mark.parametrize('name', SHIPPED)
def test_shipped_bundles_compute_what_torch_computes(name):
    bundle = Bundle.load(name)
    if 'network' not in bundle.document or not (bundle.path / 'weights.safetensors').is_file():
        pytest.skip(f'bundle {name} does not say which torch network it is, or comes without its weights')
    net = load_network(bundle.path)
    image = StreetDrive(seed=3).frame(5).image
    height, width = image.shape[:2]
    for exit_, expected, output in both(bundle, net, image):
        if exit_.onboard:
            assert_same(exit_, expected, output)
        whole = type(output)(bundle, exit_, np.ascontiguousarray(expected), output.placement)
        assert np.mean(output.mask(width, height) == whole.mask(width, height)) > 0.999, exit_.name


def test_every_exit_of_a_split_run_equals_torch(bundle, net):
    assert [exit_.name for exit_ in bundle.onboard_exits] == ['exit1', 'exit2']
    image = StreetDrive(seed=3, width=WIDTH, height=HEIGHT).frame(5).image
    for exit_, expected, output in both(bundle, net, image):
        assert expected.std() > 0.01 and len(np.unique(expected.argmax(0))) > 1    # there is something to compare
        assert_same(exit_, expected, output)


def test_the_bundle_brings_what_torch_needs(bundle, net):
    image = torch.rand(1, 3, HEIGHT, WIDTH)
    torch.testing.assert_close(load_network(bundle.path)(image), net(image))
    assert bundle.document['codec']['levels'] == 16    # the bottleneck's default


@pytest.mark.parametrize('name, unit', [
    ('deeplabv3_resnet101', 4), ('fcn_resnet50', 4), ('deeplabv3_mobilenet_v3_large', 8),
    ('lraspp_mobilenet_v3_large', 8)])
def test_networks_of_torchvision(tmp_path, name, unit):
    low = build_backbone(name).low_unit
    skips = {} if low is None else {'skips': [low], 'low': 8, 'restored': 40}
    spec = {'backbone': {'name': name}, 'classes': 4, 'final': {'kind': 'own'},
            'exits': [{'name': 'exit1', 'unit': unit, 'head': {'kind': 'fcn', 'reduction': 8}}],
            'split': {'unit': unit, 'high': 16, **skips}}
    net = random_net(spec)
    bundle = Bundle.load(export(net, tmp_path, name, CARD, CLASSES, WIDTH, HEIGHT, with_weights=False))
    image = StreetDrive(seed=3, width=WIDTH, height=HEIGHT).frame(5).image
    for exit_, expected, output in both(bundle, net, image):
        assert_same(exit_, expected, output)
    assert 'final' in assert_same_in_window(bundle, net, Window(1, 3, 2, 5))
    for path in tmp_path.glob('*.onnx'):    # up to 200 MB
        path.unlink()


def test_a_network_without_a_split_and_with_one_exit(tmp_path):
    net = random_net({'backbone': {'name': 'mobilenet_v2'}, 'classes': 4, 'exits': [],
                      'input': {'scale': [1 / 64] * 3, 'offset': [-2.0, -1.9, -1.8]}, 'final': {'kind': 'fcn'}})
    bundle = Bundle.load(export(net, tmp_path, 'alone', CARD, CLASSES, WIDTH, HEIGHT))
    assert bundle.split is None and bundle.cells is None and not bundle.judged_exits and not bundle.document['criteria']
    image = StreetDrive(seed=3, width=WIDTH, height=HEIGHT).frame(5).image
    np.testing.assert_allclose(preprocess(image, bundle)[0][0, :, 3, 4],
                               image[3, 4] / 64 - np.array([2.0, 1.9, 1.8]), rtol=1e-5, atol=1e-5)
    for exit_, expected, output in both(bundle, net, image):
        assert_same(exit_, expected, output)


def test_a_bundle_is_replaced_whole_and_nothing_else(tmp_path, net):
    alone = random_net({'backbone': {'name': 'mobilenet_v2', 'units': 3}, 'classes': 4, 'exits': [],
                        'final': {'kind': 'fcn'}})
    other = tmp_path / 'mine.onnx'
    other.write_text('not of this bundle')
    export(net, tmp_path, 'first', CARD, CLASSES, WIDTH, HEIGHT)
    export(alone, tmp_path, 'second', CARD, CLASSES, WIDTH, HEIGHT, with_weights=False)
    assert {path.name for path in tmp_path.iterdir()} == {'bundle.json', 'final.onnx', 'stage1.onnx', other.name}
    assert json.loads((tmp_path / 'bundle.json').read_text())['name'] == 'second'


def dimensions(path):
    """Shapes of all inputs and outputs of an ONNX file, names where they are dynamic."""
    onnx = pytest.importorskip('onnx', reason='onnx is not installed (make train-env)')
    graph = onnx.load(path).graph
    return {value.name: [dimension.dim_param or dimension.dim_value for dimension in value.type.tensor_type.shape.dim]
            for value in [*graph.input, *graph.output]}


def test_what_lies_behind_the_first_exits_takes_maps_of_any_size(bundle):
    """Maps of 4x6 cells; of finer maps the names of the dimensions say how many values a cell has in a row."""
    assert bundle.document['cells'] == {'rows': 4, 'columns': 6} and bundle.cells == (4, 6)
    size = {name: tensor['shape'][2] // 4 for name, tensor in bundle.tensors.items()}
    assert {size[name] for name in ('unit6', 'unit10', 'logits_exit2', 'logits_final')} >= {1, 2, 4}
    for name, graph in bundle.graphs.items():
        found = dimensions(bundle.path / graph['file'])
        for tensor in graph['inputs'] + graph['outputs']:
            shape = bundle.tensors[tensor]['shape']
            if name not in ('stage1', 'exit1', 'encode', 'decode'):
                shape = [*shape[:2], f'height{size[tensor]}', f'width{size[tensor]}']
            assert found[tensor] == shape, (name, tensor)


@pytest.mark.parametrize('window', [(0, 4, 0, 6), (1, 3, 2, 5), (3, 4, 0, 6), (0, 1, 5, 6)])
def test_a_graph_computes_on_part_of_its_maps_what_torch_computes_there(bundle, net, window):
    ran = assert_same_in_window(bundle, net, Window(*window))
    assert ran == ['stage2', 'exit2', 'stage3', 'exit3', 'stage4', 'final']


@pytest.mark.parametrize('width, height, cells', [(7 * 16, 5 * 16, (5, 7)), (16, 16, (1, 1))])
def test_an_input_of_any_size_has_cells(net, tmp_path, width, height, cells):
    bundle = Bundle.load(export(net, tmp_path / 'odd', 'odd', CARD, CLASSES, width, height, with_weights=False))
    assert bundle.cells == cells
    image = StreetDrive(seed=3, width=width, height=height).frame(5).image
    for exit_, expected, output in both(bundle, net, image):
        assert_same(exit_, expected, output)


@pytest.mark.parametrize('finer, cells', [((8, 12), {'rows': 4, 'columns': 6}), ((8, 6), None), ((9, 13), None),
                                          ((8, 13), None)])
def test_maps_that_are_no_multiples_of_each_other_have_no_cells(finer, cells):
    tensors = {name: torch.zeros(1, 2, *size) for name, size in (
        ('image', (64, 96)), ('unit1', finer), ('logits_exit1', finer), ('unit2', (4, 6)), ('logits_final', (4, 6)))}
    pieces = [Part('stage1', 'stage', None, ('image',), ('unit1',)),
              Part('exit1', 'exit', None, ('unit1',), ('logits_exit1',)),
              Part('stage2', 'stage', None, ('unit1',), ('unit2',)),
              Part('final', 'exit', None, ('unit2',), ('logits_final',))]
    found, axes = exporting._cells(pieces, tensors)
    assert found == cells and set(axes) == ({'stage2', 'final'} if cells else set())
    if cells:
        assert axes['stage2'] == {'unit1': {2: 'height2', 3: 'width2'}, 'unit2': {2: 'height1', 3: 'width1'}}
    assert exporting._cells(pieces[:2], tensors) == (None, {})    # nothing lies behind the first exits


def test_criteria_that_need_what_only_images_tell_are_not_offered_yet(bundle):
    assert set(bundle.document['criteria']) == {name for name, rule in CRITERIA.items()
                                                if rule.score and not rule.needs}
    assert 'pixels' not in bundle.document and not bundle.forwards_cells


@pytest.mark.parametrize('changes, what', [
    ({'classes': CLASSES[:3]}, '3 classes are named, the network has 4'),
    ({'width': 100}, '100x64: width and height must be multiples of 16')])
def test_what_does_not_fit_is_refused(tmp_path, net, changes, what):
    given = {'classes': CLASSES, 'width': WIDTH, 'height': HEIGHT, **changes}
    with pytest.raises(ValueError, match=what):
        export(net, tmp_path / 'out', 'small', CARD, **given)
    assert not (tmp_path / 'out').exists()


class Changed(torch.nn.Module):
    """A module whose outputs are changed."""

    def __init__(self, module, change):
        super().__init__()
        self.module, self.change = module, change

    def forward(self, *tensors):
        found = self.module(*tensors)
        return tuple(map(self.change, found)) if isinstance(found, tuple) else self.change(found)


@pytest.mark.parametrize('graph, change, what', [
    ('stage1', lambda tensor: tensor * 1.01, 'stage1.onnx: unit3 differs from torch by'),
    ('exit1', lambda tensor: tensor * float('nan'), 'exit1.onnx: logits_exit1 differs from torch by nan'),
    ('encode', lambda tensor: 15 - tensor, 'encode.onnx: 100.00% of the levels of low differ')])
def test_a_graph_that_differs_from_torch_is_an_error(tmp_path, net, monkeypatch, graph, change, what):
    real = torch.onnx.export

    def wrong(module, inputs, path, **options):
        real(Changed(module, change) if path.endswith(f'{graph}.onnx') else module, inputs, path, **options)
    monkeypatch.setattr(exporting.torch.onnx, 'export', wrong)
    with pytest.raises(RuntimeError, match=what):
        export(net, tmp_path, 'small', CARD, CLASSES, WIDTH, HEIGHT)
    assert not (tmp_path / 'bundle.json').exists()
