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
"""Class limits by the paper's formula, statistics of hand-made outputs, and choices that keep their promises."""
import json
from types import SimpleNamespace

import numpy as np
import pytest
from tiny import CHANNELS, CLASSES, EXITS, HEIGHT, LEVELS, WIDTH, mixed_image, tiny_bundle

from ee_seg_ros.data import datasets
from ee_seg_ros.inference.bundle import OPERATING_POINTS, Bundle, BundleError
from ee_seg_ros.inference.engine import Engine
from ee_seg_ros.inference.frame import Placement
from ee_seg_ros.search import calibration, gain
from ee_seg_ros.search import pixels as fitting
from ee_seg_ros.search.calibration import calibrate, copy_calibration
from ee_seg_ros.search.pixels import UNIFORM, ClassStatistics, class_limits, class_statistics, fit_pixels

# Means over two exits: rows (0.8, 0.2, 0), (0.3, 0.5, 0.2), (0.4, 0.2, 0.4), whose margins are 0.6, 0.2 and 0.
PROBABILITIES = np.array([[[0.9, 0.1, 0.0], [0.2, 0.6, 0.2], [0.5, 0.1, 0.4]],
                          [[0.7, 0.3, 0.0], [0.4, 0.4, 0.2], [0.3, 0.3, 0.4]]])


def test_class_limits_by_hand():
    """The class told best gets the easiest limit, the one told worst the hardest; a margin of a third lies between."""
    limits = class_limits(PROBABILITIES, 0.9, 0.99)
    np.testing.assert_allclose(limits, [0.9, 0.9 + 0.09 * 2 / 3, 0.99])
    np.testing.assert_allclose(class_limits(PROBABILITIES, 0.5, 0.5), [0.5] * 3)


def test_classes_that_are_told_alike_all_get_the_hardest_limit():
    np.testing.assert_allclose(class_limits(np.stack([np.eye(3)] * 2), 0.7, 0.998), [0.998] * 3)


def test_rare_classes_weigh_more_and_the_mean_pixel_weighs_1():
    weights = fitting.class_weights(np.array([0.64, 0.32, 0.04, 0.0]))
    np.testing.assert_allclose(weights / weights[0], [1, 2 ** 0.5, 4, 4])    # one that never occurs as the rarest
    assert weights @ [0.64, 0.32, 0.04, 0] == pytest.approx(1)


def grid_of(*rows):
    """Probabilities (3, 2, 3) from one (p0, p1, p2) per cell."""
    return np.array(rows).transpose(2, 0, 1)


A, B, C = (0.6, 0.3, 0.1), (0.2, 0.5, 0.3), (0.1, 0.1, 0.8)
LATER = np.full((3, 2, 3), 1 / 3)


class Played:
    """An engine over 24x16 pixels whose exits and features are given."""

    def __init__(self, first, feature, placement, split=True):
        tensor = {'shape': [1, 2, 2, 3]}
        self.bundle = SimpleNamespace(
            classes=[None] * 3, exits=[None] * 2, height=16, width=24, split={'after': 'stage1'} if split else None,
            tensors={'code': tensor}, feature_tensors=('code',) if split else (),
            document={'codec': {'levels': 16} if split else None})
        rows = placement.content_height // 8
        outputs = [SimpleNamespace(grid_probabilities=grid[:, :rows], grid_logits=grid[:, :rows])
                   for grid in (first, LATER)]
        own, rest = (outputs[:1], outputs[1:]) if split else (outputs, [])
        self.segment = lambda image, criterion: SimpleNamespace(outputs=own, placement=placement)
        self.encode = lambda result: {'code': feature}
        self.finish = lambda features, placement: SimpleNamespace(outputs=rest)


def labels_of(*cells):
    return np.kron(np.array(cells, np.uint8), np.ones((8, 8), np.uint8))


FIRST = grid_of([A, A, B], [C, B, A])
FEATURE = np.array([[[[1, 3, 5], [7, 9, 11]], [[0, 0, 2], [4, 15, 15]]]], np.uint8)
WHOLE = Placement(24, 16, 24, 16)


