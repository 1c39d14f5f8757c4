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
"""Temperatures, curves and operating points of a bundle, measured on images that the bundle was not trained on."""
import json
from collections.abc import Callable, Iterable

import numpy as np

from ee_seg_ros.data.datasets import samples_of
from ee_seg_ros.evaluation.evaluate import Ends, Observations, cascade, exit_costs, exits_taken, observe, to_the_end
from ee_seg_ros.evaluation.metrics import confusion, mean_iou
from ee_seg_ros.inference.bundle import Bundle, BundleError
from ee_seg_ros.inference.criteria import CRITERIA
from ee_seg_ros.inference.engine import Engine
from ee_seg_ros.search.cascades import threshold_levels
from ee_seg_ros.search.gain import Seen, look
from ee_seg_ros.search.gain import fit as fit_gain
from ee_seg_ros.search.pixels import ClassStatistics, class_statistics, fit_pixels
from ee_seg_ros.search.pixels import steps as fit_steps

# Most mIoU that an operating point may lose against the final output alone.
ALLOWED_LOSS = {'fast': 0.02, 'balanced': 0.01, 'accurate': 0.005}
RESAMPLES, SURE, CURVE_STEPS = 400, 0.9, 40
STATED = ('thresholds', 'miou', 'mean_macs', 'loss_bound', 'onboard_miou', 'forwarded_share')    # of operating points
BLOCKS = 5    # of consecutive frames, for cross-validation: neighbours show the same
LOSSES = tuple(step / 400 for step in range(-2, 21))    # mIoU given up, of the points of a cross-validated curve


def _resampled_mious(matrices, weights):
    """mIoU of each resample; weights (resamples, n) say how often each has each of the (n, ...) matrices."""
    sums = np.tensordot(weights, matrices, 1)
    return np.array([mean_iou(total) for total in sums])


def loss_bound(stopped: np.ndarray, whole: np.ndarray, weights: np.ndarray) -> float:
    """mIoU (0..1) that is lost against the whole network at most, in `SURE` of the resamples of the images.

    A few dozen images say little about the next thousand: what loses nothing on them by chance shall not pass.
    stopped: (n, classes, classes + 1) confusion of each image where it ends. whole: (resamples,) mIoU of the whole
    network. weights: (resamples, n), how often each resample has each image (bootstrap; Efron, Annals of Statistics
    1979).
    """
    return float(np.nanquantile(whole - _resampled_mious(stopped, weights), SURE))


def levels(bundle: Bundle, observed: Observations, criterion: str) -> list:
    """What a criterion gives at each of `cascades.threshold_levels`.

    A list of dicts {thresholds, miou, mean_macs, onboard_miou, onboard_macs, exit_shares, forwarded_share, ...}
    (`evaluation.cascade`), and loss_bound (see there).
    """
    rule, scores = CRITERIA[criterion], observed.scores[criterion]
    onboard, count = sum(exit_.onboard for exit_ in bundle.judged_exits), len(scores)
    weights = np.random.default_rng(0).multinomial(count, [1 / count] * count, RESAMPLES)
    whole = _resampled_mious(observed.matrices[:, -1], weights)
    found, bounds = [], {}
    for level in threshold_levels(rule, scores, onboard):
        taken = exits_taken(rule, scores, level)
        if (key := taken.tobytes()) not in bounds:
            bounds[key] = loss_bound(observed.matrices_of(criterion, taken), whole, weights)
        found.append({'thresholds': list(map(float, level)), 'loss_bound': bounds[key],
                      **cascade(bundle, observed, criterion, level)})
    return found


def curve(points: list) -> list:
    """Of `levels` the best mIoU at each of `CURVE_STEPS` steps of mean multiply-accumulates, from dear to cheap.

    Not only the Pareto front: where a cheap point does better than all dearer ones on these few images, those may still
    be what others need.
    """
    costs, mious = (np.array([point[key] for point in points]) for key in ('mean_macs', 'miou'))
    steps = np.round((costs - costs.min()) / max(np.ptp(costs), 1.0) * (CURVE_STEPS - 1))
    best = [min(np.flatnonzero(steps == step), key=lambda index: (-mious[index], costs[index]))
            for step in np.unique(steps)[::-1]]
    return [points[index] for index in best]


