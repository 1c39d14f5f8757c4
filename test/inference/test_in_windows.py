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
"""Later stages on unsettled tiles only, and features of unsettled cells only: what comes out, and what it costs."""
import copy

import cv2
import numpy as np
import onnxruntime
import pytest
from tiny import CLASSES, HEIGHT, WIDTH, mixed_image, tiny_bundle

from ee_seg_ros.evaluation.pair import PairResult, run_pair
from ee_seg_ros.inference import graphs
from ee_seg_ros.inference.bundle import Bundle, BundleError
from ee_seg_ros.inference.engine import Engine
from ee_seg_ros.inference.features import pack, unpack
from ee_seg_ros.inference.outputs import softmax
from ee_seg_ros.inference.pixels import OnboardMap, keep_stopped, refine
from ee_seg_ros.inference.tiles import DENSE_ABOVE

AT_NO_EXIT = (np.inf,) * 4    # shares of stopped pixels that there cannot be: frames end where all of them stop
SIZE = WIDTH, HEIGHT
CLASS_LIMITS = np.array([0.5, 0.6, 0.7])


@pytest.fixture(scope='module')
def engine(tiled):
    return Engine(tiled, threads=1)


@pytest.fixture
def robot(engine, mixed):
    """The robot's side of a frame half of whose tiles are left behind exit1."""
    return engine.segment(mixed, 'class_threshold', AT_NO_EXIT)


def run(bundle, graph, *tensors):
    """A graph on arrays, with a session of our own."""
    session = onnxruntime.InferenceSession(bundle.graph_bytes(graph), providers=['CPUExecutionProvider'])
    output, = session.run(None, dict(zip(bundle.graphs[graph]['inputs'], tensors)))
    return output


def each_tile(bundle, graph, active, *maps):
    """What a graph gives for each active tile alone, put together; NaN elsewhere."""
    whole = None
    for row, column in zip(*np.nonzero(active)):
        place = (..., slice(3 * row, 3 * row + 3), slice(4 * column, 4 * column + 4))
        output = run(bundle, graph, *(tensor[place] for tensor in maps))
        if whole is None:
            whole = np.full((*output.shape[:2], 6, 8), np.nan, np.float32)
        whole[place] = output
    return whole


def stopped_by(logits, limits=CLASS_LIMITS):
    """Pixels that stop, the long way: whole tiles where at most a tenth is left."""
    found = softmax(logits)
    stopped = found.max(0) > limits[found.argmax(0)]
    for rows in (slice(0, 3), slice(3, 6)):
        for columns in (slice(0, 4), slice(4, 8)):
            if np.mean(~stopped[rows, columns]) <= 0.1:
                stopped[rows, columns] = True
    return stopped


