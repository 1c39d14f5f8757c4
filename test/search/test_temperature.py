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
"""Temperatures undo what was done to logits; the calibration error is that of a computation by hand."""
import numpy as np
import pytest

pytest.importorskip('torch', reason='torch is not installed (make train-env)')
pytest.importorskip('ee_seg_ros.models.torchvision_compat')    # torchmetrics imports torchvision
pytest.importorskip('torchmetrics', reason='torchmetrics is not installed (make train-env)')

from tiny import CLASSES, HEIGHT, WIDTH, tiny_bundle  # noqa: E402

from ee_seg_ros.inference.bundle import Bundle  # noqa: E402
from ee_seg_ros.inference.engine import Engine  # noqa: E402
from ee_seg_ros.inference.outputs import softmax  # noqa: E402
from ee_seg_ros.search.temperature import (  # noqa: E402
    PIXELS,
    calibrate_temperatures,
    calibration_error,
    fit_temperature,
    labelled_pixels,
    labels_on_grid,
)


def drawn(temperature, count=20000, classes=4):
    """Logits, and labels drawn from their softmax at a temperature: that one calibrates them."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, (count, classes)).astype(np.float32)
    cumulated = softmax(logits.T, temperature).cumsum(0)
    return logits, (rng.uniform(size=count) > cumulated).sum(0).clip(max=classes - 1)


@pytest.mark.parametrize('temperature', [0.5, 1.0, 3.0])
def test_the_temperature_that_labels_were_drawn_with_is_found(temperature):
    logits, labels = drawn(temperature)
    assert fit_temperature(logits, labels) == pytest.approx(temperature, rel=0.05)


def test_calibration_error_by_hand():
    """15 bins of confidence; in each |share that is right - mean confidence|, weighted by its share of the pixels."""
    logits, labels = drawn(2.0, 5000)
    probabilities = softmax(logits.T, 0.8).T
    confidence, right = probabilities.max(1), probabilities.argmax(1) == labels
    expected, edges = 0.0, np.linspace(0, 1, 16)
    for low, high in zip(edges, edges[1:]):
        inside = (confidence > low) & (confidence <= high)
        if inside.any():
            expected += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    assert expected > 0.1
    assert calibration_error(logits, labels, 0.8) == pytest.approx(expected, abs=1e-4)


def test_calibrating_lowers_the_error():
    found = calibrate_temperatures([drawn(3.0), drawn(1.0)])
    assert found['ece_after'][0] < 0.02 < found['ece_before'][0]
    assert found['temperatures'][1] == pytest.approx(1, abs=0.05)


@pytest.fixture(scope='module')
def engine(tmp_path_factory):
    return Engine(Bundle.load(tiny_bundle(tmp_path_factory.mktemp('bundle') / 'tiny')), threads=1)


def test_labels_are_those_in_the_middle_of_the_cells(engine):
    """An image twice as large as the network input: cells of 8 pixels of input are 16 of the image."""
    labels = np.zeros((2 * HEIGHT, 2 * WIDTH), np.uint8)
    labels[16 + 8, 32 + 8] = 2
    output = engine.segment(np.zeros((*labels.shape, 3), np.uint8), 'never').outputs[0]
    grid = labels_on_grid(labels, output)
    assert grid.shape == output.grid_classes.shape and grid[1, 2] == 2 and grid.sum() == 2


def test_pixels_of_all_exits_are_the_same_and_labelled(engine):
    rng = np.random.default_rng(3)
    image = rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    labels = np.full((HEIGHT, WIDTH), 255, np.uint8)
    labels[:8, :16] = 1
    pixels = labelled_pixels(engine, [(image, labels)])
    assert len(pixels) == len(engine.bundle.exits)
    outputs = engine.segment(image, 'never').outputs
    for (logits, truth), output in zip(pixels, outputs):
        assert truth.tolist() == [1, 1]
        np.testing.assert_array_equal(logits, output.grid_logits[:, 0, :2].T)
    rows, columns = HEIGHT // 8, WIDTH // 8
    everything = labelled_pixels(engine, [(image, np.ones((HEIGHT, WIDTH), np.uint8))])
    assert len(everything[0][1]) == min(PIXELS, rows * columns)


def test_a_split_without_labels_is_refused(engine):
    image, nothing = np.zeros((HEIGHT, WIDTH, 3), np.uint8), np.full((HEIGHT, WIDTH), 255, np.uint8)
    with pytest.raises(ValueError, match='no labelled pixel'):
        labelled_pixels(engine, [(image, nothing)])
    assert nothing.min() >= CLASSES
