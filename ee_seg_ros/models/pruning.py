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
"""Inverted residual blocks with fewer hidden channels, chosen and made up for by least squares: nothing is trained.

Source: He, Zhang, Sun, "Channel pruning for accelerating very deep neural networks", ICCV 2017: block after block, what
is left is fitted to what the whole network puts out there. Which channels go is found by backward elimination instead.
"""
import copy
from collections.abc import Callable, Iterable

import torch

from ee_seg_ros.models.backbones import cut_hidden
from ee_seg_ros.models.multi_exit import MultiExitNet

RIDGE = 1e-4    # of the mean variance, added to each: a channel that never changes has none of its own


def eliminate(covariance: torch.Tensor, shared: torch.Tensor, count: int) -> tuple:
    """The `count` of n variables that explain m others, by backward elimination: (their indices, weights (count, m)).

    covariance: (n, n), invertible. shared: (n, m), their covariance with the others. In each step the variable goes
    without which the squared error of the best fit grows least: w^2 / (C^-1)_ii, summed over the others, as in Hassibi
    and Stork, "Second order derivatives for network pruning", NIPS 1992. The weights stay those of the best fit.
    """
    kept, inverse = torch.arange(len(covariance)), torch.linalg.inv(covariance)
    weights = inverse @ shared
    while len(kept) > count:
        least = int((weights.square().sum(1) / inverse.diagonal()).argmin())
        left, over = torch.arange(len(kept)) != least, inverse[:, least] / inverse[least, least]
        weights = (weights - torch.outer(over, weights[least]))[left]
        inverse = (inverse - torch.outer(over, inverse[least]))[left][:, left]
        kept = kept[left]
    return kept, weights


def _moments(net, whole, unit, images):
    """Mean and covariance (float64) of a block's hidden values, as they are narrowed, and of what it shall give.

    What it gives shall bring its output, with its input added where it is residual, to what it is in `whole`.
    """
    block, total = net.units[unit], 0.0
    for image in images:
        before = net.run_units(image, 0, unit - 1)[-1]
        wanted = whole.run_units(image, 0, unit)[-1] - (before if block.use_res_connect else 0.0)
        values = torch.cat([block.conv[:2](before), wanted, torch.ones_like(wanted[:, :1])], 1)
        values = values.transpose(0, 1).flatten(1).double()
        total = total + values @ values.T
    mean = total[:-1, -1] / total[-1, -1]
    return mean, total[:-1, :-1] / total[-1, -1] - torch.outer(mean, mean)


@torch.no_grad()
def prune(net: MultiExitNet, pruned: list, images: Callable[[], Iterable],
          report: Callable[[str], None] = lambda line: None) -> MultiExitNet:
    """A copy of `net` whose inverted residual blocks have fewer hidden channels, in eval mode.

    pruned: list of {unit, hidden}, how many channels are left to which block. images: called once per block; gives the
    same network inputs each time, float32 (N, 3, H, W), such as the network was trained on. report: called with a line
    per block. A block that keeps all of its channels is only fitted anew, to make up for those before it. Raises
    ValueError for a unit that is no such block, or that has fewer channels than that.
    """
    backbone = {**net.spec['backbone'], 'pruned': sorted(
        [entry for entry in net.spec['backbone'].get('pruned', ()) if entry['unit'] not in
         {new['unit'] for new in pruned}] + pruned, key=lambda entry: entry['unit'])}
    MultiExitNet({**net.spec, 'backbone': backbone})    # raises before the images are read
    whole, net = net.eval(), copy.deepcopy(net).eval()
    for unit, count in sorted((entry['unit'], entry['hidden']) for entry in pruned):
        mean, covariance = _moments(net, whole, unit, images())
        narrow, norm = net.units[unit].conv[2:]
        had = narrow.in_channels
        covariance[:had, :had] += RIDGE * covariance[:had, :had].diagonal().mean() * torch.eye(had)
        kept, weights = eliminate(covariance[:had, :had], covariance[:had, had:], count)
        cut_hidden(net.units, unit, kept.tolist())
        explained = (weights * covariance[kept, had:]).sum(0)
        narrow.weight.copy_(weights.T[..., None, None])
        # The norm's statistics are those of what it gets, as if it had been trained so.
        norm.running_mean.copy_(weights.T @ mean[kept])
        norm.running_var.copy_(explained)
        norm.weight.copy_((norm.running_var + norm.eps).sqrt())
        norm.bias.copy_(mean[had:])
        lost = 1 - float(explained.sum() / covariance[had:, had:].trace())
        report(f'unit {unit}: {count} of {had} hidden channels left, {100 * lost:.2f} % of the variance lost')
    net.spec['backbone'] = backbone
    return net
