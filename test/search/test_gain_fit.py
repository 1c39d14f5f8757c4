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
"""Fitting the criterion `gain`: targets by definition, a model that finds what was planted, scores without a peek."""
import numpy as np
import pytest
from tiny import CLASSES, EXITS, HEIGHT, WIDTH, tiny_bundle

from ee_seg_ros.evaluation.evaluate import exit_costs, observe
from ee_seg_ros.evaluation.metrics import mean_iou
from ee_seg_ros.inference.bundle import Bundle
from ee_seg_ros.inference.criteria import CRITERIA
from ee_seg_ros.inference.engine import Engine
from ee_seg_ros.search import gain
from ee_seg_ros.search.calibration import compare_criteria
from ee_seg_ros.search.cascades import threshold_levels
from ee_seg_ros.search.gain import (
    BLOCKS,
    Seen,
    altered,
    contributions,
    cross_fitted,
    fit,
    fit_linear,
    look,
    predictions,
    targets_of,
)


@pytest.fixture(scope='module')
def tiny(tmp_path_factory):
    return Bundle.load(tiny_bundle(tmp_path_factory.mktemp('bundles') / 'tiny'))


@pytest.fixture(scope='module')
def samples():
    rng = np.random.default_rng(2)
    return [(rng.integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8),
             rng.integers(0, CLASSES, (HEIGHT, WIDTH), dtype=np.uint8)) for _ in range(6)]


def test_a_contribution_is_what_the_miou_changes_by_when_one_image_moves():
    rng = np.random.default_rng(0)
    labelled = rng.integers(1, 50, (7, 1, CLASSES, CLASSES + 1)).repeat(5, 1)
    matrices = rng.permuted(labelled, axis=3)    # every exit has the same labels
    matrices[:, :, 2] = 0    # no label has this class, which is given all the same
    worth = contributions(matrices)
    for image, exit_ in ((0, 0), (3, 4), (6, 2)):
        ends = np.full(7, 2)
        before = mean_iou(matrices[np.arange(7), ends].sum(0))
        ends[image] = exit_
        after = mean_iou(matrices[np.arange(7), ends].sum(0))
        assert worth[image, exit_] - worth[image, 2] == pytest.approx(7 * 100 * (after - before), abs=1e-9)


def test_targets_are_gains_per_cost_and_cut():
    matrices = np.zeros((2, 3, 2, 3), np.int64)
    matrices[:, :, 0, 0] = matrices[:, :, 1, 1] = 10000
    matrices[0, 0, 0] = 9900, 100, 0    # the first image is better from the second exit on
    matrices[1, 0, 0] = 0, 10000, 0     # much better: this is cut
    first, second = targets_of(matrices, np.array([1e9, 1.5e9, 3e9]))
    assert first.shape == (2, 2) and second.shape == (2, 1)
    # All end at the second exit, without an error. One image with 100 errors: IoU 1 - 100 / 20000 and 1 - 100 / 20100.
    lost = 2 * 100 * (100 / 20000 + 100 / 20100) / 2
    assert first[0] == pytest.approx([lost / 0.5, lost / 2])
    assert first[1] == pytest.approx([gain.CLIP_PP / 0.5, gain.CLIP_PP / 2])
    assert not second.any()


def test_weights_find_what_was_planted_and_are_never_negative():
    rng = np.random.default_rng(3)
    features = rng.uniform(0, [1, 2, 3], (400, 3))
    targets = 5 + features @ [2.0, 0.0, 0.5] + rng.normal(0, 0.01, 400)
    bias, weights = fit_linear(features, targets, 1e-6)
    assert [bias, *weights] == pytest.approx([5, 2, 0, 0.5], abs=0.01)
    bias, weights = fit_linear(features, targets - 4 * features[:, 1], 1e-6)
    assert weights[1] == 0 and bias < 5    # what it may not say with a negative weight is in the mean
    stiff_bias, stiff = fit_linear(features, targets, 1e3)
    assert (np.abs(stiff) < 0.01).all() and stiff_bias == pytest.approx(targets.mean(), abs=0.01)
    constant = fit_linear(np.ones((9, 2)), np.arange(9.0), 1.0)    # a class that never occurs
    assert constant[0] == 4 and not constant[1].any()


def planted(count, variants=2, noise=0.0):
    """Images of which doubt about class 0 says at each exit how much worse than the last it is."""
    rng = np.random.default_rng(4)
    doubt = rng.uniform(0, 0.2, (count, variants, 1, CLASSES)) * np.array([1, 0.7, 0.4, 0.2])[:, None]
    errors = np.concatenate([doubt[..., 0], np.zeros((count, variants, 1))], -1) + rng.normal(
        0, noise, (count, variants, 5)).clip(-0.01, 0.01)
    matrices = np.zeros((count, variants, 5, CLASSES, CLASSES + 1), np.int64)
    matrices[..., 0, 1] = (1000 * errors.clip(0, 1)).round()
    matrices[..., 0, 0] = 1000 - matrices[..., 0, 1]
    matrices[..., 1, 1] = matrices[..., 2, 2] = 1000
    return Seen(matrices, doubt)


