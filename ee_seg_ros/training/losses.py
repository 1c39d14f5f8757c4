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
"""Losses of multi-exit segmentation."""
import torch
from torch import nn
from torch.nn import functional

from ee_seg_ros.data.labelled import UNLABELLED


def class_weights(pixel_shares: list, power: float, largest: float) -> torch.Tensor:
    """(median share / share) ** power, at most `largest`: power 1 is SegNet's median-frequency balancing."""
    shares = torch.tensor(pixel_shares)
    return (shares.median() / shares).pow(power).clamp(max=largest)


@torch.no_grad()
def shift_classifiers(net: nn.Module, offsets: torch.Tensor) -> None:
    """Add `offsets` (classes) to the bias of the classifier of every exit, experts too, of a `MultiExitNet`, in place.

    Training with class weights makes rare classes win too often: the softmax then estimates the weighted posterior.
    Taking log(weight) off the biases restores the plain posterior, best for pixel accuracy; a share of it is a
    compromise with recall. Logit adjustment after training: Menon et al., "Long-tail learning via logit adjustment",
    ICLR 2021.
    """
    for head in (*net.exits.values(), net.final, *(head for heads in net.experts.values() for head in heads.values())):
        head.classify.bias += offsets


def on_label_grid(logits: torch.Tensor, labels: torch.Tensor, stride: int) -> tuple:
    """Logits (N, C, h, w) resized to every `stride`-th pixel of labels (N, H, W), and those labels (int64).

    Comparing at a quarter of the rows and columns costs a twentieth of the full comparison, and a mask is judged in
    full anyway.
    """
    labels = labels[:, stride // 2::stride, stride // 2::stride].long()
    if logits.shape[-2:] != labels.shape[-2:]:
        logits = functional.interpolate(logits, size=labels.shape[-2:], mode='bilinear', align_corners=False)
    return logits.float(), labels


def exit_loss(logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor | None, stride: int) -> torch.Tensor:
    """Weighted cross-entropy on the label grid (see `on_label_grid`); labels uint8 or int64, 255 ignored."""
    return functional.cross_entropy(*on_label_grid(logits, labels, stride), weights, ignore_index=UNLABELLED)


def positive_filtering_loss(logits: torch.Tensor, teacher: torch.Tensor, labels: torch.Tensor,
                            weights: torch.Tensor | None, stride: int, share: float = 0.5,
                            temperature: float = 1.0) -> torch.Tensor:
    """Positive-filtering distillation: share * 1[argmax teacher = label] * KL(teacher || student) + (1 - share) * CE.

    logits, teacher: (N, C, h, w), of the student and of the final exit. The indicator is taken per pixel, so that what
    the teacher gets wrong teaches nothing; the mean of the first term is over all labelled pixels; 0 where there is
    none. After MESS (Kouris et al., ECCV 2022); share, temperature and the direction of the divergence are not
    established there, but ours.
    """
    student, grid = on_label_grid(logits, labels, stride)
    teacher, _ = on_label_grid(teacher, labels, stride)
    labelled = (grid != UNLABELLED).sum()
    if labelled == 0:    # a small window all of whose cells are settled; a mean over nothing is NaN
        return 0.0 * student.sum()
    entropy = functional.cross_entropy(student, grid, weights, ignore_index=UNLABELLED)
    right = teacher.argmax(1) == grid    # never where unlabelled: no class has that id
    divergence = functional.kl_div((student / temperature).log_softmax(1), (teacher / temperature).log_softmax(1),
                                   reduction='none', log_target=True).sum(1) * temperature ** 2
    return share * (divergence * right).sum() / labelled + (1 - share) * entropy
