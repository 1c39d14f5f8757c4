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
"""From a network with all its trained candidate exits to the bundle that suits a budget best."""
import contextlib
import json
import time
from collections.abc import Callable
from pathlib import Path

from ee_seg_ros.data.datasets import open_dataset, samples_of
from ee_seg_ros.evaluation.report import make_folder, write_json
from ee_seg_ros.inference.bundle import SEARCHED, Bundle
from ee_seg_ros.search.calibration import calibrate, write_document
from ee_seg_ros.search.find import Goal, cross_check, find
from ee_seg_ros.search.look import Look
from ee_seg_ros.search.plot import plot_search


@contextlib.contextmanager
def silent(what: str):
    """A progress display that shows nothing."""
    yield lambda done, total: None


def join_sides(folder: Path) -> None:
    """Turn a bundle with a split into one that runs on one computer: encoder and decoder become stages.

    The exits behind the split were trained on what the decoder restores, so they keep both.
    """
    path = folder / 'bundle.json'
    document = json.loads(path.read_text(encoding='utf-8'))
    split, stages = document['split'], document['stages']
    after = stages.index(split['after']) + 1
    document['stages'] = [*stages[:after], split['encode'], split['decode'], *stages[after:]]
    document['split'] = document['cells'] = None    # encoder and decoder run on whole maps only
    path.write_text(json.dumps(document, indent=1) + '\n', encoding='utf-8')


def chosen_exits(net, chosen: dict):
    """The network with the split and the exits of a record of the search (`find.record`) alone.

    They are renamed exit1, exit2, ..., final. What forwards nothing was found on the network with its main split.
    """
    from ee_seg_ros.models.multi_exit import select_exits
    from ee_seg_ros.models.splits import with_split
    *early, last = chosen['exits']
    divided = with_split(net, net.split_unit if chosen['split'] is None else chosen['split'])
    return select_exits(divided, {f'exit{number}': exit_ for number, exit_ in enumerate(early, start=1)}, last)


def export_chosen(net, chosen: dict, out: Path, name: str, provenance: dict, classes: list, size: tuple) -> Path:
    """Write the bundle of a record of the search (`find.record`)."""
    from ee_seg_ros.models.export import export
    smaller = chosen_exits(net, chosen)
    export(smaller, out, name, provenance, classes, *size)
    if smaller.split_unit is not None and chosen['split'] is None:
        join_sides(out)
    return out


def _store(folder, chosen):
    """The thresholds found as an operating point of the bundle, and the record beside its calibration."""
    bundle = Bundle.load(str(folder))
    bundle.document['search'] = chosen
    if chosen['criterion'] in bundle.document['criteria']:
        bundle.document['criteria'][chosen['criterion']]['operating_points'][SEARCHED] = {
            'thresholds': chosen['thresholds'], 'miou': chosen['miou'], 'mean_macs': chosen['macs']}
    write_document(bundle)


def search(weights: str | Path, dataset: str, root: str | None, split: str, out: str | Path, name: str,
           provenance: dict, goal: Goal, width: int = 480, height: int = 368, limit: int = 0, threads: int = 2,
           progress: Callable = silent) -> dict:
    """Choose exits, criterion and thresholds for a goal; write the bundle, and how it was found.

    weights: weights.pt whose exits are all candidates, and whose splits are. dataset, root, split, limit: labelled
    images that it was not trained on, and on which no figures are reported afterwards. width, height: of the network
    input in pixels. threads: of one inference, for the milliseconds too. progress: what -> context manager of a
    function of (done, total).
    Writes into `out`: search.json (returned), search.png, for each split that was tried observations_splitUNIT.npz
    (observations.npz for the network's own), and the bundle in the folder `name`, whose criterion has the operating
    point `searched`. Raises ValueError (SearchError where the goal cannot be met), FileNotFoundError.
    """
    from ee_seg_ros.models.multi_exit import load_network
    out, net, data = make_folder(out), load_network(weights), open_dataset(dataset, root, split, length=limit)
    classes = [{'name': label, 'color': list(map(int, color))}
               for label, color in zip(data.class_names, data.class_colors)]
    main, *others = [described['unit'] for described in net.splits] or [None]
    others = [unit for unit in goal.splits_among([main, *others]) if unit != main]
    look = Look(net, classes, (width, height), lambda: samples_of(dataset, root, split, limit), data.image(0), threads,
                progress)
    observed = {main: look.main()}
    observed |= {unit: look.behind(unit, observed[main]) for unit in others}
    for unit, seen in observed.items():
        seen.candidates.save(out / ('observations.npz' if unit == main else f'observations_split{unit}.npz'))
    divided = {unit: (seen.candidates, seen.costs) for unit, seen in observed.items()}
    began = time.perf_counter()
    found = find(divided, goal)
    seconds = time.perf_counter() - began
    result = {
        'chosen': found.chosen, 'cross_check': cross_check(divided, goal), 'front': found.front,
        'goal': {'mode': goal.mode, 'cost': goal.cost, 'limits': goal.limits, 'miou': goal.miou, 'exits': goal.exits,
                 'last': goal.last, 'criteria': list(goal.criteria), 'split': goal.split,
                 'splits': goal.splits and list(goal.splits)},
        'candidates': [entry for unit, seen in observed.items() for entry in seen.describe(unit)],
        'images': len(observed[main].candidates.matrices),
        'settings_compared': found.tried, 'search_seconds': seconds, 'dataset': dataset, 'split': split,
        'threads': threads}
    write_json(out / 'search.json', result)
    plot_search(result, out / 'search.png')
    export_chosen(net, found.chosen, out / name, name, provenance, classes, (width, height))
    with progress('calibration') as report:
        calibrate(str(out / name), dataset, root, split, limit, threads, report)
    _store(out / name, found.chosen)
    return result
