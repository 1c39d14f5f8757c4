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
"""The two stages of training a multi-exit network, after MESS (Kouris et al., ECCV 2022), as Lightning modules.

Patents cover the two-stage scheme: see README.
"""
import lightning
import torch
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from ee_seg_ros.data.labelled import UNLABELLED
from ee_seg_ros.models.multi_exit import DEFAULT_INPUT, FINAL, MultiExitNet
from ee_seg_ros.models.splits import start_bottleneck
from ee_seg_ros.models.tiles import partial_logits, tiled_logits
from ee_seg_ros.training.losses import exit_loss, positive_filtering_loss
from ee_seg_ros.training.recipe import Recipe


class Training(lightning.LightningModule):
    """What both stages share: scaling of the input, class weights, optimiser and schedule."""

    def __init__(self, net: MultiExitNet, recipe: Recipe, weights: torch.Tensor | None):
        super().__init__()
        self.net, self.recipe = net.to(memory_format=torch.channels_last), recipe
        scaling = net.spec.get('input', DEFAULT_INPUT)
        self.register_buffer('scale', torch.tensor(scaling['scale']).view(3, 1, 1), persistent=False)
        self.register_buffer('offset', torch.tensor(scaling['offset']).view(3, 1, 1), persistent=False)
        self.register_buffer('class_weights', weights, persistent=False)

    def _input(self, images):
        return (images * self.scale + self.offset).contiguous(memory_format=torch.channels_last)

    def _rate(self, step):
        """Linear warm-up, then poly decay with power 0.9."""
        return min(1.0, (step + 1) / self.recipe.warmup_steps) * max(0.0, 1 - step / self.recipe.steps) ** 0.9

    def configure_optimizers(self) -> dict:
        """AdamW; the pretrained backbone learns slower, and biases and batch norms do not decay."""
        groups = {}
        for name, parameter in self.net.named_parameters():
            if parameter.requires_grad:
                groups.setdefault((name.startswith('units.'), parameter.ndim > 1), []).append(parameter)
        optimiser = torch.optim.AdamW([
            {'params': parameters, 'weight_decay': self.recipe.weight_decay if decays else 0.0,
             'lr': self.recipe.backbone_lr if pretrained else self.recipe.head_lr}
            for (pretrained, decays), parameters in groups.items()])
        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, self._rate)
        return {'optimizer': optimiser, 'lr_scheduler': {'scheduler': schedule, 'interval': 'step'}}


class EndToEnd(Training):
    """Stage 1: backbone, final exit and early exits end to end; the loss is CE(final) + exit_weight * CE(exit).

    Each iteration takes one early exit, in turn (`round_robin`), or all of them (`joint`).
    """

    def exits_of(self, step: int) -> list:
        """Names of the exits that iteration `step` trains."""
        early = [name for name in self.net.exit_names if name != FINAL]
        if self.recipe.stage == 'round_robin' and early:
            early = [early[step % len(early)]]
        return [*early, FINAL]

    def training_step(self, batch: tuple, index: int) -> torch.Tensor:
        """The loss of one batch."""
        images, labels = batch
        logits = self.net(self._input(images), self.exits_of(self.global_step))
        losses = {name: exit_loss(output, labels, self.class_weights, self.recipe.loss_stride)
                  for name, output in logits.items()}
        self.log_dict({f'loss_{name}': loss.detach() for name, loss in losses.items()})
        return sum(loss * (1.0 if name == FINAL else self.recipe.exit_weight) for name, loss in losses.items())


class Frozen(Training):
    """A stage that trains `modules` of a network; all else is frozen, in eval mode."""

    def __init__(self, net: MultiExitNet, recipe: Recipe, weights: torch.Tensor | None, modules: tuple):
        super().__init__(net, recipe, weights)
        self.net.requires_grad_(False)
        self._trained = modules
        for module in self._trained:
            module.requires_grad_(True)
        self._freeze()

    def _freeze(self):
        self.net.eval()
        for module in self._trained:
            module.train()

    def on_train_start(self) -> None:
        """Lightning has put the module into train mode: all but what is trained goes back."""
        self._freeze()


