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
"""Run a recipe with Lightning: checkpointed, resumable after a kill at any moment, on any number of devices."""
import copy
import logging
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, WeightAveraging
from lightning.pytorch.loggers import CSVLogger

from ee_seg_ros.data.datasets import Scenes, open_dataset
from ee_seg_ros.models.experts import add_experts
from ee_seg_ros.models.heads import take_over
from ee_seg_ros.models.multi_exit import (
    FINAL,
    MultiExitNet,
    add_exits,
    is_trained,
    load_network,
    save_network,
    select_exits,
)
from ee_seg_ros.models.pruning import prune
from ee_seg_ros.models.splits import add_splits
from ee_seg_ros.training.batches import Batches
from ee_seg_ros.training.curves import plot_curves
from ee_seg_ros.training.experts import Experts
from ee_seg_ros.training.losses import class_weights, shift_classifiers
from ee_seg_ros.training.recipe import Recipe, read_recipe
from ee_seg_ros.training.stages import EndToEnd, Heads, Successors, Tail


class _Data(LightningDataModule):
    """Batches from the step on that the trainer has reached; its state is that step."""

    def __init__(self, dataset, recipe):
        super().__init__()
        self.dataset, self.recipe = dataset, recipe

    def batches(self, *place):
        """`Batches` of the recipe; place: step to start at, rank and world."""
        recipe = self.recipe
        return Batches(self.dataset, recipe.phases, recipe.batch_size, recipe.scene_share, tuple(recipe.rare_classes),
                       recipe.seed, *place, families=tuple(recipe.experts), clean_share=recipe.clean_share,
                       deblur_error=recipe.deblur_error)

    def train_dataloader(self):
        recipe, trainer = self.recipe, self.trainer
        return torch.utils.data.DataLoader(
            self.batches(trainer.global_step, trainer.global_rank, trainer.world_size), batch_size=None,
            num_workers=recipe.workers,
            generator=torch.Generator(),    # its own: starting a loader must not disturb a resumed run's random state
            # A forked worker would inherit OpenCV's and OpenMP's locks in whatever state they are, and may hang.
            multiprocessing_context='spawn' if recipe.workers else None)


class _Progress(Callback):
    """One line now and then: step, losses, minutes left. Also what makes a run repeatable after a kill."""

    def __init__(self, recipe, report):
        self.recipe, self.report, self.began, self.first, self.losses = recipe, report, 0.0, 0, {}

    def on_train_start(self, trainer, module):
        self.began, self.first = time.monotonic(), trainer.global_step
        if self.first:
            self.report(f'resuming at step {self.first} of {self.recipe.steps}')

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        torch.manual_seed(self.recipe.seed * 1_000_003 + trainer.global_step)    # dropout: a function of the step

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        step = trainer.global_step
        self.losses.update({name: float(value) for name, value in trainer.logged_metrics.items()})
        if (step % self.recipe.log_steps and step != self.recipe.steps) or not trainer.is_global_zero:
            return
        left = (time.monotonic() - self.began) / (step - self.first) * (self.recipe.steps - step) / 60
        shown = self.losses if len(self.losses) < 8 else {
            'mean loss': sum(self.losses.values()) / len(self.losses)}
        losses = ' '.join(f"{name.removeprefix('loss_')} {value:.3f}" for name, value in shown.items())
        self.report(f'step {step}/{self.recipe.steps}: {losses}, {left:.1f} min left')


class _Average(WeightAveraging):
    """Also where a checkpoint says that the training has ended: Lightning then skips the end that hands it over."""

    def on_fit_end(self, trainer, module):
        self.on_train_end(trainer, module)


def _average(decay):
    """The moving average as Lightning's callback; short at first, so that random heads are soon forgotten."""
    def average(kept, new, count):
        if not kept.is_floating_point():
            return new
        return kept.lerp(new, 1 - min(decay, float(count) / (float(count) + 10)))
    return _Average(avg_fn=average)


def candidate_name(unit: int, head: dict) -> str:
    """What a candidate is called that the recipe gives no name: `u8_fcn_b1_d0_r4`, `u13_context_r1-4-8_s1_w64`."""
    def text(value):
        return '-'.join(map(str, value)) if isinstance(value, list) else str(int(value))
    knobs = [key[0] + text(value) for key, value in sorted(head.items()) if key != 'kind']
    return '_'.join([f'u{unit}', head['kind'], *knobs])


