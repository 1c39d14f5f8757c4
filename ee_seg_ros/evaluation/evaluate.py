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
"""What a bundle is worth on labelled images: mIoU and cost of every exit, and of every criterion at every threshold.

Each image runs through all exits once. What is kept of it is one confusion matrix per exit and one score per criterion
and exit: enough to say afterwards, for any thresholds, where the image would have stopped and what that would have
given.
"""
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from ee_seg_ros.data.datasets import bag_samples, open_dataset, samples_of
from ee_seg_ros.data.labelled import UNLABELLED
from ee_seg_ros.evaluation.metrics import confusion, iou, mean_iou
from ee_seg_ros.evaluation.pair import PairResult, run_pair
from ee_seg_ros.inference.bundle import Bundle
from ee_seg_ros.inference.criteria import CRITERIA, Criterion
from ee_seg_ros.inference.engine import Engine


@dataclass(frozen=True)
class Ends:
    """What n images give and cost if they end at each of the exits, as they really ran.

    matrices: int64 (n, exits, classes, classes + 1) of the final masks. macs: float64 (n, exits), of all that ran up to
    there on both sides. payloads: int64 (n,), bytes of the features that would be sent.
    """

    matrices: np.ndarray
    macs: np.ndarray
    payloads: np.ndarray


@dataclass(frozen=True)
class Observations:
    """What all exits of a bundle gave on n labelled images.

    matrices: int64 (n, exits, classes, classes + 1), see `metrics.confusion`, of each exit as a network of its own, the
    final output last. scores: criterion name -> float64 (n, judged exits: all but the last), NaN where the criterion
    gives no score. ends: criterion -> `Ends`, where these depend on it: where settled cells are not forwarded, exits
    are averaged, or pixels stop one by one. expert: whose heads ran, '' for the exits' own.
    """

    matrices: np.ndarray
    scores: dict
    ends: dict = field(default_factory=dict)
    expert: str = ''

    def matrices_of(self, criterion: str, taken: np.ndarray) -> np.ndarray:
        """int64 (n, classes, classes + 1): each image's, where it ends at exit taken[i] by a criterion."""
        matrices = self.ends[criterion].matrices if criterion in self.ends else self.matrices
        return matrices[np.arange(len(taken)), taken]

    def macs_of(self, bundle: Bundle, criterion: str) -> np.ndarray:
        """float64 (n, exits): multiply-accumulates of each image that ends at an exit by a criterion."""
        if criterion in self.ends:
            return self.ends[criterion].macs
        return np.broadcast_to(exit_costs(bundle, self.expert), (len(self.matrices), len(bundle.exits)))


def check_classes(bundle: Bundle, dataset: str, root: str | None, split: str) -> None:
    """Raise ValueError where a bundle and a data set do not have the same classes: their ids mean different things."""
    ours, theirs = [info.name for info in bundle.classes], list(open_dataset(dataset, root, split).class_names)
    if ours != theirs:
        raise ValueError(f"bundle {bundle.name} has {len(ours)} classes ({', '.join(ours)[:60]} ...), data set "
                         f"{dataset} {len(theirs)} ({', '.join(theirs)[:60]} ...): take a bundle of its classes")


def to_the_end(engine: Engine, image: np.ndarray, criterion: str = 'never', partial: bool = True,
               limits: Sequence[float] | None = None, expert: str = '') -> PairResult:
    """`run_pair` with thresholds that no score passes: all exits run, unless all pixels stop before."""
    rule = CRITERIA[criterion]
    never = -np.inf if rule.direction == 'below' else np.inf
    return run_pair(engine, image, criterion, (never,) * len(engine.bundle.judged_exits), partial, limits,
                    expert)


def frame_ends(bundle: Bundle, frame: PairResult, labels: np.ndarray) -> tuple:
    """(matrices, macs) of a frame at every exit.

    Where it was settled on the way, it ends there for all that follow; where an exit was passed by, at the next one.
    """
    height, width = labels.shape
    matrices = [confusion(labels, frame.mask(width, height, output), len(bundle.classes)) for output in frame.outputs]
    place, places = 0, []
    for exit_ in bundle.exits:
        places.append(min(place, len(matrices) - 1))
        place += place < len(matrices) and frame.outputs[place].exit.name == exit_.name
    return [matrices[each] for each in places], [frame.macs_at[each] for each in places]


