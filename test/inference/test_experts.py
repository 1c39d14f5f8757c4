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
"""Expert exits in the engine and on the wire: other heads on the same features, frame by frame."""
import json
from types import SimpleNamespace

import cv2
import msgpack
import numpy as np
import pytest
import zstandard
from tiny import tiny_bundle
from tiny_detector import add_detector

from ee_seg_ros.evaluation.pair import run_pair
from ee_seg_ros.inference import experts
from ee_seg_ros.inference.bundle import Bundle, BundleError
from ee_seg_ros.inference.deblur import deblurred
from ee_seg_ros.inference.detector import Detection
from ee_seg_ros.inference.engine import Engine
from ee_seg_ros.inference.experts import AUTO, EVERY, OFF, ExpertChooser
from ee_seg_ros.inference.features import FeatureError, pack, unpack
from ee_seg_ros.inference.frame import preprocess, smoothed
from ee_seg_ros.inference.outputs import together
from ee_seg_ros.inference.pixels import OnboardMap

EXPERTS = {'blur': ('exit1', 'exit2', 'final'), 'noise': ('exit2',)}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tiny_bundle(tmp_path_factory.mktemp('bundles') / 'expert', cells=True, experts=EXPERTS)


@pytest.fixture(scope='module')
def expert_bundle(folder):
    return Bundle.load(folder)


@pytest.fixture(scope='module')
def expert_engine(expert_bundle):
    return Engine(expert_bundle, threads=1)


def heads(frame):
    return [output.exit.graph for output in frame.outputs]


def never(engine, image, expert=''):
    return run_pair(engine, image, 'never', (0.0,) * 4, partial=False, expert=expert)


def test_an_expert_stands_in_at_its_exits_and_every_frame_may_have_another(expert_bundle, expert_engine, tiny, noise):
    plain = never(Engine(tiny, threads=1), noise)
    for expert in ('blur', '', 'noise', 'blur', ''):
        frame, own = never(expert_engine, noise, expert), EXPERTS.get(expert, ())
        assert heads(frame) == [f'{name}_{expert}' if name in own else name for name in
                                ('exit1', 'exit2', 'exit3', 'exit4', 'final')]
        for output, before in zip(frame.outputs, plain.outputs):    # the stages are the same
            same = np.array_equal(output.logits, before.logits)
            assert same == (output.exit.name not in own)
            assert output.exit.temperature == (2.0 if output.exit.name in own else 1.0)
        ran = {*(graph for exit_ in expert_bundle.exits for graph in expert_bundle.path_to(exit_.name)[:-1]),
               *heads(frame)}
        assert sum(side.macs for side in frame.sides) == sum(expert_bundle.graphs[graph]['macs'] for graph in ran)


@pytest.mark.parametrize('last, ran', [('exit3', 3), ('exit4', 4), ('final', 5)])
def test_nothing_runs_behind_the_exit_that_is_best_at_it(expert_bundle, expert_engine, noise, monkeypatch, last, ran):
    """Exits behind the split may have no expert of that family, and be worse at it than others before them."""
    whole = never(expert_engine, noise, 'blur')
    monkeypatch.setitem(expert_bundle.document['experts']['blur'], 'forwarding', {'up_to': 1.0, 'last_exit': last})
    assert [expert_bundle.last_exit(expert) for expert in ('blur', 'noise', '')] == [last, 'final', 'final']
    frame = never(expert_engine, noise, 'blur')
    assert len(frame.outputs) == ran and frame.macs_at == whole.macs_at[:ran]
    for output, before in zip(frame.outputs, whole.outputs):
        np.testing.assert_array_equal(output.logits, before.logits)
    # That nothing comes behind it is no judgement.
    entropy = run_pair(expert_engine, noise, 'entropy', (0.0, 0.0, 9.0 if last == 'exit3' else 0.0, 9.0), False,
                       expert='blur').sides[-1]
    assert (entropy.exit_name, entropy.settled, entropy.score, entropy.threshold) == (
        (last, False, None, None) if last != 'final' else ('exit4', True, entropy.score, 9.0))
    assert len(never(expert_engine, noise).outputs) == 5


@pytest.mark.parametrize('up_to, strength, forwarded', [
    (0.4, 0.4, True), (0.4, 0.41, False), (0.4, None, False), (0.5, None, True), (0.0, 0.0, True), (None, 0.0, False)])
