# Copyright 2026 The ee_seg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Temperatures, curves and operating points of a bundle, measured on images that the bundle was not trained on."""
import json
from collections.abc import Callable

import numpy as np

from ee_seg_ros.data.datasets import samples_of
from ee_seg_ros.evaluation.evaluate import Observations, cascade, exit_costs, observe
from ee_seg_ros.evaluation.metrics import mean_iou
from ee_seg_ros.inference.bundle import Bundle, BundleError
from ee_seg_ros.inference.criteria import CRITERIA
from ee_seg_ros.inference.engine import Engine
from ee_seg_ros.search.cascades import pareto, threshold_levels

# Most mIoU that an operating point may lose against running the whole network on every frame.
ALLOWED_LOSS = {'fast': 0.02, 'balanced': 0.01, 'accurate': 0.005}


def curve(bundle: Bundle, observed: Observations, criterion: str) -> list:
    """The Pareto front, mIoU against mean multiply-accumulates, of a criterion over `cascades.threshold_levels`.

    Returns a list of dicts {thresholds, miou, mean_macs, onboard_miou, onboard_macs, exit_shares, forwarded_share, ...}
    (`evaluation.cascade`), from dear to cheap.
    """
    scores = observed.scores[criterion]
    onboard = sum(exit_.onboard for exit_ in bundle.judged_exits)
    points = [{'thresholds': list(map(float, level)), **cascade(bundle, observed, criterion, level)}
              for level in threshold_levels(CRITERIA[criterion], scores, onboard)]
    front = pareto(np.array([point['mean_macs'] for point in points]), np.array([point['miou'] for point in points]))
    return [points[index] for index in front[::-1]]


def operating_points(points: list, full_miou: float) -> dict:
    """For each operating point the cheapest point of a curve up to which no point loses more than its allowance.

    full_miou: mIoU of the whole network on the same images, 0..1. The curve is walked from its dearest point on, and
    left at the first that loses too much. Where the dearest point loses too much already, the best one is taken.
    """
    chosen = {}
    for name, loss in ALLOWED_LOSS.items():
        best = None
        for point in sorted(points, key=lambda point: -point['mean_macs']):
            if point['miou'] < full_miou - loss:
                break
            best = point
        best = best or max(points, key=lambda point: point['miou'])
        kept = ('thresholds', 'miou', 'mean_macs', 'onboard_miou', 'forwarded_share')
        chosen[name] = {key: best[key] for key in kept}
    return chosen


def write_document(bundle: Bundle) -> None:
    """Write the bundle's changed `document` back to its bundle.json."""
    (bundle.path / 'bundle.json').write_text(json.dumps(bundle.document, indent=1) + '\n', encoding='utf-8')


def set_temperatures(bundle: Bundle, temperatures: list) -> Bundle:
    """The same bundle with these temperatures, one per exit; nothing is written yet."""
    for entry, temperature in zip(bundle.document['exits'], temperatures, strict=True):
        entry['temperature'] = temperature
    return Bundle(bundle.path, bundle.document)


def calibrate(name_or_path: str, dataset: str, root: str | None, split: str, limit: int = 0,
              threads: int = 2, report: Callable[[int, int], None] = lambda done, total: None) -> None:
    """Measure a bundle on a split; store temperatures, curves, operating points and mIoUs of the exits in bundle.json.

    The split must not have been trained on, and figures must not be reported on it afterwards. It is gone through
    twice: scores depend on the temperatures. Needs torch. Raises ValueError or FileNotFoundError.
    """
    from ee_seg_ros.search.temperature import calibrate_temperatures, labelled_pixels
    bundle = Bundle.load(name_or_path)
    total, samples = samples_of(dataset, root, split, limit)
    found = calibrate_temperatures(labelled_pixels(Engine(bundle, threads=threads), samples,
                                                   lambda done: report(done, 2 * total)))
    bundle = set_temperatures(bundle, found['temperatures'])
    _, samples = samples_of(dataset, root, split, limit)
    observed = observe(Engine(bundle, threads=threads), samples, lambda done: report(total + done, 2 * total))
    mious = [mean_iou(matrix) for matrix in observed.matrices.sum(0)]
    full = mious[-1]
    for criterion, entry in bundle.document['criteria'].items():
        entry['curve'] = curve(bundle, observed, criterion)
        entry['operating_points'] = operating_points(entry['curve'], full)
    bundle.document['calibration'] = {
        'bundle_fingerprint': bundle.fingerprint, 'dataset': dataset, 'split': split, 'images': total,
        'full_miou': full, 'full_macs': exit_costs(bundle)[-1],
        'exits': [{'name': exit_.name, 'miou': miou} for exit_, miou in zip(bundle.exits, mious)],
        'ece_before': found['ece_before'], 'ece_after': found['ece_after']}
    write_document(bundle)


def copy_calibration(source: str, target: str) -> None:
    """Store temperatures, curves and operating points (and what a search found) of one bundle in another.

    A twin's in the shipped bundle, for example: the exits must be the same. Raises BundleError if they differ.
    """
    twin, bundle = Bundle.load(source), Bundle.load(target)
    if [(exit_.name, exit_.onboard) for exit_ in twin.exits] != [(exit_.name, exit_.onboard) for exit_ in bundle.exits]:
        raise BundleError(f'{source} and {target} have different exits: thresholds of one mean nothing to the other')
    set_temperatures(bundle, [exit_.temperature for exit_ in twin.exits])
    for key in ('criteria', 'calibration', 'search'):
        if key in twin.document:
            bundle.document[key] = twin.document[key]
    write_document(bundle)
