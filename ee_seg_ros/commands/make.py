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
"""`ee_seg train`, `search` and `export`: make a bundle."""
import json
import sys
from pathlib import Path

import typer

from ee_seg_ros.commands import shared

WIDTH = typer.Option(480, help='Width of the network input in pixels, a multiple of 16.')
HEIGHT = typer.Option(368, help='Height of the network input in pixels, a multiple of 16.')
PROVENANCE = typer.Option(..., help="JSON or YAML file for the bundle's card: at least `data` and `licence`.")

THRESHOLDS = 'where do the thresholds come from? Give either --split (with --root) or --thresholds-of'


def train(recipe: Path = typer.Argument(help='Recipe (YAML); see config/recipes.'),
          root: Path = typer.Option(None, help='Folder of the data set.'),
          out: Path = typer.Option(..., help='Folder for checkpoint.ckpt, logs/, curves.png and weights.pt; a '
                                             'checkpoint that lies there is resumed.'),
          weights: str = typer.Option(None, help="Weights of the backbone (a file, or an entry of torchvision's "
                                                 'enums), weights.pt of an earlier run, or a bundle.'),
          experts: str = typer.Option(None, help='Of stage `experts`: weights.pt, or a bundle, with whose experts to '
                                                 "begin (those of a twin, say). Default: with the exits' own heads."),
          threads: int = typer.Option(2, help='Threads of torch.'),
          devices: str = typer.Option('auto', help='How many GPUs (or processes on a CPU) train together.'),
          nodes: int = typer.Option(1, help='How many machines train together.')):
    """Train a multi-exit network: one stage of a recipe, or every run of an ablation file (with `runs`).

    A recipe of stage `detector` trains the detector of distortions instead: OUT/detector.onnx and OUT/detector.json.
    One of stage `prune` trains nothing, and takes minutes: OUT/weights.pt, with fewer channels.
    """
    shared.must_exist(recipe, root)
    from ee_seg_ros.evaluation.report import make_folder
    try:
        from ee_seg_ros.training import ablations
        from ee_seg_ros.training.recipe import read_yaml
        from ee_seg_ros.training.train import train as job
    except ImportError as error:
        raise shared.missing(error, shared.TORCH) from None
    try:
        if 'runs' in read_yaml(recipe):
            if devices != 'auto' or nodes != 1:
                raise ValueError(f'{recipe} is an ablation file, whose runs train on one device in turn: leave '
                                 '--devices and --nodes out')
            ablations.ablate(recipe, str(root) if root else None, make_folder(out), weights, threads,
                             lambda line: print(line, flush=True))
            print(f'ablations.json is in {out}')
            return
        if read_yaml(recipe).get('stage') == 'detector':
            _train_detector(recipe, root, make_folder(out), threads)
            return
        path = job(recipe, str(root) if root else None, make_folder(out), weights, threads,
                   lambda line: print(line, flush=True), devices, nodes, experts)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    print(f'wrote {path}')


def _train_detector(recipe, root, out, threads):
    """Train the detector of distortions, with a display of the images made."""
    from ee_seg_ros.evaluation.report import progress
    from ee_seg_ros.training.detector import train_detector
    with progress('varied and distorted images') as report:
        path = train_detector(recipe, str(root) if root else None, out, threads, report)
    print(f'wrote {path}; put it into a bundle with: ee_seg export ... --detector {out}')


