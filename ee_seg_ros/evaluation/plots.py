# Copyright 2026 The ee_seg_ros authors
# SPDX-License-Identifier: Apache-2.0
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
