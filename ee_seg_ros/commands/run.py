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
"""`ee_seg demo`, `evaluate` and `info`: run and look at a bundle."""
import sys
from pathlib import Path

import typer

from ee_seg_ros.commands import shared


def demo(source: str = typer.Option('scenes', help='scenes, a folder of images, a video file, or a rosbag2 (BAG, or '
                                                   'BAG:/topic where it has several topics of images).'),
         frames: int = typer.Option(120, help='Frames to publish; at most what the source has.'),
         rate: float = typer.Option(10.0, help='Frames per second.'),
         bundle: str = shared.BUNDLE,
         criterion: str = typer.Option('region_change', help='What decides that a mask is good enough.'),
         operating_point: str = typer.Option('balanced', help='fast, balanced, accurate; searched, where a search '
                                                              'wrote the bundle.'),
         distort: str = typer.Option('', help='Distort the images: NAME:LEVEL, such as noise:20, blur:3, motion:15, '
                                              'dark:4, fog:40 or rain:25.'),
         out: Path = typer.Option('demo_out', help='Folder for summary.json, contact_sheet.png, drive.gif and the '
                                                   'recording.')):
    """Run camera, onboard, offboard and recorder on this machine; show what they did."""
    from ee_seg_ros import demo as job
    from ee_seg_ros.evaluation import report
    try:    # before the run: its contact sheet is drawn at the end
        from ee_seg_ros.evaluation import drawing
        drawing.font(15)
    except ImportError as error:
        raise shared.missing(error, shared.MATPLOTLIB) from None
    options = job.DemoOptions(source, frames, rate, bundle, criterion, operating_point, out, distort)
    job.check(options)
    report.make_folder(out)
    shared.leave_in_order()
    summary, failures = job.run(options, lambda line: print(line, flush=True), report.progress)
    report.console.print(report.demo_table(summary))
    print(f'summary.json, contact_sheet.png, drive.gif, recording/ and logs/ are in {out}')
    for failure in failures:
        print(f'ee_seg demo: {failure}', file=sys.stderr)
    raise typer.Exit(1 if failures else 0)


def evaluate(bundle: str = typer.Argument(help='Name of a shipped bundle, or path of a bundle folder.'),
             dataset: str = typer.Option('camvid', help=f'{shared.DATASET.help[:-1]}; or bag: a rosbag2, whose '
                                                        '--root is BAG or BAG:/topic.'),
             root: str = shared.ROOT,
             split: str = typer.Option('val', help=f'{shared.SPLIT_HELP}; for scenes the seed of a drive; for a bag '
                                                   'nothing, or a stretch such as all[50:150].'),
             limit: int = shared.LIMIT, threads: int = shared.THREADS,
             out: Path = typer.Option(..., help='Folder for evaluation.json and evaluation.png.')):
    """Measure mIoU and cost of every exit, and of every criterion at its operating points."""
    from ee_seg_ros.evaluation import report
    from ee_seg_ros.evaluation.evaluate import evaluate as measure
    out = report.make_folder(out)
    with report.progress('images') as progress:
        found = measure(bundle, dataset, root, split, limit, threads, progress)
    report.write_json(out / 'evaluation.json', found)
    for table in report.evaluation_tables(found):
        report.console.print(table)
    try:
        report.plot_evaluation(found, out / 'evaluation.png')
    except ImportError as error:    # the figures are worth more than their picture
        print(f'ee_seg: no evaluation.png: {shared.missing(error, shared.MATPLOTLIB)}', file=sys.stderr)
    print(f'evaluation.json{" and evaluation.png are" if (out / "evaluation.png").is_file() else " is"} in {out}')


def info(bundle: str = typer.Argument('street', help='Name of a shipped bundle, or path of a bundle folder.'),
         json: bool = typer.Option(False, '--json', help='Print JSON.')):
    """Say what a bundle is: classes, exits, criteria, figures, origin, files."""
    from ee_seg_ros.evaluation import describe
    from ee_seg_ros.inference.bundle import Bundle
    document = describe.describe(Bundle.load(bundle))
    if json:
        from json import dumps
        print(dumps(document, indent=2))
    else:
        describe.show(document)
