# Copyright 2026 The ee_seg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The command `ee_seg`. Every sub-command imports what it needs when it runs, so that --help is quick."""
import signal
import sys
from pathlib import Path

import typer

app = typer.Typer(name='ee_seg', no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
                  rich_markup_mode=None, context_settings={'help_option_names': ['-h', '--help']},
                  help='Early-exit semantic segmentation for robots: stop early onboard, finish hard frames offboard.')
bench = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help='Measure, and write NAME.json into --out.')
app.add_typer(bench, name='bench')

TORCH = 'the extra `train`, in the source tree: make train-env'
MATPLOTLIB = 'the extra `demo`, in the source tree: make demo'

BUNDLE = typer.Option('street', help='Name of a shipped bundle, or path of a bundle folder.')


@app.command()
def demo(source: str = typer.Option('scenes', help='scenes, a folder of images, or a video file.'),
         frames: int = typer.Option(120, help='Frames to publish; at most what the source has.'),
         rate: float = typer.Option(10.0, help='Frames per second.'),
         bundle: str = BUNDLE,
         criterion: str = typer.Option('region_change', help='What decides that a mask is good enough.'),
         operating_point: str = typer.Option('balanced', help='fast, balanced or accurate.'),
         out: Path = typer.Option('demo_out', help='Folder for summary.json, contact_sheet.png and the recording.')):
    """Run camera, onboard, offboard and recorder on this machine; show what they did."""
    from ee_seg_ros import demo as job
    from ee_seg_ros.evaluation import report
    try:    # before the run: its contact sheet is drawn at the end
        from ee_seg_ros.evaluation import drawing
        drawing.font(15)
    except ImportError as error:
        raise _missing(error, MATPLOTLIB) from None
    options = job.DemoOptions(source, frames, rate, bundle, criterion, operating_point, out)
    job.check(options)
    report.make_folder(out)
    _leave_in_order()
    summary, failures = job.run(options, lambda line: print(line, flush=True), report.progress)
    report.console.print(report.demo_table(summary))
    print(f'summary.json, contact_sheet.png, recording/ and logs/ are in {out}')
    for failure in failures:
        print(f'ee_seg demo: {failure}', file=sys.stderr)
    raise typer.Exit(1 if failures else 0)


@app.command()
def evaluate(bundle: str = typer.Argument(help='Name of a shipped bundle, or path of a bundle folder.'),
             dataset: str = typer.Option('camvid', help='camvid, or scenes (procedural street scenes).'),
             root: str = typer.Option(None, help='Folder of the data set.'),
             split: str = typer.Option('val', help='List in that folder, such as val, train:0006R0 or train[:50]; '
                                                   'for scenes the seed of a drive.'),
             limit: int = typer.Option(0, help='Use so many images, spread over the split (0: all; of scenes 100).'),
             threads: int = typer.Option(2, help='Threads of one inference.'),
             out: Path = typer.Option(..., help='Folder for evaluation.json and evaluation.png.')):
    """Measure mIoU and cost of every exit, and of every criterion at its operating points."""
    from ee_seg_ros.evaluation import report
    from ee_seg_ros.evaluation.evaluate import evaluate as measure
    with report.progress('images') as progress:
        found = measure(bundle, dataset, root, split, limit, threads, progress)
    report.write_json(report.make_folder(out) / 'evaluation.json', found)
    for table in report.evaluation_tables(found):
        report.console.print(table)
    try:
        report.plot_evaluation(found, out / 'evaluation.png')
    except ImportError as error:    # the figures are worth more than their picture
        print(f'ee_seg: no evaluation.png: {_missing(error, MATPLOTLIB)}', file=sys.stderr)
    print(f'evaluation.json{" and evaluation.png are" if (out / "evaluation.png").is_file() else " is"} in {out}')


@app.command()
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


@app.command()
def train(recipe: Path = typer.Argument(help='Recipe (YAML); see config/recipes.'),
          root: Path = typer.Option(..., help='Folder of CamVid.'),
          out: Path = typer.Option(..., help='Folder for checkpoint.pt, log.jsonl and weights.pt; a checkpoint that '
                                             'lies there is resumed.'),
          weights: Path = typer.Option(None, help='ImageNet weights of the backbone, or weights.pt of an earlier run.'),
          threads: int = typer.Option(2, help='Threads of torch.')):
    """Train all exits together, as a recipe says."""
    for path in (recipe, root, *([weights] if weights else [])):
        _must_exist(path)
    from ee_seg_ros.evaluation.report import make_folder
    try:
        from ee_seg_ros.training.train import train as job
    except ImportError as error:
        raise _missing(error, TORCH) from None
    weights = job(recipe, root, make_folder(out), weights, threads, lambda line: print(line, flush=True))
    print(f'wrote {weights}')


