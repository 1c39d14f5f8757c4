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
"""A temperature per exit, so that a probability of 0.8 means 80 % of such pixels are right.

Source: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017.
"""
from collections.abc import Callable, Iterable

import numpy as np

from ee_seg_ros.inference.engine import Engine
from ee_seg_ros.inference.outputs import GRID, ExitOutput, softmax
from ee_seg_ros.search.observations import run_all

BINS = 15
PIXELS = 400    # per image and exit: neighbours say the same, and a single number is fitted


def labels_on_grid(labels: np.ndarray, output: ExitOutput) -> np.ndarray:
    """uint8 (rows, columns): the label in the middle of each cell of the grid on which criteria look at an exit.

    labels: uint8 (H, W) of the whole image, of any size.
    """
    _, rows, columns = output.grid_logits.shape
    place, (height, width) = output.placement, labels.shape
    down = ((np.arange(rows) + 0.5) * GRID * height / place.content_height).astype(int)
    right = ((np.arange(columns) + 0.5) * GRID * width / place.content_width).astype(int)
    return labels[np.ix_(np.minimum(down, height - 1), np.minimum(right, width - 1))]


def labelled_pixels(engine: Engine, samples: Iterable, report: Callable[[int], None] = lambda done: None,
                    expert: str = '') -> list:
    """For each exit of an engine's bundle (logits float32 (m, C), labels uint8 (m,)), on `PIXELS` cells an image.

    samples: (image, labels) pairs. expert: as of `Engine.segment`. Raises ValueError if none of them has a label.
    """
    classes = len(engine.bundle.classes)
    logits, truths = [[] for _ in engine.bundle.exits], []
    for done, (image, labels) in enumerate(samples, start=1):
        outputs, _ = run_all(engine, image, expert)
        truth = labels_on_grid(labels, outputs[0]).ravel()
        known = np.flatnonzero(truth < classes)
        chosen = known[np.linspace(0, len(known) - 1, min(PIXELS, len(known)), dtype=int)]
        truths.append(truth[chosen])
        for kept, output in zip(logits, outputs):
            kept.append(output.grid_logits.reshape(classes, -1).T[chosen])
        report(done)
    if not truths or not sum(map(len, truths)):
        raise ValueError('there is no labelled pixel to calibrate on: check the data set and its split')
    truth = np.concatenate(truths)
    return [(np.concatenate(kept), truth) for kept in logits]


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The temperature at which softmax(logits / temperature) has the least negative log-likelihood.

    logits: float (m, C). labels: int (m,). Found by LBFGS over its logarithm, so that it stays positive.
    """
    import torch
    inputs, targets = torch.from_numpy(logits).double(), torch.from_numpy(labels.astype(np.int64))
    exponent = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([exponent], max_iter=100, line_search_fn='strong_wolfe')

    def loss():
        optimiser.zero_grad()
        value = torch.nn.functional.cross_entropy(inputs * torch.exp(-exponent), targets)
        value.backward()
        return value
    optimiser.step(loss)
    return float(torch.exp(exponent.detach()))


def calibration_error(logits: np.ndarray, labels: np.ndarray, temperature: float = 1.0) -> float:
    """Expected calibration error, 0..1: mean over 15 bins of confidence of |accuracy - confidence|, by their share.

    logits: float (m, C). labels: int (m,).
    """
    import torch

    import ee_seg_ros.models.torchvision_compat  # noqa: F401 (torchmetrics imports torchvision where there is one)
    # isort: split
    from torchmetrics.functional.classification import multiclass_calibration_error
    probabilities = torch.from_numpy(softmax(logits.T.astype(np.float32), temperature).T.copy())
    return float(multiclass_calibration_error(probabilities, torch.from_numpy(labels.astype(np.int64)),
                                              logits.shape[1], n_bins=BINS, norm='l1'))


def calibrate_temperatures(pixels: list) -> dict:
    """For each entry of `labelled_pixels` its temperature, and its calibration error before and after.

    Returns {'temperatures': [...], 'ece_before': [...], 'ece_after': [...]}.
    """
    temperatures = [round(fit_temperature(*pair), 4) for pair in pixels]
    return {'temperatures': temperatures, 'ece_before': [calibration_error(*pair) for pair in pixels],
            'ece_after': [calibration_error(*pair, value) for pair, value in zip(pixels, temperatures)]}
