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
from ee_seg_ros.training.losses import class_weights, exit_loss


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


def train(recipe_path, root, out, weights=None, threads=2, report=print):
    """Train `StreetNet` as the recipe (YAML) says; returns the path of the averaged weights, `OUT/weights.pt`.

    root: the CamVid folder. weights: ImageNet backbone (state_dict file), or a `weights.pt` of an earlier run to go on
    from. A `checkpoint.pt` in `out` is resumed. report: called with one line of progress now and then.
    """
    recipe = yaml.safe_load(Path(recipe_path).read_text())
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(threads)
    torch.manual_seed(recipe['seed'])
    steps = sum(phase['steps'] for phase in recipe['phases'])

    start_from = torch.load(weights, map_location='cpu', weights_only=True) if weights else {}
    whole = 'final.classify.weight' in start_from
    net = StreetNet(len(CLASS_NAMES), None if whole or not weights else weights)
    if whole:
        net.load_state_dict(start_from)
    net = net.to(memory_format=torch.channels_last).train()
    average = copy.deepcopy(net).eval().requires_grad_(False)
    optimiser = _optimiser(net, recipe)
    step, checkpoint = 0, out / 'checkpoint.pt'
    if checkpoint.is_file():
        state = torch.load(checkpoint, map_location='cpu', weights_only=True)
        net.load_state_dict(state['net'])
        average.load_state_dict(state['average'])
        optimiser.load_state_dict(state['optimiser'])
        step = state['step']
        report(f'resuming at step {step} of {steps}')

    dataset = CamVid(root, recipe['split'])
    balance = class_weights(recipe['pixel_shares'], recipe['class_weight_power'], recipe['class_weight_max'])
    loader = torch.utils.data.DataLoader(
        Batches(dataset, recipe['phases'], recipe['batch_size'], recipe['scene_share'], recipe['seed'], step),
        batch_size=None, num_workers=1, prefetch_factor=2)
    log = (out / 'log.jsonl').open('a')
    began, first = time.monotonic(), step
    for images, labels in loader:
        for group in optimiser.param_groups:
            group['lr'] = group['base_lr'] * _learning_rate(step, steps, recipe['warmup_steps'])
        logits = net(images.to(memory_format=torch.channels_last))
        losses = [exit_loss(exit_logits, labels, balance, recipe['loss_stride']) for exit_logits in logits]
        loss = sum(weight * value for weight, value in zip(recipe['exit_weights'], losses))
        optimiser.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(net.parameters(), recipe['clip_norm'])
        optimiser.step()
        step += 1
        decay = min(recipe['average_decay'], step / (step + 10))
        with torch.no_grad():
            for kept, new in zip(average.state_dict().values(), net.state_dict().values()):
                if kept.is_floating_point():
                    kept.lerp_(new, 1 - decay)
                else:
                    kept.copy_(new)
        if step % 20 == 0 or step == steps:
            left = (time.monotonic() - began) / (step - first) * (steps - step)
            values = [round(value.item(), 4) for value in losses]
            log.write(json.dumps({'step': step, 'losses': values, 'norm': round(norm.item(), 2)}) + '\n')
            log.flush()
            report(f'step {step}/{steps} losses {values} norm {norm.item():.1f} left {left / 60:.1f} min')
        if step % 50 == 0 or step == steps:
            _save(checkpoint, net=net.state_dict(), average=average.state_dict(), optimiser=optimiser.state_dict(),
                  step=step)
    _save(out / 'weights.pt', **average.state_dict())
    return out / 'weights.pt'
