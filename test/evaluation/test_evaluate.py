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
import cv2
import numpy as np
import pytest
from tiny import CLASSES, HEIGHT, WIDTH, mixed_image, tiny_bundle

from ee_seg_ros.data.labelled import UNLABELLED
from ee_seg_ros.data.scenes import StreetDrive
from ee_seg_ros.evaluation import report
from ee_seg_ros.evaluation.evaluate import (
    Observations,
    cascade,
    evaluate,
    exit_costs,
    exits_taken,
    observe,
    static_costs,
    summarise,
    to_the_end,
)
from ee_seg_ros.evaluation.metrics import confusion, mean_iou
from ee_seg_ros.evaluation.pair import run_pair
from ee_seg_ros.inference.bundle import Bundle
from ee_seg_ros.inference.criteria import CRITERIA
from ee_seg_ros.inference.engine import Engine


@pytest.fixture(scope='module')
def bundle():
    return Bundle.load('street')


@pytest.fixture(scope='module')
def camvid(tmp_path_factory):
    """A folder in CamVid's layout with three scenes."""
    root = tmp_path_factory.mktemp('camvid')
    names = [f'0000XX_{index:05d}' for index in range(3)]
    for kind in ('images', 'labels'):
        (root / kind / 'val').mkdir(parents=True)
    for index, name in enumerate(names):
        scene = StreetDrive(9).frame(40 * index)
        labels = scene.labels.copy()
        labels[:20] = 11    # as CamVid says unlabelled
        cv2.imwrite(str(root / 'images/val' / f'{name}.png'), cv2.cvtColor(scene.image, cv2.COLOR_RGB2BGR))
        cv2.imwrite(str(root / 'labels/val' / f'{name}.png'), labels)
    (root / 'val.txt').write_text('\n'.join(names))
    return root


@pytest.fixture(scope='module')
def found(camvid):
    return evaluate('street', 'camvid', str(camvid), 'val')


def test_exits_are_those_of_the_engine(found, bundle, camvid):
    """The first exit's mIoU and cost, computed here the long way from what the engine says."""
    engine, total = Engine(bundle), np.zeros((11, 11), np.int64)
    for index in range(3):
        scene = StreetDrive(9).frame(40 * index)
        result = engine.segment(scene.image, 'always')
        mask = result.output.mask(480, 360)
        for true, given in zip(scene.labels[20:].ravel(), mask[20:].ravel()):
            total[true, given] += 1
    hits = np.diag(total)
    iou = hits / (total.sum(0) + total.sum(1) - hits)
    first = found['exits'][0]
    assert first['miou'] == pytest.approx(iou[total.sum(1) > 0].mean())
    assert first['macs'] == result.macs
    assert [exit_['name'] for exit_ in found['exits']] == [exit_.name for exit_ in bundle.exits]
    assert found['images'] == 3 and found['bundle_fingerprint'] == bundle.fingerprint


def test_costs_add_up_to_what_the_engine_counts(bundle):
    engine = Engine(bundle)
    result = engine.segment(StreetDrive(0).frame(0).image, 'never')
    costs = exit_costs(bundle)
    assert costs[len(bundle.onboard_exits) - 1] == result.macs
    features = engine.encode(result)
    assert costs[-1] == result.macs + engine.finish(features, result.placement).macs
    assert costs == sorted(costs)


def test_always_and_never_are_the_first_exit_and_the_final_output(found, bundle):
    """Of a bundle that does not send settled cells, `never` is worth what the pair makes of the others."""
    rows = {row['criterion']: row for row in found['criteria']}
    exits = found['exits']
    assert rows['always']['miou'] == rows['always']['onboard_miou'] == exits[0]['miou']
    assert rows['always']['mean_macs'] == rows['always']['onboard_macs'] == exits[0]['macs']
    assert rows['always']['forwarded_share'] == 0 and rows['always']['exit_shares'][0] == 1
    assert rows['never']['onboard_miou'] == exits[len(rows['never']['exit_shares']) - 2]['miou']
    assert rows['never']['forwarded_share'] == 1
    engine, total, macs = Engine(bundle), 0, []
    for index in range(3):
        scene = StreetDrive(9).frame(40 * index)
        frame = run_pair(engine, scene.image, 'never', (0.0,) * len(bundle.judged_exits))
        labels = scene.labels.copy()
        labels[:20] = UNLABELLED
        total, macs = total + confusion(labels, frame.mask(480, 360), 11), [*macs, frame.macs_at[-1]]
    assert rows['never']['miou'] == mean_iou(total) and rows['never']['mean_macs'] == np.mean(macs)
    if not bundle.forwards_cells:
        assert rows['never']['miou'] == exits[-1]['miou'] and rows['never']['mean_macs'] == exits[-1]['macs']