def frame_scores(rule: Criterion, bundle: Bundle, frame: PairResult) -> list:
    """A criterion's score at every judged exit of a frame, NaN where it gives none, or was passed by.

    Where a frame ended because nothing was left to do, it does so whatever the threshold: its score is infinite. So is
    that of an exit behind which nothing runs (`Bundle.last_exit`).
    """
    scores = {side.outputs[index].exit.name: rule.judge([*side.before, *side.outputs[:index + 1]], 0.0)[0]
              for side in frame.sides for index in range(len(side.outputs))}
    last = frame.outputs[-1].exit.name
    if last != bundle.exits[-1].name:
        scores[last] = -np.inf if rule.direction == 'below' else np.inf
    found = [scores.get(exit_.name) for exit_ in bundle.judged_exits]
    return [np.nan if score is None else score for score in found]


def observe(engine: Engine, samples: Iterable, report: Callable[[int], None] = lambda done: None,
            expert: str = '', pixels: bool = True) -> Observations:
    """Run every (image, labels) of `samples` through all exits of an engine (part 'all'); see `Observations`.

    All criteria are scored, also those for which the bundle has no thresholds yet. expert: as of `Engine.segment`.
    pixels: False leaves out the criteria by which single pixels stop, half of the work.
    """
    bundle = engine.bundle
    matrices, scores, ends = [], {name: [] for name in CRITERIA}, {}
    pixelwise = [name for name, rule in CRITERIA.items() if rule.pixelwise and name in bundle.limits]
    rules = {name: rule for name, rule in CRITERIA.items() if pixels or not rule.pixelwise}
    averaged = any(exit_.averaged for exit_ in bundle.exits)
    for image, labels in samples:
        whole = to_the_end(engine, image, partial=False, expert=expert)
        matrices.append(frame_ends(bundle, whole, labels)[0])
        for index, exit_ in enumerate(bundle.exits):
            if exit_.averaged:    # not alone
                alone = engine.run_exit(image, exit_.name, expert).output.mask(*labels.shape[::-1])
                matrices[-1][index] = confusion(labels, alone, len(bundle.classes))
        forwarded = to_the_end(engine, image, expert=expert) if bundle.forwards_cells else whole
        its_ends = _ends(engine, forwarded, labels) if averaged or forwarded is not whole else None
        for name, rule in rules.items():
            frame = to_the_end(engine, image, name, expert=expert) if name in pixelwise else forwarded
            scores[name].append(frame_scores(rule, bundle, frame))
            found = its_ends if frame is forwarded else _ends(engine, frame, labels)
            if found is not None:
                ends.setdefault(name, []).append(found)
        report(len(matrices))
    if not matrices:
        raise ValueError('there are no images to evaluate')
    return Observations(np.array(matrices), {name: np.array(scores[name], np.float64) for name in rules},
                        {name: Ends(*map(np.array, zip(*rows))) for name, rows in ends.items()}, expert)


def _ends(engine, frame, labels):
    """A row of `Ends`."""
    return (*frame_ends(engine.bundle, frame, labels), len(frame.payload(engine)))


def exits_taken(rule: Criterion, scores: np.ndarray, thresholds: Sequence[float]) -> np.ndarray:
    """int64 (n,): index of the exit at which each image ends; of the last one where none settles."""
    count, judged = scores.shape
    taken = np.full(count, 0 if rule.name == 'always' else judged)
    if rule.score is not None:
        for index in reversed(range(judged)):
            taken[rule.settles(scores[:, index], thresholds[index])] = index
    return taken


def static_costs(bundle: Bundle, expert: str = '') -> list:
    """Multiply-accumulates of each exit as a network of its own: its stages and its head; the final output last.

    Behind the split they include encoder and decoder. expert: whose heads they are, as of `Engine.segment`.
    """
    return [float(sum(bundle.graphs[graph]['macs'] for graph in bundle.path_to(exit_.name)[:-1])) + exit_.macs
            for exit_ in bundle.exits_for(expert)]


def exit_costs(bundle: Bundle, expert: str = '') -> list:
    """Multiply-accumulates of stopping at each exit: those of the exit alone, and all heads passed on the way to it."""
    costs, passed = [], 0.0
    for exit_, alone in zip(bundle.exits_for(expert), static_costs(bundle, expert)):
        costs.append(alone + passed)
        passed += exit_.macs
    return costs


