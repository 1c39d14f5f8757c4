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
"""Later stages in a window of what is unsettled, and features of unsettled cells only: what comes out, and its cost."""
import copy

import cv2
import numpy as np
import onnxruntime
import pytest
from tiny import CLASSES, HEIGHT, PIXELS, WIDTH, mixed_image, tiny_bundle

from ee_seg_ros.evaluation.pair import PairResult, run_pair
from ee_seg_ros.inference import engine as engines
from ee_seg_ros.inference import graphs
from ee_seg_ros.inference.bundle import Bundle, BundleError
from ee_seg_ros.inference.engine import WHOLE_ABOVE, Engine
from ee_seg_ros.inference.features import pack, unpack
from ee_seg_ros.inference.outputs import softmax
from ee_seg_ros.inference.pixels import OnboardMap, keep_stopped, refine
from ee_seg_ros.inference.windows import Window, best_window, bounding_window, grow

AT_NO_EXIT = (np.inf,) * 4    # shares of stopped pixels that there cannot be: frames end where all of them stop
SIZE = WIDTH, HEIGHT
CELLS = (6, 8)    # one value each of all maps
CLASS_LIMITS = np.array([0.5, 0.6, 0.7])
WORTH = PIXELS['worth']['class_threshold']
BRIGHTER = mixed_image(1, ((8, 120), (30, 120)))    # all of it stops at exit2, by `class_threshold`


@pytest.fixture(scope='module')
def engine(windowed):
    return Engine(windowed, threads=1)


@pytest.fixture
def robot(engine, mixed):
    """The robot's side of a frame half of which is left behind exit1."""
    return engine.segment(mixed, 'class_threshold', AT_NO_EXIT)


def changed(bundle, change):
    """An engine of a bundle whose document is changed."""
    document = copy.deepcopy(bundle.document)
    change(document)
    return Engine(Bundle(bundle.path, document), threads=1)


def run(bundle, graph, *tensors):
    """A graph on arrays, with a session of our own."""
    session = onnxruntime.InferenceSession(bundle.graph_bytes(graph), providers=['CPUExecutionProvider'])
    output, = session.run(None, dict(zip(bundle.graphs[graph]['inputs'], tensors)))
    return output


def around(window):
    """A window with one cell around it."""
    return Window(max(0, window.top - 1), min(6, window.bottom + 1), max(0, window.left - 1), min(8, window.right + 1))


def cropped(bundle, graph, window, *maps):
    """What a graph gives for a window of whole maps, where it lies; NaN elsewhere."""
    place = (..., slice(window.top, window.bottom), slice(window.left, window.right))
    output = run(bundle, graph, *(tensor[place] for tensor in maps))
    whole = np.full((*output.shape[:2], *CELLS), np.nan, np.float32)
    whole[place] = output
    return whole


def inside(window):
    """bool (rows, columns): its cells."""
    cells = np.zeros(CELLS, bool)
    cells[window.top:window.bottom, window.left:window.right] = True
    return cells


def left_to_do(logits, worth, before, limits=CLASS_LIMITS):
    """(window, pixels that stop) behind an exit, the long way. before: pixels that had stopped."""
    found = softmax(logits)
    stopped = before | (found.max(0) > limits[found.argmax(0)])
    window = best_window(np.where(stopped, 0, 1 - found.max(0)) - worth)
    return window, stopped | ~inside(window)