def _earlier(recipe, weights, offsets):
    """The network that an earlier stage trained, its classifiers as in training."""
    if not is_trained(weights):
        raise ValueError(f'stage `{recipe.stage}` starts from the weights.pt of an earlier stage, or a bundle: give it '
                         'as --weights')
    earlier = load_network(weights)
    shift_classifiers(earlier, offsets)
    return earlier


def _tail(recipe, weights, balance, offsets):
    """The earlier stage's network, some exits of which the recipe may add or replace."""
    earlier = _earlier(recipe, weights, offsets)
    if recipe.window and not recipe.heads_only:
        return Successors(copy.deepcopy(earlier), recipe, balance, earlier)
    if not recipe.candidates:
        return Tail(earlier, recipe, balance)
    new = [entry['name'] for entry in recipe.candidates]
    unknown = sorted(set(new) - set(earlier.exits))
    if recipe.heads_only and unknown:
        raise ValueError(f'heads_only distils each candidate from the exit whose place it takes: there is no '
                         f"{', '.join(unknown)} in this network (it has {', '.join(earlier.exits)})")
    net = add_exits(select_exits(earlier, {name: name for name in earlier.exit_names if name not in (*new, FINAL)}),
                    recipe.candidates)
    for name in set(new) & set(earlier.exits):    # one of another width or kind keeps what both have in common
        take_over(net.exits[name], earlier.exits[name])
    return Successors(net, recipe, balance, earlier) if recipe.heads_only else Tail(net, recipe, balance)


def _heads(recipe, weights, balance, offsets):
    """Stage 2: the earlier stage's network with the candidates of the recipe."""
    earlier = _earlier(recipe, weights, offsets)
    net = earlier if recipe.keep else select_exits(earlier, {})
    names = [entry.get('name') or candidate_name(entry['unit'], entry['head']) for entry in recipe.candidates]
    net = add_exits(net, [{'name': name, 'unit': entry['unit'], 'head': entry['head']}
                          for name, entry in zip(names, recipe.candidates)])
    if recipe.splits:
        net = add_splits(net, recipe.splits)
    shares = {name: recipe.distillation_share for name in net.exit_names if name != FINAL}
    shares.update({name: entry['distillation_share'] for name, entry in zip(names, recipe.candidates)
                   if 'distillation_share' in entry})
    return Heads(net, recipe, balance, shares)


def _experts(recipe, weights, balance, offsets, begin=None):
    """The earlier stage's network with expert heads; those of other families that it has stay."""
    net, start = _earlier(recipe, weights, offsets), None
    if begin is not None:
        start = _earlier(recipe, begin, offsets)
    exits = recipe.expert_exits or [exit_['name'] for exit_ in net.spec['exits']
                                    if net.split_unit is None or exit_['unit'] <= net.split_unit]
    return Experts(add_experts(net, recipe.experts, exits, start, **recipe.expert_head), recipe, balance, exits)


def _end_to_end(recipe, weights, balance, offsets):
    """Stage 1: the recipe's network, from weights of the backbone or from an earlier run's, which may lack exits."""
    if not is_trained(weights):
        return EndToEnd(MultiExitNet(recipe.network, weights), recipe, balance)
    net, earlier = MultiExitNet(recipe.network), _earlier(recipe, weights, offsets)
    new = {f'exits.{name}.' for name in set(net.exit_names) - set(earlier.exit_names)}
    kept = {key: value for key, value in net.state_dict().items() if key.startswith(tuple(new))}
    try:
        net.load_state_dict({**earlier.state_dict(), **kept})
    except RuntimeError as error:
        raise ValueError(f'{weights} is of another network than the recipe: {str(error)[:300]}') from None
    return EndToEnd(net, recipe, balance)


def _check_classes(recipe, dataset):
    """A network of other classes than its data, or scenes of other classes, would learn nonsense without a word."""
    names = tuple(dataset.class_names)
    for what, count in (('network.classes', recipe.network.get('classes')), ('pixel_shares', len(recipe.pixel_shares))):
        if count and count != len(names):
            raise ValueError(f'{what} of the recipe says {count}, data set {recipe.dataset} has {len(names)} classes')
    if recipe.scene_share and names != Scenes.class_names:
        raise ValueError(f"scene_share of the recipe is {recipe.scene_share}, but the drawn scenes have CamVid's "
                         f'classes, not those of {recipe.dataset}: set it to 0')