def test_every_criterion_is_measured_at_every_operating_point(found, bundle):
    rows = [(row['criterion'], row['operating_point']) for row in found['criteria']]
    points = [(name, point) for name, entry in bundle.document['criteria'].items()
              for point in entry['operating_points']]
    assert {point for _, point in points} >= {'fast', 'balanced', 'accurate'}
    assert rows == points + [('always', None), ('never', None)]
    for row in found['criteria']:
        assert sum(row['exit_shares']) == pytest.approx(1) and row['exit_shares'][-1] == row['forwarded_share']
        assert sum(row['offboard_exit_shares']) == pytest.approx(row['forwarded_share'])
        assert len(row['exit_shares']) == len(bundle.onboard_exits) + 1
        assert row['onboard_macs'] <= row['mean_macs']


@pytest.fixture(scope='module', params=[('stage2', 5), ('stage1', 5), (None, 5), (None, 1)], ids=str)
def tiny(request, tmp_path_factory):
    """Tiny bundles: two exits onboard, one, all five without a split, and a single one."""
    split, count = request.param
    exits = ('exit1', 'exit2', 'exit3', 'exit4', 'final')[-count:]
    return Bundle.load(tiny_bundle(tmp_path_factory.mktemp('bundles') / 'tiny', split, exits))


@pytest.fixture(scope='module')
def tiny_samples():
    rng = np.random.default_rng(1)
    return [(rng.integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8),
             rng.integers(0, CLASSES, (HEIGHT, WIDTH), dtype=np.uint8)) for _ in range(8)]


def test_the_stored_scores_decide_as_the_engine_does(tiny, tiny_samples):
    engine, exits = Engine(tiny), [exit_.name for exit_ in tiny.exits]
    observed = observe(engine, tiny_samples)
    assert observed.matrices.shape == (8, len(exits), CLASSES, CLASSES + 1) and not observed.ends
    for name, rule in CRITERIA.items():
        if rule.pixelwise:    # see below
            continue
        scores = observed.scores[name]
        assert scores.shape == (8, len(exits) - 1)
        known = scores[np.isfinite(scores)]
        thresholds = (float(np.median(known)) if len(known) else 0.0,) * scores.shape[1]
        taken, macs = exits_taken(rule, scores, thresholds), []
        for (image, labels), place in zip(tiny_samples, taken):
            result = engine.segment(image, name, thresholds)
            macs.append(result.macs)
            if tiny.split is not None and not result.settled:
                features = engine.encode(result)
                macs[-1] = result.macs
                result = engine.finish(features, result.placement, name, thresholds, engine.onboard_map(result))
                macs[-1] += result.macs
            assert result.exit_name == exits[place]
        assert macs == [exit_costs(tiny)[place] for place in taken]
        row = cascade(tiny, observed, name, thresholds)
        assert row['mean_macs'] == np.mean(macs)
        by_exit = row['exit_shares'][:-1] + row['offboard_exit_shares']
        assert by_exit == [float(np.mean(taken == place)) for place in range(len(exits))]
        assert row['forwarded_share'] == row['exit_shares'][-1] == sum(row['offboard_exit_shares'])


@pytest.mark.parametrize('split', ['stage2', None])
@pytest.mark.parametrize('name, looked_at', [
    ('entropy', ['exit2']), ('region', None), ('class_threshold', None), ('uniform', None), ('never', None),
    ('class_threshold', ['exit2', 'exit4']), ('uniform', ['exit2'])])