def search(weights: Path = typer.Argument(help='weights.pt of a training of candidate heads.'),
           out: Path = typer.Option(..., help='Folder for search.json, search.png, observations.npz and the bundle.'),
           name: str = typer.Option('searched', help='Name of the bundle, and of its folder in --out.'),
           provenance: Path = PROVENANCE,
           mode: str = typer.Option('input-dependent', help='input-dependent, budgeted (one exit) or anytime.'),
           cost: str = typer.Option(None, help='What the Pareto front is drawn over, and is least for --miou: macs, ms '
                                               'or bytes; default: what a limit is given for, else macs.'),
           most_macs: float = typer.Option(None, help='At most so many GMAC (1e9 multiply-accumulates) per image.'),
           most_ms: float = typer.Option(None, help='At most so many milliseconds per image on this machine.'),
           most_bytes: float = typer.Option(None, help='At most so many bytes sent per image.'),
           miou: float = typer.Option(None, help='At least this mIoU (0..1), for the least cost.'),
           exits: int = typer.Option(4, help='At most so many exits, the last included.'),
           last: str = typer.Option(None, help='Exit that must be the last one, for example final; default any.'),
           criteria: str = typer.Option(None, help='Criteria to choose among, separated by commas.'),
           offboard: bool = typer.Option(True, help='Finish offboard what does not settle onboard; else everything '
                                                    'runs on one computer.'),
           split_units: str = typer.Option(None, help='Units behind which the network may be split, separated by '
                                                      'commas; default all that were trained.'),
           dataset: str = shared.DATASET, root: str = shared.ROOT,
           split: str = typer.Option(..., help='Split to search on: images that the weights were not trained on, and '
                                               'no figures are reported on.'),
           width: int = WIDTH, height: int = HEIGHT, limit: int = shared.LIMIT, threads: int = shared.THREADS):
    """Choose number, place and kind of the exits, criterion and thresholds for a budget; write the bundle."""
    shared.must_exist(weights, provenance)
    card = shared.read_card(provenance)
    from ee_seg_ros.evaluation import report
    try:
        from ee_seg_ros.search.find import Goal
        from ee_seg_ros.search.search import search as job
    except ImportError as error:
        raise shared.missing(error, shared.TORCH) from None
    given = {'macs': most_macs and most_macs * 1e9, 'ms': most_ms, 'bytes': most_bytes}
    limits = {key: value for key, value in given.items() if value is not None}
    options: dict = {'criteria': tuple(criteria.split(','))} if criteria else {}
    if split_units:
        if not split_units.replace(',', '').isdigit():
            raise ValueError(f'--split-units {split_units!r}: expected numbers of units, for example 8,13')
        options['splits'] = tuple(int(unit) for unit in split_units.split(','))
    goal = Goal(mode, cost or next(iter(limits), 'macs'), limits, miou, exits, last, split=offboard, **options)
    result = job(weights, dataset, root, split, report.make_folder(out), name, card, goal, width, height, limit,
                 threads, report.progress)
    chosen = {key: value if isinstance(value, (str, int, float)) else str(value)
              for key, value in result['chosen'].items()}
    report.console.print(report.table('chosen', ['', ''], [[key, str(value)] for key, value in chosen.items()]))
    print(f'search.json, search.png, observations.npz and the bundle {name} are in {out}')


