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
"""How results are shown and kept: progress, tables on the terminal, JSON files, the plot of mIoU against cost."""
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

# Into a file or a pipe nothing is cut off; a terminal has a width.
console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)


@contextmanager
def progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """A progress display for `what`: call the result with (done, total). A bar on a terminal, else a line per tenth."""
    if console.is_terminal:
        with Progress(TextColumn('{task.description}'), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
                      console=console, transient=True) as display:
            task = display.add_task(what, total=None)
            yield lambda done, total: display.update(task, completed=done, total=total)
        return
    shown = 0

    def line(done, total):
        nonlocal shown
        if done * 10 // total > shown:
            shown = done * 10 // total
            print(f'{what}: {done} of {total}', flush=True)
    yield line


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], text_columns: int = 1) -> Table:
    """A table of strings; the first `text_columns` columns are aligned left, the others (numbers) right."""
    result = Table(title=title, title_justify='left', title_style='bold', box=SIMPLE_HEAD,
                   pad_edge=False, collapse_padding=True)
    for index, column in enumerate(columns):
        # What a row is about is never cut, however long the rest of it.
        least = max((len(row[0]) for row in rows), default=0) if index == 0 else None
        result.add_column(column, justify='left' if index < text_columns else 'right', no_wrap=True, min_width=least)
    for row in rows:
        result.add_row(*row)
    return result


def make_folder(out: str | Path) -> Path:
    """The folder `out`, made if it is not there. Raises ValueError if it cannot be."""
    path = Path(out).expanduser()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f'cannot write to {path}: {error.strerror}') from None
    return path


def write_json(path: Path, document: dict) -> None:
    """Write a document as JSON for people and scripts; NaN is refused, for JSON has none."""
    path.write_text(json.dumps(document, indent=2, allow_nan=False) + '\n', encoding='utf-8')


def points(value: float) -> str:
    """A mIoU of 0..1 as percent with one digit."""
    return f'{100 * value:.1f}'


def giga(value: float) -> str:
    """A count in units of 1e9."""
    return f'{value / 1e9:.3f}'


def evaluation_tables(evaluation: dict) -> list:
    """The tables of an `evaluation.json`: exits and classes, criteria and operating points."""
    exits = evaluation['exits']
    rows = [['GMAC', *(giga(exit_['macs']) for exit_ in exits)],
            ['GMAC alone', *(giga(exit_['static_macs']) for exit_ in exits)],
            ['mIoU', *(points(exit_['miou']) for exit_ in exits)]]
    rows += [[name, *(points(exit_['iou'][name]) for exit_ in exits)] for name in exits[0]['iou']]
    against = ' (no labels: against the final output)' if evaluation.get('reference') == 'final output' else ''
    by_exit = table(f"{evaluation['bundle']} on {evaluation['images']} images of {evaluation['dataset']} "
                    f"{evaluation['split']}{against}", ['IoU in %', *(exit_['name'] for exit_ in exits)], rows)

    def shown(shares):
        return ' '.join(f'{share:.2f}' for share in shares)
    names = [exit_['name'] for exit_ in exits]
    onboard = len(exits) - len(evaluation['criteria'][0]['offboard_exit_shares'])
    rows = [[row['criterion'], row['operating_point'] or '', points(row['miou']), giga(row['mean_macs']),
             points(row['onboard_miou']), giga(row['onboard_macs']), shown(row['exit_shares']),
             shown(row['offboard_exit_shares'])] for row in evaluation['criteria']]
    by_criterion = table('final masks over an ideal link and what both sides compute; masks that leave at once; '
                         'exits taken', ['criterion', 'point', 'mIoU', 'GMAC', 'at once', 'GMAC',
                                         ' '.join([*names[:onboard], 'forwarded']), ' '.join(names[onboard:])],
                         rows, 2)
    return [by_exit, by_criterion]


