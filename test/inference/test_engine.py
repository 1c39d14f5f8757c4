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
"""The engine: where it stops, that a split run equals an unsplit one, and what masks look like."""
import math

import cv2
import numpy as np
import pytest

from ee_seg_ros.data.scenes import StreetDrive
from ee_seg_ros.evaluation.metrics import confusion, mean_iou
from ee_seg_ros.inference import graphs
from ee_seg_ros.inference.bundle import BundleError
from ee_seg_ros.inference.criteria import CRITERIA
from ee_seg_ros.inference.engine import Engine
from ee_seg_ros.inference.features import pack, unpack
from ee_seg_ros.inference.frame import fit, preprocess
from ee_seg_ros.inference.graphs import LIGHT_MACS
from ee_seg_ros.inference.outputs import GRID
from ee_seg_ros.inference.pixels import OnboardMap


def test_split_run_over_the_wire_equals_the_run_in_one_process(bundle, engine, features, result):
    # Two engines with a part each, and the payload between them, compute what one engine computes: exactly.
    robot, server = Engine(bundle, part='onboard'), Engine(bundle, part='offboard')
    onboard = OnboardMap(robot.onboard_map(result).classes)
    received = unpack(bundle, pack(bundle, robot.encode(result), result.placement, (480, 360), onboard))
    np.testing.assert_array_equal(
        server.finish(received.tensors, received.placement, onboard=received.onboard).output.logits,
        engine.finish(features, result.placement).output.logits)


def test_stops_at_the_first_exit_that_settles(engine, image):
    exits = [exit_.name for exit_ in engine.bundle.onboard_exits]
    count = len(engine.bundle.judged_exits)
    assert engine.segment(image, 'always').exit_name == exits[0]
    assert engine.segment(image, 'entropy', (2.0,) * count).exit_name == exits[0]
    last = engine.segment(image, 'entropy', only(engine.bundle, exits[-1], 2.0))
    assert last.exit_name == exits[-1] and last.settled
    unsettled = engine.segment(image, 'entropy', (0.0,) * count)
    assert unsettled.exit_name == exits[-1] and not unsettled.settled


def test_stopping_early_costs_less_and_gives_the_same_mask(engine, image, result):
    early = engine.segment(image, 'always')
    assert early.macs < result.macs
    np.testing.assert_array_equal(early.output.mask(480, 360), result.outputs[0].mask(480, 360))


def only(bundle, name, value):
    """Thresholds that are 0 but at one exit."""
    return [value * (exit_.name == name) for exit_ in bundle.judged_exits]


def run_both_sides(bundle, image, criterion, thresholds):
    """The result of the last side that ran, robot and server with an engine each."""
    robot, server = Engine(bundle, part='onboard'), Engine(bundle, part='offboard')
    result = robot.segment(image, criterion, thresholds)
    if result.settled:
        return result
    return server.finish(robot.encode(result), result.placement, criterion, thresholds, robot.onboard_map(result))


@pytest.mark.parametrize('name', ['exit1', 'exit2', 'exit3', 'exit4', 'final'])
def test_the_cascade_goes_on_behind_the_split(tiny, noise, name):
    result = run_both_sides(tiny, noise, 'entropy', only(tiny, name, 2.0))
    assert result.exit_name == name and result.settled == (name != 'final')
    if name == 'final':    # which is not judged
        assert result.score is None and result.threshold is None
    else:
        assert 0 < result.score < result.threshold == 2.0


@pytest.mark.parametrize('criterion', ['region', 'region_change'])
def test_consecutive_exits_are_compared_across_the_split(tiny, noise, criterion):
    thresholds = [0.0, 0.0, 99.0, 99.0]
    result = run_both_sides(tiny, noise, criterion, thresholds)
    assert result.exit_name == 'exit3' and result.settled
    before, now = (Engine(tiny).run_exit(noise, name).output for name in ('exit2', 'exit3'))
    assert result.score == CRITERIA[criterion].score([before, now]) > 0
    assert run_both_sides(tiny, noise, 'always', thresholds).exit_name == 'exit1'


def test_without_the_robots_map_the_first_exit_of_the_server_has_nothing_to_compare_with(tiny, noise):
    engine = Engine(tiny)
    robot = engine.segment(noise, 'never')
    server = engine.finish(engine.encode(robot), robot.placement, 'region', [0.0, 0.0, 99.0, 99.0])
    assert server.exit_name == 'exit4' and server.settled


