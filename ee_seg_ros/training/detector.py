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
"""Train the detector of distortions: images varied, distorted, made into features, judged by a small network.

It knows nothing of the segmentation network, so the same detector serves any bundle; what it must not be confused by
is what images differ in anyway: light, lens, compression, scale, the street. Features are computed once.
"""
import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import nn
from torch.nn import functional

from ee_seg_ros.data.datasets import open_dataset
from ee_seg_ros.data.distortions import DISTORTIONS, FAMILIES, blur_of, distort, random_distortion
from ee_seg_ros.data.scenes import StreetDrive
from ee_seg_ros.inference.detector import FEATURES, features
from ee_seg_ros.models.export import export_part
from ee_seg_ros.models.multi_exit import Part
from ee_seg_ros.training.recipe import read_yaml

STAGE = 'detector'
GATHERED = ('rows', 'families', 'levels', 'blurs')
LEAST_BLUR = 0.1    # pixels squared, added to variances so that they have logarithms
SMALLEST = 64    # pixels that a cut of an image has a side


@dataclass(frozen=True)
class DetectorRecipe:
    """What a recipe of stage `detector` says.

    split: of the data set; not of what figures are reported on. provenance: at least `data` and `licence`. samples:
    varied images, a quarter of each family. scene_share: of drawn scenes. scales: smallest and largest zoom of a varied
    image. width, height: of the network input that larger images are shrunk to, see `inference.detector.features`.
    hidden: width of the two hidden layers. steps: of AdamW, each over batch_size samples. drop: dropout. jitter: noise
    added to the normalised features; blur_jitter: where the blur is measured, which is no matter of kind but of degree.
    """

    stage: str
    split: str
    provenance: dict
    dataset: str = 'camvid'
    seed: int = 1
    samples: int = 16000
    scene_share: float = 0.15
    scales: tuple = (0.65, 1.15)
    width: int = 448
    height: int = 336
    hidden: int = 64
    steps: int = 3000
    batch_size: int = 512
    learning_rate: float = 0.003
    weight_decay: float = 0.01
    drop: float = 0.1
    jitter: float = 0.3
    blur_jitter: float = 0.15


def read_detector_recipe(path: str | Path) -> DetectorRecipe:
    """The recipe of a YAML file. Raises FileNotFoundError or ValueError that says what is wrong."""
    content, known = read_yaml(path), {entry.name for entry in fields(DetectorRecipe)}
    unknown, missing = sorted(set(content) - known), sorted({'stage', 'split', 'provenance'} - set(content))
    if unknown or missing:
        raise ValueError(f"{path}: unknown keys {', '.join(unknown) or 'none'}, missing keys "
                         f"{', '.join(missing) or 'none'} (known: {', '.join(sorted(known))})")
    recipe = DetectorRecipe(**content)
    if not isinstance(recipe.provenance, dict) or not {'data', 'licence'} <= set(recipe.provenance):
        raise ValueError(f'{path}: provenance must state at least `data` (what it is trained on) and `licence`')
    if recipe.stage != STAGE or recipe.samples < len(FAMILIES) or recipe.steps < 1 or len(recipe.scales) != 2:
        raise ValueError(f'{path}: expected stage: {STAGE}, at least {len(FAMILIES)} samples, 1 step and two scales')
    return recipe


def _recompressed(image, quality):
    written, data = cv2.imencode('.jpg', image, [cv2.IMWRITE_JPEG_QUALITY, int(quality)])
    return cv2.imdecode(data, cv2.IMREAD_COLOR) if written else image


def varied(image: np.ndarray, scales: tuple, rng: np.random.Generator) -> np.ndarray:
    """Another image that is as good: cut, flipped, scaled, of another light, lens, sensor and compression.

    uint8 (H, W, 3) -> uint8 (h, w, 3); a function of the arguments.
    """
    size = np.array(image.shape[:2])
    cut = np.maximum((size * rng.uniform((0.45, 0.6), 1)).astype(int), np.minimum(size, SMALLEST))
    row, column = (rng.integers(0, size - cut + 1)).tolist()
    image = image[row:row + cut[0], column:column + cut[1]]
    image = image[:, ::-1] if rng.random() < 0.5 else image
    scale = math.exp(rng.uniform(*np.log(scales)))
    image = cv2.resize(image, None, fx=scale, fy=scale,
                       interpolation=cv2.INTER_AREA if scale < 1 and rng.random() < 0.5 else cv2.INTER_LINEAR)
    if rng.random() < 0.3:    # a softer lens
        image = cv2.GaussianBlur(image, (5, 5), rng.uniform(0.2, 0.45))
    elif rng.random() < 0.2:    # a camera that sharpens
        image = cv2.addWeighted(image, 1 + (share := rng.uniform(0.1, 0.6)), cv2.GaussianBlur(image, (0, 0), 1), -share,
                                0)
    # Light, contrast (a lens that flares lifts the dark) and the colours of the light.
    lift = rng.uniform(0, 0.12) * (rng.random() < 0.5)
    levels = (np.arange(256, dtype=np.float32) / 255) ** math.exp(rng.uniform(-0.6, 0.6)) * rng.uniform(0.55, 1.15)
    gains = np.exp(rng.uniform(-0.12, 0.12, 3)).astype(np.float32)
    image = cv2.LUT(image, np.clip((lift + (1 - lift) * levels)[:, None] * gains * 255, 0, 255).astype(np.uint8)[None])
    if rng.random() < 0.7:    # an overcast day, or a camera that likes colours
        colours, grey = rng.uniform(0.2, 1.4), cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
        image = cv2.addWeighted(image, colours, grey, 1 - colours, 0)
    if rng.random() < 0.5:    # every sensor has some noise
        image = distort(image, 'noise', rng.uniform(0.3, 1.8), int(rng.integers(1 << 31)))
    return _recompressed(image, rng.uniform(50, 98)) if rng.random() < 0.5 else np.ascontiguousarray(image)


