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
"""The network on tiles, as it is trained: what is cut is joined again, and the engine computes the same on tiles."""
import numpy as np
import pytest

torch = pytest.importorskip('torch', reason='torch is not installed (make train-env)')
pytest.importorskip('ee_seg_ros.models', reason='torchvision is not installed (make train-env)')
pytest.importorskip('safetensors', reason='safetensors is not installed (make train-env)')

from ee_seg_ros.inference.bundle import Bundle  # noqa: E402
from ee_seg_ros.inference.engine import Engine  # noqa: E402
from ee_seg_ros.inference.frame import preprocess  # noqa: E402
from ee_seg_ros.inference.pixels import OnboardMap, resized  # noqa: E402
from ee_seg_ros.models import tiles  # noqa: E402
from ee_seg_ros.models.export import export  # noqa: E402
from ee_seg_ros.models.multi_exit import MultiExitNet  # noqa: E402
from ee_seg_ros.models.tiles import cut, join, partial_logits, tiled_logits  # noqa: E402

WIDTH, HEIGHT, TILE = 128, 96, (3, 4)    # 6x8 cells of 16 pixels
CLASSES = [{'name': f'class{index}', 'color': [50 * index] * 3} for index in range(4)]
SPEC = {
    'backbone': {'name': 'mobilenet_v2'}, 'classes': 4, 'skip': 6,
    'exits': [{'name': 'exit1', 'unit': 7, 'head': {'kind': 'fcn', 'reduction': 4}},
              {'name': 'exit2', 'unit': 10, 'head': {'kind': 'context', 'width': 16, 'rates': [1, 2], 'skip': True}},
              {'name': 'exit3', 'unit': 14, 'head': {'kind': 'deeplab', 'reduction': 8}}],
    'split': {'unit': 10, 'low': 4, 'high': 8, 'skips': [3, 6], 'restored': 12},
    'final': {'kind': 'decoder', 'width': 16}}


@pytest.fixture(autouse=True)
def _seeded(net):
    torch.manual_seed(1)


@pytest.fixture(scope='module')
def net():
    """Its batch norms have seen an image: features and logits are spread as after training."""
    torch.manual_seed(0)
    net = MultiExitNet(SPEC)
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        net(torch.rand(2, 3, HEIGHT, WIDTH) * 2 - 1)
    return net.eval()


@pytest.fixture(scope='module')
def engine(net, tmp_path_factory):
    folder = tmp_path_factory.mktemp('bundles') / 'small'
    bundle = Bundle.load(export(net, folder, 'small', {'data': 'none', 'licence': 'none'}, CLASSES, WIDTH, HEIGHT))
    assert bundle.document['tile'] == {'rows': 2, 'columns': 2, 'height': 3, 'width': 4}
    return Engine(bundle, threads=1)


@pytest.fixture(scope='module')
def image():
    return np.random.default_rng(3).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)


def test_cut_row_by_row():
    tensor = torch.arange(2 * 3 * 4 * 6).reshape(2, 3, 4, 6)
    pieces = cut(tensor, 2, 3)
    assert pieces.shape == (12, 3, 2, 2)
    for index, tile in enumerate(pieces):
        image, row, column = index // 6, index % 6 // 3, index % 3
        assert torch.equal(tile, tensor[image, :, 2 * row:2 * row + 2, 2 * column:2 * column + 2])


@pytest.mark.parametrize('shape, rows, columns', [((1, 2, 6, 8), 2, 2), ((3, 1, 4, 6), 4, 1), ((2, 5, 9, 3), 1, 1),
                                                  ((2, 2, 6, 6), 3, 6)])
def test_join_is_the_inverse_of_cut(shape, rows, columns):
    tensor = torch.rand(shape)
    assert torch.equal(join(cut(tensor, rows, columns), rows, columns), tensor)


