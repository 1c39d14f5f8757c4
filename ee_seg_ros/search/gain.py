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
"""Fits the model of the exit criterion `gain` on labelled images that the bundle was not trained on."""
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import cv2
import numpy as np

from ee_seg_ros.evaluation.evaluate import exit_costs, frame_ends, frame_scores, to_the_end
from ee_seg_ros.evaluation.metrics import confusion
from ee_seg_ros.inference.bundle import Bundle
from ee_seg_ros.inference.criteria import CRITERIA
from ee_seg_ros.inference.engine import Engine
from ee_seg_ros.inference.gain import statistics

COPIES = 8          # altered copies of each image; without them the model knows one drive at one time of day only
BLOCKS = 5          # of consecutive frames, for cross-validation: neighbours show the same
RIDGES = (0.1, 0.3, 1.0, 3.0, 10.0)
CLIP_PP = 6.0       # targets beyond are cut: one rare object can decide about 100 pp, and little follows for others
_ROUNDS = 100       # of coordinate descent
_UNIT = 1e9         # multiply-accumulates


@dataclass(frozen=True)
class Seen:
    """What all exits gave on n images in v variants, the first of which is the image as it is.

    matrices: int64 (n, v, exits, classes, classes + 1), see `metrics.confusion`. statistics: float64 (n, v, exits - 1,
    classes), see `inference.gain.statistics`. scores: criterion -> float64 (n, v, exits - 1), of those that need no
    model, NaN where they give none. ends: criterion by which single pixels stop -> (matrices as above, float64 (n, v,
    exits) multiply-accumulates), as of `evaluate.Ends`.
    """

    matrices: np.ndarray
    statistics: np.ndarray
    scores: dict = field(default_factory=dict)
    ends: dict = field(default_factory=dict)


