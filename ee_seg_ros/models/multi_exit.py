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
"""The multi-exit network: a chain of units with exits behind some of them, a bottleneck at the split, a final head."""
import copy
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from ee_seg_ros.models.backbones import build_backbone, cut_hidden
from ee_seg_ros.models.bottleneck import Bottleneck
from ee_seg_ros.models.heads import TorchvisionHead, build_head

FINAL = 'final'
# RGB 0..255 -> network input; MobileNetV2's usual weights expect x / 127.5 - 1.
DEFAULT_INPUT = {'scale': [1 / 127.5] * 3, 'offset': [-1.0] * 3}


@dataclass(frozen=True)
class Part:
    """A piece of the network that becomes a graph of its own. kind: stage, exit, encode or decode."""

    name: str
    kind: str
    module: nn.Module
    inputs: tuple
    outputs: tuple


class _Stage(nn.Module):
    """Units `first` to `last` of a chain; puts out what the units in `taps` give, in order."""

    def __init__(self, units, first, last, taps):
        super().__init__()
        self.units, self._first, self._taps = units[first:last + 1], first, taps

    def forward(self, tensor):
        outputs = []
        for index, unit in enumerate(self.units, start=self._first):
            tensor = unit(tensor)
            if index in self._taps:
                outputs.append(tensor)
        return tuple(outputs)


class _Call(nn.Module):
    """One method of a module, as a module."""

    def __init__(self, owner, method):
        super().__init__()
        self.owner, self._method = owner, method

    def forward(self, *tensors):
        return getattr(self.owner, self._method)(*tensors)


def _bottleneck(split, shapes):
    """The bottleneck of a split's description; shapes: (channels, stride) of each unit's output."""
    options = {key: value for key, value in split.items() if key not in ('unit', 'skips')}
    return Bottleneck(shapes[split['unit']][0], tuple(shapes[unit] for unit in split.get('skips', ())), **options)


