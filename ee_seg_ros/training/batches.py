# Copyright 2026 The ee_seg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Training batches: CamVid images and procedural scenes, augmented."""
import cv2
import numpy as np
import torch

from ee_seg_ros.data.camvid import UNLABELLED
from ee_seg_ros.data.scenes import StreetDrive

RARE = (2, 6, 7, 9, 10)    # pole, sign, fence, pedestrian, bicyclist: a third of the crops looks at one of them


def jitter(image: np.ndarray, rng: np.random.Generator, strength: float) -> np.ndarray:
    """Change brightness, contrast, gamma, colour balance and saturation; now and then blur or add noise.

    image: uint8 (H, W, 3) RGB; strength 0 leaves it unchanged, 1 reaches from dusk to glare.
    """
    levels = np.linspace(0, 1, 256)[:, None]
    gamma = np.exp(rng.uniform(-0.6, 0.6) * strength)
    gain = np.exp(rng.uniform(-0.5, 0.35) * strength + rng.uniform(-0.1, 0.1, 3) * strength)
    contrast = 1 + rng.uniform(-0.35, 0.3) * strength
    offset = rng.uniform(-0.12, 0.12) * strength
    curves = ((levels ** gamma - 0.5) * contrast + 0.5) * gain + offset
    image = cv2.LUT(image, (np.clip(curves, 0, 1) * 255).astype(np.uint8).reshape(256, 1, 3))
    if rng.random() < 0.5 * strength:
        grey = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
        keep = rng.uniform(0.2, 1.3)
        image = cv2.addWeighted(image, keep, grey, 1 - keep, 0)
    if rng.random() < 0.15 * strength:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.4, 1.2))
    if rng.random() < 0.15 * strength:
        image = np.clip(image + rng.normal(0, rng.uniform(2, 10), image.shape), 0, 255).astype(np.uint8)
    return image


def random_crop(image: np.ndarray, labels: np.ndarray, height: int, width: int, rng: np.random.Generator,
                scales: tuple) -> tuple:
    """Flip, scale by a random factor in `scales`, crop or pad to (height, width); padding is 127 and unlabelled."""
    if rng.random() < 0.5:
        image, labels = image[:, ::-1], labels[:, ::-1]
    scale = np.exp(rng.uniform(*np.log(scales)))
    stretch = np.exp(rng.uniform(-0.08, 0.08))
    size = (max(16, round(image.shape[1] * scale * stretch)), max(16, round(image.shape[0] * scale / stretch)))
    image = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    labels = cv2.resize(labels, size, interpolation=cv2.INTER_NEAREST)
    slack_y, slack_x = labels.shape[0] - height, labels.shape[1] - width
    top, left = (int(rng.integers(0, max(slack, 0) + 1)) for slack in (slack_y, slack_x))
    if rng.random() < 0.33:
        rows, columns = np.nonzero(np.isin(labels[::4, ::4], RARE))
        if len(rows):
            pick = rng.integers(len(rows))
            top = int(np.clip(rows[pick] * 4 - rng.integers(0, height), 0, max(slack_y, 0)))
            left = int(np.clip(columns[pick] * 4 - rng.integers(0, width), 0, max(slack_x, 0)))
    image, labels = image[top:top + height, left:left + width], labels[top:top + height, left:left + width]
    pad = (0, max(0, -slack_y), 0, max(0, -slack_x), cv2.BORDER_CONSTANT)    # bottom and right, as at inference
    return (cv2.copyMakeBorder(image, *pad, value=(127, 127, 127)),
            cv2.copyMakeBorder(labels, *pad, value=UNLABELLED))


class Batches(torch.utils.data.IterableDataset):
    """An endless stream of batches from `start` on; batch k is a function of (seed, k) alone, so training can resume.

    Yields (images float32 (N, 3, H, W) scaled to x / 127.5 - 1, labels int64 (N, H, W), 255 ignored).
    phases: list of dicts with steps, height, width, scales, jitter.
    """

    def __init__(self, dataset, phases: list, batch_size: int, scene_share: float, seed: int, start: int = 0):
        self.dataset, self.phases, self.batch_size = dataset, phases, batch_size
        self.scene_share, self.seed, self.start = scene_share, seed, start

    def _sample(self, position, phase):
        rng = np.random.default_rng((self.seed, position))
        if rng.random() < self.scene_share:
            scene = StreetDrive(int(rng.integers(1 << 30))).frame(int(rng.integers(400)))
            image, labels = scene.image, scene.labels
        else:
            epoch, within = divmod(position, len(self.dataset))
            order = np.random.default_rng((self.seed, 7, epoch)).permutation(len(self.dataset))
            image, labels = self.dataset[int(order[within])]
        image, labels = random_crop(image, labels, phase['height'], phase['width'], rng, phase['scales'])
        return jitter(image, rng, phase['jitter']), labels

    def __iter__(self):
        cv2.setNumThreads(1)
        step = 0
        for phase in self.phases:
            for step in range(step, step + phase['steps']):
                if step < self.start:
                    continue
                samples = [self._sample(step * self.batch_size + i, phase) for i in range(self.batch_size)]
                images = np.stack([image for image, _ in samples]).transpose(0, 3, 1, 2)
                labels = np.stack([label for _, label in samples])
                yield (torch.from_numpy(images.astype(np.float32) / 127.5 - 1),
                       torch.from_numpy(labels.astype(np.int64)))
            step += 1