def test_the_server_runs_to_the_end_unless_told_otherwise(tiny, noise):
    engine = Engine(tiny)
    result = engine.segment(noise, 'never')
    rest = engine.finish(engine.encode(result), result.placement)
    assert [output.exit.name for output in result.outputs + rest.outputs] == [exit_.name for exit_ in tiny.exits]
    assert result.macs + rest.macs == sum(graph['macs'] for graph in tiny.graphs.values())


def test_light_graphs_run_on_one_thread_where_threads_cannot_wait_for_each_other_briefly(bundle, monkeypatch):
    def options_of():
        sessions = Engine(bundle, threads=3)._graphs._sessions
        return {name: session.get_session_options() for name, session in sessions.items()}

    def threads_of(options):
        return {name: each.intra_op_num_threads for name, each in options.items()}
    monkeypatch.setattr(graphs, 'spins_briefly', lambda version: True)
    options = options_of()
    assert set(threads_of(options).values()) == {3}
    spinning = [[each.get_session_config_entry(f'session.intra_op.{key}') for key in (
        'allow_spinning', 'spin_duration_us')] for each in options.values()]
    assert spinning == [['1', '20']] * len(options)
    monkeypatch.setattr(graphs, 'spins_briefly', lambda version: False)
    options = options_of()
    threads = threads_of(options)
    assert threads['stage1'] == threads['final'] == 3 and threads['exit1'] == threads['decode'] == 1
    assert threads == {name: 1 if bundle.graphs[name]['macs'] < LIGHT_MACS else 3 for name in threads}
    assert {each.get_session_config_entry('session.intra_op.allow_spinning') for each in options.values()} == {'0'}


@pytest.mark.parametrize('version, spins', [('1.26.0', False), ('1.27.0', True), ('1.32.1', True), ('2.0.0', True),
                                            ('1.17.3', False), ('1.28.0.dev20260801', True)])
def test_onnxruntime_spins_briefly_since_some_version(version, spins):
    assert graphs.spins_briefly(version) == spins


@pytest.mark.parametrize('which', ['tiny', 'unsplit', 'bundle'])
def test_an_exit_alone_puts_out_the_same_and_runs_nothing_else(which, noise, image, request):
    bundle = request.getfixturevalue(which)
    picture, engine = image if which == 'bundle' else noise, Engine(bundle)
    result = engine.segment(picture, 'never')
    outputs = result.outputs
    if bundle.split is not None:
        outputs = outputs + engine.finish(engine.encode(result), result.placement).outputs
    assert len(outputs) == len(bundle.exits)
    for exit_, expected in zip(bundle.exits, outputs):
        alone = engine.run_exit(picture, exit_.name)
        assert alone.exit_name == exit_.name and len(alone.outputs) == 1 and not alone.settled
        if not exit_.averaged:
            np.testing.assert_array_equal(alone.output.logits, expected.logits)
        assert alone.macs == sum(bundle.graphs[graph]['macs'] for graph in bundle.path_to(exit_.name))


def test_without_a_split_it_all_runs_onboard(unsplit, single, noise):
    engine = Engine(unsplit, part='onboard')
    assert engine.segment(noise, 'entropy', only(unsplit, 'exit4', 2.0)).exit_name == 'exit4'
    last = engine.segment(noise, 'entropy', only(unsplit, 'none', 2.0))
    assert last.exit_name == 'final' and not last.settled and last.score is None
    assert engine.segment(noise, 'region', [99.0] * 4).exit_name == 'exit2'
    with pytest.raises(BundleError, match='has no split: all of it runs onboard'):
        Engine(unsplit, part='offboard')
    alone = Engine(single).segment(noise, 'entropy', ())
    assert alone.exit_name == 'final' and len(alone.outputs) == 1


@pytest.mark.parametrize('criterion, thresholds', [('entropy', (0.5,) * 3), ('never', (0.5,) * 5), ('region', None)])
def test_thresholds_that_do_not_fit_are_explained(tiny, noise, criterion, thresholds):
    with pytest.raises(ValueError, match='expected 4, one for each of exit1, exit2, exit3, exit4'):
        Engine(tiny).segment(noise, criterion, thresholds)


def test_logits_outlive_the_result_they_came_from(engine, image):
    logits = engine.segment(image, 'always').output.logits
    before = logits.copy()
    for _ in range(3):
        engine.segment(np.zeros_like(image), 'never')
    np.testing.assert_array_equal(logits, before)


def test_unknown_provider_falls_back_with_one_warning(bundle):
    said = []
    engine = Engine(bundle, providers=('NoSuchExecutionProvider', 'CPUExecutionProvider'), part='onboard',
                    warn=said.append)
    assert engine.providers == ('CPUExecutionProvider',)
    assert len(said) == 1 and 'NoSuchExecutionProvider' in said[0]


