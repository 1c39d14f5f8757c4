# Copyright 2026 The ee_seg_ros authors
# SPDX-License-Identifier: Apache-2.0
import cv2
import numpy as np
import pytest

from ee_seg_ros.data.scenes import StreetDrive
from ee_seg_ros.evaluation import report
from ee_seg_ros.evaluation.evaluate import Observations, cascade, evaluate, exit_costs, exits_taken, observe, samples_of
from ee_seg_ros.evaluation.metrics import mean_iou
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


def test_always_and_never_are_the_first_exit_and_the_final_output(found):
    rows = {row['criterion']: row for row in found['criteria']}
    exits = found['exits']
    assert rows['always']['miou'] == rows['always']['onboard_miou'] == exits[0]['miou']
    assert rows['always']['mean_macs'] == rows['always']['onboard_macs'] == exits[0]['macs']
    assert rows['always']['forwarded_share'] == 0 and rows['always']['exit_shares'][0] == 1
    assert rows['never']['miou'] == exits[-1]['miou'] and rows['never']['onboard_miou'] == exits[-2]['miou']
    assert rows['never']['mean_macs'] == exits[-1]['macs'] and rows['never']['forwarded_share'] == 1


def test_every_criterion_is_measured_at_every_operating_point(found, bundle):
    rows = [(row['criterion'], row['operating_point']) for row in found['criteria']]
    points = [(name, point) for name in bundle.document['criteria'] for point in ('fast', 'balanced', 'accurate')]
    assert rows == points + [('always', None), ('never', None)]
    for row in found['criteria']:
        assert sum(row['exit_shares']) == pytest.approx(1) and row['exit_shares'][-1] == row['forwarded_share']
        assert len(row['exit_shares']) == len(bundle.onboard_exits) + 1
        assert row['onboard_macs'] <= row['mean_macs']


def test_the_stored_scores_decide_as_the_engine_does(bundle):
    engine = Engine(bundle)
    images = [StreetDrive(9).frame(30 * index) for index in range(4)]
    observed = observe(engine, ((scene.image, scene.labels) for scene in images))
    for name, rule in CRITERIA.items():
        known = observed.scores[name][:, rule.first:]
        threshold = 0.0 if rule.score is None else float(np.median(known))
        thresholds = (threshold,) * len(bundle.onboard_exits)
        taken = exits_taken(rule, observed.scores[name], thresholds)
        for scene, place in zip(images, taken):
            result = engine.segment(scene.image, name, thresholds)
            assert result.settled == (place < len(bundle.onboard_exits))
            assert len(result.outputs) == min(place + 1, len(bundle.onboard_exits))


def test_exits_taken_by_hand():
    scores = np.array([[0.1, 0.5, 0.5], [0.5, 0.1, 0.1], [0.5, 0.5, 0.1], [0.5, 0.5, 0.5]])
    assert exits_taken(CRITERIA['entropy'], scores, (0.2, 0.2, 0.2)).tolist() == [0, 1, 2, 3]
    assert exits_taken(CRITERIA['entropy'], scores, (0.2, 0.2, 0.6)).tolist() == [0, 1, 2, 2]
    assert exits_taken(CRITERIA['confidence'], scores, (0.5, 0.5, 0.5)).tolist() == [1, 0, 0, 0]
    scores[:, 0] = np.nan    # the first exit has nothing to compare itself with
    assert exits_taken(CRITERIA['region'], scores, (9, 0.2, 0.2)).tolist() == [3, 1, 2, 3]


def test_cascade_takes_each_image_from_its_own_exit(bundle):
    """Two images, of which the first settles at exit 1 (all right there), the second not (right only at the end)."""
    exits, classes = len(bundle.onboard_exits) + 1, len(bundle.classes)
    right, wrong = np.zeros((2, classes, classes + 1), np.int64)
    right[0, 0], wrong[0, 1] = 10, 10
    matrices = np.array([[right] + [wrong] * (exits - 1), [wrong] * (exits - 1) + [right]])
    scores = np.array([[0.1] + [0.9] * (exits - 2), [0.9] * (exits - 1)])
    row = cascade(bundle, Observations(matrices, {'entropy': scores}), 'entropy', (0.5,) * (exits - 1))
    costs, encode = exit_costs(bundle), bundle.graphs[bundle.split['encode']]['macs']
    assert row['miou'] == mean_iou(right) == 1 and row['onboard_miou'] == 0.5
    assert row['exit_shares'] == [0.5] + [0] * (exits - 2) + [0.5] and row['forwarded_share'] == 0.5
    assert row['mean_macs'] == (costs[0] + costs[-1]) / 2
    assert row['onboard_macs'] == (costs[0] + costs[-2] + encode) / 2


def test_limit_spreads_over_the_split(camvid):
    count, samples = samples_of('camvid', str(camvid), 'val', 2)
    shown = [image for image, _ in samples]
    assert count == len(shown) == 2
    assert np.array_equal(shown[1], StreetDrive(9).frame(40).image)
    assert samples_of('scenes', None, '4')[0] == 100
    assert samples_of('scenes', None, '4', 3)[0] == 3


@pytest.mark.parametrize('dataset, root, split, limit, says', [
    ('kitti', None, 'val', 0, "data set 'kitti' is not known: choose one of camvid, scenes"),
    ('camvid', None, 'val', 0, 'needs --root'),
    ('scenes', None, 'val', 0, 'must be the seed'),
    ('scenes', None, '0', -1, 'must not be negative'),
])
def test_wrong_data_sets_are_explained(dataset, root, split, limit, says):
    with pytest.raises(ValueError, match=says):
        samples_of(dataset, root, split, limit)


def test_tables_and_plot(found, tmp_path):
    by_exit, by_criterion = report.evaluation_tables(found)
    assert by_exit.row_count == 2 + len(found['exits'][0]['iou'])
    assert by_criterion.row_count == len(found['criteria'])
    pytest.importorskip('matplotlib', reason='matplotlib is not installed')
    report.plot_evaluation(found, tmp_path / 'plot.png')
    assert cv2.imread(str(tmp_path / 'plot.png')).shape[1] > 600