class Tail(Frozen):
    """The units from `first_unit` on, the bottleneck behind them, and all exits there; what lies before is frozen.

    The loss is CE(final) + exit_weight * CE(exit). Without `first_unit`: the final exit, and the units that nothing
    else uses; in stage 1 the early exits have their say about these units' input, here the final exit makes the most
    of it. With `tile` the exits see tiles only (`tiles.tiled_logits`) in every second iteration; with `partial` in two
    of four only the features of unsettled cells pass the split (`tiles.partial_logits`). With early exits to train, the
    final one, by far the dearest, sits out two iterations of four. Batch norms take their statistics from whole maps of
    whole features alone: those of tiles differ, and a mixture of both suits neither.
    """

    def __init__(self, net: MultiExitNet, recipe: Recipe, weights: torch.Tensor | None):
        units = {exit_['name']: exit_['unit'] for exit_ in net.spec['exits']}
        split = -1 if net.split_unit is None else net.split_unit
        first = max([*units.values(), split]) + 1 if recipe.first_unit is None else recipe.first_unit
        self._exits = [name for name in net.exit_names if units.get(name, first) >= first]
        early = [entry['name'] for entry in recipe.candidates if entry['unit'] < first]
        if early:
            raise ValueError(f"exit {', '.join(early)} lies before unit {first}, the first to train, and would stay "
                             'random: leave it out, or set first_unit lower')
        if recipe.partial and not -1 < split < first:
            raise ValueError(f'partial needs a split before unit {first}, the first to train; this network has '
                             f"{'none' if split < 0 else f'one behind unit {split}'}")
        modules = [*net.units[first:], *(net.exits[name] for name in self._exits if name != FINAL), net.final]
        if split >= first:
            modules.append(net.bottleneck)
        super().__init__(net, recipe, weights, tuple(modules))
        self._norms = [norm for module in modules for norm in module.modules() if isinstance(norm, _BatchNorm)]

    def training_step(self, batch: tuple, index: int) -> torch.Tensor:
        """The sum of the exits' losses on one batch."""
        images, labels = batch
        images, step = self._input(images), self.global_step
        exits = self._exits if step % 4 < 2 or len(self._exits) == 1 else self._exits[:-1]
        tile = self.recipe.tile if step % 2 == 1 else None
        partial = bool(self.recipe.partial) and step % 4 in (1, 2)
        for norm in self._norms:
            norm.train(not (tile or partial))
        if partial:
            limit = float(torch.empty(()).uniform_(*self.recipe.partial))
            logits, settled = partial_logits(self.net, images, exits, limit, tile)
            labels = _without(labels, settled)
        elif tile:
            logits = tiled_logits(self.net, images, tile, exits)
        else:
            logits = self.net(images, exits)
        losses = {name: exit_loss(output, labels, self.class_weights, self.recipe.loss_stride)
                  for name, output in logits.items()}
        self.log_dict({f'loss_{name}': loss.detach() for name, loss in losses.items()})
        return sum(loss * (1.0 if name == FINAL else self.recipe.exit_weight) for name, loss in losses.items())


class Successors(Frozen):
    """Heads that take the place of others, each distilled from the one before it (`positive_filtering_loss`).

    Lighter heads, for example, that shall do the same. All else is frozen. With `partial` every second iteration lets
    only the features of unsettled cells pass the split; what is to be learned is the other head's output of the whole.
    predecessors: exit name -> head that was there.
    """

    def __init__(self, net: MultiExitNet, recipe: Recipe, weights: torch.Tensor | None, predecessors: dict):
        super().__init__(net, recipe, weights, tuple(net.exits[name] for name in predecessors))
        # In a list they are no modules of this one, neither trained nor kept.
        self._predecessors = [(part, predecessors[part.name].eval().requires_grad_(False)) for part in net.parts
                              if part.name in predecessors]
        self._norms = [norm for module in self._trained for norm in module.modules() if isinstance(norm, _BatchNorm)]

    def on_train_start(self) -> None:
        """The predecessors go where the network is."""
        super().on_train_start()
        for _, head in self._predecessors:
            head.to(self.device)

    def training_step(self, batch: tuple, index: int) -> torch.Tensor:
        """The sum of the heads' losses on one batch."""
        images, labels = batch
        images, partial = self._input(images), bool(self.recipe.partial) and self.global_step % 2 == 1
        for norm in self._norms:
            norm.train(not partial)    # statistics are those of whole features
        with torch.no_grad():
            tensors = self.net.features(images)
            expected = {part.name: head(*[tensors[name] for name in part.inputs]) for part, head in self._predecessors}
        if partial:
            limit = float(torch.empty(()).uniform_(*self.recipe.partial))
            logits, settled = partial_logits(self.net, images, list(expected), limit)
            labels = _without(labels, settled)
        else:
            logits = {part.name: part.module(*[tensors[name] for name in part.inputs])
                      for part, _ in self._predecessors}
        losses = {name: positive_filtering_loss(
            output, expected[name], labels, self.class_weights, self.recipe.loss_stride, self.recipe.distillation_share,
            self.recipe.distillation_temperature) for name, output in logits.items()}
        self.log_dict({f'loss_{name}': loss.detach() for name, loss in losses.items()})
        return sum(losses.values())


