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
from ee_seg_ros.inference.windows import HALO, whole
from ee_seg_ros.models.multi_exit import DEFAULT_INPUT, FINAL, MultiExitNet
from ee_seg_ros.models.partial import random_window, settled_cells, tail_logits, with_means
from ee_seg_ros.models.splits import start_bottleneck
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
    of it. With early exits to train, the final one, by far the dearest, sits out two iterations of four.
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
        modules = [*net.units[first:], *(net.exits[name] for name in self._exits if name != FINAL), net.final]
        if split >= first:
            modules.append(net.bottleneck)
        super().__init__(net, recipe, weights, tuple(modules))

    def training_step(self, batch: tuple, index: int) -> torch.Tensor:
        """The sum of the exits' losses on one batch."""
        images, labels = batch
        exits = self._exits if self.global_step % 4 < 2 or len(self._exits) == 1 else self._exits[:-1]
        losses = {name: exit_loss(output, labels, self.class_weights, self.recipe.loss_stride)
                  for name, output in self.net(self._input(images), exits).items()}
        self.log_dict({f'loss_{name}': loss.detach() for name, loss in losses.items()})
        return sum(loss * (1.0 if name == FINAL else self.recipe.exit_weight) for name, loss in losses.items())


class Successors(Frozen):
    """Exits that learn to give what those of the network before give (`positive_filtering_loss`), from less.

    With `heads_only` lighter heads of `candidates`, which take the place of others behind the split; else all that lies
    behind it. What is to be learned is the former output for whole maps of whole features: each exit's own, or the mean
    logits of its `teachers` in the recipe. With `window` three of four iterations see a window of the cells only, with
    a halo that does not count, and with `partial` in two of four only the features of unsettled cells pass the split;
    batch norms take no statistics from these, and none at all with `window`.
    predecessor: the network before.
    """

    def __init__(self, net: MultiExitNet, recipe: Recipe, weights: torch.Tensor | None, predecessor: MultiExitNet):
        units = {exit_['name']: exit_['unit'] for exit_ in net.spec['exits']}
        split = -1 if net.split_unit is None else net.split_unit
        behind = [name for name in net.exit_names if split > -1 and units.get(name, split + 1) > split]
        self._exits = [entry['name'] for entry in recipe.candidates] if recipe.heads_only else behind
        before = sorted(set(self._exits or net.exit_names) - set(behind))
        if before:
            raise ValueError(f'heads_only and window are for exits behind the split: {", ".join(before)} '
                             f"{'is' if len(before) == 1 else 'are'} not")
        idle = sorted(set(recipe.teachers) - set(self._exits))
        if idle:
            raise ValueError(f"teachers: {', '.join(idle)} is not trained here (trained: {', '.join(self._exits)})")
        unknown = sorted({name for names in recipe.teachers.values() for name in names} - set(predecessor.exit_names))
        if unknown:
            raise ValueError(f"teachers: there is no exit {', '.join(unknown)} in the network before (it has "
                             f"{', '.join(predecessor.exit_names)})")
        heads = [net.final if name == FINAL else net.exits[name] for name in self._exits]
        super().__init__(net, recipe, weights, tuple(heads if recipe.heads_only else [*net.units[split + 1:], *heads]))
        self._before = [predecessor.eval().requires_grad_(False)]    # in a list it is no module of this one
        self._onboard = [part for part in net.parts if part.kind == 'exit' and units.get(part.name, len(net.units)
                                                                                         ) <= split][-1:]
        self._norms = [norm for module in self._trained for norm in module.modules() if isinstance(norm, _BatchNorm)]

    def on_train_start(self) -> None:
        """The predecessor goes where the network is."""
        super().on_train_start()
        self._before[0].to(self.device)

    def training_step(self, batch: tuple, index: int) -> torch.Tensor:
        """The sum of the exits' losses on one batch."""
        images, labels = batch
        recipe, step = self.recipe, self.global_step
        window, partial = bool(recipe.window) and step % 4 != 0, bool(recipe.partial) and step % 4 in (1, 2)
        for norm in self._norms:
            norm.train(recipe.heads_only and not (recipe.window or partial))
        with torch.no_grad():
            tensors = self._before[0].features(self._input(images))
            expected = self._expected(tensors)
            restored, labels = self._restored(tensors, labels, partial)
            if window:
                restored, expected, labels = self._in_window(restored, expected, labels)
        losses = {name: positive_filtering_loss(
            output, expected[name], labels, self.class_weights, recipe.loss_stride, recipe.distillation_share,
            recipe.distillation_temperature) for name, output in tail_logits(self.net, restored, self._exits).items()}
        self.log_dict({f'loss_{name}': loss.detach() for name, loss in losses.items()})
        return sum(losses.values())

    def _expected(self, tensors):
        """Logits that each exit shall give, from the features of the network before."""
        teachers = {name: self.recipe.teachers.get(name, [name]) for name in self._exits}
        needed = {name for names in teachers.values() for name in names}
        found = {part.name: part.module(*[tensors[name] for name in part.inputs])
                 for part in self._before[0].parts if part.name in needed}
        return {name: _mean([found[teacher] for teacher in names]) for name, names in teachers.items()}

    def _restored(self, tensors, labels, partial):
        """(what is restored behind the split, labels), both without settled cells where these are not to pass it."""
        encode, decode = (next(part for part in self.net.parts if part.kind == kind) for kind in ('encode', 'decode'))
        levels = [tensors[name] for name in encode.outputs]
        if partial and self._onboard:
            last = self._onboard[0]
            limit = float(torch.empty(()).uniform_(*self.recipe.partial))
            settled, classes = settled_cells(last.module(*[tensors[name] for name in last.inputs]),
                                             levels[-1].shape[-2:], limit)
            levels = [with_means(level, settled, classes) for level in levels]
            where = functional.interpolate(settled[:, None].float(), size=labels.shape[-2:])[:, 0] > 0
            labels = labels.masked_fill(where, UNLABELLED)    # the robot's label stays there
        return dict(zip(decode.outputs, decode.module(*levels))), labels

    def _in_window(self, restored, expected, labels):
        """The same three in a window; its halo has no labels, for nothing is taken from there."""
        cells = tuple(size // self.net.stride for size in labels.shape[-2:])    # of the coarsest map
        inner = random_window(cells, self.recipe.window)
        outer, kept = inner.widened(HALO, whole(cells)), torch.full_like(labels, UNLABELLED)
        inner.of(kept, cells)[:] = inner.of(labels, cells)
        restored, expected = ({name: outer.of(tensor, cells) for name, tensor in each.items()}
                              for each in (restored, expected))
        return restored, expected, outer.of(kept, cells)


def _mean(logits):
    """The mean of maps (N, C, h, w) of different sizes, in the largest of them."""
    size = max(tuple(each.shape[-2:]) for each in logits)
    return sum(functional.interpolate(each, size=size, mode='bilinear', align_corners=False)
               for each in logits) / len(logits)


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