def test_the_model_stored_is_the_one_that_the_bundle_reads_and_it_ranks_images(tiny):
    seen = planted(30)
    bundle = Bundle(tiny.path, {**tiny.document})
    scores = fit(bundle, seen)
    stored = bundle.document['gain']
    assert stored['ridge'] == gain.RIDGES[0] and stored['cross_validated_error'] < 0.5    # nothing is noise here
    assert [model['later'] for model in stored['exits'].values()] == [list(EXITS[place:]) for place in range(1, 5)]
    whole = np.stack([each.max(1) for each in predictions(list(bundle.gain.values()), seen.statistics[:, 0])], 1)
    assert scores.shape == (30, 2, 4) and whole.shape == (30, 4)
    scores = scores[:, 0]
    assert np.corrcoef(scores[:, 0], seen.statistics[:, 0, 0, 0])[0, 1] > 0.9
    # Scores are per cost: the tiny bundle's cost grows eightfold from exit to exit, so the nearest exit pays most.
    costs = np.array(exit_costs(bundle)) / 1e9
    lost = seen.matrices[:, 0, :, 0, 1].mean(0)
    assert whole[:, 0].mean() * (costs[1] - costs[0]) == pytest.approx(100 / 3 * 0.0015 * (lost[0] - lost[1]), rel=0.5)
    assert scores != pytest.approx(whole, abs=1e-12)


def test_no_image_is_judged_by_a_model_that_saw_its_block(tiny):
    seen, costs = planted(20, noise=0.005), np.array(exit_costs(tiny))

    def scores(given):
        return cross_fitted(given, targets_of(given.matrices.reshape(-1, *given.matrices.shape[2:]), costs), 1.0)[0]
    before = scores(seen)
    targets = targets_of(seen.matrices.reshape(-1, *seen.matrices.shape[2:]), costs)
    block = np.arange(20 // BLOCKS)
    changed = [each.copy() for each in targets]
    for each in changed:
        each[:2 * len(block)] += 100 * np.random.default_rng(5).random((2 * len(block), 1))
    after = cross_fitted(seen, changed, 1.0)[0]
    assert np.array_equal(after[block], before[block])
    assert (np.abs(after - before)[len(block):] > 1e-6).all()


def test_copies_are_seeded_and_image_and_labels_move_together():
    labels = np.zeros((60, 80), np.uint8)
    labels[20:50, 10:30] = 1
    image = np.where(labels[..., None] > 0, 200, 50).astype(np.uint8).repeat(3, 2)
    seen = [altered(image, labels, np.random.default_rng(seed)) for seed in range(12)]
    again = altered(image, labels, np.random.default_rng(0))
    assert all(np.array_equal(*pair) for pair in zip(seen[0], again))
    assert len({changed.shape for changed, _ in seen}) > 6
    for changed, moved in seen:
        assert changed.dtype == moved.dtype == np.uint8 and changed.shape[:2] == moved.shape
        if 0 < moved.mean() < 1:
            grey = changed.mean(2)
            assert grey[moved == 1].mean() > grey[moved == 0].mean() + 30
    assert len({float(changed.mean().round()) for changed, _ in seen}) > 6


def test_what_is_fitted_is_what_the_engine_scores(tiny, samples, monkeypatch):
    monkeypatch.setattr(gain, 'COPIES', 2)
    steps, engine = [], Engine(tiny, threads=1)
    seen = look(engine, samples, steps.append)
    assert steps == [1, 2, 3, 4, 5, 6]
    assert seen.matrices.shape == (6, 3, 5, CLASSES, CLASSES + 1) and seen.statistics.shape == (6, 3, 4, CLASSES)
    assert {name: scores.shape for name, scores in seen.scores.items()} == dict.fromkeys(
        ('entropy', 'region', 'region_change', 'confidence'), (6, 3, 4))
    bundle = Bundle(tiny.path, {**tiny.document})
    fit(bundle, seen)
    observed = observe(Engine(bundle, threads=1), samples)
    assert np.array_equal(observed.matrices, seen.matrices[:, 0])
    assert np.array_equal(observed.scores['region'], seen.scores['region'][:, 0], equal_nan=True)
    expected = np.stack([each.max(1) for each in predictions(list(bundle.gain.values()), seen.statistics[:, 0])], 1)
    assert observed.scores['gain'] == pytest.approx(expected)
    assert np.isnan(observe(engine, samples[:1]).scores['gain']).all()    # the bundle without the model


def test_criteria_that_stop_pixels_are_seen_in_runs_of_their_own(tmp_path, samples, monkeypatch):
    monkeypatch.setattr(gain, 'COPIES', 1)
    engine = Engine(Bundle.load(tiny_bundle(tmp_path / 'windowed', cells=True)), threads=1)
    seen, observed = look(engine, samples), observe(engine, samples)
    assert set(seen.ends) == {'class_threshold', 'uniform'} <= set(seen.scores)
    for name, (matrices, macs) in seen.ends.items():
        assert matrices.shape == (6, 2, 5, CLASSES, CLASSES + 1) and macs.shape == (6, 2, 5)
        np.testing.assert_array_equal(matrices[:, 0], observed.ends[name].matrices)
        np.testing.assert_array_equal(macs[:, 0], observed.ends[name].macs)
        np.testing.assert_array_equal(seen.scores[name][:, 0], observed.scores[name])
    stored = engine.bundle.document['criteria']
    stored |= {name: dict(stored.get(name, {})) for name in (*seen.scores, 'gain')}
    compare_criteria(engine.bundle, seen, np.zeros((6, 2, 4)))
    assert all(stored[name]['cross_validated']['points'] for name in seen.scores)


def test_no_images_are_refused(tiny):
    with pytest.raises(ValueError, match='no images to fit'):
        look(Engine(tiny, threads=1), [])


def test_a_single_image_can_be_fitted(tiny):
    assert np.isfinite(fit(Bundle(tiny.path, {**tiny.document}), planted(1))).all()


def test_all_exits_share_one_threshold():
    scores = np.random.default_rng(6).normal(size=(40, 4))
    levels = threshold_levels(CRITERIA['gain'], scores, 2)
    assert (levels == levels[:, :1]).all() and 100 < len(levels) <= 200
    assert (levels[0] <= scores.min()).all() and (levels[-1] > scores.max()).all()
    assert (np.diff(levels[:, 0]) > 0).all()    # those that settle least first
