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
"""What lies behind the split on part of a frame, as it is trained: by hand, and against what the engine computes."""
import numpy as np
import pytest

torch = pytest.importorskip('torch', reason='torch is not installed (make train-env)')
pytest.importorskip('ee_seg_ros.models', reason='torchvision is not installed (make train-env)')
pytest.importorskip('safetensors', reason='safetensors is not installed (make train-env)')

from ee_seg_ros.inference.bundle import Bundle  # noqa: E402
from ee_seg_ros.inference.engine import Engine  # noqa: E402
from ee_seg_ros.inference.frame import preprocess  # noqa: E402
from ee_seg_ros.inference.pixels import OnboardMap, resized  # noqa: E402
from ee_seg_ros.inference.windows import HALO, Window, whole  # noqa: E402
from ee_seg_ros.models.export import export  # noqa: E402
from ee_seg_ros.models.multi_exit import MultiExitNet  # noqa: E402
from ee_seg_ros.models.partial import random_window, settled_cells, tail_logits, with_means  # noqa: E402

WIDTH, HEIGHT, CELLS = 128, 96, (6, 8)    # cells of 16 pixels
BEHIND = ['exit3', 'final']
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
    assert bundle.cells == CELLS
    return Engine(bundle, threads=1)


@pytest.fixture(scope='module')
def image():
    return np.random.default_rng(3).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)


@pytest.mark.parametrize('shares', [(0.2, 0.2), (0.1, 0.9), (1.0, 1.0)])
def test_random_windows_have_about_that_share_and_lie_anywhere(shares):
    windows = [random_window((21, 28), shares) for _ in range(200)]
    for top, bottom, left, right in windows:
        assert 0 <= top < bottom <= 21 and 0 <= left < right <= 28
    areas = np.array([(bottom - top) * (right - left) / (21 * 28) for top, bottom, left, right in windows])
    assert shares[0] - 0.03 < areas.min() and areas.max() < shares[1] + 0.03
    if shares[0] < 1:    # low and wide ones, high and narrow ones, at each border
        heights = {bottom - top for top, bottom, _, _ in windows}
        assert min(heights) < 21 * shares[0] + 3 and max(heights) == 21
        assert {0, 21} <= {place for window in windows for place in window[:2]}
        assert {0, 28} <= {place for window in windows for place in window[2:]}
    else:
        assert set(windows) == {(0, 21, 0, 28)}


def test_a_window_of_a_tensor_is_that_of_an_array():
    array, window = np.arange(2 * 12 * 16).reshape(1, 2, 12, 16), Window(1, 4, 5, 8)
    found = window.of(torch.from_numpy(array), CELLS)
    np.testing.assert_array_equal(found, window.of(array, CELLS))
    found[:] = -1    # a view of it
    assert (array == -1).sum() == found.numel()


def test_exits_behind_the_split_from_what_is_restored(net):
    images = torch.rand(2, 3, HEIGHT, WIDTH) * 2 - 1
    with torch.no_grad():
        expected, tensors = net(images), net.features(images)
        restored = {name: tensors[name] for name in ('restored_skip', 'restored10')}
        for exits in (BEHIND, ['exit3'], ['final']):
            found = tail_logits(net, restored, exits)
            assert list(found) == exits and set(restored) == {'restored_skip', 'restored10'}
            for name, logits in found.items():
                torch.testing.assert_close(logits, expected[name])