def promise(bundle: Bundle, observed: Observations, criterion: str, thresholds: list) -> float:
    """The mIoU (0..1) that nine of ten frames settled onboard reach: the 10th percentile over these images.

    Where none settles, of the masks that leave at the last onboard exit.
    """
    taken = exits_taken(CRITERIA[criterion], observed.scores[criterion], thresholds)
    settled = observed.matrices_of(criterion, taken)[taken < sum(exit_.onboard for exit_ in bundle.judged_exits)]
    if not len(settled):
        settled = observed.matrices[:, sum(exit_.onboard for exit_ in bundle.exits) - 1]
    return float(np.nanquantile([mean_iou(matrix) for matrix in settled], 1 - SURE))


def state_promises(bundle: Bundle, observed: Observations) -> None:
    """Write its promise, as seen on clean images, into every operating point of a bundle."""
    for criterion, entry in bundle.document['criteria'].items():
        for point in entry['operating_points'].values():
            point['promise'] = promise(bundle, observed, criterion, point['thresholds'])


def operating_points(points: list) -> dict:
    """For each operating point the cheapest of `levels` whose `loss_bound` is not above its allowance.

    Where there is none, the one of the lowest bound; the cheapest of several that are equal.
    """
    chosen = {}
    for name, loss in ALLOWED_LOSS.items():
        able = [point for point in points if point['loss_bound'] <= loss]
        best = min(able, key=lambda point: point['mean_macs']) if able else min(
            points, key=lambda point: (point['loss_bound'], point['mean_macs']))
        chosen[name] = {key: best[key] for key in STATED}
    return chosen


