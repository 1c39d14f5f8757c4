# Copyright 2026 The ee_seg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Joint training of all exits from a recipe file, checkpointed, resumable at any step."""
import copy
import json
import os
import time
from pathlib import Path

import torch
import yaml

from ee_seg_ros.data.camvid import CLASS_NAMES, CamVid
from ee_seg_ros.models.multi_exit import StreetNet
from ee_seg_ros.training.batches import Batches
from ee_seg_ros.training.losses import class_weights, exit_loss, undo_class_weights


def _optimiser(net, recipe):
    """AdamW; the pretrained backbone learns slower, and biases and batch norms do not decay."""
    groups = {}
    for name, parameter in net.named_parameters():
        key = (name.startswith('stages.'), parameter.ndim > 1)
        groups.setdefault(key, []).append(parameter)
    return torch.optim.AdamW([
        {'params': parameters, 'weight_decay': recipe['weight_decay'] if decays else 0.0,
         'base_lr': recipe['backbone_lr'] if pretrained else recipe['head_lr']}
        for (pretrained, decays), parameters in groups.items()])


def _learning_rate(step, steps, warmup):
    """Linear warm-up, then poly decay with power 0.9."""
    return min(1.0, (step + 1) / warmup) * (1 - step / steps) ** 0.9


def _save(path, **state):
    temporary = path.with_suffix('.part')
    torch.save(state, temporary)
    os.replace(temporary, path)    # a kill in the middle leaves the previous checkpoint whole


class _Run:
    """The state of a training: network, averaged network, optimiser, step; saved and restored as one checkpoint."""

    def __init__(self, recipe, weights, out):
        self.checkpoint = out / 'checkpoint.pt'
        torch.manual_seed(recipe['seed'])
        start = torch.load(weights, map_location='cpu', weights_only=True) if weights else {}
        trained = 'final.classify.weight' in start
        net = StreetNet(len(CLASS_NAMES), None if trained else weights)
        if trained:
            net.load_state_dict(start)
        self.net = net.to(memory_format=torch.channels_last).train()
        self.average = copy.deepcopy(self.net).eval().requires_grad_(False)
        self.optimiser = _optimiser(self.net, recipe)
        self.step = 0

    def save(self):
        _save(self.checkpoint, net=self.net.state_dict(), average=self.average.state_dict(),
              optimiser=self.optimiser.state_dict(), step=self.step, rng=torch.get_rng_state())

    def resume(self):
        state = torch.load(self.checkpoint, map_location='cpu', weights_only=True)
        self.net.load_state_dict(state['net'])
        self.average.load_state_dict(state['average'])
        self.optimiser.load_state_dict(state['optimiser'])
        torch.set_rng_state(state['rng'])
        self.step = state['step']

    def learn(self, images, labels, recipe, balance, rate):
        """One step at `rate` times the base learning rates; returns (losses per exit, gradient norm)."""
        for group in self.optimiser.param_groups:
            group['lr'] = group['base_lr'] * rate
        logits = self.net(images.to(memory_format=torch.channels_last))
        losses = [exit_loss(exit_logits, labels, balance, recipe['loss_stride']) for exit_logits in logits]
        self.optimiser.zero_grad()
        sum(weight * loss for weight, loss in zip(recipe['exit_weights'], losses)).backward()
        norm = torch.nn.utils.clip_grad_norm_(self.net.parameters(), recipe['clip_norm'])
        self.optimiser.step()
        self.step += 1
        self._follow(min(recipe['average_decay'], self.step / (self.step + 10)))
        return [loss.item() for loss in losses], norm.item()

    @torch.no_grad()
    def _follow(self, decay):
        for kept, new in zip(self.average.state_dict().values(), self.net.state_dict().values()):
            if kept.is_floating_point():
                kept.lerp_(new, 1 - decay)
            else:
                kept.copy_(new)


def train(recipe_path, root, out, weights=None, threads=2, report=print):
    """Train `StreetNet` as the recipe (YAML) says; returns the path of the averaged weights, `OUT/weights.pt`.

    root: the CamVid folder. weights: ImageNet backbone (state_dict file), or a `weights.pt` of an earlier run to go on
    from. A `checkpoint.pt` in `out` is resumed. report: called with one line of progress now and then.
    """
    recipe = yaml.safe_load(Path(recipe_path).read_text())
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(threads)
    steps = sum(phase['steps'] for phase in recipe['phases'])
    run = _Run(recipe, weights, out)
    if run.checkpoint.is_file():
        run.resume()
        report(f'resuming at step {run.step} of {steps}')
    balance = class_weights(recipe['pixel_shares'], recipe['class_weight_power'], recipe['class_weight_max'])
    loader = torch.utils.data.DataLoader(
        Batches(CamVid(root, recipe['split']), recipe['phases'], recipe['batch_size'], recipe['scene_share'],
                recipe['seed'], run.step), batch_size=None, num_workers=recipe['workers'],
        generator=torch.Generator(),    # its own: starting a loader must not disturb the random state of a resumed run
        # A forked worker would inherit OpenCV's and OpenMP's locks in whatever state they are, and may hang.
        multiprocessing_context='spawn' if recipe['workers'] else None)
    began, first = time.monotonic(), run.step
    with (out / 'log.jsonl').open('a') as log:
        for images, labels in loader:
            losses, norm = run.learn(images, labels, recipe, balance,
                                     _learning_rate(run.step, steps, recipe['warmup_steps']))
            last = run.step == steps
            if run.step % recipe['log_steps'] == 0 or last:
                left = (time.monotonic() - began) / (run.step - first) * (steps - run.step) / 60
                losses = [round(loss, 4) for loss in losses]
                log.write(json.dumps({'step': run.step, 'losses': losses, 'norm': round(norm, 2)}) + '\n')
                log.flush()
                report(f'step {run.step}/{steps} losses {losses} norm {norm:.1f} left {left:.1f} min')
            if run.step % recipe['checkpoint_steps'] == 0 or last:
                run.save()
    state = run.average.state_dict()
    undo_class_weights(state, balance, recipe['class_weight_undone'])
    _save(out / 'weights.pt', **state)
    return out / 'weights.pt'
