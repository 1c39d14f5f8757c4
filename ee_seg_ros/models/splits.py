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
"""Several places at which the same network may be split: bottlenecks beside the main one, one of which is chosen."""
import torch

from ee_seg_ros.models.bottleneck import Bottleneck
from ee_seg_ros.models.multi_exit import FINAL, MultiExitNet

_FINER = ('low', 'skips', 'restored')    # what only the finer features of a split's description need


def add_splits(net: MultiExitNet, splits: list) -> MultiExitNet:
    """`net` with more split candidates (see `MultiExitNet`), whose bottlenecks are random; other weights are copied.

    Where a candidate squeezes the same finer features to as many channels as the main split, it begins with its weights
    for them.
    """
    grown = MultiExitNet({**net.spec, 'split_candidates': [*net.spec.get('split_candidates', ()), *splits]})
    grown.load_state_dict(net.state_dict(), strict=False)
    main = net.spec['split']
    same = {key: value for key, value in net.bottleneck.state_dict().items()
            if key.startswith(('folds.', 'low.', 'unfold_low.'))}
    for split in splits:
        if all(split.get(key) == main.get(key) for key in ('skips', 'low')):
            grown.bottlenecks[str(split['unit'])].load_state_dict(same, strict=False)
    return grown


def with_split(net: MultiExitNet, unit: int | None) -> MultiExitNet:
    """`net` split behind `unit` and nowhere else, with the same weights (copied), in eval mode.

    unit: of the main split or of a candidate; None if the network has no split. All that lies behind runs on what that
    bottleneck restores. What the main bottleneck makes of the features stays part of the network (`inner`): the units
    behind it were trained on that, which has little in common with what goes in. Exits that take finer features and
    change sides are left out: on either side these are others.
    Raises ValueError for a unit behind which there is no split.
    """
    splits = {split['unit']: split for split in net.splits} or {None: None}
    if unit not in splits:
        raise ValueError(f"there is no split behind unit {unit}: choose one of {', '.join(map(str, splits))}")
    spec = {key: value for key, value in net.spec.items() if key != 'split_candidates'}
    state, renamed = net.state_dict(), {}    # prefix there -> prefix here
    if unit != net.split_unit:
        main, (first, last) = spec['split'], sorted((unit, net.split_unit))
        spec |= {'split': splits[unit], 'inner': {key: main[key] for key in main if key not in _FINER}, 'exits': [
            exit_ for exit_ in spec['exits']
            if not (first < exit_['unit'] <= last and net.exits[exit_['name']].skip_channels)]}
        kept = {exit_['name'] for exit_ in spec['exits']} | {FINAL}
        if 'experts' in spec:
            spec['experts'] = {family: {name: head for name, head in heads.items() if name in kept}
                               for family, heads in spec['experts'].items()}
        following = f'units.{net.split_unit + 1}.'
        renamed = {'bottleneck.': f'bottlenecks.{unit}.', f'{following}0.': 'bottleneck.', f'{following}1.': following}
    chosen = MultiExitNet(spec)

    def source(key):
        prefix = next((prefix for prefix in renamed if key.startswith(prefix)), '')
        return renamed.get(prefix, '') + key.removeprefix(prefix)
    chosen.load_state_dict({key: state[source(key)] for key in chosen.state_dict()})
    return chosen.eval()


@torch.no_grad()
def start_bottleneck(bottleneck: Bottleneck, features: torch.Tensor) -> None:
    """Let a bottleneck begin with the principal components of `features` (N, C, h, w), in place.

    They are the best that linear maps can keep in so few channels; short trainings cannot find that from random
    weights, for batch norms keep the wrong scale for long.
    """
    values = features.transpose(0, 1).flatten(1)
    mean = values.mean(1)
    power, directions = torch.linalg.eigh(torch.cov(values, correction=0))
    squeeze, norm = bottleneck.high
    count = min(squeeze.out_channels, len(power))
    spread, directions = power[-count:].clamp(min=1e-6).sqrt(), directions[:, -count:]
    squeeze.weight[:count] = (directions / spread).T[..., None, None]
    norm.running_mean[:count], norm.running_var[:count] = directions.T @ mean / spread, 1.0
    unsqueeze, norm = bottleneck.unfold_high
    unsqueeze.weight.zero_()
    unsqueeze.weight[:, :count] = (directions * spread)[..., None, None]
    norm.running_mean.zero_()
    norm.running_var.copy_((directions * spread).square().sum(1))
    norm.weight.copy_((norm.running_var + norm.eps).sqrt())
    norm.bias.copy_(mean)