def test_outputs_on_active_tiles_are_those_of_each_tile_alone(tiled, engine, mixed, robot):
    """The robot's side of a frame, the long way: nothing of a tile's neighbours is seen behind the first exit."""
    image = robot.tensors['image'].numpy()
    first = run(tiled, 'stage1', image)
    before = run(tiled, 'exit1', first)[0]
    np.testing.assert_allclose(robot.outputs[0].logits, before, rtol=1e-5, atol=1e-5)
    stopped = stopped_by(before)
    np.testing.assert_array_equal(robot.outputs[0].stopped, stopped)
    active = np.array([[True, True], [False, False]])
    assert not stopped[:3].all() and stopped[3:].all()
    second = each_tile(tiled, 'stage2', active, first)
    logits = each_tile(tiled, 'exit2', active, second, first)[0]
    np.testing.assert_array_equal(robot.active, active)
    now = robot.outputs[1].logits
    np.testing.assert_allclose(now[:, ~stopped], logits[:, ~stopped], rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(now[:, stopped], robot.outputs[0].logits[:, stopped])
    # A run on whole maps gives something else: the tiles' borders matter.
    whole = engine.segment(mixed, 'never').outputs[1].logits
    assert np.abs(whole - now)[:, ~stopped].max() > 0.1


def test_the_server_runs_on_tiles_that_came_only(tiled, engine, robot):
    onboard, features = engine.onboard_map(robot), engine.encode(robot)
    server = engine.finish(features, robot.placement, 'class_threshold', AT_NO_EXIT, onboard)
    filled = np.where(onboard.sent, features['code'],
                      tiled.class_means['code'][onboard.classes].transpose(2, 0, 1)[None])
    active = np.array([[True, False], [False, False]])
    assert np.array_equal(tiled.tiling.active(robot.stopped), active) and onboard.sent[:3, :4].all()    # whole tiles
    assert np.array_equal(server.active, active) and not onboard.sent[3:].any() and not onboard.sent[:, 4:].any()
    third = each_tile(tiled, 'stage3', active, run(tiled, 'decode', filled))
    logits = each_tile(tiled, 'exit3', active, third)[0]
    np.testing.assert_allclose(server.outputs[0].logits[:, onboard.sent], logits[:, onboard.sent], rtol=1e-4, atol=1e-4)
    assert (~onboard.sent).any() and (server.outputs[0].grid_classes == onboard.classes)[~onboard.sent].all()
    for output in server.outputs:
        assert (output.grid_probabilities.max(0)[~onboard.sent] > 0.9999).all()


@pytest.mark.parametrize('criterion', ['class_threshold', 'uniform'])
@pytest.mark.parametrize('seed', [0, 1, 2])
def test_stopped_pixels_keep_their_probabilities_and_stops_persist(tiled, criterion, seed):
    """Also where exits have temperatures of their own."""
    document = copy.deepcopy(tiled.document)
    for temperature, entry in zip((1.0, 2.0, 0.5, 1.5, 3.0), document['exits']):
        entry['temperature'] = temperature
    frame = run_pair(Engine(Bundle(tiled.path, document), threads=1), mixed_image(seed), criterion, AT_NO_EXIT)
    assert len(frame.outputs) >= 2
    for side in frame.sides:
        for before, now in zip(side.outputs, side.outputs[1:]):
            assert (before.stopped <= now.stopped).all()
            np.testing.assert_allclose(now.grid_probabilities[:, before.stopped],
                                       before.grid_probabilities[:, before.stopped], atol=1e-5)
            assert not np.allclose(now.grid_probabilities[:, ~before.stopped],
                                   before.grid_probabilities[:, ~before.stopped], atol=1e-2)


def test_where_most_tiles_are_active_whole_maps_run_and_what_stopped_is_kept(tiled, engine):
    image = mixed_image(0, ((8, 120), (30, 120)))
    robot = engine.segment(image, 'uniform', AT_NO_EXIT)
    first, second = robot.outputs
    assert tiled.tiling.active(first.stopped).all() and first.stopped.any() and robot.active is None
    whole = engine.segment(image, 'never')
    np.testing.assert_array_equal(second.logits, keep_stopped(first.logits, whole.outputs[1].logits, first.stopped))
    assert robot.macs == whole.macs


@pytest.mark.parametrize('side', ['onboard', 'offboard'])
def test_each_side_has_its_own_share_above_which_whole_maps_run(tiled, engine, mixed, monkeypatch, side):
    """A network may have been trained on tiles on one side of the split only."""
    monkeypatch.setitem(tiled.document['pixels'], 'dense_above', {'onboard': 0.0, 'offboard': 0.0, side: 1.0})
    robot, server = run_pair(engine, mixed, 'class_threshold', AT_NO_EXIT).sides
    whole, rest = run_pair(engine, mixed, 'never', AT_NO_EXIT, partial=False).sides
    assert [robot.macs < whole.macs, server.active is not None] == [side == 'onboard', side == 'offboard']
    assert [robot.macs_at[0], server.macs_at[0] < rest.macs_at[0]] == [whole.macs_at[0], side == 'offboard']


def test_three_of_four_tiles_are_not_most(tiled, engine, monkeypatch):
    """A boundary: at the share above which whole maps are run tiles still run."""
    image = mixed_image(1, ((8, 120), (30, 120)))
    sparse = engine.segment(image, 'uniform', AT_NO_EXIT)
    assert np.count_nonzero(sparse.active) == 3 and tiled.dense_above['onboard'] == DENSE_ABOVE == 0.75
    monkeypatch.setitem(tiled.document['pixels'], 'dense_above', 0.74)
    dense, whole = engine.segment(image, 'uniform', AT_NO_EXIT), engine.segment(image, 'never')
    first = dense.outputs[0]
    assert dense.active is None and dense.macs == whole.macs > sparse.macs
    np.testing.assert_array_equal(dense.outputs[1].logits,
                                  keep_stopped(first.logits, whole.outputs[1].logits, first.stopped))


def test_only_active_tiles_cost(tiled, engine, robot):
    cost = {name: graph['macs'] for name, graph in tiled.graphs.items()}
    first = cost['stage1'] + cost['exit1']
    second = first + 0.5 * (cost['stage2'] + cost['exit2'])
    assert robot.macs_at == [first, second]
    onboard, features = engine.onboard_map(robot), engine.encode(robot)
    assert robot.macs == second + cost['encode']
    server = engine.finish(features, robot.placement, 'class_threshold', AT_NO_EXIT, onboard, (1.0,) * CLASSES)
    expected, total = [], cost['decode']
    for stage, exit_ in (('stage3', 'exit3'), ('stage4', 'exit4'), ('stage5', 'final')):
        total += 0.25 * (cost[stage] + cost[exit_])
        expected.append(total)
    assert server.macs_at == expected and server.macs == total
    assert PairResult([robot, server]).macs_at == [first, second, *(robot.macs + macs for macs in expected)]


@pytest.mark.parametrize('limits, exit_name', [((0, 0, 0), 'exit1'), (None, 'exit2')])
def test_a_frame_all_of_whose_pixels_have_stopped_is_settled(engine, limits, exit_name):
    result = engine.segment(mixed_image(0, ((8, 120), (30, 120))), 'class_threshold', AT_NO_EXIT, limits)
    assert (result.exit_name, result.settled, result.score) == (exit_name, True, 1.0) and result.stopped.all()


def test_so_is_one_on_the_server(engine):
    frame = run_pair(engine, mixed_image(0, ((8, 120), (30, 120))), 'uniform', AT_NO_EXIT)
    assert not frame.sides[0].settled and frame.sides[1].settled
    assert frame.outputs[-1].exit.name == 'exit3' and frame.sides[1].stopped.all()


def test_a_share_of_stopped_pixels_settles(engine, mixed, robot):
    shares = [output.stopped_share for output in robot.outputs]
    assert 0 < shares[0] < shares[1] < 1 and robot.score == shares[1]
    assert engine.segment(mixed, 'class_threshold', (shares[0], 1, 1, 1)).exit_name == 'exit1'
    assert engine.segment(mixed, 'class_threshold', (shares[0] + 1e-6, 1, 1, 1)).exit_name == 'exit2'


def test_what_lies_outside_the_image_costs_nothing_and_is_not_sent(tiled, engine):
    """An image over the upper half of the network input: all of it unsure, and nothing of the rest."""
    result = engine.segment(np.full((HEIGHT // 2, WIDTH, 3), 128, np.uint8), 'uniform', AT_NO_EXIT)
    assert result.active.tolist() == [[True, True], [False, False]]
    assert result.output.stopped_share == 0 and result.output.stopped.mean() == 0.5
    assert engine.onboard_map(result).sent[:3].all() and not engine.onboard_map(result).sent[3:].any()
    whole = engine.segment(np.full((HEIGHT // 2, WIDTH, 3), 128, np.uint8), 'never')
    assert not engine.onboard_map(whole).sent[3:].any()


def test_whole_frames_leave_behind_the_cells_of_which_the_last_exit_is_sure(tiled, engine, mixed):
    robot = engine.segment(mixed, 'entropy', (0.0,) * 4)
    assert robot.stopped is None and robot.output.stopped_share is None
    onboard = engine.onboard_map(robot)
    # A few unsure pixels are sent, too, though later stages of the robot would not run for them.
    np.testing.assert_array_equal(onboard.sent, softmax(robot.output.logits).max(0) <= 0.95)
    assert 0 < onboard.sent.mean() < 1
    np.testing.assert_array_equal(onboard.classes, robot.output.grid_classes)
    np.testing.assert_array_equal(engine.kept(robot, onboard), ~onboard.sent)


def test_what_did_not_come_stays_as_the_robot_has_it_whatever_the_limits(engine, robot):
    onboard = engine.onboard_map(robot)
    server = engine.finish(engine.encode(robot), robot.placement, 'uniform', AT_NO_EXIT, onboard, (1.0,) * CLASSES)
    assert len(server.outputs) == 3 and not server.settled
    for output in server.outputs:
        np.testing.assert_array_equal(output.stopped, ~onboard.sent)


def test_the_encoder_sees_zeros_where_nothing_ran(tiled, engine, robot):
    first, nothing = robot.tensors['features1'].numpy(), np.zeros((1, 4, 6, 8), np.float32)
    second = np.nan_to_num(each_tile(tiled, 'stage2', robot.active, first))
    code = engine.encode(robot)['code'].astype(int)
    expected = run(tiled, 'encode', first, second)
    assert np.abs(code - expected).max() <= 1    # on the edge between two levels
    assert np.mean(code == expected) > 0.99
    assert np.mean(run(tiled, 'encode', first, nothing) == expected) < 0.9    # what ran makes a difference


@pytest.mark.parametrize('criterion', ['class_threshold', 'uniform', 'entropy', 'region', 'never'])
def test_over_the_wire_it_is_what_the_pair_does_in_one_process(tiled, engine, mixed, criterion):
    """Two engines with a part each, and the payload between them: the same logits, the same final mask, exactly."""
    thresholds = (0.0,) * 4 if criterion in ('entropy', 'region') else AT_NO_EXIT
    frame = run_pair(engine, mixed, criterion, thresholds)
    robot, server = Engine(tiled, threads=1, part='onboard'), Engine(tiled, threads=1, part='offboard')
    result = robot.segment(mixed, criterion, thresholds)
    onboard = robot.onboard_map(result)
    assert 0 < onboard.sent.mean() < 1
    received = unpack(tiled, pack(tiled, robot.encode(result), result.placement, SIZE, onboard))
    np.testing.assert_array_equal(received.onboard.sent, onboard.sent)
    finished = server.finish(received.tensors, received.placement, criterion, thresholds, received.onboard)
    assert [output.exit.name for output in result.outputs + finished.outputs] == [
        output.exit.name for output in frame.outputs]
    for one, other in zip(frame.outputs, result.outputs + finished.outputs):
        np.testing.assert_array_equal(one.logits, other.logits)
    kept = robot.kept(result, onboard)
    mask = refine(result.output.mask(*SIZE), finished.output.mask(*SIZE), kept, result.placement)
    np.testing.assert_array_equal(mask, frame.mask(*SIZE))


@pytest.mark.parametrize('criterion', ['class_threshold', 'never'])
@pytest.mark.parametrize('size', [SIZE, (100, 75)])
def test_the_final_mask_keeps_the_onboard_label_of_what_was_settled(engine, mixed, criterion, size):
    frame = run_pair(engine, cv2.resize(mixed, size), criterion, AT_NO_EXIT)
    kept = frame.sides[0].stopped if criterion == 'class_threshold' else ~frame.onboard.sent
    onboard, refined, final = (mask.astype(int) for mask in (
        frame.sides[0].output.mask(*size), frame.outputs[-1].mask(*size), frame.mask(*size)))
    width, height = size
    settled = kept[np.arange(height)[:, None] * HEIGHT // height // 8, np.arange(width) * WIDTH // width // 8]
    np.testing.assert_array_equal(final, np.where(settled, onboard, refined))
    assert (onboard != refined)[settled].any() and (onboard != refined)[~settled].any()    # both sides are seen
    early = frame.mask(*size, frame.outputs[0])    # a frame that had ended onboard
    np.testing.assert_array_equal(early, frame.outputs[0].mask(*size))


def test_all_cells_can_be_asked_for(engine, mixed):
    frame = run_pair(engine, mixed, 'never', AT_NO_EXIT, partial=False)
    assert frame.kept is None and frame.onboard.sent is None
    for output in frame.outputs:
        np.testing.assert_array_equal(output.logits, engine.run_exit(mixed, output.exit.name).output.logits)
    assert len(frame.payload(engine)) > len(run_pair(engine, mixed, 'never', AT_NO_EXIT).payload(engine)) > 0


def test_a_frame_without_a_cell_to_send_is_not_forwarded(tiled, mixed):
    document = copy.deepcopy(tiled.document)
    document['pixels']['send'] = [0.0] * CLASSES
    frame = run_pair(Engine(Bundle(tiled.path, document), threads=1), mixed, 'never', AT_NO_EXIT)
    assert len(frame.sides) == 1 and frame.payload(None) == b'' and frame.outputs[-1].exit.name == 'exit2'
    np.testing.assert_array_equal(frame.mask(*SIZE), frame.outputs[-1].mask(*SIZE))


def test_limits_of_ones_own_take_the_place_of_the_bundles(engine, mixed):
    assert engine.segment(mixed, 'class_threshold', AT_NO_EXIT, (1.0,) * CLASSES).output.stopped_share == 0
    same = engine.segment(mixed, 'class_threshold', AT_NO_EXIT, (0.9,) * CLASSES)
    uniform = engine.segment(mixed, 'uniform', AT_NO_EXIT)
    np.testing.assert_array_equal(same.output.logits, uniform.output.logits)


def test_a_bundle_without_limits_says_what_there_is(tiny, mixed):
    with pytest.raises(BundleError, match='has no class limits, which uniform needs: choose one of entropy.*--statist'):
        Engine(tiny, threads=1).segment(mixed, 'uniform', (1.0,) * 4)
    with pytest.raises(BundleError, match="no criterion 'class_threshold': choose one of entropy"):
        tiny.thresholds('class_threshold', 'fast')


def test_pixels_can_stop_without_tiles(tiny, mixed):
    """Limits are given, maps run whole: what has stopped is kept all the same."""
    engine, limits = Engine(tiny, threads=1), CLASS_LIMITS
    result, whole = engine.segment(mixed, 'uniform', AT_NO_EXIT, limits), engine.segment(mixed, 'never')
    first = result.outputs[0]
    assert 0 < first.stopped.mean() < 1 and result.active is None and result.macs == whole.macs
    np.testing.assert_array_equal(result.output.logits,
                                  keep_stopped(first.logits, whole.output.logits, first.stopped))
    assert engine.onboard_map(result).sent is None    # all cells go
    np.testing.assert_array_equal(engine.kept(result, engine.onboard_map(result)), result.stopped)


def test_without_a_split_tiles_run_to_the_end(tmp_path, mixed):
    bundle = Bundle.load(tiny_bundle(tmp_path / 'unsplit', None, tile=True))
    frame = run_pair(Engine(bundle, threads=1), mixed, 'class_threshold', AT_NO_EXIT)
    assert len(frame.sides) == 1 and frame.sides[0].active.mean() < 1 and len(frame.outputs) > 2
    assert frame.macs_at[-1] < sum(graph['macs'] for graph in bundle.graphs.values()) / 2
    np.testing.assert_array_equal(frame.mask(*SIZE), frame.outputs[-1].mask(*SIZE))


@pytest.mark.parametrize('part', ['onboard', 'offboard', 'all'])
def test_what_runs_on_tiles_is_loaded_when_it_is_asked_for_and_once(tiled, mixed, monkeypatch, part):
    loaded, real = [], graphs.onnxruntime.InferenceSession
    monkeypatch.setattr(graphs.onnxruntime, 'InferenceSession', lambda *given, **named: loaded.append(1) or real(
        *given, **named))
    engine = Engine(tiled, threads=1, part=part)
    able = {'onboard': 2, 'offboard': 6, 'all': 8}[part]    # stages and exits behind the first exit
    whole = {'onboard': 5, 'offboard': 7, 'all': 12}[part]
    assert len(loaded) == whole
    engine.prepare_tiles()
    assert len(loaded) == whole + able
    engine.prepare_tiles()
    if part == 'all':
        run_pair(engine, mixed, 'class_threshold', AT_NO_EXIT)
    assert len(loaded) == whole + able


def test_a_bundle_without_tiles_prepares_none(tiny):
    engine = Engine(tiny, threads=1)
    engine.prepare_tiles()
    assert tiny.tiling is None and not tiny.forwards_cells and not tiny.limits and not tiny.class_means
    result = engine.segment(mixed_image(), 'never')
    assert isinstance(engine.onboard_map(result), OnboardMap) and engine.onboard_map(result).sent is None
    assert engine.kept(result, engine.onboard_map(result)) is None
