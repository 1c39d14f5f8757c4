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
"""`ee_seg bench NAME`: measure, and write NAME.json into --out."""
import sys
from pathlib import Path

import typer

from ee_seg_ros.commands import shared


def runtime(bundle: str = shared.BUNDLE, dataset: str = typer.Option('scenes', help='As of ee_seg evaluate.'),
            root: str = shared.ROOT,
            split: str = typer.Option('0', help=f'{shared.SPLIT_HELP}; for scenes the seed of a drive.'),
            limit: int = typer.Option(100, help='Number of images.'),
            out: Path = typer.Option(..., help='Folder for runtime.json and the logs of the nodes.')):
    """The onboard node over the bare engine: time, memory, time to the first mask."""
    from ee_seg_ros.evaluation import bench_runtime, report
    shared.leave_in_order()
    out = report.make_folder(out)
    with report.progress('images') as progress:
        found = bench_runtime.measure(bundle, dataset, root, split, limit, out, progress)
    report.write_json(out / 'runtime.json', found)
    for table in report.bench_tables('runtime', found):
        report.console.print(table)
    print(f'runtime.json is in {out}')


def exits(bundle: str = shared.BUNDLE,
          single: str = typer.Option('street_single', help='Single-exit bundle to compare with.'),
          single_fine: str = typer.Option(None, help='The single-exit network at output stride 8: compared with '
                                                     'instead if its mIoU is more than 1 pp better.'),
          smaller: str = typer.Option(None, help='A smaller or lower-resolution single-exit bundle, for the gain at '
                                                 'equal cost.'),
          dataset: str = shared.DATASET, root: str = shared.ROOT,
          split: str = typer.Option('val', help=shared.SPLIT_HELP), limit: int = shared.LIMIT,
          threads: int = shared.THREADS,
          out: Path = typer.Option(..., help='Folder for exits.json and exits.png.')):
    """The early-exit network against the standard single-exit one: latency, cost and mIoU of every way to run it."""
    from ee_seg_ros.evaluation import bench_exits, report
    out = report.make_folder(out)
    with report.progress('steps') as progress:
        found = bench_exits.measure(bundle, single, smaller, dataset, root, split, limit, threads, progress,
                                    single_fine)
    report.write_json(out / 'exits.json', found)
    for table in report.exits_tables(bench_exits.shown(found)):
        report.console.print(table)
    try:
        from ee_seg_ros.evaluation.plots import plot_exits
        plot_exits(found, out / 'exits.png')
    except ImportError as error:
        print(f'ee_seg: no exits.png: {shared.missing(error, shared.MATPLOTLIB)}', file=sys.stderr)
    print(f'exits.json is in {out}')


def criteria(bundle: str = shared.BUNDLE, dataset: str = shared.DATASET, root: str = shared.ROOT,
             split: str = typer.Option('val', help=shared.SPLIT_HELP), limit: int = shared.LIMIT,
             threads: int = shared.THREADS,
             out: Path = typer.Option(..., help='Folder for criteria.json and criteria.png.')):
    """The exit criteria against each other: what each costs, and saves against entropy, at equal mIoU."""
    from ee_seg_ros.evaluation import bench_criteria, report
    out = report.make_folder(out)
    with report.progress('steps') as progress:
        found = bench_criteria.measure(bundle, dataset, root, split, limit, threads, progress)
    report.write_json(out / 'criteria.json', found)
    for table in report.criteria_tables(found):
        report.console.print(table)
    try:
        from ee_seg_ros.evaluation.plots import plot_criteria
        plot_criteria(found, out / 'criteria.png')
    except ImportError as error:
        print(f'ee_seg: no criteria.png: {shared.missing(error, shared.MATPLOTLIB)}', file=sys.stderr)
    print(f'criteria.json is in {out}')


def distortions(bundle: str = shared.BUNDLE,
                criterion: str = typer.Option('region_change', help='What decides that a mask is good enough.'),
                operating_point: str = typer.Option('balanced', help='fast, balanced or accurate.'),
                dataset: str = shared.DATASET, root: str = shared.ROOT,
                split: str = typer.Option('val', help=shared.SPLIT_HELP), limit: int = shared.LIMIT,
                video: list[str] = typer.Option([], help='Video whose frames, all of them clean, the detector is to '
                                                         'call nothing distorted; may be given several times.'),
                threads: int = shared.THREADS,
                out: Path = typer.Option(..., help='Folder for distortions.json and distortions.png.')):
    """What distorted images cost, what expert exits win back, and how well the distortion is detected."""
    from ee_seg_ros.evaluation import bench_distortions, report
    out = report.make_folder(out)
    with report.progress('distorted images') as progress:
        found = bench_distortions.measure(bundle, dataset, root, split, criterion, operating_point, limit, threads,
                                          video, progress)
    report.write_json(out / 'distortions.json', found)
    for table in report.distortion_tables(found):
        report.console.print(table)
    try:
        from ee_seg_ros.evaluation.plots import plot_distortions
        plot_distortions(found, out / 'distortions.png')
    except ImportError as error:
        print(f'ee_seg: no distortions.png: {shared.missing(error, shared.MATPLOTLIB)}', file=sys.stderr)
    print(f'distortions.json is in {out}')