def test_what_is_distorted_too_much_is_not_forwarded(expert_bundle, expert_engine, noise, monkeypatch, up_to, strength,
                                                     forwarded):
    """Where no exit behind the split is better: the onboard mask is the best there is. A strength not known is 0.5."""
    found = None if up_to is None else {'up_to': up_to, 'last_exit': 'exit4'}
    monkeypatch.setitem(expert_bundle.document['experts']['blur'], 'forwarding', found)
    assert expert_bundle.refines('blur', strength) == forwarded
    assert expert_bundle.refines('noise', 1.0) and expert_bundle.refines()    # no more is known of these
    frame = run_pair(expert_engine, noise, 'never', (0.0,) * 4, expert='blur', strength=strength)
    assert len(frame.sides) == 1 + forwarded and not frame.sides[0].settled
    monkeypatch.setattr(expert_bundle, 'split', None)    # all of it runs onboard
    assert expert_bundle.refines('blur', strength) and expert_bundle.last_exit('blur') == 'final'


def test_the_heads_of_an_expert_answer_together_on_each_side(expert_engine, noise):
    whole = never(expert_engine, noise, 'blur').outputs
    alone = [expert_engine.run_exit(noise, exit_.name, 'blur').output.logits for exit_ in expert_engine.bundle.exits]
    for place in (0, 2, 3, 4):    # the first ones of each side, and those that are no expert's
        np.testing.assert_array_equal(whole[place].logits, alone[place])
    np.testing.assert_allclose(whole[1].logits, (alone[0] + alone[1]) / 2, atol=1e-5)


def test_images_of_an_expert_are_smoothed_where_it_says_so(folder, noise):
    document = json.loads((folder / 'bundle.json').read_text())
    document['experts']['blur']['smoothing'] = {'sigma': 1.0, 'share': 0.6}
    smooth = Bundle(folder, document)
    assert smooth.smoothing('blur') == (1.0, 0.6) and smooth.smoothing('noise') is smooth.smoothing('') is None
    assert smoothed(noise, 1.0, 0.6).std() < 0.8 * noise.std() and np.array_equal(smoothed(noise, 1.0, 0.0), noise)
    engine = Engine(smooth, threads=1)
    for expert, given in (('blur', smoothed(noise, 1.0, 0.6)), ('noise', noise), ('', noise)):
        result = engine.segment(noise, 'never', expert=expert)    # whose memory the tensor is
        np.testing.assert_array_equal(result.tensors['image'], preprocess(given, smooth)[0])


def test_blur_is_taken_back_for_an_expert_that_says_so(tmp_path, noise):
    folder = add_detector(tiny_bundle(tmp_path / 'bundle', experts=EXPERTS), blur=(4.0, 1.0, 0.5))
    document = json.loads((folder / 'bundle.json').read_text())
    document['experts']['blur']['deblurring'] = True
    bundle = Bundle(folder, document)
    assert bundle.deblurs('blur') and not bundle.deblurs('noise') and not bundle.deblurs('')
    image = cv2.resize(noise, (90, 60))
    engine, placement = Engine(bundle, threads=1), preprocess(image, bundle)[1]
    for expert in ('blur', 'noise', ''):
        result = engine.segment(image, 'never', expert=expert)    # whose memory the tensor is
        expected = preprocess(image, bundle, blur=(4.0, 1.0, 0.5) if expert == 'blur' else None)[0]
        np.testing.assert_array_equal(result.tensors['image'], expected)
    # In pixels of the network input, after scaling.
    across, down = placement.content_width / 90, placement.content_height / 60
    assert across != 1
    scaled = cv2.resize(image, (placement.content_width, placement.content_height))
    sharp = deblurred(scaled, (4 * across ** 2, down ** 2, 0.5 * across * down))
    np.testing.assert_array_equal(preprocess(image, bundle, blur=(4.0, 1.0, 0.5))[0], preprocess(sharp, bundle)[0])
    blind = json.loads((add_detector(folder) / 'bundle.json').read_text())['detector']
    with pytest.raises(BundleError, match='does not measure blur'):
        Engine(Bundle(folder, {**document, 'detector': blind}), threads=1)
    Engine(Bundle(folder, {**document, 'detector': blind}), threads=1, part='offboard')    # where it is not asked
    del document['detector']
    with pytest.raises(BundleError, match='has no detector'):
        Engine(Bundle(folder, document), threads=1)