def severity(name: str, level: float) -> float:
    """0 for the mildest listed level of a distortion, 1 for the strongest, by ratio between."""
    low, high = DISTORTIONS[name].levels[0], DISTORTIONS[name].levels[-1]
    return math.log(level / low) / math.log(high / low)


class _Pictures:
    """Images to vary: a data set's, and frames of drawn drives in fair weather (in foul they are not clean)."""

    def __init__(self, recipe, root):
        self._recipe, self._dataset = recipe, open_dataset(recipe.dataset, root, recipe.split)

    def draw(self, rng):
        if rng.random() >= self._recipe.scene_share:
            return self._dataset.image(int(rng.integers(len(self._dataset))))
        while True:
            scene = StreetDrive(int(rng.integers(1000, 2000))).frame(int(rng.integers(300)))
            if not scene.hard:
                return scene.image


def gather(recipe: DetectorRecipe, root: str | None, report: Callable[[int, int], None] = lambda done, total: None
           ) -> tuple:
    """What n varied, distorted images look like, and what they suffer from; a function of the recipe and the images.

    (features float32 (n, f), families int64 (n,), levels float32 (n,), 0..1, blurs float32 (n, 3) as of `blur_of`).
    """
    pictures, rows, families, levels, blurs = _Pictures(recipe, root), [], [], [], []
    for index in range(recipe.samples):
        # The same picture with each family in turn: what differs is the distortion, not the street.
        group, family = divmod(index, len(FAMILIES))
        rng = np.random.default_rng((recipe.seed, group))
        if family == 0:
            picture = pictures.draw(rng)
        rng = np.random.default_rng((recipe.seed, group, family))
        image = varied(picture, recipe.scales, rng)
        name, level = random_distortion(rng, FAMILIES[family])
        seed = int(rng.integers(1 << 31))
        image = distort(image, name, level, seed)
        if family and rng.random() < 0.25:
            image = _recompressed(image, rng.uniform(70, 98))
        rows.append(features(image, recipe.width, recipe.height))
        families.append(family)
        levels.append(severity(name, level) if family else 0.0)
        blurs.append(blur_of(name, level, seed) if family else np.zeros(3))
        report(index + 1, recipe.samples)
    return np.array(rows), np.array(families), np.array(levels, np.float32), np.array(blurs, np.float32)


def log_blur(blurs: torch.Tensor) -> torch.Tensor:
    """Matrix logarithms of covariances (n, 3), as (xx, yy, xy), `LEAST_BLUR` added to the variances."""
    return _of_eigenvalues(blurs + torch.tensor([LEAST_BLUR, LEAST_BLUR, 0]), torch.log)


def blur_from_log(logarithms: torch.Tensor) -> torch.Tensor:
    """The inverse of `log_blur`."""
    return _of_eigenvalues(logarithms, lambda value: (value.exp() - LEAST_BLUR).clamp_min(0))


def _of_eigenvalues(matrices, function):
    """A function of symmetric matrices (n, 3), as (xx, yy, xy): of their eigenvalues."""
    xx, yy, xy = matrices.unbind(1)
    middle, half = (xx + yy) / 2, (xx - yy) / 2
    radius = (half ** 2 + xy ** 2).sqrt().clamp_min(1e-6)
    high, low = function(middle + radius), function(middle - radius)
    mean, turn = (high + low) / 2, (high - low) / 2 / radius
    return torch.stack((mean + turn * half, mean - turn * half, turn * xy), 1)


def _layers(inputs, hidden, outputs, drop):
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Dropout(drop), nn.Linear(hidden, hidden), nn.ReLU(),
                         nn.Dropout(drop), nn.Linear(hidden, outputs))


