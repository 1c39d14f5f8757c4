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
"""Augmentation with torchvision's transforms.v2: image and labels move together, only the image changes its colours."""
import math

import numpy as np
import torch
from torchvision import tv_tensors
from torchvision.transforms import v2

from ee_seg_ros.data.labelled import UNLABELLED

PAD = 127    # as at inference


class RandomZoomCrop(v2.Transform):
    """Flip, zoom by a random factor, stretch a little, and cut (height, width) out; what is missing is padded.

    scales: smallest and largest zoom; log-uniform in between. rare: class ids; every third cut looks at one of them,
    if there is one. Padding, at the bottom and at the right, is grey and unlabelled. torchvision's RandomResizedCrop
    keeps no scale, and knows nothing of labels.
    """

    def __init__(self, height: int, width: int, scales: tuple, rare: tuple = ()):
        super().__init__()
        self.height, self.width, self.scales, self.rare = height, width, scales, torch.tensor(rare)

    def make_params(self, flat_inputs: list) -> dict:
        """One draw of flip, size and place, for the image and its labels alike."""
        labels = next(entry for entry in flat_inputs if isinstance(entry, tv_tensors.Mask))
        low, high = (math.log(scale) for scale in self.scales)
        scale = math.exp(low + (high - low) * float(torch.rand(())))
        stretch = math.exp(float(torch.rand(()) * 0.16 - 0.08))
        size = [max(16, round(labels.shape[-2] * scale / stretch)), max(16, round(labels.shape[-1] * scale * stretch))]
        flip = bool(torch.rand(()) < 0.5)
        slack = [max(0, size[0] - self.height), max(0, size[1] - self.width)]
        place = [int(torch.randint(room + 1, ())) for room in slack]
        if len(self.rare) and torch.rand(()) < 0.33:
            found = torch.isin(labels[..., ::4, ::4], self.rare).squeeze(0).nonzero()
            if len(found):
                row, column = (4 * found[int(torch.randint(len(found), ()))]).tolist()
                column = labels.shape[-1] - 1 - column if flip else column
                centre = row * size[0] / labels.shape[-2], column * size[1] / labels.shape[-1]
                place = [int(min(max(at - float(torch.rand(())) * side, 0), room))
                         for at, side, room in zip(centre, (self.height, self.width), slack)]
        return {'size': size, 'flip': flip, 'place': place}

    def transform(self, inpt, params: dict):
        """Apply a draw to an image or its labels."""
        inpt = v2.functional.horizontal_flip(inpt) if params['flip'] else inpt
        inpt = v2.functional.resize(inpt, params['size'], antialias=True)
        inpt = v2.functional.crop(inpt, *params['place'], min(self.height, params['size'][0]),
                                  min(self.width, params['size'][1]))
        missing = [0, 0, self.width - inpt.shape[-1], self.height - inpt.shape[-2]]
        return v2.functional.pad(inpt, missing, fill=UNLABELLED if isinstance(inpt, tv_tensors.Mask) else PAD)


class RandomExposure(v2.Transform):
    """Change gamma and colour balance, as cameras do between dusk and glare."""

    def __init__(self, strength: float):
        super().__init__()
        self.strength = strength

    def make_params(self, flat_inputs: list) -> dict:
        """One look-up table of 256 values per channel."""
        levels = torch.linspace(0, 1, 256)
        gamma = torch.exp((torch.rand(()) * 1.2 - 0.6) * self.strength)
        gains = torch.exp((torch.rand(3, 1) * 0.2 - 0.1) * self.strength)
        return {'tables': (levels ** gamma * gains * 255).clamp(0, 255).to(torch.uint8)}

    def transform(self, inpt, params: dict):
        """Apply the tables to an image; labels pass."""
        if isinstance(inpt, tv_tensors.Mask):
            return inpt
        planes = [table[plane.int()] for table, plane in zip(params['tables'], inpt)]
        return tv_tensors.wrap(torch.stack(planes), like=inpt)


def augmentation(height: int, width: int, scales: tuple, strength: float, rare: tuple = ()) -> v2.Transform:
    """The transform of training images: geometry as in `RandomZoomCrop`, then colours.

    strength: 0 leaves the colours unchanged, 1 reaches from dusk to glare.
    """
    steps = [RandomZoomCrop(height, width, scales, rare)]
    if strength:
        steps += [
            RandomExposure(strength),
            v2.ColorJitter(brightness=(1 - 0.4 * strength, 1 + 0.4 * strength), contrast=0.35 * strength,
                           saturation=0.5 * strength),
            v2.RandomApply([v2.GaussianBlur(5, (0.4, 1.2))], p=0.15 * strength),
            v2.RandomApply([v2.GaussianNoise(sigma=0.025)], p=0.15 * strength),
        ]
    return v2.Compose(steps)


def augment(transform: v2.Transform, image: np.ndarray, labels: np.ndarray, seed: int) -> tuple:
    """Image uint8 (H, W, 3) and labels uint8 (H, W), transformed: tensors uint8 (3, h, w) and (h, w).

    The result is a function of the arguments: the draw uses a random state of its own.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        planes = tv_tensors.Image(torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1))
        image, labels = transform(planes, tv_tensors.Mask(torch.from_numpy(np.ascontiguousarray(labels))[None]))
    return image.as_subclass(torch.Tensor), labels[0].as_subclass(torch.Tensor)