@pytest.mark.parametrize('criterion, hardly', [('entropy', 1e-3), ('confidence', -1e-3)])
def test_the_stronger_the_distortion_the_stricter_an_experts_thresholds(folder, noise, criterion, hardly):
    document = json.loads((folder / 'bundle.json').read_text())
    document['experts']['blur']['criteria'][criterion] = {
        **document['criteria'][criterion], 'per_strength': 2 * abs(hardly)}
    bundle = Bundle(folder, document)
    assert bundle.per_strength(criterion, 'blur') == 2 * abs(hardly)
    assert bundle.per_strength(criterion, 'noise') == bundle.per_strength(criterion) == 0
    engine = Engine(bundle, threads=1)
    for expert in ('blur', 'noise', ''):
        never = -np.inf if hardly > 0 else np.inf
        score = engine.segment(noise, criterion, (never,) * 4, expert=expert).score
        thresholds = (never, score + hardly, *(never,) * 2)    # of its last onboard exit: passed, by half of that
        found = {strength: engine.segment(noise, criterion, thresholds, expert=expert, strength=strength)
                 for strength in (0.0, 0.4, 0.6, 1.0, None)}
        assert {strength for strength, result in found.items() if not result.settled} <= {0.6, 1.0, None}
        assert [found[strength].settled for strength in (0.6, 1.0)] == [expert != 'blur'] * 2
        by = 2 * hardly if expert == 'blur' else 0
        assert [found[strength].threshold for strength in (0.0, None, 1.0)] == pytest.approx(
            [thresholds[1], thresholds[1] - by / 2, thresholds[1] - by])


def test_the_mean_is_over_all_heads_of_the_expert_so_far():
    def output(expert, logits):
        return SimpleNamespace(exit=SimpleNamespace(expert=expert), logits=np.full((2, 3, 4), logits, np.float32))
    new = np.full((2, 6, 8), 9.0, np.float32)    # of another stride
    outputs = [output('blur', 3.0), output('blur', 4.5), output('', 100.0)]
    np.testing.assert_allclose(together(SimpleNamespace(expert='blur', averaged=True), new, outputs), 6.0)
    for expert, before in (('noise', outputs), ('blur', [])):
        assert together(SimpleNamespace(expert=expert, averaged=True), new, before) is new
    np.testing.assert_allclose(together(SimpleNamespace(expert='', averaged=True), new, outputs), 54.5)
    assert together(SimpleNamespace(expert='', averaged=False), new, outputs) is new


def test_pixels_that_stop_keep_what_the_expert_said(expert_engine, mixed):
    result = expert_engine.segment(mixed, 'class_threshold', (2.0,) * 4, expert='blur')
    first, second = result.outputs
    assert result.window is not None and (first.exit.graph, second.exit.graph) == ('exit1_blur', 'exit2_blur')
    kept = first.stopped
    assert kept.any() and not kept.all()
    np.testing.assert_array_equal(second.grid_classes[kept], first.grid_classes[kept])


def test_the_payload_names_the_expert_and_the_server_takes_it(expert_bundle, expert_engine, noise):
    robot, server = Engine(expert_bundle, part='onboard'), Engine(expert_bundle, part='offboard')
    result = robot.segment(noise, 'never', expert='blur')
    onboard = OnboardMap(robot.onboard_map(result).classes)
    payload = pack(expert_bundle, robot.encode(result), result.placement, (64, 48), onboard, 'blur')
    received = unpack(expert_bundle, payload)
    assert received.expert == 'blur'
    refined = server.finish(received.tensors, received.placement, onboard=received.onboard, expert=received.expert)
    assert refined.output.exit.graph == 'final_blur' and refined.outputs[0].exit.graph == 'exit3'
    np.testing.assert_array_equal(refined.output.logits, never(expert_engine, noise, 'blur').outputs[-1].logits)
    for wrong in ('rain', None, 7, 'blur\x00'):
        document = msgpack.unpackb(zstandard.ZstdDecompressor().decompress(payload))
        broken = zstandard.ZstdCompressor().compress(msgpack.packb({**document, 'expert': wrong}))
        with pytest.raises(FeatureError, match='was used, bundle expert has blur, noise'):
            unpack(expert_bundle, broken)