class MultiExitNet(nn.Module):
    """A segmentation network with early exits, from a JSON-able `spec`.

    backbone: {name, output_stride, units, pruned} (see `build_backbone`; `units` cuts the chain off, default all).
    pruned: list of {unit, hidden}: inverted residual blocks with fewer hidden channels, see `pruning.prune`.
    classes: how many. input: {scale, offset} per channel of RGB 0..255 (default x / 127.5 - 1).
    skip: unit whose output onboard heads may take besides their features; default none.
    exits: list of {name, unit, head}, the exit sits behind that unit; head as in `build_head`.
    split: {unit, low, high, levels, skips, restored}, see `Bottleneck`: exits behind later units, and the final output,
    are computed from what the bottleneck restores. None: everything runs on one computer.
    split_candidates: further splits, described alike, each behind a unit of its own; they restore the same finer
    features. Only their bottlenecks are kept here (`bottlenecks`, by unit): see `splits.with_split`.
    inner: {unit, high, levels}: a bottleneck without a link, part of the network behind that unit; default none.
    final: head behind the last unit; {kind: own} takes the one that torchvision's network brings along.
    experts: {family of distortions: {name of an exit: head}}: further heads on the same features (`experts`, by family
    and exit; `expert_parts`); default none. `forward` does not run them.
    `stride`: the network's input has multiples of it as width and height.

    Raises ValueError for a spec that makes no network. Weights are random, but for the backbone's if `weights` names
    some (`read_weights`).
    """

    def __init__(self, spec: dict, weights: str | Path | None = None):
        super().__init__()
        self.spec = copy.deepcopy(spec)
        backbone = build_backbone(spec['backbone']['name'], spec['backbone'].get('output_stride'), spec['classes'],
                                  weights)
        for entry in spec['backbone'].get('pruned', ()):
            cut_hidden(backbone.units, entry['unit'], range(entry['hidden']))
        shapes = backbone.shapes()
        last = spec['backbone'].get('units', len(backbone.units)) - 1
        self.units = backbone.units[:last + 1]
        self.stride = max(8, *(stride for _, stride in shapes[:last + 1]))    # heads bring finer features to 8
        inner = spec.get('inner')
        if inner:    # exits behind its unit see what that puts out, so it comes before the next one
            following = inner['unit'] + 1
            self.units[following] = nn.Sequential(_bottleneck(inner, shapes), self.units[following])
        self.split_unit = spec['split']['unit'] if spec.get('split') else None
        self._skip_unit = spec.get('skip')
        self._skips = tuple(spec['split'].get('skips', ())) if spec.get('split') else ()
        self._check(last)
        self._exit_units = {exit_['name']: exit_['unit'] for exit_ in spec['exits']} | {FINAL: last}
        self.exit_names = tuple(sorted(self._exit_units, key=self._exit_units.get))    # sorted() keeps the given order
        if self.split_unit is not None:
            self.bottleneck = _bottleneck(spec['split'], shapes)
        self.bottlenecks = nn.ModuleDict({str(split['unit']): _bottleneck(split, shapes)
                                          for split in self._split_candidates(shapes)})
        self.exits = nn.ModuleDict({
            exit_['name']: build_head(exit_['head'], shapes[exit_['unit']][0], spec['classes'],
                                      shapes[exit_['unit']][1], self._skip_channels(exit_['unit'], shapes))
            for exit_ in spec['exits']})
        skip = self._skip_channels(last, shapes)
        self.final = self._own_head(backbone, shapes, skip) if spec['final']['kind'] == 'own' else build_head(
            spec['final'], shapes[last][0], spec['classes'], shapes[last][1], skip)
        self.experts = self._make_experts(shapes)
        self._parts = self._make_parts()

    def _own_head(self, backbone, shapes, skip):
        """The head that torchvision's network brings along; LRASPP's takes finer features, of its own choice."""
        name, low = self.spec['backbone']['name'], backbone.low_unit
        if backbone.classifier is None:
            raise ValueError(f'{name} brings no head of its own: choose another final head')
        if low is None:
            return TorchvisionHead(backbone.classifier)
        if skip != shapes[low][0] or (self.split_unit is None and self._skip_unit != low):
            raise ValueError(f"{name}'s own head also takes the {shapes[low][0]} channels behind unit {low}: write "
                             f'`skips: [{low}], restored: {shapes[low][0]}` into its split, or, without a split, '
                             f'`skip: {low}` into the network')
        return TorchvisionHead(backbone.classifier, skip)

    def _make_experts(self, shapes):
        experts = self.spec.get('experts', {})
        unknown = {name for heads in experts.values() for name in heads} - set(self._exit_units)
        if unknown or not {'', 'clean', 'auto', 'off'}.isdisjoint(experts):
            raise ValueError(f"experts {', '.join(experts)} of the exits {', '.join(sorted(unknown)) or 'known'}: "
                             f"expected families of distortions, and exits of {', '.join(self.exit_names)}")

        def head(name, description):
            unit = self._exit_units[name]
            return build_head(description, shapes[unit][0], self.spec['classes'], shapes[unit][1],
                              self._skip_channels(unit, shapes))
        return nn.ModuleDict({family: nn.ModuleDict({name: head(name, heads[name]) for name in heads})
                              for family, heads in experts.items()})

    def _check(self, last):
        spec = self.spec
        names = [exit_['name'] for exit_ in spec['exits']]
        if len(set(names)) < len(names) or FINAL in names:
            raise ValueError(f'exits need names of their own, and none is called {FINAL}: {names}')
        for name, unit in [(exit_['name'], exit_['unit']) for exit_ in spec['exits']] + (
                [('split', split['unit']) for split in self.splits]):
            if not 0 <= unit <= last or (name == 'split' and unit == last):
                raise ValueError(f'{name} sits behind unit {unit}, but {spec["backbone"]["name"]} has units 0 to '
                                 f'{last}, and the split lies before the last')
        for split in self.splits:
            if not all(0 <= skip < split['unit'] for skip in split.get('skips', ())):
                raise ValueError(f"skips {split['skips']} of the split do not all lie before its unit {split['unit']}")

    def _split_candidates(self, shapes):
        """The checked descriptions of all splits but the main one."""
        main, candidates = self.spec.get('split'), self.spec.get('split_candidates', [])
        units = [split['unit'] for split in self.splits]
        if candidates and not main:
            raise ValueError('split candidates stand in for a split: the network needs a `split` of its own, too')
        if len(set(units)) < len(units):
            raise ValueError(f'every split lies behind a unit of its own: these lie behind {units}')

        def finer(split):
            strides = [shapes[unit][1] for unit in split.get('skips', ())]
            return f"{split.get('restored', 48)} channels at stride {max(strides)}" if strides else 'nothing'
        for split in candidates:
            if finer(split) != finer(main):
                raise ValueError(f"beside its features the split candidate behind unit {split['unit']} restores "
                                 f'{finer(split)}, the split {finer(main)}: choose `skips` and `restored` that give '
                                 'the same, for the same heads take them')
        return candidates

    @property
    def splits(self) -> list:
        """Descriptions of all splits, the main one first; [] without a split."""
        return [split for split in (self.spec.get('split'), *self.spec.get('split_candidates', ())) if split]

    def _offboard(self, unit, name=''):
        return self.split_unit is not None and (unit > self.split_unit or name == FINAL)

    def _skip_channels(self, unit, shapes):
        if self._offboard(unit):
            return self.spec['split'].get('restored', 48) if self._skips else 0
        return shapes[self._skip_unit][0] if self._skip_unit is not None and self._skip_unit <= unit else 0

    def _make_parts(self):
        """The network as a list of parts, each behind those it needs; `forward` and the export both follow it."""
        last = len(self.units) - 1
        taps = {self._skip_unit} - {None}
        if self.split_unit is not None:
            taps |= set(self._skips)
        cuts = sorted({*self._exit_units.values(), last} | ({self.split_unit} - {None}))
        parts, first, source, skip = [], 0, 'image', f'unit{self._skip_unit}'
        for number, cut in enumerate(cuts, start=1):
            kept = sorted({unit for unit in taps if first <= unit <= cut and not self._offboard(unit)} | {cut})
            parts.append(Part(f'stage{number}', 'stage', _Stage(self.units, first, cut, kept), (source,),
                              tuple(f'unit{unit}' for unit in kept)))
            source = f'unit{cut}'
            for name in self.exit_names:
                if self._exit_units[name] == cut:
                    head = self.final if name == FINAL else self.exits[name]
                    parts.append(Part(name, 'exit', head, (source, skip) if head.skip_channels else (source,),
                                      (f'logits_{name}',)))
            if cut == self.split_unit:
                levels = ('low', 'high') if self._skips else ('high',)
                restored = ('restored_skip', f'restored{cut}') if self._skips else (f'restored{cut}',)
                parts.append(Part('encode', 'encode', _Call(self.bottleneck, 'encode'),
                                  (*(f'unit{unit}' for unit in self._skips), source), levels))
                parts.append(Part('decode', 'decode', _Call(self.bottleneck, 'decode'), levels, restored))
                source, skip = f'restored{cut}', 'restored_skip'
            first = cut + 1
        return parts

    @property
    def parts(self) -> list:
        """Every `Part`, in an order in which they can run."""
        return list(self._parts)

    @property
    def expert_parts(self) -> list:
        """Every expert head as a `Part` called EXIT_FAMILY, of kind `expert`; each reads what its exit reads."""
        exits, found = {part.name: part for part in self._parts if part.kind == 'exit'}, []
        for family, heads in self.experts.items():
            for name, head in heads.items():
                source = exits[name].inputs[0]
                skip = 'restored_skip' if self._offboard(self._exit_units[name], name) else f'unit{self._skip_unit}'
                found.append(Part(f'{name}_{family}', 'expert', head,
                                  (source, skip) if head.skip_channels else (source,), (f'logits_{name}_{family}',)))
        return found

    def forward(self, image: torch.Tensor, exits: Iterable | None = None) -> dict:
        """Logits by exit name, each (N, classes, h, w) at the exit's own stride.

        image: float32 (N, 3, H, W), H and W multiples of the backbone's stride. exits: names wanted (default all);
        nothing is computed that none of them needs.
        """
        wanted = set(self.exit_names if exits is None else exits)
        tensors, logits = {'image': image}, {}
        for part in self._parts:
            if part.kind != 'exit':
                tensors.update(zip(part.outputs, part.module(*[tensors[name] for name in part.inputs])))
            elif part.name in wanted:
                logits[part.name] = part.module(*[tensors[name] for name in part.inputs])
                if len(logits) == len(wanted):
                    break
        return logits

    def scaled(self, images: torch.Tensor) -> torch.Tensor:
        """Network inputs of images, RGB 0..255: float32 (.., 3, H, W)."""
        scale, offset = (torch.tensor(value).view(3, 1, 1) for value in (
            self.spec.get('input', DEFAULT_INPUT)[key] for key in ('scale', 'offset')))
        return images * scale + offset

    def run_units(self, tensor: torch.Tensor, first: int, last: int) -> list:
        """What each of the units `first` to `last` puts out; those behind the split see what is restored there."""
        outputs = []
        for index in range(first, last + 1):
            if index - 1 == self.split_unit:
                tensor = self.bottleneck(tensor)
            tensor = self.units[index](tensor)
            outputs.append(tensor)
        return outputs

    def features(self, image: torch.Tensor, wanted: Iterable | None = None) -> dict:
        """Every tensor that a head may take, by name (see `parts`), and the image.

        wanted: names of those that are needed (default all); nothing behind the last of them is computed.
        """
        tensors, missing = {'image': image}, None if wanted is None else set(wanted)
        for part in self._parts:
            if part.kind != 'exit' and (missing is None or missing - set(tensors)):
                tensors.update(zip(part.outputs, part.module(*[tensors[name] for name in part.inputs])))
        return tensors