class Judge(nn.Module):
    """float32 (n, f) features -> probabilities (n, families), levels (n, families), blur (n, 3).

    The level of `clean` is 0. blur: the covariance (xx, yy, xy) of the point spread, of an image of the family blur.
    """

    def __init__(self, mean: torch.Tensor, spread: torch.Tensor, hidden: int, drop: float = 0.0):
        super().__init__()
        self.register_buffer('mean', mean)
        self.register_buffer('spread', spread)
        self.net = _layers(len(mean), hidden, 2 * len(FAMILIES), drop)
        with torch.random.fork_rng(devices=[]):    # what is drawn for the one shall not change the other
            self.blur = _layers(len(mean), hidden, 3, 0.0)

    def normalised(self, values: torch.Tensor) -> torch.Tensor:
        """Features of about the same spread."""
        return ((values - self.mean) / self.spread).clamp(-6, 6)

    def raw(self, values: torch.Tensor) -> tuple:
        """Logits of the families and levels as they are trained, from normalised features."""
        return self.net(values).split(len(FAMILIES), 1)

    def forward(self, values: torch.Tensor) -> tuple:
        values = self.normalised(values)
        logits, levels = self.raw(values)
        return (logits.softmax(1), torch.cat((torch.zeros_like(levels[:, :1]), levels[:, 1:].clamp(0, 1)), 1),
                blur_from_log(self.blur(values)))


def _descend(recipe, net, values, jitter, loss_of):
    """Train a network on batches of normalised features (n, f); loss_of: (outputs, indices into them) -> loss."""
    optimizer = torch.optim.AdamW(net.parameters(), recipe.learning_rate, weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.learning_rate, total_steps=recipe.steps)
    for _ in range(recipe.steps):
        batch = torch.randint(len(values), (min(recipe.batch_size, len(values)),))
        loss = loss_of(net(values[batch] + jitter * torch.randn(len(batch), values.shape[1])), batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


def fit(recipe: DetectorRecipe, rows: np.ndarray, families: np.ndarray, levels: np.ndarray,
        blurs: np.ndarray) -> Judge:
    """The network trained on what `gather` returns; a function of the arguments."""
    values, truth, strengths, spreads = map(torch.from_numpy, (rows, families, levels, blurs))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        judge = Judge(values.mean(0), values.std(0).clamp_min(1e-3), recipe.hidden, recipe.drop)
        values = judge.normalised(values)

        def judgement(outputs, batch):
            logits, guesses = outputs.split(len(FAMILIES), 1)
            off = (guesses.gather(1, truth[batch, None])[:, 0] - strengths[batch]).abs() * (truth[batch] > 0)
            return functional.cross_entropy(logits, truth[batch]) + off.mean()
        _descend(recipe, judge.net, values, recipe.jitter, judgement)
        blurred = spreads.any(1)    # of other images it is not asked
        if blurred.any():
            expected = log_blur(spreads[blurred])
            _descend(recipe, judge.blur, values[blurred], recipe.blur_jitter,
                     lambda outputs, batch: (outputs - expected[batch]).abs().mean())
    return judge.eval()


def write(judge: Judge, recipe: DetectorRecipe, out: Path) -> Path:
    """Write `detector.onnx`, checked against torch, and `detector.json`, what bundle.json says of it; the latter."""
    example = judge.mean[None] + judge.spread[None] * torch.randn(1, len(judge.mean), generator=torch.Generator())
    with torch.no_grad():
        outputs = dict(zip(('probabilities', 'levels', 'blur'), judge(example)))
    part = Part(STAGE, STAGE, judge, ('features',), tuple(outputs))
    path = out / 'detector.onnx'
    export_part(part, {'features': example, **outputs}, path)
    settings = {key: value for key, value in asdict(recipe).items() if key != 'provenance'}
    described = {'file': path.name, 'sha256': hashlib.sha256(path.read_bytes()).hexdigest(), 'features': FEATURES,
                 'families': list(FAMILIES), 'width': recipe.width, 'height': recipe.height,
                 'provenance': {**recipe.provenance, 'recipe': settings}}
    (out / 'detector.json').write_text(json.dumps(described, indent=1) + '\n', encoding='utf-8')
    return out / 'detector.json'


def train_detector(recipe_path: str | Path, root: str | None, out: Path, threads: int = 2,
                   report: Callable[[int, int], None] = lambda done, total: None) -> Path:
    """Train as a recipe of stage `detector` says; returns OUT/detector.json, beside which lies detector.onnx.

    Features lie in OUT/features.npz and are used again
    by a recipe that would compute the same. report: called with (samples done, samples in all). Raises ValueError or
    FileNotFoundError for wrong input.
    """
    recipe = read_detector_recipe(recipe_path)
    torch.set_num_threads(threads)
    drawn = json.dumps([FEATURES, 'blurs', *(asdict(recipe)[key] for key in (
        'dataset', 'split', 'seed', 'samples', 'scene_share', 'scales', 'width', 'height'))])
    cache, kept = out / 'features.npz', None
    if cache.is_file():
        with np.load(cache) as stored:
            kept = tuple(stored[key] for key in GATHERED) if stored['drawn'] == drawn else None
    if kept is None:
        kept = gather(recipe, root, report)
        np.savez_compressed(cache, drawn=drawn, **dict(zip(GATHERED, kept)))
    return write(fit(recipe, *kept), recipe, out)