def test_the_stored_scores_decide_as_the_pair_does_that_leaves_settled_cells_out(tmp_path, tiny_samples, split, name,
                                                                                 looked_at):
    """Images that end anywhere: masks, costs and places are those of the observations."""
    bundle = Bundle.load(tiny_bundle(tmp_path / 'tiny', split, cells=True))
    for entry in bundle.document['exits'][-2:] if looked_at is None else ():
        entry['averaged'] = True
    bundle = Bundle(bundle.path, bundle.document)
    if looked_at:    # by the criteria by which pixels stop; they pass the other exits by
        bundle.document['pixels'] = {**bundle.document['pixels'], 'exits': looked_at}
    samples = [(mixed_image(seed), labels) for seed, (_, labels) in enumerate(tiny_samples[:4])] + tiny_samples[4:6]
    engine, rule, exits = Engine(bundle), CRITERIA[name], [exit_.name for exit_ in bundle.exits]
    observed = observe(engine, samples)
    scores, costs = observed.scores[name], observed.macs_of(bundle, name)
    for level in (0, 0.5, 1):
        known = scores[np.isfinite(scores)]
        thresholds = (float(np.quantile(known, level)) if len(known) else 0.0,) * 4
        taken = exits_taken(rule, scores, thresholds)
        row, matrices = cascade(bundle, observed, name, thresholds), observed.matrices_of(name, taken)
        frames = [run_pair(engine, image, name, thresholds) for image, _ in samples]
        assert [frame.outputs[-1].exit.name for frame in frames] == [exits[place] for place in taken]
        for index, (frame, (_, labels)) in enumerate(zip(frames, samples)):
            assert frame.macs_at[-1] == costs[index, taken[index]]
            np.testing.assert_array_equal(confusion(labels, frame.mask(WIDTH, HEIGHT), CLASSES), matrices[index])
        assert row['mean_macs'] == pytest.approx(np.mean([frame.macs_at[-1] for frame in frames]))
    final = engine.run_exit(samples[0][0], 'final').output.mask(WIDTH, HEIGHT)    # alone, whatever is averaged
    np.testing.assert_array_equal(confusion(samples[0][1], final, CLASSES), observed.matrices[0, -1])
    if split is not None:
        whole = to_the_end(engine, samples[1][0], name)
        assert observed.ends[name].payloads[1] == len(whole.payload(engine)) > 0 and not whole.onboard.sent.all()


def test_costs_of_an_exit_alone_and_of_the_way_to_it(tiny):
    alone, costs, passed = static_costs(tiny), exit_costs(tiny), 0.0
    for exit_, one, all_heads in zip(tiny.exits, alone, costs):
        assert one == sum(tiny.graphs[graph]['macs'] for graph in tiny.path_to(exit_.name))
        assert all_heads == one + passed
        passed += tiny.graphs[exit_.name]['macs']
    assert costs[-1] == sum(graph['macs'] for graph in tiny.graphs.values())    # everything runs


def test_bundles_of_any_shape_are_summed_up(tiny, tiny_samples):
    found = summarise(tiny, observe(Engine(tiny), tiny_samples))
    assert [exit_['name'] for exit_ in found['exits']] == [exit_.name for exit_ in tiny.exits]
    assert [exit_['static_macs'] for exit_ in found['exits']] == static_costs(tiny)
    last = found['criteria'][-1]
    assert last['criterion'] == 'never' and last['miou'] == found['exits'][-1]['miou']
    assert last['forwarded_share'] == (tiny.split is not None)
    tables = report.evaluation_tables({**found, 'dataset': 'noise', 'split': '1'})
    assert tables[1].row_count == len(found['criteria'])


def test_exits_taken_by_hand():
    scores = np.array([[0.1, 0.5, 0.5], [0.5, 0.1, 0.1], [0.5, 0.5, 0.1], [0.5, 0.5, 0.5]])
    assert exits_taken(CRITERIA['entropy'], scores, (0.2, 0.2, 0.2)).tolist() == [0, 1, 2, 3]
    assert exits_taken(CRITERIA['entropy'], scores, (0.2, 0.2, 0.6)).tolist() == [0, 1, 2, 2]
    assert exits_taken(CRITERIA['confidence'], scores, (0.5, 0.5, 0.5)).tolist() == [1, 0, 0, 0]
    scores[:, 0] = np.nan    # the first exit has nothing to compare itself with
    assert exits_taken(CRITERIA['region'], scores, (9, 0.2, 0.2)).tolist() == [3, 1, 2, 3]


