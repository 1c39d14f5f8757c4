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
"""Segmentation networks of torchvision as a chain of units and a final head, and where to cut the chain.

Nothing is rewritten: a unit is a child of the original backbone (its stem, then block by block), so that pretrained
weights fit and the chain computes what the original computes.
"""
from collections.abc import Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ee_seg_ros.models.torchvision_compat import torchvision

# Name -> output stride of torchvision's own version. MobileNetV2 has no segmentation network there.
NETWORKS = {'mobilenet_v2': 16, 'deeplabv3_resnet50': 8, 'deeplabv3_resnet101': 8, 'fcn_resnet50': 8,
            'deeplabv3_mobilenet_v3_large': 16, 'lraspp_mobilenet_v3_large': 16}


@contextmanager
def _looking(units):
    """Run units without a trace: in eval mode, without gradients; their modes come back."""
    modes = [module.training for module in units.modules()]
    units.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in zip(units.modules(), modes):
            module.training = mode


@dataclass
class Backbone:
    """A chain of units.

    units: modules, each (N, c, h, w) -> (N, c', h', w'). classifier: the network's own final head, or None
    (MobileNetV2). low_unit: index of the unit whose output the classifier takes besides the last one's, or None.
    """

    units: nn.ModuleList
    classifier: nn.Module | None = None
    low_unit: int | None = None

    def shapes(self, height: int = 64, width: int = 64) -> list:
        """(channels, stride) of what each unit puts out; height and width are multiples of the last stride."""
        shapes, tensor = [], torch.zeros(1, 3, height, width)
        with _looking(self.units):
            for unit in self.units:
                tensor = unit(tensor)
                shapes.append((tensor.shape[1], height // tensor.shape[2]))
        return shapes


def dilate(blocks: nn.Module, rate: int) -> None:
    """Trade the stride of depthwise convolutions for dilation, so that the output keeps its resolution.

    The strided convolution itself loses its stride; every 3x3 convolution in `blocks` behind it gets dilation `rate`.
    """
    for module in blocks.modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3):
            if module.stride == (2, 2):
                module.stride = (1, 1)
            else:
                module.dilation, module.padding = (rate, rate), (rate, rate)


def cut_hidden(units: nn.ModuleList, unit: int, kept: Iterable) -> None:
    """Leave the inverted residual block `unit` of MobileNetV2 only the hidden channels `kept` (indices), in place.

    Raises ValueError for a unit that is no such block, or does not widen, and where none, or more than it has, would be
    left.
    """
    block, kept = units[unit] if 0 <= unit < len(units) else None, list(kept)
    if not isinstance(block, torchvision.models.mobilenetv2.InvertedResidual) or len(block.conv) < 4:
        raise ValueError(f'unit {unit} cannot be pruned: it is no inverted residual block of MobileNetV2 that widens')
    widen, depthwise, narrow, _ = block.conv
    if not 0 < len(kept) <= narrow.in_channels:
        raise ValueError(f'unit {unit} has {narrow.in_channels} hidden channels, {len(kept)} are to be left: expected '
                         'no more, and one at least')
    for convolution, norm in ((widen[0], widen[1]), (depthwise[0], depthwise[1])):
        for tensor in (convolution.weight, norm.weight, norm.bias, norm.running_mean, norm.running_var):
            tensor.data = tensor.data[kept]
        norm.num_features = len(kept)
    narrow.weight.data = narrow.weight.data[:, kept]
    widen[0].out_channels = depthwise[0].in_channels = depthwise[0].out_channels = depthwise[0].groups = len(kept)
    narrow.in_channels = len(kept)


def read_weights(source: str | Path | None) -> dict:
    """A state_dict from a local file, or from torchvision by the name of its enum entry; {} for None.

    An enum entry is written as torchvision prints it, for example `MobileNet_V2_Weights.IMAGENET1K_V1`; torchvision
    downloads it. Raises FileNotFoundError or ValueError.
    """
    if source is None:
        return {}
    if Path(source).is_file():
        try:
            return torch.load(source, map_location='cpu', weights_only=True)
        except Exception as error:    # torch raises pickle, zip and key errors of its own for files that are no weights
            raise ValueError(f'{source} is not a file of weights that torch can read: {str(error)[:200]}') from None
    if '_Weights.' not in str(source):
        raise FileNotFoundError(f'{source} does not exist: give a state_dict file, or an entry of a torchvision enum '
                                'such as MobileNet_V2_Weights.IMAGENET1K_V1')
    try:
        return dict(torchvision.models.get_weight(str(source)).get_state_dict(progress=True))
    except (ValueError, AttributeError, KeyError):
        raise ValueError(f'torchvision {torchvision.__version__} has no weights {source}') from None
    except OSError as error:
        raise ValueError(f'{source} could not be downloaded ({error}): download the file elsewhere and give its '
                         'path') from None


def _load(module, state, source, prefix):
    """Load the keys of `state` that begin with `prefix`; all of `module` must be there."""
    state = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    try:
        missing, _ = module.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise ValueError(f'{source} does not fit this backbone: {str(error).splitlines()[-1].strip()}') from None
    if missing:
        raise ValueError(f"{source} is not a state_dict with torchvision's names for this backbone: {len(missing)} "
                         f'keys missing, for example {missing[0]}')


def mobilenet_v2(output_stride: int, weights: str | Path | None = None) -> Backbone:
    """MobileNetV2 1.0 (torchvision) up to its 320-channel block: 18 units, at output stride 16 or 8.

    weights: see `read_weights`. The project's usual ones expect RGB scaled to x / 127.5 - 1. Raises ValueError.
    """
    if output_stride not in (8, 16):
        raise ValueError(f'output stride {output_stride} of mobilenet_v2 is not 8 or 16')
    features = torchvision.models.mobilenet_v2(weights=None).features
    if weights is not None:
        _load(features, read_weights(weights), weights, 'features.')
    units = nn.ModuleList(features[:18])
    if output_stride == 8:
        dilate(units[7:14], 2)
    dilate(units[14:], 16 // output_stride * 2)
    return Backbone(units)


def _flatten(backbone):
    """The children of torchvision's IntermediateLayerGetter as units: a stem of single layers, then block by block."""
    units, stem = [], []
    for child in backbone.children():
        if type(child) is nn.Sequential:    # a subclass (convolution, norm, activation) is one unit
            units += child.children()
        elif len(list(child.children())) or units:
            units.append(child)
        else:
            stem.append(child)
    return nn.ModuleList(([nn.Sequential(*stem)] if stem else []) + units)


def _segmentation_network(name, classes, weights):
    net = getattr(torchvision.models.segmentation, name)(
        weights=None, weights_backbone=None, num_classes=classes, **({} if 'lraspp' in name else {'aux_loss': False}))
    if weights is not None:
        state = read_weights(weights)
        if any(key.startswith('backbone.') for key in state):
            _load(net.backbone, state, weights, 'backbone.')
            head = {key: value for key, value in state.items() if key.startswith('classifier.')}
            own = {f'classifier.{key}': value.shape for key, value in net.classifier.state_dict().items()}
            net.load_state_dict({key: value for key, value in head.items()    # all but a head of other classes
                                 if own.get(key) == value.shape}, strict=False)
        else:
            _load(net.backbone, state, weights, 'features.' if 'mobilenet' in name else '')
    low_unit = None
    if 'lraspp' in name:
        low_unit = next(int(layer) for layer, output in net.backbone.return_layers.items() if output == 'low')
    return Backbone(_flatten(net.backbone), net.classifier, low_unit)


def build_backbone(name: str, output_stride: int | None = None, classes: int = 11,
                   weights: str | Path | None = None) -> Backbone:
    """The chain of units of a network in `NETWORKS`, with its own final head where torchvision has one.

    output_stride: of MobileNetV2, 16 (default) or 8; the others keep torchvision's. weights: see `read_weights`;
    of the backbone, or of the whole segmentation network. Raises ValueError or FileNotFoundError.
    """
    if name not in NETWORKS:
        raise ValueError(f"network {name!r} is not known: choose one of {', '.join(NETWORKS)}")
    if name == 'mobilenet_v2':
        return mobilenet_v2(output_stride or NETWORKS[name], weights)
    if output_stride not in (None, NETWORKS[name]):
        raise ValueError(f'{name} has output stride {NETWORKS[name]}, not {output_stride}')
    return _segmentation_network(name, classes, weights)


def unit_macs(units: nn.ModuleList, height: int, width: int) -> list:
    """Multiply-accumulates of each unit for one image, counted by torch's FlopCounterMode."""
    macs, tensor = [], torch.zeros(1, 3, height, width)
    with _looking(units):
        for unit in units:
            with FlopCounterMode(display=False) as counter:
                tensor = unit(tensor)
            macs.append(counter.get_total_flops() / 2)
    return macs


def candidate_units(macs: list, count: int = 6) -> list:
    """Where exits may sit: behind the first units at which the cumulative cost passes k / (count + 1) of the whole.

    macs: cost of each unit, in order (`unit_macs`). Returns `count` indices of units, ascending; where one unit passes
    several marks, or too few are left, the neighbours are taken. Equidistant in cost as in MESS (Kouris et al., ECCV
    2022) and in Gilbert et al.'s code.
    """
    if not 1 <= count < len(macs):
        raise ValueError(f'{count} candidate places do not fit {len(macs)} units: choose 1 to {len(macs) - 1}')
    cumulative, places = torch.tensor(macs).cumsum(0), []
    for number in range(1, count + 1):
        passes = int((cumulative < number / (count + 1) * cumulative[-1]).sum())
        earliest, latest = (places[-1] + 1 if places else 0), len(macs) - 1 - (count - number)
        places.append(min(max(passes, earliest), latest))
    return places
