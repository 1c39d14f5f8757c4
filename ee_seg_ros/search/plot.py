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
"""The plot of a search: its Pareto front over all candidates, and what was chosen."""
from pathlib import Path

_UNITS = {'macs': ('mean GMAC per image, both sides', 1e-9), 'ms': ('mean ms per image on this machine', 1.0),
          'bytes': ('mean bytes sent per image', 1.0)}


def plot_search(result: dict, path: str | Path) -> None:
    """Plot the mIoU of a `search.json` against its cost, as a PNG."""
    import matplotlib
    matplotlib.use('Agg')
    from matplotlib import pyplot

    goal, front, chosen = result['goal'], result['front'], result['chosen']
    label, scale = _UNITS[goal['cost']]
    figure, axes = pyplot.subplots(figsize=(8, 5), layout='constrained')

    def places(entries):
        return [scale * entry[goal['cost']] for entry in entries], [100 * entry['miou'] for entry in entries]
    if goal['cost'] != 'bytes' and goal['mode'] != 'anytime':    # an exit alone sends nothing, has no mean over time
        axes.scatter(*places(result['candidates']), s=14, color='0.6', label='each candidate alone, for all images')
    axes.plot(*places(front), 'o-', markersize=4, label=f"Pareto front, {goal['mode']}")
    axes.plot(*places([chosen]), '*', markersize=15, color='tab:red',
              label=f"chosen: {', '.join(chosen['exits'])}; {chosen['criterion']}")
    if goal['cost'] in goal['limits']:
        axes.axvline(scale * goal['limits'][goal['cost']], color='0.4', linestyle=':', label='budget')
    if goal['miou']:
        axes.axhline(100 * goal['miou'], color='0.4', linestyle='--', label='wanted mIoU')
    meaning = 'mIoU, mean over the time allowed' if goal['mode'] == 'anytime' else 'mIoU of the final masks'
    axes.set(xlabel=label, ylabel=f'{meaning}, %',
             title=f"search on {result['images']} images of {result['dataset']} {result['split']}")
    axes.grid(alpha=0.3)
    axes.legend(loc='lower right', fontsize='small')
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