def _strategy(recipe, devices, nodes):
    """Lightning's strategy: DDP where several processes train; in turn, exits are left out of an iteration."""
    if nodes == 1 and str(devices) in ('auto', '1') and torch.cuda.device_count() < 2:
        return 'auto'
    return 'ddp_find_unused_parameters_true' if recipe.stage in ('round_robin', 'tail') else 'ddp'


def _next_log(logs):
    """Name of a folder for this start: Lightning's logger would delete what an earlier one wrote into its own."""
    return f'start{1 + len(list(logs.glob("start*")))}'


def train(recipe_path: str | Path | Recipe, root: str | None, out: str | Path, weights: str | Path | None = None,
          threads: int = 2, report: Callable[[str], None] = print, devices: int | str = 'auto', nodes: int = 1,
          experts: str | Path | None = None) -> Path:
    """Train as a recipe says; returns the path of the network with averaged weights, `OUT/weights.pt`.

    recipe_path: of a YAML file, or a recipe. root: folder of the data set. weights: of the backbone (`read_weights`),
    or a weights.pt of an earlier run or a bundle's folder, which all stages but the first need. An
    `OUT/checkpoint.ckpt` is resumed: the result is that of a run without a break. threads: of torch. devices, nodes:
    of Lightning, with DDP where they are several. experts: like weights, of a network with whose experts those of stage
    `experts` begin.
    report: called with one line of progress now and then. Also writes OUT/logs/*/metrics.csv, one each time that it is
    started, and OUT/curves.png, but for stage `prune`, which trains nothing. Raises ValueError or FileNotFoundError for
    wrong input.
    """
    recipe, out = recipe_path if isinstance(recipe_path, Recipe) else read_recipe(recipe_path), Path(out)
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(threads)
    dataset = open_dataset(recipe.dataset, root, recipe.split)
    _check_classes(recipe, dataset)
    balance, offsets = None, torch.zeros(len(dataset.class_names))
    if recipe.pixel_shares:
        balance = class_weights(recipe.pixel_shares, recipe.class_weight_power, recipe.class_weight_max)
        offsets = recipe.class_weight_undone * balance.log()
    torch.manual_seed(recipe.seed)
    if experts is not None and recipe.stage != 'experts':
        raise ValueError(f'experts to begin with are for stage experts, not {recipe.stage}')
    make = {'heads': _heads, 'tail': _tail, 'experts': partial(_experts, begin=experts)}.get(recipe.stage, _end_to_end)
    data = _Data(dataset, recipe)
    if recipe.stage == 'prune':
        net = _earlier(recipe, weights, torch.zeros_like(offsets))    # no loss, so no class weights
        save_network(prune(net, recipe.pruned, lambda: (net.scaled(images) for images, _ in data.batches()), report),
                     out / 'weights.pt')
        return out / 'weights.pt'
    module = make(recipe, weights, balance, offsets)
    if recipe.splits:
        module.start_splits(next(iter(data.batches()))[0], recipe.splits)
    checkpoint, logs = out / 'checkpoint.ckpt', out / 'logs'
    logging.getLogger('lightning.pytorch').setLevel(logging.ERROR)
    warnings.filterwarnings('ignore', module='lightning')    # advice on workers and intervals, every run
    trainer = Trainer(
        max_steps=recipe.steps, max_epochs=-1, precision=recipe.precision, devices=devices, num_nodes=nodes,
        accelerator='auto', strategy=_strategy(recipe, devices, nodes), sync_batchnorm=torch.cuda.is_available(),
        gradient_clip_val=recipe.clip_norm,
        default_root_dir=out, logger=CSVLogger(logs, name='', version=_next_log(logs)),
        log_every_n_steps=recipe.log_steps, enable_progress_bar=False, enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=[_Progress(recipe, report), _average(recipe.average_decay),
                   ModelCheckpoint(out, filename='checkpoint', every_n_train_steps=recipe.checkpoint_steps,
                                   save_top_k=1, enable_version_counter=False, save_on_train_epoch_end=False)])
    trainer.fit(module, datamodule=data, ckpt_path=checkpoint if checkpoint.is_file() else None,
                weights_only=False)
    if trainer.global_step < recipe.steps:    # Lightning ends quietly when it is interrupted
        raise KeyboardInterrupt
    if trainer.is_global_zero:
        plot_curves(logs, out / 'curves.png')
        shift_classifiers(module.net, -offsets)
        save_network(module.net, out / 'weights.pt')
    return out / 'weights.pt'