def plot_evaluation(evaluation: dict, path: Path) -> None:
    """Plot mIoU against mean multiply-accumulates, exits alone and criteria at their operating points, as a PNG."""
    import matplotlib
    matplotlib.use('Agg')
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5), layout='constrained')
    macs = [exit_['macs'] / 1e9 for exit_ in evaluation['exits']]
    miou = [100 * exit_['miou'] for exit_ in evaluation['exits']]
    axes.plot(macs, miou, 'o--', color='0.45', label='each exit for all images', zorder=1)
    for exit_, x, y in zip(evaluation['exits'], macs, miou):
        axes.annotate(exit_['name'], (x, y), textcoords='offset points', xytext=(0, -14), ha='center', color='0.35')
    rows = [row for row in evaluation['criteria'] if row['operating_point']]
    for name, marker in zip(dict.fromkeys(row['criterion'] for row in rows), 'sD^vPX*'):
        of_one = [row for row in rows if row['criterion'] == name]
        axes.plot([row['mean_macs'] / 1e9 for row in of_one], [100 * row['miou'] for row in of_one], marker=marker,
                  label=name, alpha=0.85)
    axes.set(xlabel='mean GMAC per image, both sides', ylabel='mIoU of the final masks, %',
             title=f"{evaluation['bundle']} on {evaluation['images']} images of {evaluation['dataset']} "
                   f"{evaluation['split']}")
    axes.margins(y=0.12)
    axes.grid(alpha=0.3)
    axes.legend(title='operating points of', loc='lower right')
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def bench_tables(name: str, found: dict) -> list:
    """The tables of a bench's JSON: its rows and its claims."""
    def shown(value):
        return f'{value:.3f}' if isinstance(value, float) else str(value)
    columns = list(found['rows'][0])
    return [table(f'bench {name}', columns, [[shown(row[key]) for key in columns] for row in found['rows']]),
            table('claims', ['claim', 'value'], [[key, shown(value)] for key, value in found['claims'].items()])]


def exits_tables(found: dict) -> list:
    """The tables of `bench_exits.shown`: rows, claims, and exits alone against the final output alone."""
    changes = [[name, f"{entry['miou_change_pp']:+.2f}", *('{:+.2f} .. {:+.2f}'.format(*entry['intervals'][sure])
                                                           for sure in ('90', '95'))]
               for name, entry in found['against_final'].items()]
    return [*bench_tables('exits', found),
            table('alone, against the final output alone', ['exit', 'points of mIoU', '90 %', '95 %'], changes)]


def criteria_tables(found: dict) -> list:
    """The tables of `criteria.json`: what criteria cost and save against entropy at equal mIoU, and the claims."""
    title = f"{found['bundle']['name']} on {found['images']} images of {found['dataset']} {found['split']}"
    tables = [table(f'{title}: {what} at equal mIoU, with 90 % intervals',
                    ['criterion', 'mIoU', f'entropy {unit}', unit, f'{unit} saved', '90 %', 'share saved', '90 %',
                     *(['on fitting images'] if kind == 'macs' else [])],
                    _savings_rows(found['savings'], kind, scale, digits), 2)
              for kind, what, unit, scale, digits in (('macs', 'multiply-accumulates', 'GMAC', 1e-9, 3),
                                                      ('ms', 'milliseconds', 'ms', 1.0, 2))]
    tables.append(table(f'{title}: what judging one exit takes, by itself and behind a graph',
                        ['criterion', 'ms', 'share of a stage', 'ms in a run'],
                        [[name, *(f'{entry[key]:.3f}' for key in ('ms', 'share_of_stage', 'in_run_ms'))]
                         for name, entry in found['judging'].items()]))
    claims = [[key, f'{value:.4g}' if isinstance(value, float) else value,
               *('{:.4g} .. {:.4g}'.format(*found['intervals'][key][sure]) if key in found['intervals'] else ''
                 for sure in ('90', '95'))] for key, value in found['claims'].items()]
    if found.get('pixels'):
        tables.append(table(f'{title}: no frame stops, but pixels do',
                            ['setting', 'mIoU', '90 %', 'GMAC', 'ms', 'bytes forwarded'],
                            [[row['name'], points(row['miou']), ' .. '.join(map(points, row['miou_intervals']['90'])),
                              f"{row['mean_macs'] / 1e9:.3f}", f"{row['latency_ms']:.1f}", f"{row['bytes']:.0f}"]
                             for row in found['pixels']['rows']]))
        claims += [[key, f"{entry['value']:.4g}", *('{:.4g} .. {:.4g}'.format(*entry['intervals'][sure])
                                                    for sure in ('90', '95'))]
                   for key, entry in found['pixels']['more'].items()]
    return [*tables, table('claims', ['claim', 'value', '90 %', '95 %'], claims)]


