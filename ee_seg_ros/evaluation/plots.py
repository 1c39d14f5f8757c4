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
"""Plots of the benches, as PNG. They need matplotlib, which is imported when one is drawn."""
from pathlib import Path

MARKERS = 'osD^vPX*'
OTHERS = {'single': '*', 'single_fine': 'p', 'smaller': 'P'}    # markers of the networks compared with


def plot_exits(found: dict, path: Path) -> None:
    """Plot the rows of `exits.json`: mIoU against mean latency of criteria, exits alone and single-exit networks."""
    import matplotlib
    matplotlib.use('Agg')
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 6), layout='constrained')
    of = {kind: [row for row in found['rows'] if row['kind'] == kind]
          for kind in (*OTHERS, 'final', 'static', 'operating_point', 'curve')}
    alone = sorted(of['static'] + of['final'], key=lambda row: row['latency_ms'])
    axes.plot(*_points(alone), 'o--', color='0.45', label='one exit alone')
    for row in alone:
        axes.annotate(row['name'].removesuffix(' alone'), (row['latency_ms'], 100 * row['miou']), color='0.35',
                      textcoords='offset points', xytext=(0, -14), ha='center')
    for index, name in enumerate(dict.fromkeys(row['criterion'] for row in of['operating_point'])):
        curve, points = ([row for row in of[kind] if row['criterion'] == name] for kind in ('curve', 'operating_point'))
        axes.plot(*_points(curve), '-', color=f'C{index}', alpha=0.6)
        axes.plot(*_points(points), MARKERS[index % len(MARKERS)], color=f'C{index}', label=name)
    for row in (row for kind in OTHERS for row in of[kind]):
        axes.plot(*_points([row]), OTHERS[row['kind']], color='k', markersize=14, label=row['name'], linestyle='')
        axes.axhline(100 * row['miou'], color='k', linewidth=0.7, linestyle=':')
    axes.set(xlabel=f"mean latency in ms, image to mask, {found['threads']} threads", ylabel='mIoU, %',
             title=f"{found['bundles']['early']['name']} on {found['images']} images of {found['dataset']} "
                   f"{found['split']}")
    axes.margins(0.08)
    axes.grid(alpha=0.3)
    axes.legend(title='line: stored curve; markers: operating points', loc='lower right')
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def _points(rows):
    return [row['latency_ms'] for row in rows], [100 * row['miou'] for row in rows]


def plot_criteria(found: dict, path: Path) -> None:
    """Plot the rows of `criteria.json`: mIoU against mean multiply-accumulates and milliseconds, a line a criterion."""
    import matplotlib
    matplotlib.use('Agg')
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(13, 6), sharey=True, layout='constrained')
    names = list(dict.fromkeys(row['criterion'] for row in found['rows']))
    kinds = (('mean_macs', 1e-9, 'mean GMAC per image, both sides'),
             ('latency_ms', 1.0, f"mean latency in ms, image to mask, {found['threads']} threads"))
    for axes, (key, scale, label) in zip(panels, kinds):
        for index, name in enumerate(names):
            rows = [row for row in found['rows'] if row['criterion'] == name]
            costs, mious = ([factor * row[what] for row in rows] for what, factor in ((key, scale), ('miou', 100)))
            axes.plot(costs, mious, '.-', color=f'C{index}', label=name)
            # One interval in so many settings, each criterion at others: all of them would cover the lines.
            chosen = range(index, len(rows), 2 * len(names))
            ends = [[100 * abs(rows[at]['miou_intervals']['90'][end] - rows[at]['miou']) for at in chosen]
                    for end in (0, 1)]
            axes.errorbar([costs[at] for at in chosen], [mious[at] for at in chosen], ends, color=f'C{index}',
                          fmt='none', capsize=3, alpha=0.5)
        whole = max(found['rows'], key=lambda row: row['mean_macs'])    # no frame settles, whatever the criterion
        for loss in found['losses_pp']:
            axes.axhline(100 * whole['miou'] - loss, color='k', linewidth=0.7, linestyle=':')
        axes.set_xlabel(label)
        axes.grid(alpha=0.3)
    panels[0].set_ylabel('mIoU of the final masks, %')
    panels[0].legend(title='bars: 90 % of resampled image sets\ndotted: levels compared at', loc='lower right')
    figure.suptitle(f"{found['bundle']['name']} on {found['images']} images of {found['dataset']} {found['split']}")
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def plot_distortions(found: dict, path: Path) -> None:
    """Plot the rows of `distortions.json`: mIoU and share of the masks that leave onboard against the level."""
    import matplotlib
    matplotlib.use('Agg')
    from matplotlib import pyplot

    names = [name for name in dict.fromkeys(row['distortion'] for row in found['rows']) if name != 'clean']
    heads = list(dict.fromkeys(row['heads'] for row in found['rows']))
    clean = next(row['onboard_miou'] for row in found['rows'] if row['distortion'] == 'clean')
    figure, panels = pyplot.subplots(2, len(names), figsize=(3 * len(names), 6), sharey='row', sharex='col',
                                     layout='constrained')
    for column, name in zip(panels.T, names):
        for index, kind in enumerate(heads):
            rows = [row for row in found['rows'] if (row['distortion'], row['heads']) == (name, kind)]
            levels = [row['level'] for row in rows]
            for axes, key in zip(column, ('onboard_miou', 'onboard_share')):
                axes.plot(levels, [100 * row[key] for row in rows], 'os^'[index] + ('-' if index != 1 else '--'),
                          color=f'C{index}', label=kind, alpha=0.85)
        column[0].axhline(100 * clean, color='k', linewidth=0.7, linestyle=':')
        column[0].set_title(name)
        column[1].set_xlabel('level')
        for axes in column:
            axes.grid(alpha=0.3)
    panels[0, 0].set_ylabel('mIoU of the masks\nthat leave onboard, %')
    panels[1, 0].set_ylabel('settled onboard, %')
    panels[0, 0].legend(title='heads (dotted: clean)')
    figure.suptitle(f"{found['bundle']['name']}, {found['criterion']} {found['operating_point']}, on {found['images']} "
                    f"images of {found['dataset']} {found['split']}")
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
