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
"""Heads: what turns features into class logits. None of an exit's pools over the whole map: it works in windows."""
import torch
from torch import nn
from torch.nn import functional

from ee_seg_ros.models.low_rank import approximate, low_rank
from ee_seg_ros.models.torchvision_compat import torchvision

REDUCTIONS, BLOCKS = (1, 2, 4, 8), (0, 1, 2, 3)


def conv_bn(inputs: int, outputs: int, kernel: int = 1, dilation: int = 1, groups: int = 1,
            stride: int = 1) -> nn.Sequential:
    """Convolution, batch norm, ReLU6; 'same' padding."""
    padding = dilation * (kernel // 2)
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, groups, bias=False),
        nn.BatchNorm2d(outputs), nn.ReLU6(inplace=True))


def separable(inputs: int, outputs: int, dilation: int = 1, stride: int = 1) -> nn.Sequential:
    """Depthwise 3x3, then 1x1: what MobileNetV2's blocks are made of."""
    return nn.Sequential(conv_bn(inputs, inputs, 3, dilation, inputs, stride), conv_bn(inputs, outputs))


class Residual(nn.Module):
    """One of MESS's extra trainable blocks: x + 3x3, 3x3 of as many channels."""

    def __init__(self, width: int, dilation: int):
        super().__init__()
        self.body = nn.Sequential(conv_bn(width, width, 3, dilation),
                                  nn.Conv2d(width, width, 3, 1, dilation, dilation, bias=False), nn.BatchNorm2d(width))

    def forward(self, features):
        return functional.relu6(features + self.body(features))


def enlarged(features: torch.Tensor, finer: torch.Tensor) -> torch.Tensor:
    """Features (N, C, h, w), resized bilinearly to finer ones' size.

    By a whole factor where there is one: an exported graph then states it, and runs on maps of any size at full speed.
    """
    rows, columns = (int(fine) / int(coarse) for fine, coarse in zip(finer.shape[-2:], features.shape[-2:]))
    if rows == columns and rows.is_integer():
        return functional.interpolate(features, scale_factor=rows, mode='bilinear', align_corners=False)
    return functional.interpolate(features, size=finer.shape[-2:], mode='bilinear', align_corners=False)