@app.command()
def export(weights: Path = typer.Argument(help='weights.pt of a training.'),
           out: Path = typer.Option(..., help='Folder of the bundle.'),
           name: str = typer.Option('street', help='Name of the bundle.'),
           provenance: Path = typer.Option(..., help="JSON or YAML file for the bundle's card: at least `data` and "
                                                     '`licence`.'),
           thresholds_of: str = typer.Option(None, help='Take the thresholds of this bundle (a twin that held back '
                                                        'what they were measured on).'),
           dataset: str = typer.Option('camvid', help='Measure the thresholds on: camvid or scenes.'),
           root: str = typer.Option(None, help='... in this folder'),
           split: str = typer.Option(None, help='... on this split, which the weights were not trained on.'),
           threads: int = typer.Option(2, help='Threads of one inference.')):
    """Export trained weights to a bundle, with thresholds measured on a split or taken from a twin."""
    if bool(split) == bool(thresholds_of):
        raise ValueError('where do the thresholds come from? Give either --split (with --root) or --thresholds-of')
    for path in (weights, provenance):
        _must_exist(path)
    card = _read_card(provenance)
    from ee_seg_ros.evaluation.report import make_folder, progress
    try:
        from ee_seg_ros.models.export import export as job
    except ImportError as error:
        raise _missing(error, TORCH) from None
    from ee_seg_ros.search import calibration
    job(weights, make_folder(out), name, card)
    if thresholds_of:
        calibration.copy_calibration(thresholds_of, str(out))
    else:
        with progress('images') as report:
            calibration.calibrate(str(out), dataset, root, split, threads=threads, report=report)
    print(f'wrote the bundle {out}; look at it with: ee_seg info {out}')


def _read_card(path):
    import yaml
    try:
        card = yaml.safe_load(path.read_text(encoding='utf-8'))    # JSON is YAML, too
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f'{path} is neither JSON nor YAML: {error}') from None
    if not isinstance(card, dict) or not {'data', 'licence'} <= set(card):
        raise ValueError(f'{path} must state at least `data` (what it was trained on) and `licence`')
    return card


@bench.command()
def runtime(bundle: str = BUNDLE,
            dataset: str = typer.Option('scenes', help='camvid or scenes.'),
            root: str = typer.Option(None, help='Folder of the data set.'),
            split: str = typer.Option('0', help='List in that folder; for scenes the seed of a drive.'),
            limit: int = typer.Option(100, help='Number of images.'),
            out: Path = typer.Option(..., help='Folder for runtime.json and the logs of the nodes.')):
    """The onboard node over the bare engine: time, memory, time to the first mask."""
    from ee_seg_ros.evaluation import bench_runtime, report
    _leave_in_order()
    with report.progress('images') as progress:
        found = bench_runtime.measure(bundle, dataset, root, split, limit, report.make_folder(out), progress)
    report.write_json(out / 'runtime.json', found)
    for table in report.bench_tables('runtime', found):
        report.console.print(table)
    print(f'runtime.json is in {out}')


@bench.callback()
def _bench():
    """Measure, and write NAME.json into --out."""


def _must_exist(path):
    if not path.exists():
        raise FileNotFoundError(f'{path} does not exist')


def _missing(error, extra):
    """What to say of an import that failed: which module, and how to get it."""
    if (error.name or '').startswith('ee_seg_ros'):
        return error
    return ValueError(f'{error.name or error} is not installed, which this command needs: install {extra}, '
                      'or pip install it')


def _leave_in_order():
    """Make SIGTERM and the end of the terminal an exception, so that the nodes that were started are ended too."""
    def leave(number, _):
        raise SystemExit(128 + number)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, leave)


def main(args: list | None = None) -> None:
    """Run `ee_seg`. Exit status: 0 done, 1 the job failed, 2 wrong input, which one line on stderr explains."""
    from ee_seg_ros.processes import ChildError
    try:
        app(args, prog_name='ee_seg')
    except ChildError as error:
        print(f'ee_seg: {error}', file=sys.stderr)
        raise SystemExit(1) from None
    except (ValueError, OSError) as error:    # BundleError among them; each says what was wrong
        print(f'ee_seg: {error}', file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == '__main__':
    main()