def cross_validated(bundle: Bundle, observed: Observations, criterion: str, variants: int = 1) -> dict:
    """A criterion's curve as it might be on other images: {full_miou, full_macs, points: [{loss, miou, mean_macs}]}.

    Each block of consecutive frames ends where thresholds say that were chosen on the other blocks: the cheapest of
    `cascades.threshold_levels` that lose at most `loss` of mIoU (0..1) there against the whole network, or those that
    lose least. On the frames that it was chosen on, a curve of several thresholds flatters itself more than one of a
    single threshold; so criteria are to be compared by this. variants: rows of `observed` that show the same frame, one
    after the other. full_miou, full_macs: of the whole network, on all rows.
    """
    rule, scores = CRITERIA[criterion], observed.scores[criterion]
    count, onboard = len(scores), sum(exit_.onboard for exit_ in bundle.judged_exits)
    frames = np.array_split(np.arange(count // variants), min(BLOCKS, count // variants))
    starts = [int(block[0]) * variants for block in frames]
    images, cost = np.arange(count), observed.macs_of(bundle, criterion)
    ends = np.unique([exits_taken(rule, scores, level)
                      for level in threshold_levels(rule, scores, onboard)], axis=0)
    matrices = np.stack([np.add.reduceat(observed.matrices_of(criterion, taken), starts) for taken in ends])
    macs = np.stack([np.add.reduceat(cost[images, taken], starts) for taken in ends])
    whole = np.add.reduceat(observed.matrices[:, -1], starts)
    chosen = np.empty((len(LOSSES), len(frames)), int)
    for place in range(len(frames)):
        rest = np.arange(len(frames)) != place if len(frames) > 1 else [True]
        mious = np.array([mean_iou(total) for total in matrices[:, rest].sum(1)])
        costs, full = macs[:, rest].sum(1), mean_iou(whole[rest].sum(0))
        for index, loss in enumerate(LOSSES):
            able = np.flatnonzero(mious >= min(full - loss, mious.max()))
            chosen[index, place] = able[costs[able].argmin()]
    blocks = np.arange(len(frames))
    return {'full_miou': mean_iou(whole.sum(0)), 'full_macs': exit_costs(bundle)[-1], 'points': [
        {'loss': loss, 'miou': mean_iou(matrices[each, blocks].sum(0)),
         'mean_macs': float(macs[each, blocks].sum() / count)} for loss, each in zip(LOSSES, chosen)]}


def compare_criteria(bundle: Bundle, seen: Seen, gain_scores: np.ndarray) -> None:
    """Store cross-validated curves of the criteria, by which one is chosen as the best.

    They are of the images and their altered copies (`search.gain`): a few dozen frames of one drive alone hardly tell
    one criterion from another. gain_scores: float64 (n, variants, judged), cross-fitted.
    """
    count, variants, judged = gain_scores.shape
    scores = {name: values.reshape(-1, judged) for name, values in {**seen.scores, 'gain': gain_scores}.items()}

    def flat(values):
        return values.reshape(-1, *values.shape[2:])
    ends = {name: Ends(*map(flat, each), np.zeros(count * variants, int)) for name, each in seen.ends.items()}
    observed = Observations(flat(seen.matrices), scores, ends)
    for name in scores:
        bundle.document['criteria'][name]['cross_validated'] = cross_validated(bundle, observed, name, variants)


def write_document(bundle: Bundle) -> None:
    """Write the bundle's changed `document` back to its bundle.json."""
    (bundle.path / 'bundle.json').write_text(json.dumps(bundle.document, indent=1) + '\n', encoding='utf-8')


def choose_averaged(bundle: Bundle, samples: Iterable, threads: int) -> Bundle:
    """The same bundle, with each exit behind the first one of the server averaged where that is better on samples.

    samples: (image, labels). Better by the mIoU of the mean over the server's heads so far; an exit is averaged
    only if all before it are; nothing is written yet.
    """
    entries, places = bundle.document['exits'], range(len(bundle.onboard_exits) + 1, len(bundle.exits))
    engines = []
    for averaged in (False, True):
        document = {**bundle.document, 'exits': [{**entry, 'averaged': averaged and place in places}
                                                 for place, entry in enumerate(entries)]}
        engines.append(Engine(Bundle(bundle.path, document), threads=threads))
    totals = np.zeros((2, len(entries), len(bundle.classes), len(bundle.classes) + 1), np.int64)
    for image, labels in samples if bundle.split and len(places) else ():
        for total, engine in zip(totals, engines):
            total += [confusion(labels, output.mask(*labels.shape[::-1]), len(bundle.classes))
                      for output in to_the_end(engine, image, partial=False).outputs]
    for place in range(len(entries)):
        own, mean = (mean_iou(total[place]) if place in places else 0.0 for total in totals)
        entries[place]['averaged'] = mean > own and (place - 1 not in places or entries[place - 1]['averaged'])
    return Bundle(bundle.path, bundle.document)


def set_temperatures(bundle: Bundle, temperatures: list) -> Bundle:
    """The same bundle with these temperatures, one per exit; nothing is written yet."""
    for entry, temperature in zip(bundle.document['exits'], temperatures, strict=True):
        entry['temperature'] = temperature
    return Bundle(bundle.path, bundle.document)


def calibrate(name_or_path: str, dataset: str, root: str | None, split: str, limit: int = 0,
              threads: int = 2, report: Callable[[int, int], None] = lambda done, total: None,
              statistics: str | None = None) -> None:
    """Measure a bundle on a split; store temperatures, curves, operating points and mIoUs of the exits in bundle.json.

    So it does with the model of the criterion `gain`, whose curve and operating points come from cross-fitted scores,
    and, on distorted copies of the images, with the experts (`search.experts`).
    The split must not have been trained on, and figures must not be reported on it afterwards. It is gone through
    several times: scores depend on the temperatures. statistics: the split that was trained on, for the criteria that
    stop single pixels and for features without the settled cells; None: the bundle does neither. Needs torch. Raises
    ValueError or FileNotFoundError.
    """
    from ee_seg_ros.search.temperature import calibrate_temperatures, labelled_pixels
    bundle = choose_averaged(Bundle.load(name_or_path), samples_of(dataset, root, split, limit)[1], threads)
    total, samples = samples_of(dataset, root, split, limit)
    found = calibrate_temperatures(labelled_pixels(Engine(bundle, threads=threads), samples,
                                                   lambda done: report(done, 2 * total)))
    bundle = set_temperatures(bundle, found['temperatures'])
    if statistics is not None:
        if bundle.cells is None:
            raise BundleError(f'bundle {bundle.name} has no cells, which single pixels need: its maps for an input of '
                              f'{bundle.width}x{bundle.height} are no multiples of each other, or it has one exit: '
                              'choose other --width and --height, or leave --statistics out')
        engine = Engine(bundle, threads=threads)
        fit_pixels(engine, measure_classes(engine, dataset, root, statistics, report),
                   list(samples_of(dataset, root, split, limit)[1]),
                   lambda done: report(done, fit_steps(bundle)))
        bundle.document['criteria'].update({rule.name: rule.entry(len(bundle.judged_exits))
                                            for rule in CRITERIA.values() if rule.needs == 'pixels'})
        bundle = Bundle(bundle.path, bundle.document)
    scores = None
    if bundle.judged_exits:
        _, samples = samples_of(dataset, root, split, limit)
        seen = look(Engine(bundle, threads=threads), samples, lambda done: report(done, total))
        copies_too = fit_gain(bundle, seen)
        scores = copies_too[:, 0]
        bundle.document['criteria']['gain'] = CRITERIA['gain'].entry(len(bundle.judged_exits))
        compare_criteria(bundle, seen, copies_too)
        bundle = Bundle(bundle.path, bundle.document)
    _, samples = samples_of(dataset, root, split, limit)
    observed = observe(Engine(bundle, threads=threads), samples, lambda done: report(total + done, 2 * total))
    if scores is not None:    # of models that did not see the image; a frame that ended before has no others
        own = observed.scores['gain']
        observed.scores['gain'] = np.where(np.isfinite(own), scores, own)
    mious = [mean_iou(matrix) for matrix in observed.matrices.sum(0)]
    full = mious[-1]
    for criterion, entry in bundle.document['criteria'].items():
        found_levels = levels(bundle, observed, criterion)
        entry['curve'], entry['operating_points'] = curve(found_levels), operating_points(found_levels)
    state_promises(bundle, observed)
    bundle.document['calibration'] = {
        'bundle_fingerprint': bundle.fingerprint, 'dataset': dataset, 'split': split, 'images': total,
        'full_miou': full, 'full_macs': exit_costs(bundle)[-1],
        'exits': [{'name': exit_.name, 'miou': miou} for exit_, miou in zip(bundle.exits, mious)],
        'ece_before': found['ece_before'], 'ece_after': found['ece_after']}
    from ee_seg_ros.search.experts import calibrate_experts  # which is made of what is here
    calibrate_experts(bundle, list(samples_of(dataset, root, split, limit)[1]), threads, report)
    write_document(bundle)


def measure_classes(engine: Engine, dataset: str, root: str | None, split: str,
                    report: Callable[[int, int], None] = lambda done, total: None) -> ClassStatistics:
    """Statistics of the classes over the split that a bundle was trained on; its mean features are stored in it."""
    total, samples = samples_of(dataset, root, split)
    found = class_statistics(engine, samples, lambda done: report(done, total))
    if engine.bundle.split is not None:
        engine.bundle.document['codec']['class_means'] = {name: means.tolist() for name, means in found.means.items()}
    return found


def copy_calibration(source: str, target: str, dataset: str = 'camvid', root: str | None = None,
                     statistics: str | None = None, threads: int = 2,
                     report: Callable[[int, int], None] = lambda done, total: None, split: str | None = None) -> None:
    """Store temperatures, curves and operating points (and what a search found) of one bundle in another.

    A twin's in the shipped bundle, for example: the exits must be the same, and the experts. statistics: the split that
    the other was trained on, for the mean features of its own classes. split: on which the experts of the other are
    measured where the first has none, after the rules for `calibrate`; promises are stated from it, too. Raises
    BundleError if the bundles differ.
    """
    twin, bundle = Bundle.load(source), Bundle.load(target)
    if [(exit_.name, exit_.onboard) for exit_ in twin.exits] != [(exit_.name, exit_.onboard) for exit_ in bundle.exits]:
        raise BundleError(f'{source} and {target} have different exits: thresholds of one mean nothing to the other')
    if 'pixels' in twin.document and bundle.split is not None and statistics is None and not bundle.class_means:
        raise BundleError(f'{source} says when a pixel is settled: {target} then needs mean features of its own '
                          'classes: give --statistics, the split that it was trained on')
    heads = [{family: set(expert['exits']) for family, expert in each.document.get('experts', {}).items()}
             for each in (twin, bundle)]
    measure = split is not None and not twin.experts
    if heads[0] != heads[1] and not measure:
        raise BundleError(f'{source} has the experts {heads[0]}, {target} {heads[1]}: export both with --experts, or '
                          'neither; or, where the first has none, give --split to measure them on')
    set_temperatures(bundle, [exit_.temperature for exit_ in twin.exits])
    for family, expert in ({} if measure else bundle.document.get('experts', {})).items():
        measured = twin.document['experts'][family]
        expert.update((key, value) for key, value in measured.items() if key != 'exits')
        for name, entry in expert['exits'].items():
            entry['temperature'] = measured['exits'][name]['temperature']
    for entry, theirs in zip(bundle.document['exits'], twin.document['exits']):
        entry['averaged'] = theirs.get('averaged', False)
    for key in ('criteria', 'calibration', 'search', 'pixels', 'gain'):
        if key in twin.document:
            bundle.document[key] = twin.document[key]
    if statistics is not None and bundle.split is not None:
        measure_classes(Engine(bundle, threads=threads), dataset, root, statistics, report)
    if measure:
        from ee_seg_ros.search.experts import calibrate_experts  # which is made of what is here
        bundle, samples = Bundle(bundle.path, bundle.document), list(samples_of(dataset, root, split)[1])
        state_promises(bundle, observe(Engine(bundle, threads=threads), samples,
                                       lambda done: report(done, len(samples))))
        calibrate_experts(bundle, samples, threads, report)
    write_document(bundle)