def export(weights: Path = typer.Argument(help='weights.pt of a training.'),
           out: Path = typer.Option(..., help='Folder of the bundle.'),
           name: str = typer.Option('street', help='Name of the bundle.'),
           provenance: Path = PROVENANCE,
           exits_of: Path = typer.Option(None, help='Only the exits that a search chose: its search.json (of a twin '
                                                    'with the same candidates). Default: all.'),
           thresholds_of: str = typer.Option(None, help='Take temperatures and thresholds of this bundle (a twin that '
                                                        'held back what they were measured on).'),
           dataset: str = shared.DATASET, root: str = shared.ROOT,
           split: str = typer.Option(None, help='Measure temperatures and thresholds on this split, which the weights '
                                                'were not trained on.'),
           statistics: str = typer.Option(None, help='The split that the weights were trained on: class thresholds and '
                                                     'mean features come from it. Without it the bundle stops whole '
                                                     'frames only, and forwards them whole.'),
           experts: Path = typer.Option(None, help='Take the expert heads of this network: weights.pt of a training of '
                                                   'stage `experts` on the same onboard part, or a bundle. Default: '
                                                   'those that the weights have. With --thresholds-of a bundle with '
                                                   'none, --split says on what to measure them.'),
           detector: Path = typer.Option(None, help='Folder of a trained detector of distortions (stage `detector`), '
                                                    'to go into the bundle, or a bundle that has one.'),
           int8: Path = typer.Option(None, help='Also write the bundle in int8 into this folder, its ranges from 32 '
                                                'images of --calibration.'),
           calibration: str = typer.Option('train', help='Split whose images set the ranges of int8; of a twin, the '
                                                         'one that it was trained on.'),
           check: str = typer.Option('val', help='Split on which the cost of int8 is measured.'),
           keep_weights: bool = typer.Option(True, help='Also write weights.safetensors, for fine-tuning.'),
           width: int = WIDTH, height: int = HEIGHT, threads: int = shared.THREADS):
    """Export trained weights to a bundle, with thresholds measured on a split or taken from a twin."""
    if split and thresholds_of and not experts:
        raise ValueError(THRESHOLDS)
    shared.must_exist(weights, provenance, exits_of, experts, detector)
    card = shared.read_card(provenance)
    try:
        from ee_seg_ros.models.experts import with_experts
        from ee_seg_ros.models.export import ExportError
        from ee_seg_ros.models.export import export as job
        from ee_seg_ros.models.multi_exit import load_network
        from ee_seg_ros.search.search import chosen_exits, join_sides
    except ImportError as error:
        raise shared.missing(error, shared.TORCH) from None
    from ee_seg_ros.data.datasets import FOLDERS, open_dataset
    from ee_seg_ros.evaluation.report import make_folder, progress
    net, chosen = load_network(weights), _read_chosen(exits_of) if exits_of else None
    if chosen:
        net = chosen_exits(net, chosen)
    if experts:
        net = with_experts(net, load_network(experts))
    if len(net.exit_names) > 1 and not (split or thresholds_of):
        raise ValueError(THRESHOLDS)
    reader = FOLDERS[dataset] if dataset in FOLDERS else open_dataset(dataset, root, split or '0')
    classes = [{'name': label, 'color': [int(value) for value in color]}
               for label, color in zip(reader.class_names, reader.class_colors)]
    if len(classes) != net.spec['classes']:
        raise ValueError(f"{weights} knows {net.spec['classes']} classes, data set {dataset} has {len(classes)}: give "
                         'the --dataset that it was trained on')
    out = make_folder(out)
    try:
        job(net, out, name, card, classes, width, height, with_weights=keep_weights)
    except ExportError as error:
        print(f'ee_seg: {error}', file=sys.stderr)
        raise typer.Exit(1) from None
    if chosen and chosen['split'] is None and net.split_unit is not None:
        join_sides(out)    # the search was asked for a bundle that runs on one computer
    if detector:
        from ee_seg_ros.models.export import add_detector
        add_detector(out, detector)
    from ee_seg_ros.search.calibration import calibrate, copy_calibration
    with progress('images') as report:
        if thresholds_of:
            copy_calibration(thresholds_of, str(out), dataset, root, statistics, threads, report, split)
        elif split:
            calibrate(str(out), dataset, root, split, 0, threads, report, statistics)
    print(f'wrote the bundle {out}; look at it with: ee_seg info {out}')
    if int8:
        _quantise(out, int8, dataset, root, calibration, check, threads)


def _read_chosen(path):
    """What a search chose, from its search.json. Raises ValueError."""
    try:
        chosen = json.loads(path.read_text(encoding='utf-8'))['chosen']
        return {key: chosen[key] for key in ('exits', 'split')}
    except (ValueError, KeyError, TypeError):
        raise ValueError(f'{path} is not a search.json that `ee_seg search` wrote') from None


def _quantise(bundle, out, dataset, root, calibration, check, threads):
    from ee_seg_ros.data.datasets import samples_of
    from ee_seg_ros.evaluation.report import make_folder, progress
    from ee_seg_ros.models.quantise import compare, quantise
    images = [image for image, _ in samples_of(dataset, root, calibration, 32)[1]]
    with progress('graphs') as report:
        quantise(str(bundle), make_folder(out), images, threads=threads, report=report)
    with progress('images') as report:
        found = compare(str(bundle), str(out), dataset, root, check, threads=threads, report=report)
    print(f"wrote {out}: on {check} int8 costs {found['miou_loss_pp']:.2f} pp of mIoU and is {found['speedup']:.2f} "
          'times as fast')