def test_maps_that_cannot_be_cut_are_refused(net):
    with pytest.raises(ValueError, match='a map of 6x4 cannot be cut into 4x2 equal tiles'):
        cut(torch.zeros(1, 1, 4, 6), 2, 4)
    with pytest.raises(ValueError, match='a map of 8x6 cells has no whole number of tiles of 3x4'):
        tiled_logits(net, torch.zeros(1, 3, HEIGHT, WIDTH), (4, 3))


def test_the_engine_computes_on_tiles_what_training_sees(engine, net, image, monkeypatch):
    """All tiles of both sides run; largest differences as shares of the largest logit.

    Behind the split more is allowed: a feature on the edge between two levels may round either way.
    """
    bundle, no_exit = engine.bundle, (np.inf,) * 3
    monkeypatch.setattr(Bundle, 'dense_above', {'onboard': 1.0, 'offboard': 1.0})
    tensor, placement = preprocess(image, bundle)
    with torch.no_grad():
        expected, whole = tiled_logits(net, torch.from_numpy(tensor), TILE), net(torch.from_numpy(tensor))
    robot = engine.segment(image, 'uniform', no_exit, (1.0,) * 4)    # no pixel stops
    assert robot.active.all() and robot.active.size == 4
    everything = OnboardMap(engine.onboard_map(robot).classes, np.ones(bundle.tiling.cells, bool))
    means = {name: np.zeros((4, bundle.tensors[name]['shape'][1]), int).tolist() for name in bundle.feature_tensors}
    monkeypatch.setitem(bundle.document['codec'], 'class_means', means)
    server = engine.finish(engine.encode(robot), placement, 'never', onboard=everything)
    assert server.active.all()
    found = {output.exit.name: output.logits for output in robot.outputs[1:] + server.outputs}
    assert list(found) == list(expected) == ['exit2', 'exit3', 'final']
    for name, logits in expected.items():
        grid = found[name].shape[1:]    # no coarser than 8 pixels
        logits, allowed = resized(logits[0].numpy(), *grid), 1e-3 if name == 'exit2' else 2e-2
        assert np.abs(found[name] - logits).max() < allowed * np.abs(logits).max()
        difference = np.abs(resized(whole[name][0].numpy(), *grid) - logits)
        assert difference.max() > 0.1 * np.abs(logits).max()    # the tiles' borders matter


BEHIND = ['exit3', 'final']


@pytest.mark.parametrize('tile', [None, TILE])
def test_where_no_cell_is_settled_all_features_pass(net, tile):
    images = torch.rand(2, 3, HEIGHT, WIDTH) * 2 - 1
    with torch.no_grad():
        found, settled = partial_logits(net, images, BEHIND, 1.1, tile)
        expected = net(images, BEHIND) if tile is None else tiled_logits(net, images, tile, BEHIND)
    assert settled.shape == (2, 6, 8) and not settled.any() and list(found) == BEHIND
    for name, logits in expected.items():
        torch.testing.assert_close(found[name], logits)


def test_settled_cells_are_those_of_which_the_last_exit_before_the_split_is_sure(net):
    """A cell has 2x2 of that exit's pixels. The order of the exits in the spec says nothing."""
    images = torch.rand(2, 3, HEIGHT, WIDTH) * 2 - 1
    shuffled = MultiExitNet({**SPEC, 'exits': [SPEC['exits'][1], SPEC['exits'][2], SPEC['exits'][0]]})
    shuffled.load_state_dict(net.state_dict())
    with torch.no_grad():
        tops = net(images, ['exit2'])['exit2'].softmax(1).max(1).values.reshape(2, 6, 2, 8, 2).amin((2, 4))
        limit = float(tops.median()) + 1e-4
        _, settled = partial_logits(net, images, BEHIND, limit)
        found, again = partial_logits(shuffled.eval(), images, BEHIND, limit)
    assert torch.equal(settled, tops > limit) and 0.3 < settled.float().mean() < 0.7
    assert torch.equal(again, settled) and list(found) == BEHIND