def test_what_training_sees_in_a_window_is_what_the_engine_computes_there(engine, net, image, monkeypatch):
    """In cells that were not sent stand mean features. Largest differences as shares of the largest logit.

    A feature on the edge between two levels may round either way.
    """
    bundle, window = engine.bundle, Window(1, 4, 3, 7)
    tensor, placement = preprocess(image, bundle)
    robot = engine.segment(image, 'never')
    features, sent = engine.encode(robot), np.zeros(CELLS, bool)
    window.of(sent, CELLS)[:] = True
    classes = engine.onboard_map(robot).classes[::2, ::2]    # alike in all of a cell, as in training
    onboard = OnboardMap(classes.repeat(2, 0).repeat(2, 1), sent)
    means = {}
    for name, levels in features.items():
        at = classes if levels.shape[2:] == CELLS else onboard.classes
        means[name] = [levels[0][:, at == number].mean(1).round().astype(int).tolist() if (at == number).any() else
                       [0] * levels.shape[1] for number in range(4)]
    monkeypatch.setitem(bundle.document['codec'], 'class_means', means)
    server = engine.finish(features, placement, onboard=onboard)
    assert server.window == window and len({*classes[~sent]}) > 1

    outer = window.widened(HALO, whole(CELLS))
    decode = next(part for part in net.parts if part.kind == 'decode')
    with torch.no_grad():
        tensors = net.features(torch.from_numpy(tensor))
        given = [torch.from_numpy(each[None]) for each in (~sent, classes.astype(np.int64))]
        restored = decode.module(*[with_means(tensors[name], *given) for name in decode.inputs])
        found = tail_logits(net, {name: outer.of(each, CELLS) for name, each in zip(decode.outputs, restored)},
                            BEHIND)
        whole_frame = net(torch.from_numpy(tensor), BEHIND)
    inner = window.inside(outer)
    for output in server.outputs:
        # No coarser than 8 pixels; resizing mixes its outermost values with what lies outside.
        logits = inner.of(found[output.exit.name][0].numpy(), outer.size)
        own, other = (window.of(each, CELLS) for each in (
            output.logits, resized(whole_frame[output.exit.name][0].numpy(), *output.logits.shape[1:])))
        expected = resized(logits, *own.shape[1:])
        largest = np.abs(expected).max()
        assert np.abs(own - expected)[:, 1:-1, 1:-1].max() < 2e-2 * largest, output.exit.name
        assert np.abs(other - expected)[:, 1:-1, 1:-1].max() > 0.05 * largest    # what is left out makes a difference


def test_settled_cells_are_those_of_which_an_exit_is_sure(net):
    """A cell has 2x2 of that exit's pixels, and the class of the first of them."""
    images = torch.rand(2, 3, HEIGHT, WIDTH) * 2 - 1
    with torch.no_grad():
        logits = net(images, ['exit2'])['exit2']
    tops = logits.softmax(1).max(1).values.reshape(2, 6, 2, 8, 2).amin((2, 4))
    limit = float(tops.median()) + 1e-4
    settled, classes = settled_cells(logits, CELLS, limit)
    assert torch.equal(settled, tops > limit) and 0.3 < settled.float().mean() < 0.7
    assert torch.equal(classes, logits.argmax(1)[:, ::2, ::2]) and classes.dtype == torch.int64
    assert settled_cells(logits, CELLS, -1.0)[0].all() and not settled_cells(logits, CELLS, 1.1)[0].any()


def test_settled_cells_have_the_rounded_mean_of_their_class_by_hand():
    """Two classes in a batch of two; of a finer map the same cells count, with all their values."""
    settled = torch.tensor([[[True, False]], [[True, True]]])
    classes = torch.tensor([[[0, 1]], [[0, 1]]])
    level = torch.tensor([[[[1.0, 2.0]]], [[[4.0, 8.0]]]])    # means 2.5 and 5
    assert with_means(level, settled, classes).tolist() == [[[[2.0, 2.0]]], [[[2.0, 5.0]]]]
    finer = level.repeat_interleave(2, 2).repeat_interleave(2, 3)
    finer[0, 0, 0, 0] = 9.0    # class 0: (9 + 3 + 16) / 8 = 3.5
    filled = with_means(finer, settled, classes)
    assert filled[0, 0].tolist() == [[4.0, 4.0, 2.0, 2.0]] * 2 and filled[1, 0].tolist() == [[4.0, 4.0, 5.0, 5.0]] * 2