def altered(image: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> tuple:
    """(image, labels) as another camera might have seen it: mirrored, zoomed in by 1 to 2, other light, noise or blur.

    image: uint8 (H, W, 3). labels: uint8 (H, W). The result is smaller where it is zoomed in.
    """
    if rng.random() < 0.5:
        image, labels = image[:, ::-1], labels[:, ::-1]
    share = 2 ** -rng.random()
    height, width = (round(size * share) for size in labels.shape)
    top, left = (int(rng.integers(room + 1)) for room in (labels.shape[0] - height, labels.shape[1] - width))
    image, labels = (array[top:top + height, left:left + width] for array in (image, labels))
    gamma, balance = 2 ** rng.uniform(-1, 1), 2 ** rng.uniform(-0.3, 0.3, 3)
    changed = 255 * (image / 255) ** gamma * balance
    kind = rng.integers(3)
    if kind == 1:
        changed += rng.normal(0, 18, changed.shape)
    elif kind == 2:
        changed = cv2.GaussianBlur(changed, (0, 0), width / 300)
    return np.ascontiguousarray(changed.clip(0, 255).astype(np.uint8)), np.ascontiguousarray(labels)


def look(engine: Engine, samples: Iterable, report: Callable[[int], None] = lambda done: None) -> Seen:
    """Run every (image, labels), and altered copies of it, through all exits of an engine (part 'all').

    As in a run, cells that are settled are not forwarded, unless that leaves nothing to look at behind the split.
    Raises ValueError if there is no image.
    """
    rng, bundle = np.random.default_rng(0), engine.bundle
    matrices, found, scores = [], [], {rule.name: [] for rule in CRITERIA.values() if rule.score and not rule.needs}
    ends = {name: [] for name in bundle.limits}
    for sample in samples:
        for image, labels in [sample, *(altered(*sample, rng) for _ in range(COPIES))]:
            frame = to_the_end(engine, image)
            if len(frame.outputs) < len(bundle.exits):
                frame = to_the_end(engine, image, partial=False)
            outputs, (height, width) = frame.outputs, labels.shape
            matrices.append([confusion(labels, frame.mask(width, height, output), len(bundle.classes))
                             for output in outputs])
            found.append([statistics(output) for output in outputs[:-1]])
            for name, rows in scores.items():
                if name not in ends:
                    rows.append(frame_scores(CRITERIA[name], bundle, frame))
            for name, rows in ends.items():
                stopping = to_the_end(engine, image, name)
                rows.append(frame_ends(bundle, stopping, labels))
                scores.setdefault(name, []).append(frame_scores(CRITERIA[name], bundle, stopping))
        report(len(matrices) // (1 + COPIES))
    if not matrices:
        raise ValueError('there are no images to fit the criterion gain on: check the data set and its split')

    def by_image(values):
        return np.array(values).reshape(-1, 1 + COPIES, *np.shape(values)[1:])
    return Seen(by_image(matrices), by_image(found), {name: by_image(rows) for name, rows in scores.items()},
                {name: tuple(by_image(part) for part in zip(*rows)) for name, rows in ends.items()})


def contributions(matrices: np.ndarray) -> np.ndarray:
    """float64 (n, exits): what an image adds to the mIoU, in pp, if it ends at each exit, up to a constant per image.

    All other images end at an exit in the middle, for what one image is worth depends on where they end. It is
    the change of mIoU if this image alone moves, times the number of images. matrices: int64 (n, exits, classes,
    classes + 1).
    """
    square, labelled = matrices[..., :-1], matrices[:, 0].sum((0, 2))
    hits, given = np.diagonal(square, axis1=2, axis2=3).astype(np.float64), square.sum(2).astype(np.float64)
    base, known = (matrices.shape[1] - 1) // 2, labelled > 0
    hits_all, given_all = (part[:, base].sum(0) - part[:, [base]] + part for part in (hits, given))
    union = np.maximum(labelled + given_all - hits_all, 1)
    return 100 * len(matrices) * (hits_all / union)[..., known].mean(-1)


def targets_of(matrices: np.ndarray, costs: np.ndarray) -> list:
    """[float64 (n, m) for each judged exit]: what each of its m later exits adds, in pp of mIoU per 1e9 operations.

    matrices: int64 (n, exits, classes, classes + 1). costs: (exits,), multiply-accumulates of stopping at each exit.
    The gains of single images are cut at `CLIP_PP`.
    """
    worth = contributions(matrices)
    return [np.clip(worth[:, index + 1:] - worth[:, [index]], -CLIP_PP, CLIP_PP)
            / ((costs[index + 1:] - costs[index]) / _UNIT) for index in range(len(costs) - 1)]


def fit_linear(features: np.ndarray, targets: np.ndarray, ridge: float) -> tuple:
    """(bias, weights (f,)) of a ridge regression on standardised features whose weights are not negative.

    Doubt about a class can only be a reason to go on: this keeps chance, and the peculiarities of one drive, out of
    the model. features: (n, f). targets: (n,). Minimises |y - Xw|^2 / n + ridge |w|^2 by coordinate descent.
    """
    means, spread = features.mean(0), features.std(0) + 1e-9
    scaled = (features - means) / spread
    gram = scaled.T @ scaled / len(scaled) + ridge * np.eye(features.shape[1])
    wanted, weights = scaled.T @ (targets - targets.mean()) / len(scaled), np.zeros(features.shape[1])
    for _ in range(_ROUNDS):
        for place in range(len(weights)):
            weights[place] = max(0.0, weights[place] + (wanted[place] - gram[place] @ weights) / gram[place, place])
    weights /= spread
    return float(targets.mean() - weights @ means), weights


def fit_model(found: np.ndarray, targets: list, ridge: float) -> list:
    """[(bias (m,), weights (m, classes)) for each judged exit], as of `Bundle.gain`.

    found: float64 (n, judged, classes), statistics. targets: as of `targets_of`.
    """
    model = []
    for index, wanted in enumerate(targets):
        fitted = [fit_linear(found[:, index], each, ridge) for each in wanted.T]
        model.append(tuple(np.array(part) for part in zip(*fitted)))
    return model


def predictions(model: list, found: np.ndarray) -> list:
    """[float64 (n, m) for each judged exit]: expected gains of its m later exits; found: as of `fit_model`."""
    return [bias + found[:, index] @ weights.T for index, (bias, weights) in enumerate(model)]


def cross_fitted(seen: Seen, targets: list, ridge: float) -> tuple:
    """(scores float64 (n, v, judged), error): each image in each variant, by a model that saw nothing of its block.

    targets: as of `targets_of`, of all variants in one axis. error: mean squared error of the predictions for all
    variants of the blocks left out, as a share of the targets' variance.
    """
    count, variants, judged, classes = seen.statistics.shape
    found, place = seen.statistics.reshape(-1, judged, classes), np.repeat(np.arange(count), variants)
    scores, errors = np.empty((count, variants, judged)), []
    for block in np.array_split(np.arange(count), min(BLOCKS, count)):
        left_out = np.isin(place, block)
        kept = ~left_out if len(block) < count else left_out    # of a single image there is no other
        model = fit_model(found[kept], [wanted[kept] for wanted in targets], ridge)
        expected = predictions(model, found[left_out])
        scores[block] = np.stack([each.max(1) for each in expected], 1).reshape(len(block), variants, judged)
        errors += [((each - wanted[left_out]) ** 2 / (wanted.var(0) + 1e-9)).mean(1)
                   for each, wanted in zip(expected, targets)]
    return scores, float(np.concatenate(errors).mean())


def fit(bundle: Bundle, seen: Seen) -> np.ndarray:
    """Store a model in `bundle.document`; returns cross-fitted scores, float64 (n, v, judged), of all variants.

    Thresholds belong on these: on images that it was fitted on, a model promises more than it keeps. The ridge is
    the one of the least error in cross-validation.
    """
    found = seen.statistics.reshape(-1, *seen.statistics.shape[2:])
    targets = targets_of(seen.matrices.reshape(-1, *seen.matrices.shape[2:]), np.array(exit_costs(bundle)))
    tried = {ridge: cross_fitted(seen, targets, ridge) for ridge in RIDGES}
    ridge = min(tried, key=lambda each: tried[each][1])
    names = [exit_.name for exit_ in bundle.exits]
    bundle.document['gain'] = {
        'ridge': ridge, 'cross_validated_error': tried[ridge][1], 'exits': {
            name: {'later': names[index + 1:], 'bias': bias.round(6).tolist(), 'weights': weights.round(6).tolist()}
            for index, (name, (bias, weights)) in enumerate(zip(names, fit_model(found, targets, ridge)))}}
    return tried[ridge][0]
