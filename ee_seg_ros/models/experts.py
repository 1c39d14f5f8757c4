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
"""Expert exits: further heads, trained on one family of distortions each, on the features of one shared backbone."""
import copy

import torch

from ee_seg_ros.models.multi_exit import FINAL, MultiExitNet


def head_of(spec: dict, exit_name: str) -> dict:
    """The description of an exit's head in a network's spec. Raises ValueError for a name that there is not."""
    heads = {exit_['name']: exit_['head'] for exit_ in spec['exits']} | {FINAL: spec['final']}
    if exit_name not in heads:
        raise ValueError(f'no exit {exit_name} in this network, so no expert for it: it has {", ".join(heads)}')
    return heads[exit_name]


def add_experts(net: MultiExitNet, families: list, exits: list, start: MultiExitNet | None = None,
                **knobs) -> MultiExitNet:
    """`net` with expert heads of each family at each of `exits`, which begin as copies of the exits' own heads.

    knobs: replace those of the heads' descriptions (`adapt`, say); what the exit's own head does not have begins at
    random, or such that it changes nothing. start: a network, a twin say, whose experts they begin as instead, where it
    has them. Experts that are there already stay as they are. Raises ValueError.
    """
    spec = copy.deepcopy(net.spec)
    experts = spec.setdefault('experts', {})
    fresh = [(family, name) for family in families for name in exits if name not in experts.get(family, {})]
    for family, name in fresh:
        experts.setdefault(family, {})[name] = {**head_of(spec, name), **knobs}
    grown = MultiExitNet(spec)
    grown.load_state_dict(net.state_dict(), strict=False)
    for family, name in fresh:
        own = net.final if name == FINAL else net.exits[name]
        grown.experts[family][name].load_state_dict(own.state_dict(), strict=False)
        if start is not None and name in start.spec.get('experts', {}).get(family, {}):
            try:
                grown.experts[family][name].load_state_dict(start.experts[family][name].state_dict())
            except RuntimeError as error:
                raise ValueError(f'the expert {family} of {name} to begin with is another head than the one that is '
                                 f'wanted: {str(error)[:200]}') from None
    return grown.eval()


def with_experts(net: MultiExitNet, source: MultiExitNet) -> MultiExitNet:
    """`net` with the expert heads of `source` in place of its own, with the same weights (copied), in eval mode.

    So heads behind the split can be trained on while experts are trained before it, and the other way round. What the
    experts see must be the same in both networks. Raises ValueError where it is not.
    """
    experts = source.spec.get('experts')
    if not experts:
        raise ValueError('the network that shall give its experts has none: train some first (stage `experts`)')
    wanted, places = {name for heads in experts.values() for name in heads}, []
    for other in (net, source):
        units = {exit_['name']: exit_['unit'] for exit_ in other.spec['exits']} | {FINAL: len(other.units) - 1}
        places.append({name: units.get(name) for name in wanted})
    if places[0] != places[1]:
        raise ValueError(f'the experts are of exits behind units {places[1]}, which in this network are {places[0]}')
    last = max(places[0].values())
    seen = [f'units.{unit}.' for unit in range(last + 1)]
    if net.split_unit is not None and last > net.split_unit:
        seen.append('bottleneck.')
    mine, theirs = net.state_dict(), source.state_dict()
    differing = [key for key in theirs if key.startswith(tuple(seen)) and not (
        key in mine and torch.equal(mine[key], theirs[key]))]
    if differing:
        raise ValueError(f'the experts were trained on other features: {differing[0]} differs. Train them again, with '
                         'this network as --weights')
    merged = MultiExitNet({**net.spec, 'experts': experts})
    merged.load_state_dict({key: (theirs if key.startswith('experts.') else mine)[key] for key in merged.state_dict()})
    return merged.eval()