def test_statistics_are_means_over_the_pixels_of_each_class():
    found = class_statistics(Played(FIRST, FEATURE, WHOLE), [(None, labels_of([0, 0, 1], [1, 255, 0]))])
    np.testing.assert_allclose(found.probabilities[0, 0], A)    # cells A, A, A
    np.testing.assert_allclose(found.probabilities[0, 1], np.mean([B, C], 0))
    np.testing.assert_allclose(found.probabilities[0, 2], [1 / 3] * 3)    # no pixel of this class
    np.testing.assert_allclose(found.probabilities[1], 1 / 3)
    # Levels 1, 3, 11 and 5, 7; the unlabelled cell has no say, and the absent class has the middle of 16 levels.
    assert found.means['code'].tolist() == [[5, 5], [6, 3], [8, 8]] and found.means['code'].dtype == np.uint8


def test_statistics_look_at_the_images_content_only_and_add_up_over_images():
    """The lower half of the input is padding: nothing of it counts. Seen twice, means stay as they are."""
    half = Placement(24, 8, 24, 8)
    reports = []
    found = class_statistics(Played(FIRST, FEATURE, half), [(None, labels_of([0, 0, 1]))] * 2, reports.append)
    np.testing.assert_allclose(found.probabilities[0], [A, B, [1 / 3] * 3])
    np.testing.assert_allclose(found.shares, [2 / 3, 1 / 3, 0])
    assert found.means['code'].tolist() == [[2, 0], [5, 2], [8, 8]] and reports == [1, 2]


def test_statistics_without_a_split_have_no_features():
    found = class_statistics(Played(FIRST, FEATURE, WHOLE, split=False), [(None, labels_of([0, 0, 1], [1, 255, 0]))])
    assert found.means == {} and found.probabilities.shape == (2, 3, 3)
    np.testing.assert_allclose(found.probabilities[0, 0], A)


@pytest.fixture(autouse=True)
def tried(monkeypatch):
    """Fewer settings than the shipped ones, whatever these are."""
    monkeypatch.setattr(fitting, 'ALLOWED_LOSS', (0.004, 0.002))
    monkeypatch.setattr(fitting, 'EASIEST', (0.8, 0.9, 0.95, 0.99))
    monkeypatch.setattr(fitting, 'WORTH', ((0.0, 0.0), (0.0, 0.1), (0.0, 0.2)))
    monkeypatch.setattr(fitting, 'SEND', tuple(
        (limit, limit, margin, worth) for worth in (0.0, 0.3) for margin in (0, 1) for limit in (0.8, 0.9, 0.95)))


def fit(monkeypatch, outcome, split=True, document=None):
    """What `fit_pixels` stores if `outcome`(criterion, limit, worth, send, margin, send worth) is (mIoU, cost, bytes).

    worth: that of the server's stages; of the uniform rule there is none.
    """
    bundle = SimpleNamespace(classes=[None] * 3, document={}, split={'after': 'stage2'} if split else None,
                             judged_exits=[SimpleNamespace(name=f'exit{number}', onboard=number < 3 or not split)
                                           for number in range(1, 5)])
    asked = []

    def measure(engine, samples, criterion, limits=None):
        pixels = bundle.document['pixels']
        if document is not None:
            document.update(pixels)
        asked.append((criterion, None if limits is None else float(limits[0]),
                      pixels['worth'].get('class_threshold', [0, 0])[1], pixels['send'][0], pixels['send_margin'],
                      pixels['send_worth']))
        return outcome(*asked[-1])
    monkeypatch.setattr(fitting, '_measure', measure)
    reports = []
    statistics = ClassStatistics(PROBABILITIES, {}, np.full(3, 1 / 3))
    found = fit_pixels(SimpleNamespace(bundle=bundle), statistics, [], reports.append)
    assert bundle.document['pixels'] is found and reports == list(range(1, fitting.steps(bundle) + 1))
    return found, asked


def losing(per_limit, per_worth, per_cell, per_send_worth=1.0):
    """mIoU falls with lower limits and what more has to be worth it, from 0.7; so do the costs."""
    def outcome(criterion, limit, worth, send, margin, send_worth):
        if criterion == 'never':
            lost = per_cell * (1 - min(1, send)) / (1 + margin) + per_send_worth * send_worth
            return 0.7 - lost, 9.0, 1000 * min(1, send) + 40 * margin - 100 * send_worth
        limit = UNIFORM if limit is None else limit
        return 0.7 - per_limit * (UNIFORM - limit) - per_worth * worth, 10 * limit - worth, 500.0
    return outcome