def save_network(net: MultiExitNet, path: str | Path) -> None:
    """Write a network to `path` (weights.pt); a kill in the middle leaves the previous file whole."""
    temporary = Path(path).with_suffix('.part')
    torch.save({'spec': net.spec, 'state': net.state_dict()}, temporary)
    os.replace(temporary, path)


def load_network(path: str | Path) -> MultiExitNet:
    """The network of a weights.pt (`save_network`), or of the folder of a bundle that kept its weights, in eval mode.

    Raises FileNotFoundError or ValueError.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f'{path} does not exist: expected weights.pt of a training, or the folder of a bundle')
    try:
        spec, state = _read_bundle(path) if path.is_dir() else _read_file(path)
        net = MultiExitNet(spec)
        net.load_state_dict(state)
    except Exception as error:    # torch raises pickle, zip, key and runtime errors of its own
        raise ValueError(f'{path} is neither a weights.pt that `ee_seg train` wrote nor a bundle with '
                         f'weights.safetensors: {str(error)[:300]}') from None
    return net.eval()


def _read_file(path):
    content = torch.load(path, map_location='cpu', weights_only=True)
    return content['spec'], content['state']


def _read_bundle(folder):
    document = json.loads((folder / 'bundle.json').read_text(encoding='utf-8'))
    return document['network'], load_file(str(folder / 'weights.safetensors'))


def is_trained(weights: str | Path | None) -> bool:
    """Whether weights are a whole network's (`load_network`), not only a backbone's."""
    return weights is not None and (Path(weights).suffix == '.pt' or Path(weights).is_dir())


def add_exits(net: MultiExitNet, exits: list) -> MultiExitNet:
    """`net` with more exits (each {name, unit, head}), whose heads are random; the other weights are copied."""
    grown = MultiExitNet({**net.spec, 'exits': net.spec['exits'] + exits})
    grown.load_state_dict(net.state_dict(), strict=False)
    return grown


def select_exits(net: MultiExitNet, exits: dict, final: str = FINAL) -> MultiExitNet:
    """A network with some exits of `net` only, with the same weights (copied), in eval mode.

    exits: new name -> name in `net`, in order of depth. final: the exit that becomes the last output: the chain ends
    there, and what lies behind goes, a split, too. Experts go with their exits. Split candidates are not kept.
    """
    spec = copy.deepcopy(net.spec)
    spec.pop('split_candidates', None)
    described = {exit_['name']: exit_ for exit_ in spec['exits']}
    unknown = ({*exits.values(), final} - set(described)) - {FINAL}
    if unknown:
        raise ValueError(f"no exit {', '.join(sorted(unknown))} in this network: it has {', '.join(net.exit_names)}")
    spec['exits'] = [{**described[old], 'name': new} for new, old in exits.items()]
    if final != FINAL:
        spec['final'] = described[final]['head']
        spec['backbone']['units'] = described[final]['unit'] + 1
        for key in ('split', 'inner'):
            if spec.get(key) and spec[key]['unit'] >= described[final]['unit']:
                spec[key] = None
    names = {**exits, FINAL: final}    # new -> old
    experts = {family: {new: heads[old] for new, old in names.items() if old in heads}
               for family, heads in spec.pop('experts', {}).items()}
    if any(experts.values()):
        spec['experts'] = {family: heads for family, heads in experts.items() if heads}
    chosen, state, own = MultiExitNet(spec), {}, net.state_dict()
    sources = {f'exits.{new}.': f'exits.{old}.' for new, old in exits.items()}
    sources |= {f'experts.{family}.{new}.': f'experts.{family}.{old}.' for family in experts
                for new, old in names.items()}
    if final != FINAL:
        sources['final.'] = f'exits.{final}.'
    for key in chosen.state_dict():
        prefix = next((prefix for prefix in sources if key.startswith(prefix)), None)
        state[key] = own[sources[prefix] + key.removeprefix(prefix) if prefix else key]
    chosen.load_state_dict(state)
    return chosen.eval()
