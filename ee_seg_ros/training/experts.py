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
"""Expert exits: heads that learn to read what the frozen backbone makes of distorted images."""
import torch

from ee_seg_ros.models.multi_exit import MultiExitNet
from ee_seg_ros.training.losses import exit_loss
from ee_seg_ros.training.recipe import Recipe
from ee_seg_ros.training.stages import Frozen


class Experts(Frozen):
    """The expert heads of the recipe's families at some exits, each on its own, by cross-entropy with the labels.

    After Pacheco et al. (GLOBECOM 2021): backbone frozen, heads begin as the exits' own, levels at random. There the
    batch norms of the frozen backbone drift towards the distorted images, so that each expert needs a backbone of its
    own; here they stay as they are (eval mode), and all experts read the same features. One pass of the backbone, no
    further than the last of these exits, serves the heads of all families: those of family i of n see samples i, i + n,
    ... of the batch (`Batches`). No head's gradients, nor their clipping, touch another's.
    """

    def __init__(self, net: MultiExitNet, recipe: Recipe, weights: torch.Tensor | None, exits: list):
        self._parts = [(number, f'{family}.{name}', part) for number, family in enumerate(recipe.experts)
                       for name in exits for part in net.expert_parts if part.name == f'{name}_{family}']
        super().__init__(net, recipe, weights, tuple(part.module for _, _, part in self._parts))

    def training_step(self, batch: tuple, index: int) -> torch.Tensor:
        """The sum of all experts' losses on one batch: no parameter is in more than one of them."""
        images, labels = batch
        with torch.no_grad():
            tensors = self.net.features(self._input(images), {name for _, _, part in self._parts
                                                              for name in part.inputs})
        losses, step = {}, len(self.recipe.experts)
        for number, name, part in self._parts:
            logits = part.module(*[tensors[tensor][number::step] for tensor in part.inputs])
            losses[name] = exit_loss(logits, labels[number::step], self.class_weights, self.recipe.loss_stride)
        self.log_dict({f'loss_{name}': loss.detach() for name, loss in losses.items()})
        return sum(losses.values())

    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None) -> None:
        """Clip the gradients of each head by its own norm."""
        for module in self._trained:
            torch.nn.utils.clip_grad_norm_(module.parameters(), self.recipe.clip_norm)