def test_cascade_takes_each_image_from_its_own_exit(tmp_path):
    """Three images: one settles at exit 1 and one at exit 3, each right there alone; one is right only at the end."""
    bundle = Bundle.load(tiny_bundle(tmp_path / 'tiny'))
    right, wrong = np.zeros((2, CLASSES, CLASSES + 1), np.int64)
    right[0, 0], wrong[0, 1] = 10, 10
    matrices = np.array([[right if place == best else wrong for place in range(5)] for best in (0, 2, 4)])
    scores = np.array([[0.1, 0.9, 0.9, 0.9], [0.9, 0.9, 0.1, 0.9], [0.9] * 4])
    row = cascade(bundle, Observations(matrices, {'entropy': scores}), 'entropy', (0.5,) * 4)
    costs, encode = exit_costs(bundle), bundle.graphs['encode']['macs']
    assert row['miou'] == mean_iou(right) == 1 and row['onboard_miou'] == pytest.approx(1 / 3)
    assert row['exit_shares'] == pytest.approx([1 / 3, 0, 2 / 3]) and row['forwarded_share'] == pytest.approx(2 / 3)
    assert row['offboard_exit_shares'] == pytest.approx([1 / 3, 0, 1 / 3])
    assert row['mean_macs'] == pytest.approx((costs[0] + costs[2] + costs[4]) / 3)
    assert row['onboard_macs'] == pytest.approx((costs[0] + 2 * (costs[1] + encode)) / 3)


def test_a_data_set_of_other_classes_is_refused(tmp_path):
    path = tiny_bundle(tmp_path / 'tiny')
    with pytest.raises(ValueError, match=r'bundle tiny has 3 classes .* data set scenes 11 '):
        evaluate(str(path), 'scenes', None, '0', 1)


def test_a_bag_is_measured_against_its_labels_or_the_final_output(tmp_path):
    bagging = pytest.importorskip('bagging')
    bundle = tiny_bundle(tmp_path / 'bundle')
    images = [mixed_image(seed) for seed in range(3)]
    stamped = [bagging.raw(seed, image, 'rgb8') for seed, image in enumerate(images)]
    alone = bagging.write(tmp_path / 'alone', {'/image': stamped}, 'MCAP')
    found = evaluate(str(bundle), 'bag', str(alone), 'val')
    assert (found['images'], found['reference']) == (3, 'final output')
    assert found['exits'][-1]['miou'] == 1 and 0 < found['exits'][0]['miou'] < 1
    assert 'no labels: against the final output' in report.evaluation_tables(found)[0].title

    engine = Engine(Bundle.load(bundle))
    labels = [engine.segment(image, 'always').output.mask(*image.shape[1::-1]) for image in images[:2]]
    labels = [bagging.raw(seed, ids[..., None], 'mono8') for seed, ids in enumerate(labels)]
    labelled = bagging.write(tmp_path / 'labelled', {'/image': stamped, '/labels': labels})
    found = evaluate(str(bundle), 'bag', str(labelled), 'val')
    assert (found['images'], found['reference'], found['exits'][0]['miou']) == (2, 'labels', 1)

    strange = bagging.raw(0, np.full((*images[0].shape[:2], 1), 77, np.uint8), 'mono8')
    wrong = bagging.write(tmp_path / 'wrong', {'/image': stamped, '/labels': [strange]})
    with pytest.raises(ValueError, match='the labels hold the id 77: expected 0 to'):
        evaluate(str(bundle), 'bag', str(wrong), 'val')


def test_what_a_search_found_is_measured_as_well(tmp_path, tiny_samples):
    bundle = Bundle.load(tiny_bundle(tmp_path / 'tiny'))
    bundle.document['criteria']['entropy']['operating_points']['searched'] = {'thresholds': [2.0] + [0.0] * 3}
    rows = summarise(bundle, observe(Engine(bundle), tiny_samples))['criteria']
    searched = [row for row in rows if row['operating_point'] == 'searched']
    assert [row['criterion'] for row in searched] == ['entropy'] and searched[0]['exit_shares'] == [1, 0, 0]


def test_tables_and_plot(found, tmp_path):
    by_exit, by_criterion = report.evaluation_tables(found)
    assert by_exit.row_count == 3 + len(found['exits'][0]['iou'])
    assert by_criterion.row_count == len(found['criteria'])
    pytest.importorskip('matplotlib', reason='matplotlib is not installed')
    report.plot_evaluation(found, tmp_path / 'plot.png')
    assert cv2.imread(str(tmp_path / 'plot.png')).shape[1] > 600