def test_each_expert_has_thresholds_of_its_own_where_it_has_any(expert_bundle):
    assert expert_bundle.experts == ('blur', 'noise')
    assert expert_bundle.thresholds('entropy', 'fast') == (0.5,) * 4
    assert expert_bundle.thresholds('entropy', 'fast', 'noise') == (0.25,) * 4
    assert expert_bundle.thresholds('region', 'fast', 'noise') == (0.5,) * 4
    for call in (lambda: expert_bundle.thresholds('entropy', 'fast', 'rain'), lambda: expert_bundle.exits_for('rain')):
        with pytest.raises(BundleError, match="has no expert 'rain': choose one of blur, noise"):
            call()


def test_what_the_wire_names_is_in_the_fingerprint(expert_bundle, folder):
    document = json.loads((folder / 'bundle.json').read_text())
    document['experts']['blur']['exits']['exit1']['temperature'] = 3.0
    assert Bundle(folder, document).fingerprint == expert_bundle.fingerprint
    del document['experts']['noise']
    assert Bundle(folder, document).fingerprint != expert_bundle.fingerprint


@pytest.mark.parametrize('change, message', [
    (lambda experts: experts.update(auto=experts['blur']), "calls an expert 'auto'"),
    (lambda experts: experts['blur']['exits'].update(exit9=experts['blur']['exits']['exit1']), "the exit 'exit9'"),
    (lambda experts: experts['blur']['exits']['exit1'].update(graph='nothing'), "the graph 'nothing'"),
    (lambda experts: experts['blur']['exits']['exit1'].update(graph='final'), 'must read what the exit reads'),
    (lambda experts: experts['blur'].update(forwarding={'up_to': 0.5, 'last_exit': 'exit1'}), "'exit1', which is no "
     'exit behind the split'),
    (lambda experts: experts['blur'].update(forwarding={'up_to': 2, 'last_exit': 'exit4'}), 'experts/blur/forwarding'),
    (lambda experts: experts['blur']['criteria']['entropy']['operating_points']['fast'].update(thresholds=[1]),
     'criterion entropy of the expert blur, operating point fast has 1 thresholds'),
    (lambda experts: experts['blur']['exits']['exit1'].update(temperature=0), 'not a valid bundle'),
])
def test_experts_that_do_not_fit_are_refused(tmp_path, change, message):
    folder = tiny_bundle(tmp_path / 'tiny', experts=EXPERTS)
    document = json.loads((folder / 'bundle.json').read_text())
    change(document['experts'])
    (folder / 'bundle.json').write_text(json.dumps(document))
    with pytest.raises(BundleError, match=message):
        Bundle.load(folder)


def test_the_choice_follows_the_detector_only_if_it_is_asked_for(expert_bundle, noise, monkeypatch):
    seen = iter(['clean', 'noise', 'noise', 'noise', 'weather', 'weather', 'weather'])

    class Scripted:
        def __init__(self, bundle):
            pass

        def detect(self, image):
            return Detection(next(seen), 0.5, {}, 0.1)
    assert ExpertChooser(expert_bundle).choose(noise, AUTO) == experts.Choice()    # no detector
    monkeypatch.setattr(experts, 'Detector', Scripted)
    chooser = ExpertChooser(SimpleNamespace(experts=('blur', 'noise'), detector={}))
    assert chooser.choose(noise, OFF) == experts.Choice()
    assert chooser.choose(noise, 'blur') == experts.Choice('blur')
    chosen = [chooser.choose(noise, AUTO) for _ in range(EVERY * 7)]
    assert [choice.ms > 0 for choice in chosen] == ([True] + [False] * (EVERY - 1)) * 7
    chosen = chosen[::EVERY]
    # Two looks must agree; for weather there is no expert.
    assert [choice.expert for choice in chosen] == ['', '', 'noise', 'noise', 'noise', '', '']
    assert [choice.family for choice in chosen] == ['clean'] * 2 + ['noise'] * 3 + ['weather'] * 2
    assert chosen[0].level == 0.5