@pytest.mark.parametrize('per_limit, per_worth, easiest, worth', [
    (0.0, 0.0, 0.8, 0.2),       # nothing is lost: the cheapest
    (0.03, 0.0, 0.9, 0.2),      # 0.0059 lost at 0.8, 0.0029 at 0.9
    (0.0, 0.03, 0.8, 0.1),      # 0.006 lost at a worth of 0.2
    (0.02, 0.02, 0.8, 0.0),     # 0.00396 lost there: no room for a worth
    (9.0, 9.0, 0.99, 0.0)])     # each loses more: the one that loses least
def test_class_limits_are_the_cheapest_within_the_allowance(monkeypatch, per_limit, per_worth, easiest, worth):
    found, _ = fit(monkeypatch, losing(per_limit, per_worth, 0.0))
    assert found['fit']['class_threshold']['easiest'] == easiest and found['worth'] == {'class_threshold': [0.0, worth]}
    assert found['limits']['uniform'] == [UNIFORM] * 3
    np.testing.assert_allclose(found['limits']['class_threshold'], class_limits(PROBABILITIES, easiest, UNIFORM),
                               atol=1e-6)
    kept = found['fit']['class_threshold']['miou'] >= found['fit']['uniform']['miou'] - fitting.ALLOWED_LOSS[0]
    assert kept == (per_limit < 1)


@pytest.mark.parametrize('per_cell, send, margin', [(0.0, 0.8, 0), (0.015, 0.8, 1), (0.03, 0.9, 1), (9.0, 2.0, 0)])
def test_as_few_cells_are_sent_as_the_allowance_lets(monkeypatch, per_cell, send, margin):
    """At 0.015 a limit of 0.8 loses 0.003, with a margin 0.0015; where each loses too much, all cells are sent."""
    found, _ = fit(monkeypatch, losing(0.0, 0.0, per_cell))
    assert (found['send'], found['send_margin'], found['send_worth']) == ([send] * 3, margin, 0.0)
    assert found['fit']['all_cells']['bytes'] == 1000
    assert found['fit']['cells']['easiest'] == send and found['fit']['cells']['margin'] == margin
    assert found['fit']['cells']['miou'] >= found['fit']['all_cells']['miou'] - fitting.ALLOWED_LOSS[1]


def test_cells_that_are_not_worth_it_stay_where_that_loses_little(monkeypatch):
    found, _ = fit(monkeypatch, losing(0.0, 0.0, 0.0, 0.001))
    assert (found['send'], found['send_margin'], found['send_worth']) == ([0.8] * 3, 0, 0.3)
    assert found['fit']['cells']['worth'] == 0.3 and found['fit']['cells']['bytes'] == 770


def test_what_is_tried_is_what_would_be_stored(monkeypatch):
    """Cells are measured with the worth that was chosen; ADP-C's limit without any, in all that has not stopped."""
    _, asked = fit(monkeypatch, losing(0.0, 0.03, 0.0))
    assert asked[0] == ('uniform', None, 0, 1.0, 0, 0.0)
    assert {entry[2] for entry in asked if entry[0] == 'never'} == {0.1}
    assert len({entry[:3] for entry in asked if entry[0] == 'class_threshold'}) == 12


@pytest.mark.parametrize('lost, chosen', [(0.0039, ['exit2', 'exit3', 'exit4']),
                                          (0.0041, ['exit1', 'exit2', 'exit3', 'exit4'])])
def test_exits_before_the_last_one_onboard_are_passed_by_where_that_loses_little(monkeypatch, lost, chosen):
    def outcome(criterion, *_):
        passing_by = len(fitting_document['exits']) == 3
        return 0.7 - lost * passing_by, 9.0 - passing_by, 100.0
    fitting_document = {}
    monkeypatch.setattr(fitting, 'class_limits', lambda *_: np.full(3, 0.9))
    found, _ = fit(monkeypatch, outcome, document=fitting_document)
    assert found['exits'] == chosen
    assert found['fit']['uniform'] == {'miou': 0.7 - lost * (len(chosen) == 3), 'mean_macs': 9.0 - (len(chosen) == 3)}


def test_without_a_split_there_are_no_cells_to_choose(monkeypatch):
    found, asked = fit(monkeypatch, losing(0.0, 0.0, 9.0), split=False)
    assert 'all_cells' not in found['fit'] and all(entry[0] != 'never' for entry in asked)


