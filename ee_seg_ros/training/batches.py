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
"""Training batches: images of a data set and procedural scenes, distorted where experts train, and augmented."""
from collections.abc import Iterator

import cv2
import numpy as np
import torch

from ee_seg_ros.data.distortions import DISTORTIONS, blur_of, distort
from ee_seg_ros.data.scenes import StreetDrive
from ee_seg_ros.inference.deblur import deblurred
from ee_seg_ros.training.augmentation import augment, augmentation

DRIVES, FRAMES = 1 << 30, 400    # procedural drives to draw from, and how far into one


def _any_level(rng, family):
    """(name, level) of a distortion of a family; all strengths alike often: what is hard needs most of the steps."""
    kinds = [kind for kind in DISTORTIONS.values() if kind.family == family]
    kind = kinds[rng.integers(len(kinds))]
    return kind.name, rng.uniform(kind.levels[0], kind.levels[-1])


class Batches(torch.utils.data.IterableDataset):
    """Batches from step `start` on; batch k is a function of (seed, k) alone, so that training can resume.

    dataset: a reader (`data.datasets.open_dataset`). phases: dicts with steps, height, width, scales, jitter.
    scene_share: share of samples that are procedural scenes (only for data in CamVid's classes). rare: class ids that
    crops look for. rank, world: this process among all that train together; each draws other samples. Several workers
    of a DataLoader take turns at the batches, in the order in which it collects them.
    families: of distortions, in turn over the samples of a batch: sample i is distorted by families[i % n], or stays
    clean with a probability of `clean_share`. As in a camera that comes before everything else: before the
    augmentation, at the image's own resolution, which the levels are made for. deblur_error: what blurs is then taken
    back, with such an error (standard deviation of the logarithm of the variance); None: it stays.
    Yields (images uint8 (N, 3, H, W), labels uint8 (N, H, W), 255 unlabelled).
    """

    def __init__(self, dataset, phases: list, batch_size: int, scene_share: float = 0.0, rare: tuple = (),
                 seed: int = 0, start: int = 0, rank: int = 0, world: int = 1, families: tuple = (),
                 clean_share: float = 0.0, deblur_error: float | None = None):
        self.dataset, self.phases, self.batch_size = dataset, phases, batch_size
        self.families, self.clean_share, self.deblur_error = families, clean_share, deblur_error
        self.scene_share, self.rare = scene_share, rare
        self.seed, self.start, self.rank, self.world = seed, start, rank, world

    def _sample(self, position, transform, family):
        rng = np.random.default_rng((self.seed, position))
        if rng.random() < self.scene_share:
            scene = StreetDrive(int(rng.integers(DRIVES))).frame(int(rng.integers(FRAMES)))
            image, labels = scene.image, scene.labels
        else:
            epoch, within = divmod(position, len(self.dataset))
            order = np.random.default_rng((self.seed, 7, epoch)).permutation(len(self.dataset))
            image, labels = self.dataset[int(order[within])]
        if family and rng.random() >= self.clean_share:
            how = *_any_level(rng, family), int(rng.integers(1 << 31))
            image, blur = distort(image, *how), blur_of(*how)
            if self.deblur_error is not None and blur.any():
                image = deblurred(image, blur * np.exp(self.deblur_error * rng.standard_normal()))
        return augment(transform, image, labels, int(rng.integers(1 << 31)))

    def __iter__(self) -> Iterator:
        cv2.setNumThreads(1)
        worker = torch.utils.data.get_worker_info()
        turn, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        begin = 0
        for phase in self.phases:
            transform = augmentation(phase['height'], phase['width'], tuple(phase['scales']), phase['jitter'],
                                     tuple(self.rare))
            for step in range(max(begin, self.start), begin + phase['steps']):
                if (step - self.start) % workers != turn:
                    continue
                first = (step * self.world + self.rank) * self.batch_size
                families = self.families or ('',)
                samples = [self._sample(first + index, transform, families[index % len(families)])
                           for index in range(self.batch_size)]
                yield tuple(torch.stack(part) for part in zip(*samples))
            begin += phase['steps']