def distortion_tables(found: dict) -> list:
    """The tables of `distortions.json`: what each distortion costs, what the detector sees, and the claims."""
    def shown(value):
        return '' if value is None else points(value)
    settings = list(dict.fromkeys((row['distortion'], row['level']) for row in found['rows']))
    heads = list(dict.fromkeys(row['heads'] for row in found['rows']))
    kinds = (('onboard_miou', 'at once'), ('onboard_share', 'settled'), ('forwarded_share', 'forwarded'),
             ('final_miou', 'final'), ('broken_promises', 'broken'), ('edge_outage', 'outage'),
             ('missed_deadlines', 'late'))
    by_key = {(row['distortion'], row['level'], row['heads']): row for row in found['rows']}
    title = (f"{found['bundle']['name']}, {found['criterion']} {found['operating_point']}, on {found['images']} images "
             f"of {found['dataset']} {found['split']}; heads: {' / '.join(heads)}")
    tables = [table(f'{title}; all in %', ['distortion', 'level', *(name for _, name in kinds)],
                    [[name, f'{level:g}', *(' / '.join(shown(by_key[name, level, each][key]) for each in heads)
                                            for key, _ in kinds)] for name, level in settings])]
    if found['detector']:
        families = [key for key in found['detector'][0] if key not in ('distortion', 'level', 'family', 'recall',
                                                                       'level_found')]
        tables.append(table('what the detector sees, % of the images',
                            ['distortion', 'level', *families, 'strength'],
                            [[row['distortion'], f"{row['level']:g}", *(points(row[family]) for family in families),
                              f"{row['level_found']:.2f}"] for row in found['detector']]))
    more = [(f'{name}: share won back by {each}', value) for name, entry in found['recovered'].items()
            for each, value in entry.items() if each in heads]
    more += [(f'{name}, mildest level: recall', value) for name, value in found['mildest_recall'].items()]
    more += [(f'{name}: taken for clean', value) for name, value in found['video_clean_recall'].items()]
    return [*tables, table('claims, and more', ['', 'value'],
                           [[name, f'{value:.4g}'] for name, value in [*found['claims'].items(), *more]])]


def _savings_rows(savings, kind, scale, digits):
    def shown(value, factor=scale, places=digits):
        return '' if value is None else f'{factor * value:.{places}f}'

    def around(entry, key, *form):
        return ' .. '.join(shown(end, *form) for end in entry.get('intervals', {key: {'90': []}})[key]['90'])
    rows = []
    for name, entry in savings.items():
        places, fitted = ([*part['levels'], part['mean']] if part else [{}] * (1 + len(entry[kind]['levels']))
                          for part in (entry[kind], entry.get('fit', {}).get(kind)))
        rows += [[name, f"{points(here['miou'])} (-{here['loss_pp']:g} pp)" if 'miou' in here else 'mean',
                  shown(here.get('reference_cost')), shown(here.get('cost')), shown(here['saved']),
                  around(here, 'saved'), shown(here['saved_share'], 1.0, 3), around(here, 'saved_share', 1.0, 3),
                  *([shown(fit.get('saved_share'), 1.0, 3)] if kind == 'macs' else [])]    # bundles store no times
                 for here, fit in zip(places, fitted)]
    return rows


def distorted(summary: dict) -> str:
    """What a demo's title says of the distortion: ', noise:20', or nothing."""
    return f", {summary['distort']}" if summary.get('distort') else ''


def demo_table(summary: dict):
    """The table of a demo's `summary.json`; what was not measured has no row."""
    def times(key):
        return f"{summary[key]['p50']:.0f} / {summary[key]['p95']:.0f} ms" if key in summary else None
    rows = [
        ('frames published, dropped', f"{summary['frames']}, {summary['dropped']}"),
        ('masks, final masks, refined masks',
         f"{summary['masks']}, {summary['final_masks']}, {summary['refined_masks']}"),
    ]
    rows += [(f'ended at {name}' if name != 'not settled' else 'did not settle onboard', f'{share:.3f}')
             for name, share in zip(summary.get('exit_names', []), summary.get('exit_shares', []))]
    if 'forwarded_share' in summary:
        rows.append(('forwarded', f"{summary['forwarded_share']:.3f}"))
    rows += [(f"expert {name or 'none'}", f'{share:.3f}') for name, share in summary.get('experts', {}).items()]
    rows += [('image to mask, p50 / p95', times('mask_ms')), ('image to refined mask, p50 / p95', times('refined_ms'))]
    if 'bytes_per_forwarded_frame' in summary:
        rows.append(('features per forwarded frame', f"{summary['bytes_per_forwarded_frame']:.0f} bytes"))
    if 'jpeg_bytes' in summary:
        rows.append((f"the same as JPEG, WebP (quality {summary['image_codecs']['quality']})",
                     f"{summary['jpeg_bytes']:.0f}, {summary['webp_bytes']:.0f} bytes"))
    names = {'mask': 'onboard masks', 'refined': 'refined masks', 'final': 'final masks'}
    rows += [(f'mIoU of {names[kind]}', f'{points(value)} %') for kind, value in summary.get('miou', {}).items()]
    return table(f"{summary['bundle']}, {summary['criterion']} {summary['operating_point']}, "
                 f"{'/'.join(Path(summary['source']).parts[-2:])}{distorted(summary)}",
                 ['', 'measured'], [row for row in rows if row[1] is not None])
