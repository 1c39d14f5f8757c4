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
"""Losses against values computed by hand."""
import numpy as np
import pytest

torch = pytest.importorskip('torch', reason='torch is not installed (make train-env)')
pytest.importorskip('ee_seg_ros.training', reason='torchvision is not installed (make train-env)')
pytest.importorskip('lightning', reason='lightning is not installed (make train-env)')

from ee_seg_ros.data.labelled import UNLABELLED  # noqa: E402
from ee_seg_ros.models.multi_exit import MultiExitNet  # noqa: E402
from ee_seg_ros.training.losses import (  # noqa: E402
    class_weights,
    exit_loss,
    positive_filtering_loss,
    shift_classifiers,
)


def test_class_weights_are_median_frequency_balancing():
    weights = class_weights([0.1, 0.2, 0.4], 1.0, 1.5)
    torch.testing.assert_close(weights, torch.tensor([1.5, 1.0, 0.5]))


def test_loss_ignores_unlabelled_pixels():
    labels = torch.full((1, 8, 8), UNLABELLED, dtype=torch.uint8)
    labels[:, :4] = 3
    loss = exit_loss(torch.zeros(1, 11, 2, 2), labels, torch.ones(11), 4)
    assert loss.item() == pytest.approx(np.log(11))


def test_distillation_only_where_the_teacher_is_right():
    """Four pixels: teacher right, wrong, right, unlabelled; the student is undecided between two classes."""
    labels = torch.tensor([[[0, 0], [1, UNLABELLED]]], dtype=torch.uint8)
    teacher = torch.tensor([[[2.0, -1.0], [0.0, 0.0]], [[0.0, 0.0], [1.0, 5.0]]])[None]
    student = torch.zeros(1, 2, 2, 2)

    def divergence(logit):    # of (logit, 0) from (0, 0)
        p = 1 / (1 + np.exp(-logit))
        return p * np.log(2 * p) + (1 - p) * np.log(2 * (1 - p))
    expected = 0.6 * (divergence(2) + divergence(1)) / 3 + 0.4 * np.log(2)
    loss = positive_filtering_loss(student, teacher, labels, None, 1, share=0.6)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    plain = positive_filtering_loss(student, teacher, labels, None, 1, share=0.0)
    torch.testing.assert_close(plain, exit_loss(student, labels, None, 1))


def test_a_batch_without_a_labelled_pixel_teaches_nothing():
    student = torch.rand(1, 2, 2, 2, requires_grad=True)
    labels = torch.full((1, 4, 4), UNLABELLED, dtype=torch.uint8)
    loss = positive_filtering_loss(student, torch.rand(1, 2, 2, 2), labels, torch.ones(2), 1)
    loss.backward()
    assert loss.item() == 0 and (student.grad == 0).all()


def test_temperature_keeps_the_scale_of_the_gradient():
    """T^2 * KL at T: for small logits the same value at every T (Hinton et al., 2015)."""
    labels, teacher = torch.zeros(1, 2, 2), torch.tensor([0.2, 0.0]).view(1, 2, 1, 1).expand(1, 2, 2, 2)
    losses = [positive_filtering_loss(torch.zeros(1, 2, 2, 2), teacher, labels, None, 1, 1.0, temperature)
              for temperature in (1.0, 4.0)]
    torch.testing.assert_close(losses[0], losses[1], rtol=0.01, atol=0)


@pytest.mark.parametrize('name, kind', [('mobilenet_v2', 'standard_deeplab'), ('fcn_resnet50', 'own'),
                                        ('lraspp_mobilenet_v3_large', 'own')])
def test_shifted_classifiers_move_every_logit_by_the_offset(name, kind):
    torch.manual_seed(0)
    net = MultiExitNet({'backbone': {'name': name}, 'classes': 3, 'skip': 4, 'final': {'kind': kind},
                        'exits': [{'name': 'exit1', 'unit': 5, 'head': {'kind': 'fcn'}}]}).eval()
    image, offsets = torch.rand(1, 3, 64, 64), torch.tensor([0.5, -1.0, 2.0])
    with torch.no_grad():
        before = net(image)
        shift_classifiers(net, offsets)
        after = net(image)
    for exit_name in before:
        torch.testing.assert_close(after[exit_name] - before[exit_name],
                                   offsets.view(1, 3, 1, 1).expand_as(after[exit_name]), rtol=1e-3, atol=1e-4)