class MessHead(nn.Module):
    """An exit head with MESS's four knobs (Kouris et al., ECCV 2022); the details within are ours.

    kind: 'fcn' (3x3, classify) or 'deeplab' (ASPP at rates 6, 12, 18, classify), after torchvision's heads, but
    without image pooling, and as wide as the reduced features (the ASPP 256 / reduction, at least 32).
    reduction: 1, 2, 4 or 8, of the channels. blocks: 0 to 3 residual blocks. dilate: whether their dilation doubles
    from block to block. stride: of the features; finer ones than 8 are brought to 8 first.
    Input (N, inputs, h, w), output (N, classes, h', w').
    """

    skip_channels = 0

    def __init__(self, inputs: int, classes: int, stride: int, kind: str, reduction: int = 1, blocks: int = 0,
                 dilate: bool = False):
        super().__init__()
        if kind not in ('fcn', 'deeplab') or reduction not in REDUCTIONS or blocks not in BLOCKS:
            raise ValueError(f'head {kind!r} with reduction {reduction} and {blocks} blocks: expected fcn or deeplab, '
                             f'a reduction of {REDUCTIONS} and {BLOCKS} blocks')
        width, step = max(8, inputs // reduction), max(1, 8 // stride)
        self.reduce = conv_bn(inputs, width, 1 if step == 1 else 3, stride=step) if reduction > 1 or step > 1 \
            else nn.Identity()
        self.blocks = nn.Sequential(*[Residual(width, 2 ** (index + 1) if dilate else 1) for index in range(blocks)])
        if kind == 'fcn':
            inner = max(16, width // 4)
            self.look, self.mix = nn.ModuleList([conv_bn(width, inner, 3)]), nn.Identity()
        else:
            inner = max(32, 256 // reduction)
            self.look = nn.ModuleList([conv_bn(width, inner),
                                       *(conv_bn(width, inner, 3, rate) for rate in (6, 12, 18))])
            self.mix = conv_bn(4 * inner, inner)
        self.dropout = nn.Dropout2d(0.1)
        self.classify = nn.Conv2d(inner, classes, 1)

    def forward(self, features):
        reduced = self.blocks(self.reduce(features))
        looked = torch.cat([look(reduced) for look in self.look], 1)
        return self.classify(self.dropout(self.mix(looked)))


class Adapter(nn.Module):
    """x + what an inverted residual block (MobileNetV2's: widen, depthwise 3x3, narrow) makes of it.

    It begins with adding nothing: an expert head that has one begins as the exit's own head.
    """

    def __init__(self, channels: int, expansion: int = 2, dilation: int = 1):
        super().__init__()
        width = expansion * channels
        self.body = nn.Sequential(conv_bn(channels, width), conv_bn(width, width, 3, dilation, width),
                                  nn.Conv2d(width, channels, 1, bias=False), nn.BatchNorm2d(channels))
        nn.init.zeros_(self.body[-1].weight)

    def forward(self, features):
        return features + self.body(features)


class ContextHead(nn.Module):
    """A light exit head of ours: reduce, look around at several dilation rates (depthwise), mix, classify.

    With `skip` channels it also takes finer features (stride 8), at which it then classifies: thin things are lost at
    stride 16. adapt: how many `Adapter`s its features, and the finer ones, pass first. Input (N, inputs, h, w) and,
    with a skip, (N, skip, m h, m w); output (N, classes, ..) at the finer of the two, at stride 8 where `stride` is
    finer still.
    """

    def __init__(self, inputs: int, classes: int, stride: int = 16, width: int = 64, rates: tuple = (1, 4, 8),
                 skip: int = 0, adapt: int = 0):
        super().__init__()
        self.skip_channels = skip
        self.adapt = nn.Sequential(*[Adapter(inputs) for _ in range(adapt)])
        self.adapt_skip = nn.Sequential(*[Adapter(skip) for _ in range(adapt if skip else 0)])
        step = max(1, 8 // stride)
        self.reduce = conv_bn(inputs, width, 1 if step == 1 else 3, stride=step)
        self.context = nn.ModuleList([conv_bn(width, width, 3, rate, width) for rate in rates])
        self.mix = conv_bn(width * (len(rates) + 1), width)
        if skip:
            self.grow = nn.Sequential(nn.Conv2d(width, 48, 1, bias=False), nn.BatchNorm2d(48))
            self.skip = nn.Sequential(nn.Conv2d(skip, 48, 1, bias=False), nn.BatchNorm2d(48))
            self.refine = separable(48, 48)
        self.dropout = nn.Dropout2d(0.1)
        self.classify = nn.Conv2d(48 if skip else width, classes, 1)

    def forward(self, features, skip=None):
        reduced = self.reduce(self.adapt(features))
        mixed = self.mix(torch.cat([reduced] + [look(reduced) for look in self.context], 1))
        if self.skip_channels:
            # 1x1 before the resize: the same values at a quarter of the cost
            grown = enlarged(self.grow(mixed), skip)
            mixed = self.refine(functional.relu6(grown + self.skip(self.adapt_skip(skip))))
        return self.classify(self.dropout(mixed))


class DecoderHead(nn.Module):
    """The offboard head: separable ASPP on stride 16, joined with the finer features at stride 8, logits at stride 4.

    The ASPP follows DeepLabV3+ (Chen et al., ECCV 2018) with separable convolutions and without image pooling.
    Input: (N, inputs, h, w) at stride 16 and (N, skip, 2h, 2w) at stride 8; output (N, classes, 4h, 4w).
    join_rank: join the two by a convolution of this rank (`low_rank`); the whole one, which is more than half of the
    head's multiply-accumulates, where it is 0. adapt: as of `ContextHead`.
    """

    def __init__(self, inputs: int, classes: int, stride: int = 16, width: int = 128, rates: tuple = (3, 6, 9),
                 skip: int = 48, join_rank: int = 0, adapt: int = 0):
        super().__init__()
        self.skip_channels = skip
        self.adapt = nn.Sequential(*[Adapter(inputs) for _ in range(adapt)])
        self.adapt_skip = nn.Sequential(*[Adapter(skip) for _ in range(adapt)])
        self.branches = nn.ModuleList(
            [conv_bn(inputs, width)] + [separable(inputs, width, rate) for rate in rates])
        self.mix = conv_bn(width * (len(rates) + 1), width)
        self.skip = conv_bn(skip, 48, 3)
        join = conv_bn(width + 48, width, 3)
        if join_rank:
            join[0] = low_rank(width + 48, width, 3, join_rank)
        self.join = nn.Sequential(join, separable(width, width))
        self.dropout = nn.Dropout2d(0.1)
        # What a 1x1 convolution and a pixel shuffle would do, 0.7 ms faster in onnxruntime, whose shuffle is slow.
        self.grow = nn.Sequential(nn.ConvTranspose2d(width, 32, 2, 2, bias=False), nn.BatchNorm2d(32),
                                  nn.ReLU6(inplace=True))
        self.refine = conv_bn(32, 32, 3)
        self.classify = nn.Conv2d(32, classes, 1)

    def forward(self, features, skip):
        features, skip = self.adapt(features), self.adapt_skip(skip)
        context = self.mix(torch.cat([branch(features) for branch in self.branches], 1))
        joined = self.join(torch.cat([enlarged(context, skip), self.skip(skip)], 1))
        return self.classify(self.refine(self.grow(self.dropout(joined))))


class StandardDeepLab(nn.Module):
    """torchvision's DeepLabV3 head as it is, image pooling and 256 channels: for a final output, not for exits.

    Atrous rates 6, 12, 18 at output stride 16, doubled at 8 (Chen et al., "Rethinking Atrous Convolution", 2017).
    """

    skip_channels = 0

    def __init__(self, inputs: int, classes: int, stride: int = 16):
        super().__init__()
        rates = [rate * 16 // stride for rate in (6, 12, 18)]
        self.layers = torchvision.models.segmentation.deeplabv3.DeepLabHead(inputs, classes, rates)

    @property
    def classify(self):
        """The last convolution."""
        return self.layers[-1]

    def forward(self, features):
        return self.layers(features)


class TorchvisionHead(nn.Module):
    """The final head that a segmentation network of torchvision brings along."""

    def __init__(self, classifier: nn.Module, low_channels: int = 0):
        super().__init__()
        self.layers, self.skip_channels = classifier, low_channels

    @property
    def classify(self):
        """The last convolution; of LRASPP, whose two are added, the one on the finer features."""
        return self.layers.low_classifier if self.skip_channels else self.layers[-1]

    def forward(self, features, skip=None):
        return self.layers({'low': skip, 'high': features}) if self.skip_channels else self.layers(features)


def build_head(description: dict, inputs: int, classes: int, stride: int, skip: int = 0) -> nn.Module:
    """A head from its description {'kind': fcn, deeplab, context, decoder or standard_deeplab, knobs ...}.

    inputs, stride: of the features. skip: channels of the finer features that are there; a head takes them if its
    description says `skip: true` (a decoder always does). Raises ValueError.
    """
    knobs = dict(description)
    kind, wants_skip = knobs.pop('kind', None), knobs.pop('skip', False)
    kinds = {'fcn': MessHead, 'deeplab': MessHead, 'context': ContextHead, 'decoder': DecoderHead,
             'standard_deeplab': StandardDeepLab}
    if kind not in kinds:
        raise ValueError(f"head {kind!r} is not known: choose one of {', '.join(kinds)}")
    if kind == 'decoder' or wants_skip:
        if not skip:
            raise ValueError(f'a {kind} head that takes finer features needs some: name the units whose output it may '
                             'take as `skips` of the split (offboard) or of the network (onboard)')
        knobs['skip'] = skip
    if kind in ('fcn', 'deeplab'):
        knobs['kind'] = kind
    if 'rates' in knobs:
        knobs['rates'] = tuple(knobs['rates'])
    try:
        return kinds[kind](inputs, classes, stride, **knobs)
    except TypeError as error:
        raise ValueError(f'head {description}: {error}') from None


def take_over(head: nn.Module, other: nn.Module) -> None:
    """Let a head begin as another, with every weight of the same name and shape.

    A decoder's join of low rank approximates the other's whole one, which then has to be as wide.
    """
    own = head.state_dict()
    own.update((name, tensor) for name, tensor in other.state_dict().items()
               if name in own and own[name].shape == tensor.shape)
    head.load_state_dict(own)
    if isinstance(head, DecoderHead) and isinstance(other, DecoderHead):
        ours, theirs = head.join[0][0], other.join[0][0]
        if isinstance(ours, nn.Sequential) and isinstance(theirs, nn.Conv2d):
            approximate(ours, theirs)