def test_preprocess_equals_plain_arithmetic(bundle, image):
    tensor, placement = preprocess(image, bundle)
    assert tensor.shape == (1, 3, bundle.height, bundle.width) and tensor.dtype == np.float32
    content = tensor[0, :, :placement.content_height, :placement.content_width]
    scaled = cv2.resize(image, (placement.content_width, placement.content_height), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_allclose(content, scaled.transpose(2, 0, 1) / 127.5 - 1, atol=1e-6)
    np.testing.assert_allclose(tensor[0, :, placement.content_height:], 127 / 127.5 - 1, atol=1e-6)


@pytest.mark.parametrize('across, down', [(1, 0.95), (1, 1), (0.4, 1), (0, 1), (1, 0)])
def test_preprocess_normalises_exactly_and_pads_the_rest(bundle, across, down):
    width, height = max(1, int(across * bundle.width)), max(1, int(down * bundle.height))
    image = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    settings = bundle.document['input']
    padded = np.full((bundle.height, bundle.width, 3), settings['pad'], np.uint8)
    padded[:height, :width] = image
    plain = padded.astype(np.float32) * np.float32(settings['scale']) + np.float32(settings['offset'])
    np.testing.assert_array_equal(preprocess(image, bundle)[0], plain.transpose(2, 0, 1)[None])


@pytest.mark.parametrize('width, height', [(480, 360), (1242, 374), (360, 640), (64, 48), (1920, 1080), (5, 500)])
def test_aspect_ratio_is_kept(bundle, width, height):
    placement = fit(width, height, bundle)
    assert placement.content_width <= bundle.width and placement.content_height <= bundle.height
    assert placement.content_width == bundle.width or placement.content_height == bundle.height
    scale = min(bundle.width / width, bundle.height / height)
    assert abs(placement.content_width - width * scale) <= 1 and abs(placement.content_height - height * scale) <= 1


@pytest.mark.parametrize('width, height', [(480, 360), (640, 480), (1242, 374), (200, 400), (960, 540)])
def test_mask_is_the_argmax_of_logits_resized_in_full(engine, image, width, height):
    output = engine.segment(cv2.resize(image, (width, height)), 'always').output
    mask = output.mask(width, height)
    assert mask.shape == (height, width) and mask.dtype == np.uint8 and mask.max() < len(engine.bundle.classes)
    place, bundle = output.placement, engine.bundle
    # Straightforward and slow: resize all logits to the network input, cut out the content, resize to the image.
    size = (round(bundle.width * width / place.content_width), round(bundle.height * height / place.content_height))
    planes = np.stack([cv2.resize(plane, size) for plane in output.logits])[:, :height, :width]
    assert np.mean(planes.argmax(0) == mask) > 0.99    # sizes round to whole pixels
    if (width, height) == (480, 360):
        np.testing.assert_array_equal(planes.argmax(0), mask)


def test_confidence_is_the_top_probability(engine, result):
    output = result.outputs[0]
    confidence = output.confidence(480, 360)
    assert confidence.shape == (360, 480) and confidence.dtype == np.uint8
    exponentials = np.exp(output.logits.astype(np.float64) / output.exit.temperature)
    top = (exponentials / exponentials.sum(0)).max(0)[:45, :60]
    assert abs(confidence.mean() / 255 - top.mean()) < 0.01
    assert confidence.min() >= 255 // len(engine.bundle.classes) - 1


def test_grid_covers_the_content_only(engine, image):
    wide = engine.segment(image[:180], 'never')    # 480x180: half of the network input is padding
    rows, columns = math.ceil(engine.bundle.width * 180 / 480 / GRID), engine.bundle.width // GRID
    assert rows < engine.bundle.height // GRID - 5
    for output in wide.outputs:
        assert output.grid_classes.shape == (rows, columns)


def test_scenes_are_segmented_well(engine):
    drive, total = StreetDrive(seed=11), 0
    for index in range(0, 60, 6):
        scene = drive.frame(index)
        run = engine.segment(scene.image, 'never')
        final = engine.finish(engine.encode(run), run.placement).output
        total = total + confusion(scene.labels, final.mask(480, 360), 11)
    assert mean_iou(total) > 0.5    # the shipped model was trained on such scenes; another drive than any test's


@pytest.mark.parametrize('width, height', [(2, 2), (7, 300), (97, 61)])
def test_tiny_images_get_a_mask_of_their_size(engine, width, height):
    output = engine.segment(np.zeros((height, width, 3), np.uint8), 'always').output
    assert output.mask(width, height).shape == (height, width)
