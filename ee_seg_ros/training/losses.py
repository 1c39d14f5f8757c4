# Copyright 2026 The ee_seg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Losses of multi-exit segmentation."""
import torch
from torch.nn import functional

from ee_seg_ros.data.camvid import UNLABELLED


def class_weights(pixel_shares: list, power: float, largest: float) -> torch.Tensor:
    """(median share / share) ** power, at most `largest`: power 1 is SegNet's median-frequency balancing."""
    shares = torch.tensor(pixel_shares)
    return (shares.median() / shares).pow(power).clamp(max=largest)


def undo_class_weights(state: dict, weights: torch.Tensor, share: float) -> None:
    """Take `share` of log(weight) off the bias of every classifier of a state_dict, in place.

    Training with class weights makes rare classes win too often: the softmax then estimates the weighted posterior.
    Share 1 restores the plain posterior, best for pixel accuracy; 0 leaves recall high and precision low. Logit
    adjustment after training is by Menon et al., "Long-tail learning via logit adjustment", ICLR 2021.
    """
    for name, values in state.items():
        if name.endswith('classify.bias'):
            values -= share * weights.log()


def exit_loss(logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor, stride: int) -> torch.Tensor:
    """Weighted cross-entropy at every `stride`-th pixel of the label map.

    logits (N, C, h, w) are resized to the label grid (bilinear); labels int64 (N, H, W), 255 ignored. Comparing at a
    quarter of the rows and columns costs a twentieth of the full comparison, and a mask is judged in full anyway.
    """
    labels = labels[:, stride // 2::stride, stride // 2::stride]
    if logits.shape[-2:] != labels.shape[-2:]:
        logits = functional.interpolate(logits, size=labels.shape[-2:], mode='bilinear', align_corners=False)
    return functional.cross_entropy(logits, labels.contiguous(), weights, ignore_index=UNLABELLED)