class Drawn:
    """A data set in the classes of the tiny bundles: each quarter of a class of its own."""

    class_names = tuple(f'class{number}' for number in range(CLASSES))

    def __init__(self, root, split):
        self._split = int(split)

    def __len__(self):
        return 4

    def __getitem__(self, index):
        rng = np.random.default_rng([self._split, index])
        labels = np.kron(rng.integers(0, CLASSES, (2, 2)), np.ones((HEIGHT // 2, WIDTH // 2))).astype(np.uint8)
        return mixed_image(10 * self._split + index), labels


@pytest.fixture
def drawn(monkeypatch):
    monkeypatch.setitem(datasets.FOLDERS, 'drawn', Drawn)
    monkeypatch.setattr(datasets, 'DATASETS', (*datasets.DATASETS, 'drawn'))
    monkeypatch.setattr(gain, 'COPIES', 1)
    monkeypatch.setattr(calibration, 'RESAMPLES', 20)


def without_pixels(folder, cells=True):
    """A tiny bundle as it is exported: it can run in windows, but nothing says yet which pixels are settled."""
    path = tiny_bundle(folder, cells=cells)
    document = json.loads((path / 'bundle.json').read_text())
    for name in ('class_threshold', 'uniform'):
        document['criteria'].pop(name, None)
    document.pop('pixels', None)
    document['codec'].pop('class_means', None)
    (path / 'bundle.json').write_text(json.dumps(document))
    return str(path)


def test_calibration_with_statistics_adds_what_single_pixels_need(tmp_path, drawn):
    pytest.importorskip('torch', reason='torch is not installed (make train-env)')
    pytest.importorskip('ee_seg_ros.models.torchvision_compat')    # torchmetrics imports torchvision
    pytest.importorskip('torchmetrics', reason='torchmetrics is not installed (make train-env)')
    measured, fixed = (without_pixels(tmp_path / name, name == 'measured') for name in ('measured', 'fixed'))
    calibrate(measured, 'drawn', '.', '1', threads=1, statistics='2')
    with pytest.raises(BundleError, match='has no cells, which single pixels need'):
        calibrate(fixed, 'drawn', '.', '1', 2, threads=1, statistics='2')
    calibrate(fixed, 'drawn', '.', '1', 2, threads=1)
    bundle = Bundle.load(fixed)
    assert not {'class_threshold', 'uniform'} & set(bundle.criteria) and not bundle.forwards_cells
    assert 'pixels' not in bundle.document and 'calibration' in bundle.document
    bundle = Bundle.load(measured)
    assert {'class_threshold', 'uniform', 'gain', 'entropy'} < set(bundle.criteria) and bundle.forwards_cells
    assert bundle.document['calibration']['bundle_fingerprint'] == bundle.fingerprint
    for name in ('class_threshold', 'uniform'):
        entry = bundle.document['criteria'][name]
        assert entry['direction'] == 'above' and entry['curve']
        for point in OPERATING_POINTS:
            assert len(bundle.thresholds(name, point)) == len(EXITS) - 1
            assert Engine(bundle, threads=1).segment(mixed_image(), name, bundle.thresholds(name, point)).outputs
    means = class_statistics(Engine(bundle, threads=1), [Drawn('.', '2')[index] for index in range(4)]).means['code']
    assert bundle.class_means['code'].tolist() == means.tolist() and means.shape == (CLASSES, CHANNELS)
    assert means.max() < LEVELS and len(np.unique(means, axis=0)) == CLASSES
    assert 0.7 <= bundle.limits['class_threshold'].min() <= bundle.limits['class_threshold'].max() <= UNIFORM + 1e-6
    assert len(set(bundle.send_limits.tolist())) == 1

    # A twin's limits and thresholds serve another bundle; mean features are its own, of what it was trained on.
    copied = without_pixels(tmp_path / 'copied')
    copy_calibration(measured, copied, 'drawn', '.', '3', 1)
    twin = Bundle.load(copied)
    assert twin.document['pixels'] == bundle.document['pixels'] and twin.forwards_cells
    assert twin.thresholds('uniform', 'fast') == bundle.thresholds('uniform', 'fast')
    own = class_statistics(Engine(twin, threads=1), [Drawn('.', '3')[index] for index in range(4)]).means['code']
    assert twin.class_means['code'].tolist() == own.tolist() != means.tolist()