def test_outputs_in_the_window_are_those_of_the_cropped_maps(windowed, engine, mixed, robot):
    """The robot's side of a frame, the long way: behind the first exit only the halo around the window is seen."""
    first = run(windowed, 'stage1', robot.tensors['image'])
    before = run(windowed, 'exit1', first)[0]
    np.testing.assert_allclose(robot.outputs[0].logits, before, rtol=1e-5, atol=1e-5)
    window, stopped = left_to_do(before, WORTH[0], np.zeros(CELLS, bool))
    np.testing.assert_array_equal(robot.outputs[0].stopped, stopped)
    assert window.size == (3, 8) and 0.2 < stopped[inside(window)].mean() < 0.8    # some within have stopped, too
    second = cropped(windowed, 'stage2', around(window), first)
    logits = cropped(windowed, 'exit2', around(window), second, first)[0]
    now = robot.outputs[1].logits
    np.testing.assert_allclose(now[:, ~stopped], logits[:, ~stopped], rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(now[:, stopped], robot.outputs[0].logits[:, stopped])
    # A run on whole maps gives something else: the border of what is seen matters, if little.
    whole = engine.segment(mixed, 'never').outputs[1].logits
    assert np.abs(whole - now)[:, ~stopped].max() > 0.01
    then, stopped = left_to_do(now, WORTH[1], stopped)
    assert robot.window == then and robot.outer == around(then)
    np.testing.assert_array_equal(robot.outputs[1].stopped, stopped)


def test_the_server_runs_in_the_window_of_the_cells_that_came(windowed, engine, robot):
    onboard, features = engine.onboard_map(robot), engine.encode(robot)
    server = engine.finish(features, robot.placement, 'never', AT_NO_EXIT, onboard)
    filled = np.where(onboard.sent, features['code'],
                      windowed.class_means['code'][onboard.classes].transpose(2, 0, 1)[None])
    window = bounding_window(onboard.sent)
    assert server.window == window and server.outer == around(window) and inside(window).sum() > onboard.sent.sum() > 3
    third = cropped(windowed, 'stage3', around(window), run(windowed, 'decode', filled))
    logits = cropped(windowed, 'exit3', around(window), third)[0]
    np.testing.assert_allclose(server.outputs[0].logits[:, onboard.sent], logits[:, onboard.sent], rtol=1e-4, atol=1e-4)
    fourth = cropped(windowed, 'stage4', around(window), third)
    logits = cropped(windowed, 'exit4', around(window), fourth)[0]
    np.testing.assert_allclose(server.outputs[1].logits[:, onboard.sent], logits[:, onboard.sent], rtol=1e-4, atol=1e-4)
    for output in server.outputs:
        np.testing.assert_array_equal(output.grid_classes[~onboard.sent], onboard.classes[~onboard.sent])
        assert (output.grid_probabilities.max(0)[~onboard.sent] > 0.9999).all()


@pytest.mark.parametrize('criterion', ['class_threshold', 'uniform'])
@pytest.mark.parametrize('seed', [0, 1, 2])
def test_stopped_pixels_keep_their_probabilities_and_stops_persist(windowed, criterion, seed):
    """Also where exits have temperatures of their own, and in windows that shrink."""
    def heat(document):
        for temperature, entry in zip((1.0, 2.0, 0.5, 1.5, 3.0), document['exits']):
            entry['temperature'] = temperature
    frame = run_pair(changed(windowed, heat), mixed_image(seed), criterion, AT_NO_EXIT)
    moved = []
    for side in frame.sides:
        for before, now in zip(side.outputs, side.outputs[1:]):
            assert (before.stopped <= now.stopped).all()
            np.testing.assert_allclose(now.grid_probabilities[:, before.stopped],
                                       before.grid_probabilities[:, before.stopped], atol=1e-5)
            moved.append(np.abs(now.grid_probabilities - before.grid_probabilities)[:, ~before.stopped].max())
    assert moved and moved[0] > 0.1    # the others do change


@pytest.mark.parametrize('seed', range(4))
def test_windows_only_shrink_and_hold_all_that_goes_on(windowed, monkeypatch, seed):
    """What each exit leaves lies in the next window, and that in the one before."""
    engine, windows = Engine(windowed, threads=1), []
    narrow = Engine._narrow
    monkeypatch.setattr(Engine, '_narrow', lambda *given: narrow(*given) or windows.append(given[1:]))
    frame = run_pair(engine, mixed_image(seed), 'class_threshold', AT_NO_EXIT)
    assert len(frame.sides) == 2
    for side in frame.sides:
        own = [window for result, window in windows if result is side]
        assert len(own) >= (2 if side is frame.sides[0] else 1)
        for before, now in zip(own, own[1:]):
            assert now.widened(0, before) == now
        behind = own if side is frame.sides[0] else own[1:]    # the server begins with one
        for window, output in zip(behind, side.outputs):
            assert (output.stopped | inside(window)).all() and not output.stopped.all()


def test_cells_of_classes_that_weigh_more_are_worth_more(windowed):
    mixed = mixed_image(2)
    engine = changed(windowed, lambda document: document['pixels'].update(weights=[4.0, 1.0, 0.0]))
    first = engine.segment(mixed, 'class_threshold', AT_NO_EXIT).outputs[0]
    found = softmax(first.logits)
    top = found.argmax(0)
    doubt = np.where(found.max(0) > CLASS_LIMITS[top], 0, (1 - found.max(0)) * np.array([4.0, 1.0, 0.0])[top])
    window = best_window(doubt - WORTH[0])
    assert window != left_to_do(first.logits, WORTH[0], np.zeros(CELLS, bool))[0]
    np.testing.assert_array_equal(first.stopped, (found.max(0) > CLASS_LIMITS[top]) | ~inside(window))


def test_an_averaged_exit_gives_the_mean_over_the_heads_of_its_side(windowed, engine, mixed):
    """On whole maps; what has stopped keeps what it has, and alone an exit gives its own output."""
    averaging = changed(windowed, lambda document: [entry.update(averaged=True) for entry in document['exits'][3:]])
    own, found = (run_pair(each, mixed, 'never', AT_NO_EXIT, partial=False).outputs for each in (engine, averaging))
    for place in range(3):
        np.testing.assert_array_equal(found[place].logits, own[place].logits)
    for place in (3, 4):
        mean = np.mean([output.logits for output in own[2:place + 1]], axis=0)
        np.testing.assert_allclose(found[place].logits, mean, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(averaging.run_exit(mixed, 'final').output.logits, own[4].logits)
    frame = run_pair(averaging, mixed, 'class_threshold', AT_NO_EXIT)
    before, last = frame.outputs[-2:]
    np.testing.assert_array_equal(last.logits[:, before.stopped], before.logits[:, before.stopped])


def test_exits_at_which_pixels_are_not_looked_at_do_not_run(windowed, mixed):
    """Nor do they count; what the others stop is as without them."""
    engine = changed(windowed, lambda document: document['pixels'].update(exits=['exit2', 'exit4']))
    frame = run_pair(engine, mixed, 'class_threshold', AT_NO_EXIT)
    assert [output.exit.name for output in frame.outputs] == ['exit2', 'exit4', 'final']
    graphs, second = windowed.graphs, frame.outputs[0]
    assert frame.sides[0].macs_at == [sum(graphs[name]['macs'] for name in ('stage1', 'stage2', 'exit2'))]
    window, stopped = left_to_do(second.logits, WORTH[1], np.zeros(CELLS, bool))
    np.testing.assert_array_equal(second.stopped, stopped)
    robot = engine.segment(mixed, 'class_threshold', AT_NO_EXIT)
    assert robot.window == window and len(robot.outputs) == 1
    assert [output.exit.name for output in run_pair(engine, mixed, 'entropy', (-np.inf,) * 4).outputs] == [
        'exit1', 'exit2', 'exit3', 'exit4', 'final']


def test_what_an_exit_stopped_is_not_changed_by_a_later_one(engine, mixed):
    """Maps are not shared between outputs: each holds what had stopped then."""
    frame = run_pair(engine, mixed, 'class_threshold', AT_NO_EXIT)
    alone = engine.segment(mixed, 'class_threshold', (0.0,) * 4)    # ends at the first exit
    assert len(alone.outputs) == 1
    np.testing.assert_array_equal(frame.outputs[0].stopped, alone.outputs[0].stopped)
    assert (frame.outputs[0].stopped != frame.outputs[1].stopped).any()
    assert frame.kept.mean() < 1 and not np.shares_memory(frame.kept, frame.outputs[1].stopped)


def test_where_most_is_unsettled_whole_maps_run_and_what_stopped_is_kept(engine):
    robot = engine.segment(mixed_image(2), 'uniform', AT_NO_EXIT)
    first, second = robot.outputs
    assert 0.3 < first.stopped.mean() < 0.5 and robot.window is None
    whole = engine.segment(mixed_image(2), 'never')
    np.testing.assert_array_equal(second.logits, keep_stopped(first.logits, whole.outputs[1].logits, first.stopped))
    assert robot.macs == whole.macs


@pytest.mark.parametrize('above, dense', [(32 / 48, False), (31 / 48, True)])
def test_at_the_share_above_which_whole_maps_run_a_window_still_runs(engine, mixed, monkeypatch, above, dense):
    """A boundary: the window with its halo has 32 of 48 cells."""
    assert 32 / 48 < WHOLE_ABOVE < 1
    monkeypatch.setattr(engines, 'WHOLE_ABOVE', above)
    robot, whole = engine.segment(mixed, 'class_threshold', AT_NO_EXIT), engine.segment(mixed, 'never')
    assert (robot.macs == whole.macs) == dense
    if dense:    # what is not worth it goes on, too, for it costs nothing
        first = robot.outputs[0]
        found = softmax(first.logits)
        np.testing.assert_array_equal(first.stopped, found.max(0) > CLASS_LIMITS[found.argmax(0)])
        np.testing.assert_array_equal(robot.outputs[1].logits,
                                      keep_stopped(first.logits, whole.outputs[1].logits, first.stopped))


def test_each_side_has_its_own_worth(windowed, engine, mixed, robot):
    """What comes behind the last exit onboard is the server's; nothing there is worth more than all doubt."""
    def cost(onboard, offboard):
        one = changed(windowed, lambda document: document['pixels']['worth'].update(
            class_threshold=[onboard, offboard])).segment(mixed, 'class_threshold', AT_NO_EXIT)
        return one.exit_name, one.settled, one.macs
    assert cost(*WORTH) == ('exit2', False, robot.macs)
    assert cost(WORTH[0], 1.0) == ('exit2', True, robot.macs)
    assert cost(1.0, 0.0) == ('exit1', True, robot.macs_at[0])
    name, settled, macs = cost(0.3, 0.0)
    assert (name, settled) == ('exit2', False) and macs < robot.macs


def test_what_runs_costs_its_share_of_the_maps(windowed, engine, robot):
    cost = {name: graph['macs'] for name, graph in windowed.graphs.items()}
    first = cost['stage1'] + cost['exit1']
    second = first + 32 / 48 * (cost['stage2'] + cost['exit2'])    # three rows of eight, and one around
    assert robot.macs_at == pytest.approx([first, second])
    onboard, features = engine.onboard_map(robot), engine.encode(robot)
    assert robot.macs == pytest.approx(second + cost['encode'])
    server = engine.finish(features, robot.placement, 'never', AT_NO_EXIT, onboard)
    share, expected, total = around(bounding_window(onboard.sent)).area / 48, [], cost['decode']
    for stage, exit_ in (('stage3', 'exit3'), ('stage4', 'exit4'), ('stage5', 'final')):
        total += share * (cost[stage] + cost[exit_])
        expected.append(total)
    assert share < 0.5 and server.macs_at == pytest.approx(expected) and server.macs == pytest.approx(total)
    assert PairResult([robot, server]).macs_at == pytest.approx(
        [first, second, *(robot.macs + macs for macs in expected)])


@pytest.mark.parametrize('limits, exit_name', [((0, 0, 0), 'exit1'), (None, 'exit2')])
def test_a_frame_all_of_whose_pixels_have_stopped_is_settled(engine, limits, exit_name):
    result = engine.segment(BRIGHTER, 'class_threshold', AT_NO_EXIT, limits)
    assert (result.exit_name, result.settled, result.score) == (exit_name, True, 1.0) and result.stopped.all()


def test_so_is_one_on_the_server(engine):
    frame = run_pair(engine, mixed_image(0), 'class_threshold', AT_NO_EXIT)
    assert not frame.sides[0].settled and frame.sides[1].settled
    assert frame.outputs[-1].exit.name == 'exit3' and frame.sides[1].stopped.all()


def test_a_share_of_stopped_pixels_settles(engine, mixed, robot):
    shares = [output.stopped_share for output in robot.outputs]
    assert 0 < shares[0] < shares[1] < 1 and robot.score == shares[1]
    assert engine.segment(mixed, 'class_threshold', (shares[0], 1, 1, 1)).exit_name == 'exit1'
    assert engine.segment(mixed, 'class_threshold', (shares[0] + 1e-6, 1, 1, 1)).exit_name == 'exit2'


def test_what_lies_outside_the_image_costs_nothing_and_is_not_sent(engine):
    """An image over the upper half of the network input: all of it unsure, and nothing of the rest."""
    result = engine.segment(np.full((HEIGHT // 2, WIDTH, 3), 128, np.uint8), 'uniform', AT_NO_EXIT)
    assert result.window == Window(0, 3, 0, 8)
    assert result.output.stopped_share == 0 and result.output.stopped.mean() == 0.5
    assert engine.onboard_map(result).sent[:3].all() and not engine.onboard_map(result).sent[3:].any()
    whole = engine.segment(np.full((HEIGHT // 2, WIDTH, 3), 128, np.uint8), 'never')
    assert not engine.onboard_map(whole).sent[3:].any()


def test_cells_that_come_from_outside_the_image_have_nothing_to_refine(engine):
    """As from a robot that does otherwise; there is no pixel to look at in their window."""
    result = engine.segment(np.full((HEIGHT // 2, WIDTH, 3), 128, np.uint8), 'never')
    sent = np.zeros(CELLS, bool)
    sent[4:] = True
    onboard = OnboardMap(engine.onboard_map(result).classes, sent)
    server = engine.finish(engine.encode(result), result.placement, 'class_threshold', AT_NO_EXIT, onboard)
    assert server.settled and server.exit_name == 'exit3' and server.output.stopped_share == 1


@pytest.mark.parametrize('seed', range(3))
def test_whole_frames_leave_behind_the_cells_of_which_the_last_exit_is_sure(engine, seed):
    robot = engine.segment(mixed_image(seed), 'entropy', (0.0,) * 4)
    assert robot.stopped is None and robot.output.stopped_share is None
    onboard = engine.onboard_map(robot)
    np.testing.assert_array_equal(onboard.sent, softmax(robot.output.logits).max(0) <= 0.95)
    assert 0 < onboard.sent.mean() < 1
    np.testing.assert_array_equal(onboard.classes, robot.output.grid_classes)
    np.testing.assert_array_equal(engine.kept(robot, onboard), ~onboard.sent)


@pytest.mark.parametrize('margin, worth', [(1, 0.0), (0, 0.2), (1, 0.1)])
def test_cells_near_unsure_ones_are_sent_and_those_outside_the_window_that_is_worth_it_are_not(
        windowed, mixed, margin, worth):
    engine = changed(windowed, lambda document: document['pixels'].update(send_margin=margin, send_worth=worth))
    robot = engine.segment(mixed, 'never')
    top = softmax(robot.output.logits).max(0)
    near = cv2.dilate((top <= 0.95).astype(np.uint8), np.ones((2 * margin + 1,) * 2, np.uint8)) > 0
    window = best_window(np.where(top <= 0.95, 1 - top, 0) - worth)
    sent = engine.onboard_map(robot).sent
    np.testing.assert_array_equal(sent, near & inside(window))
    assert (near & ~inside(window)).any() == (worth > 0) and (sent & (top > 0.95)).any() == (margin > 0)


def test_nothing_is_sent_where_nothing_is_worth_it(windowed, mixed):
    engine = changed(windowed, lambda document: document['pixels'].update(send_worth=0.9))
    assert not engine.onboard_map(engine.segment(mixed, 'never')).sent.any()
    assert len(run_pair(engine, mixed, 'never', AT_NO_EXIT).sides) == 1


def test_what_has_stopped_is_not_sent_though_it_is_less_sure(engine, robot):
    onboard = engine.onboard_map(robot)
    assert (softmax(robot.output.logits).max(0) <= 0.95)[robot.stopped].any()
    assert not (onboard.sent & robot.stopped).any()
    np.testing.assert_array_equal(engine.kept(robot, onboard), robot.stopped | ~onboard.sent)


def test_what_did_not_come_stays_as_the_robot_has_it_whatever_the_limits(engine, robot):
    onboard = engine.onboard_map(robot)
    server = engine.finish(engine.encode(robot), robot.placement, 'uniform', AT_NO_EXIT, onboard, (1.0,) * CLASSES)
    assert len(server.outputs) >= 2 and not server.outputs[0].stopped.all()
    for output in server.outputs:
        assert output.stopped[~onboard.sent].all()
        np.testing.assert_array_equal(output.grid_classes[~onboard.sent], onboard.classes[~onboard.sent])


def test_the_encoder_sees_zeros_where_nothing_ran(windowed, engine, robot):
    first, nothing = robot.tensors['features1'], np.zeros((1, 4, *CELLS), np.float32)
    window, _ = left_to_do(robot.outputs[0].logits, WORTH[0], np.zeros(CELLS, bool))
    second = np.nan_to_num(cropped(windowed, 'stage2', around(window), first))
    code = engine.encode(robot)['code'].astype(int)
    expected = run(windowed, 'encode', first, second)
    assert np.abs(code - expected).max() <= 1    # on the edge between two levels
    assert np.mean(code == expected) > 0.99
    assert np.mean(run(windowed, 'encode', first, nothing) == expected) < 0.9    # what ran makes a difference


@pytest.mark.parametrize('criterion', ['class_threshold', 'uniform', 'entropy', 'region', 'never'])
def test_over_the_wire_it_is_what_the_pair_does_in_one_process(windowed, engine, mixed, criterion):
    """Two engines with a part each, and the payload between them: the same logits, the same final mask, exactly."""
    thresholds = (0.0,) * 4 if criterion in ('entropy', 'region') else AT_NO_EXIT
    frame = run_pair(engine, mixed, criterion, thresholds)
    robot, server = Engine(windowed, threads=1, part='onboard'), Engine(windowed, threads=1, part='offboard')
    result = robot.segment(mixed, criterion, thresholds)
    onboard = robot.onboard_map(result)
    assert 0 < onboard.sent.mean() < 1
    received = unpack(windowed, pack(windowed, robot.encode(result), result.placement, SIZE, onboard))
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
    kept = ~frame.onboard.sent | (frame.sides[0].stopped if criterion == 'class_threshold' else False)
    onboard, refined, final = (mask.astype(int) for mask in (
        frame.sides[0].output.mask(*size), frame.outputs[-1].mask(*size), frame.mask(*size)))
    width, height = size
    settled = kept[np.arange(height)[:, None] * HEIGHT // height // 8, np.arange(width) * WIDTH // width // 8]
    np.testing.assert_array_equal(final, np.where(settled, onboard, refined))
    assert (onboard != refined)[settled].any() and (onboard != refined)[~settled].any()    # both sides are seen
    early = frame.mask(*size, frame.outputs[0])    # a frame that had ended onboard
    np.testing.assert_array_equal(early, frame.outputs[0].mask(*size))


def test_cells_may_be_coarser_than_the_grid(windowed, mixed):
    """With cells of 16 pixels each stands for four values of the grid, and is judged by the first of them."""
    engine = changed(windowed, lambda document: document.update(cells={'rows': 3, 'columns': 4}))
    frame = run_pair(engine, mixed, 'class_threshold', AT_NO_EXIT)
    robot, server = frame.sides
    found = softmax(robot.outputs[0].logits)[:, ::2, ::2]
    stopped = found.max(0) > CLASS_LIMITS[found.argmax(0)]
    window = best_window(np.where(stopped, 0, 1 - found.max(0)) - WORTH[0])
    window.fill_around(stopped, True)
    np.testing.assert_array_equal(robot.outputs[0].stopped, stopped)
    assert robot.outputs[0].stopped_share == stopped.mean() and 0 < stopped.mean() < 1
    np.testing.assert_array_equal(frame.kept, grow(robot.stopped | ~frame.onboard.sent, *CELLS))
    assert robot.stopped.any() and not (frame.onboard.sent & robot.stopped).any()
    fine = grow(~frame.onboard.sent, *CELLS)
    for output in server.outputs:
        assert output.stopped.shape == (3, 4) and output.stopped[~frame.onboard.sent].all()
        np.testing.assert_array_equal(output.grid_classes[fine], frame.onboard.classes[fine])


def test_all_cells_can_be_asked_for(engine, mixed):
    frame = run_pair(engine, mixed, 'never', AT_NO_EXIT, partial=False)
    assert frame.kept is None and frame.onboard.sent is None
    for output in frame.outputs:
        np.testing.assert_array_equal(output.logits, engine.run_exit(mixed, output.exit.name).output.logits)
    assert len(frame.payload(engine)) > len(run_pair(engine, mixed, 'never', AT_NO_EXIT).payload(engine)) > 0


def test_a_frame_without_a_cell_to_send_is_not_forwarded(windowed, mixed):
    engine = changed(windowed, lambda document: document['pixels'].update(send=[0.0] * CLASSES))
    frame = run_pair(engine, mixed, 'never', AT_NO_EXIT)
    assert len(frame.sides) == 1 and frame.payload(None) == b'' and frame.outputs[-1].exit.name == 'exit2'
    np.testing.assert_array_equal(frame.mask(*SIZE), frame.outputs[-1].mask(*SIZE))


def test_limits_of_ones_own_take_the_place_of_the_bundles(engine, mixed):
    assert engine.segment(mixed, 'uniform', AT_NO_EXIT, (1.0,) * CLASSES).output.stopped_share == 0
    other = engine.segment(mixed, 'uniform', AT_NO_EXIT, (0.9,) * CLASSES)
    uniform = engine.segment(mixed, 'uniform', AT_NO_EXIT)
    np.testing.assert_array_equal(other.output.logits, uniform.output.logits)


def test_a_bundle_without_limits_says_what_there_is(tiny, mixed):
    with pytest.raises(BundleError, match='has no class limits, which uniform needs: choose one of entropy.*--statist'):
        Engine(tiny, threads=1).segment(mixed, 'uniform', (1.0,) * 4)
    with pytest.raises(BundleError, match="no criterion 'class_threshold': choose one of entropy"):
        tiny.thresholds('class_threshold', 'fast')


def test_pixels_can_stop_without_cells(tiny, mixed):
    """Limits are given, maps run whole: what has stopped is kept all the same."""
    engine, limits = Engine(tiny, threads=1), CLASS_LIMITS
    result, whole = engine.segment(mixed, 'uniform', AT_NO_EXIT, limits), engine.segment(mixed, 'never')
    first = result.outputs[0]
    assert 0 < first.stopped.mean() < 1 and result.window is None and result.macs == whole.macs
    np.testing.assert_array_equal(result.output.logits,
                                  keep_stopped(first.logits, whole.output.logits, first.stopped))
    assert engine.onboard_map(result).sent is None    # all cells go
    np.testing.assert_array_equal(engine.kept(result, engine.onboard_map(result)), result.stopped)


def test_without_a_split_windows_run_to_the_end(tmp_path, mixed):
    bundle = Bundle.load(tiny_bundle(tmp_path / 'unsplit', None, cells=True))
    frame = run_pair(Engine(bundle, threads=1), mixed, 'uniform', AT_NO_EXIT)
    assert len(frame.sides) == 1 and frame.sides[0].window.area < 24 and len(frame.outputs) > 2
    assert frame.macs_at[-1] < sum(graph['macs'] for graph in bundle.graphs.values()) / 2
    np.testing.assert_array_equal(frame.mask(*SIZE), frame.outputs[-1].mask(*SIZE))


@pytest.mark.parametrize('part, count', [('onboard', 5), ('offboard', 7), ('all', 12)])
def test_a_graph_is_loaded_once_for_whole_maps_and_windows(windowed, mixed, monkeypatch, part, count):
    loaded, real = [], graphs.onnxruntime.InferenceSession
    monkeypatch.setattr(graphs.onnxruntime, 'InferenceSession', lambda *given, **named: loaded.append(1) or real(
        *given, **named))
    engine = Engine(windowed, threads=1, part=part)
    if part == 'all':
        run_pair(engine, mixed, 'class_threshold', AT_NO_EXIT)
    assert len(loaded) == count


def test_a_bundle_without_cells_runs_whole(tiny):
    engine = Engine(tiny, threads=1)
    assert tiny.cells is None and not tiny.forwards_cells and not tiny.limits and not tiny.class_means
    result = engine.segment(mixed_image(), 'never')
    assert isinstance(engine.onboard_map(result), OnboardMap) and engine.onboard_map(result).sent is None
    assert engine.kept(result, engine.onboard_map(result)) is None