def _without(labels, settled):
    """Labels (N, H, W), unlabelled in cells that are settled (N, rows, columns): there the robot's label stays."""
    where = functional.interpolate(settled[:, None].float(), size=labels.shape[-2:])[:, 0] > 0
    return labels.masked_fill(where, UNLABELLED)


class Heads(Frozen):
    """Stage 2: every candidate head on its own, distilled from the final exit; the rest is frozen, in eval mode.

    One forward pass of the backbone serves all heads. No head's gradients, nor their clipping, touch another's.
    Bottlenecks of split candidates are trained beside them (`split_loss`); heads behind the split go on seeing what the
    main bottleneck restores.
    shares: exit name -> share of the distillation in its loss (see `positive_filtering_loss`).
    """

    def __init__(self, net: MultiExitNet, recipe: Recipe, weights: torch.Tensor | None, shares: dict):
        super().__init__(net, recipe, weights, (*net.exits.values(), *net.bottlenecks.values()))
        self.shares = shares

    def training_step(self, batch: tuple, index: int) -> torch.Tensor:
        """The sum of all heads' losses on one batch: no parameter is in more than one of them."""
        images, labels = batch
        with torch.no_grad():
            tensors = self.net.features(self._input(images))
            final = next(part for part in self.net.parts if part.name == FINAL)
            teacher = final.module(*[tensors[name] for name in final.inputs])
            units = self._unit_features(tensors['image'])
        losses = {}
        for part in self.net.parts:
            if part.kind == 'exit' and part.name != FINAL:
                logits = part.module(*[tensors[name] for name in part.inputs])
                losses[part.name] = positive_filtering_loss(
                    logits, teacher, labels, self.class_weights, self.recipe.loss_stride, self.shares[part.name],
                    self.recipe.distillation_temperature)
        for split in self.net.spec.get('split_candidates', ()):
            losses[f"split{split['unit']}"] = self.split_loss(split, units, tensors.get('restored_skip'), teacher,
                                                              labels)
        self.log_dict({f'loss_{name}': loss.detach() for name, loss in losses.items()})
        return sum(losses.values())

    def _unit_features(self, tensor):
        """What each unit up to the last split candidate puts out."""
        last = max((split['unit'] for split in self.net.spec.get('split_candidates', ())), default=-1)
        return self.net.run_units(tensor, 0, last)

    @torch.no_grad()
    def start_splits(self, images: torch.Tensor, splits: list) -> None:
        """Let the bottlenecks of some split candidates begin with what fits these images, uint8 (N, 3, H, W)."""
        units = self._unit_features(self._input(images))
        for split in splits:
            start_bottleneck(self.net.bottlenecks[str(split['unit'])], units[split['unit']])

    def split_loss(self, split: dict, units: list, finer: torch.Tensor | None, teacher: torch.Tensor,
                   labels: torch.Tensor) -> torch.Tensor:
        """How far a split candidate's bottleneck is from what the frozen units and the final exit behind it expect.

        The squared error of the features that it restores, over their variance; the same of the finer ones, which shall
        be the main bottleneck's (`finer`); and what the final exit then makes of them (`positive_filtering_loss`).
        units: `_unit_features`. teacher: logits of the final exit behind the main split. labels: uint8 (N, H, W).
        """
        unit, bottleneck = split['unit'], self.net.bottlenecks[str(split['unit'])]
        levels = bottleneck.encode(*[units[skip] for skip in split.get('skips', ())], units[unit])
        *restored_finer, features = bottleneck.decode(*levels)
        loss = functional.mse_loss(features, units[unit]) / units[unit].var()
        if restored_finer:
            loss = loss + functional.mse_loss(restored_finer[0], finer) / finer.var()
        features = self.net.run_units(features, unit + 1, len(self.net.units) - 1)[-1]
        logits = self.net.final(features, *restored_finer) if self.net.final.skip_channels else self.net.final(features)
        return loss + positive_filtering_loss(
            logits, teacher, labels, self.class_weights, self.recipe.loss_stride, self.recipe.distillation_share,
            self.recipe.distillation_temperature)

    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None) -> None:
        """Clip the gradients of each head, and of each bottleneck, by its own norm."""
        for module in self._trained:
            torch.nn.utils.clip_grad_norm_(module.parameters(), self.recipe.clip_norm)