def cascade(bundle: Bundle, observed: Observations, criterion: str, thresholds: Sequence[float]) -> dict:
    """What a criterion with these thresholds gives: the keys of `evaluation.json` from `miou` on.

    `miou` and `mean_macs` are those over an ideal link: every image that does not settle onboard is finished offboard,
    where it may settle before the final output. `onboard_miou` is that of the masks that leave at once; `onboard_macs`
    includes the feature encoder where it runs. `exit_shares`: images that end at each onboard exit, then those that are
    forwarded; `offboard_exit_shares`: of all images, those that end at each exit behind the split.
    """
    taken = exits_taken(CRITERIA[criterion], observed.scores[criterion], thresholds)
    costs, onboard = observed.macs_of(bundle, criterion), len(bundle.onboard_exits)
    images = np.arange(len(taken))
    at_once, forwarded = np.minimum(taken, onboard - 1), taken >= onboard
    encode = bundle.graphs[bundle.split['encode']]['macs'] if bundle.split else 0.0
    shares = [float(share) for share in np.bincount(taken, minlength=len(bundle.exits)) / len(taken)]
    return {
        'miou': mean_iou(observed.matrices_of(criterion, taken).sum(0)),
        'mean_macs': float(costs[images, taken].mean()),
        'onboard_miou': mean_iou(observed.matrices_of(criterion, at_once).sum(0)),
        'onboard_macs': float((costs[images, at_once] + encode * forwarded).mean()),
        'exit_shares': [*shares[:onboard], float(forwarded.mean())],
        'offboard_exit_shares': shares[onboard:],
        'forwarded_share': float(forwarded.mean()),
    }


def summarise(bundle: Bundle, observed: Observations) -> dict:
    """`evaluation.json`: every exit on its own, and every criterion at all operating points that the bundle stores.

    An exit's `macs` count all heads passed on the way to it, its `static_macs` those of the exit as a network alone.
    """
    totals = observed.matrices.sum(0)
    exits = []
    for exit_, matrix, macs, alone in zip(bundle.exits, totals, exit_costs(bundle), static_costs(bundle)):
        by_class = {info.name: float(value) for info, value in zip(bundle.classes, iou(matrix)) if np.isfinite(value)}
        exits.append({'name': exit_.name, 'miou': mean_iou(matrix), 'iou': by_class, 'macs': macs,
                      'static_macs': alone})
    criteria = []
    for name in bundle.criteria:
        stored = bundle.document['criteria'].get(name, {'operating_points': (None,)})    # always, never: no choice
        for point in stored['operating_points']:
            thresholds = bundle.thresholds(name, point)
            criteria.append({'criterion': name, 'operating_point': point,
                             **cascade(bundle, observed, name, thresholds)})
    return {'exits': exits, 'criteria': criteria, 'images': len(observed.matrices),
            'bundle_fingerprint': bundle.fingerprint, 'bundle': bundle.name}


def evaluate(name_or_path: str, dataset: str, root: str | None, split: str, limit: int = 0, threads: int = 2,
             report: Callable[[int, int], None] = lambda done, total: None) -> dict:
    """`evaluation.json` of a bundle on a split of a data set. Raises ValueError, FileNotFoundError.

    report: called with (images done, images in all). For a bag without labels the reference is the final output: mIoU
    says how much of it an exit gives.
    """
    bundle, reference = Bundle.load(name_or_path), 'labels'
    engine = Engine(bundle, threads=threads)
    if dataset == 'bag':
        total, samples, labelled = bag_samples(root, split, limit)
        if labelled:
            samples = _checked(samples, len(bundle.classes))
        else:
            reference = 'final output'
            samples = ((image, to_the_end(engine, image, partial=False).mask(*image.shape[1::-1]))
                       for image, _ in samples)
    else:
        total, samples = samples_of(dataset, root, split, limit)
        check_classes(bundle, dataset, root, split)
    observed = observe(engine, samples, lambda done: report(done, total))
    return {**summarise(bundle, observed), 'dataset': dataset, 'split': split, 'reference': reference}


def _checked(samples, classes):
    """The samples whose images have labels; ValueError where a label is no class."""
    for image, labels in samples:
        if labels is None:
            continue
        if labels.shape != image.shape[:2]:
            raise ValueError(f'labels of {labels.shape[1]}x{labels.shape[0]} pixels belong to an image of '
                             f'{image.shape[1]}x{image.shape[0]}')
        wrong = labels[(labels >= classes) & (labels != UNLABELLED)]
        if wrong.size:
            raise ValueError(f'the labels hold the id {wrong[0]}: expected 0 to {classes - 1}, or 255 (unlabelled)')
        yield image, labels
