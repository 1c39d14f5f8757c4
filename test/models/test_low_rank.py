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
"""Convolutions of low rank: the best approximation of a whole one, exact at full rank; heads that begin as others."""
import pytest

torch = pytest.importorskip('torch', reason='torch is not installed (make train-env)')
pytest.importorskip('ee_seg_ros.models.torchvision_compat')

from torch import nn  # noqa: E402

from ee_seg_ros.models.heads import build_head, take_over  # noqa: E402
from ee_seg_ros.models.low_rank import approximate, low_rank  # noqa: E402


def kernel_of(pair):
    """The kernel (outputs, inputs, k, k) that two one-dimensional convolutions amount to."""
    return torch.einsum('rik,orl->oikl', pair[0].weight[..., 0], pair[1].weight[:, :, 0])


def test_full_rank_computes_the_same():
    torch.manual_seed(0)
    whole, pair = nn.Conv2d(5, 4, 3, padding=1, bias=False), low_rank(5, 4, 3, 12)
    approximate(pair, whole)
    features = torch.randn(2, 5, 9, 7)
    torch.testing.assert_close(pair(features), whole(features), rtol=1e-4, atol=1e-5)


def test_a_lower_rank_is_the_best_of_its_rank():
    """What is left out is what the singular values left out say (Eckart and Young)."""
    torch.manual_seed(1)
    whole, pair = nn.Conv2d(6, 4, 3, padding=1, bias=False), low_rank(6, 4, 3, 5)
    approximate(pair, whole)
    weight = whole.weight.detach()
    values = torch.linalg.svdvals(weight.permute(1, 2, 0, 3).reshape(18, 12))
    left_out = ((kernel_of(pair) - weight) ** 2).sum().detach()
    torch.testing.assert_close(left_out, (values[5:] ** 2).sum(), rtol=1e-4, atol=1e-6)


def decoder(**knobs):
    return build_head({'kind': 'decoder', 'width': 16, **knobs}, 12, 3, 16, 8).eval()


def test_a_decoder_of_low_rank_begins_as_the_whole_one():
    torch.manual_seed(2)
    whole, close, rough = decoder(), decoder(join_rank=48), decoder(join_rank=8)
    with torch.no_grad():
        whole.join[0][1].running_mean.uniform_(-1, 1)
    for head in (close, rough):
        take_over(head, whole)
    inputs = torch.randn(1, 12, 4, 6), torch.randn(1, 8, 8, 12)
    with torch.no_grad():
        expected = whole(*inputs)
        torch.testing.assert_close(close(*inputs), expected, rtol=1e-3, atol=1e-4)
        assert 0 < (rough(*inputs) - expected).abs().max() < (decoder(join_rank=8)(*inputs) - expected).abs().max()
    assert sum(weight.numel() for weight in rough.parameters()) < sum(weight.numel() for weight in whole.parameters())