def test_settled_cells_have_the_rounded_mean_of_their_class_by_hand():
    """Two classes in a batch of two; of a finer map the same cells count, with all their values."""
    settled = torch.tensor([[[True, False]], [[True, True]]])
    classes = torch.tensor([[[0, 1]], [[0, 1]]])
    level = torch.tensor([[[[1.0, 2.0]]], [[[4.0, 8.0]]]])    # means 2.5 and 5
    assert tiles._with_means(level, settled, classes).tolist() == [[[[2.0, 2.0]]], [[[2.0, 5.0]]]]
    finer = level.repeat_interleave(2, 2).repeat_interleave(2, 3)
    finer[0, 0, 0, 0] = 9.0    # class 0: (9 + 3 + 16) / 8 = 3.5
    filled = tiles._with_means(finer, settled, classes)
    assert filled[0, 0].tolist() == [[4.0, 4.0, 2.0, 2.0]] * 2 and filled[1, 0].tolist() == [[4.0, 4.0, 5.0, 5.0]] * 2


def test_features_of_settled_cells_do_not_matter(net, monkeypatch):
    """All cells are settled: whatever the encoder makes of one image's cells, only its means over a class are seen."""
    images = torch.rand(1, 3, HEIGHT, WIDTH) * 2 - 1
    with torch.no_grad():
        found, settled = partial_logits(net, images, BEHIND, -1.0)
        classes = net(images, ['exit2'])['exit2'].argmax(1)[:, ::2, ::2]
        encode, shuffle = net.bottleneck.encode, shuffled_by(classes)
        monkeypatch.setattr(net.bottleneck, 'encode', lambda *tensors: tuple(map(shuffle, encode(*tensors))))
        again, _ = partial_logits(net, images, BEHIND, -1.0)
        whole = net(images, BEHIND)
    assert settled.all()
    for name in BEHIND:
        torch.testing.assert_close(found[name], again[name])
        assert not torch.allclose(found[name], whole[name], atol=1e-2)


def shuffled_by(classes):
    """Levels whose cells change places within each class."""
    def shuffle(level):
        times, changed = level.shape[-1] // classes.shape[-1], level.clone()
        wide = classes.repeat_interleave(times, 1).repeat_interleave(times, 2)[0]
        for number in wide.unique():
            place = wide == number
            changed[0, :, place] = level[0, :, place].flip(1)
        assert not torch.equal(changed, level)
        return changed
    return shuffle


def test_exits_can_be_chosen_and_a_batch_is_cut_image_by_image(net):
    images = torch.rand(2, 3, HEIGHT, WIDTH) * 2 - 1
    with torch.no_grad():
        everything = tiled_logits(net, images, TILE)
        some = tiled_logits(net, images, TILE, ['exit3'])
        second = tiled_logits(net, images[1:], TILE, ['exit2', 'final'])
    assert list(some) == ['exit3'] and list(second) == ['exit2', 'final']
    torch.testing.assert_close(some['exit3'], everything['exit3'])
    for name, logits in second.items():
        torch.testing.assert_close(logits, everything[name][1:], rtol=1e-3, atol=1e-3)


def test_a_tile_sees_nothing_of_its_neighbours_but_what_the_first_stage_made(net):
    """Each tile of the first stage's features alone, through the second stage and the head behind it."""
    images = torch.rand(1, 3, HEIGHT, WIDTH) * 2 - 1
    first, second, head = net.parts[0], net.parts[2], net.parts[3]
    assert (first.kind, second.kind, head.name) == ('stage', 'stage', 'exit2')
    with torch.no_grad():
        found = cut(tiled_logits(net, images, TILE, ['exit2'])['exit2'], 2, 2)
        features = dict(zip(first.outputs, first.module(images)))
        for index in range(4):
            tile = {name: cut(tensor, 2, 2)[index:index + 1] for name, tensor in features.items()}
            tile.update(zip(second.outputs, second.module(*[tile[name] for name in second.inputs])))
            alone = head.module(*[tile[name] for name in head.inputs])
            torch.testing.assert_close(found[index:index + 1], alone, rtol=1e-3, atol=1e-3)
