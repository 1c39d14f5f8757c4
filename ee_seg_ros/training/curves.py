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
"""The losses of a training as a picture."""
import csv
from pathlib import Path

SMOOTHING = 5    # points of the moving mean


def read_metrics(logs: Path) -> dict:
    """Loss name -> (steps, values) of Lightning's metrics.csv files in a folder, one for each start of a training.

    A row holds what was logged at its step; steps that were done again after a kill are there once.
    """
    losses = {}
    for path in logs.glob('*/metrics.csv'):
        with path.open(encoding='utf-8', newline='') as file:
            for row in csv.DictReader(file):
                for name, value in row.items():
                    if name.startswith('loss_') and value:
                        losses.setdefault(name.removeprefix('loss_'), {})[int(row['step'])] = float(value)
    return {name: tuple(zip(*sorted(values.items()))) for name, values in losses.items()}


def plot_curves(logs: Path, picture: Path) -> None:
    """Draw the losses of a training as a PNG; nothing where none was logged, or without matplotlib."""
    losses = read_metrics(logs)
    if not losses:
        return
    try:
        import matplotlib
    except ImportError:    # a training is worth more than its picture
        return
    matplotlib.use('Agg')
    from matplotlib import pyplot
    figure, axes = pyplot.subplots(figsize=(9, 5), layout='constrained')
    for name, (steps, values) in losses.items():
        means = [sum(values[max(0, at - SMOOTHING + 1):at + 1]) / len(values[max(0, at - SMOOTHING + 1):at + 1])
                 for at in range(len(values))]
        axes.plot(steps, means, label=name, linewidth=1)
    axes.set(xlabel='step', ylabel=f'loss, mean of {SMOOTHING} entries', yscale='log')
    axes.grid(alpha=0.3)
    axes.legend(fontsize=6, ncol=max(1, len(losses) // 16))
    figure.savefig(picture, dpi=120)
    pyplot.close(figure)
