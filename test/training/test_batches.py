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
"""Batches and augmentation: repeatable, image and labels together, rare classes looked for."""
import numpy as np
import pytest

torch = pytest.importorskip('torch', reason='torch is not installed (make train-env)')
pytest.importorskip('ee_seg_ros.training', reason='torchvision is not installed (make train-env)')
pytest.importorskip('lightning', reason='lightning is not installed (make train-env)')

from ee_seg_ros.data.datasets import open_dataset  # noqa: E402
from ee_seg_ros.data.labelled import UNLABELLED  # noqa: E402
from ee_seg_ros.training.augmentation import augment, augmentation  # noqa: E402
from ee_seg_ros.training.batches import Batches  # noqa: E402

PHASES = [{'steps': 2, 'height': 64, 'width': 96, 'scales': [0.2, 0.6], 'jitter': 1.0},
          {'steps': 2, 'height': 96, 'width': 128, 'scales': [0.3, 0.4], 'jitter': 0.0}]


@pytest.fixture(scope='module')
def scenes():
    data = open_dataset('scenes', None, '3[0:4]')
    return [data[index] for index in range(len(data))]


def test_batches_are_a_function_of_seed_and_step(scenes):
    whole = list(Batches(scenes, PHASES, 2, 0.3, (2,), seed=5))
    assert [tuple(images.shape) for images, _ in whole] == [(2, 3, 64, 96)] * 2 + [(2, 3, 96, 128)] * 2
    torch.manual_seed(99)    # the state of the training must not matter
    later = list(Batches(scenes, PHASES, 2, 0.3, (2,), seed=5, start=3))
    assert len(later) == 1
    for found, expected in zip(later[0], whole[3]):
        assert found.dtype == torch.uint8
        torch.testing.assert_close(found, expected)
    assert set(np.unique(torch.cat([labels.flatten() for _, labels in whole]))) <= {*range(11), UNLABELLED}
    other = next(iter(Batches(scenes, PHASES, 2, 0.3, (2,), seed=6)))
    assert not torch.equal(other[0], whole[0][0])


def test_ranks_share_one_stream(scenes):
    """Two processes with batches of two draw the samples that one with a batch of four draws."""
    single = next(iter(Batches(scenes, PHASES, 4, seed=5)))
    pair = [next(iter(Batches(scenes, PHASES, 2, seed=5, rank=rank, world=2))) for rank in (0, 1)]
    for whole, *parts in zip(single, *pair):
        torch.testing.assert_close(torch.cat(parts), whole)


def test_workers_take_turns(scenes):
    """However many there are, a DataLoader hands out the batches of one, in their order."""
    alone = list(Batches(scenes, PHASES, 1, 0.3, seed=5, start=1))
    loader = torch.utils.data.DataLoader(Batches(scenes, PHASES, 1, 0.3, seed=5, start=1), batch_size=None,
                                         num_workers=2, multiprocessing_context='spawn')
    together = list(loader)
    assert len(together) == len(alone) == 3
    for found, expected in zip(together, alone):
        torch.testing.assert_close(found, expected)


def test_crop_moves_image_and_labels_together():
    rng = np.random.default_rng(0)
    labels = np.kron(rng.integers(0, 11, (12, 16)), np.ones((10, 10))).astype(np.uint8)
    image = np.repeat(labels[:, :, None], 3, 2)
    padded = 0
    for seed in range(20):
        cut, cut_labels = augment(augmentation(64, 96, (0.45, 2.0), 0.0), image, labels, seed)
        assert cut.shape == (3, 64, 96) and cut_labels.shape == (64, 96)
        inside = cut_labels != UNLABELLED
        assert (cut[0][inside] == cut_labels[inside]).float().mean() > 0.6    # all but the borders of the blocks
        assert (cut[:, ~inside] == 127).all()
        padded += int((~inside).any())
    assert 0 < padded < 20


def test_rare_classes_are_looked_for():
    labels = np.zeros((200, 300), np.uint8)
    labels[96:104, 196:204] = 7
    image = np.zeros((200, 300, 3), np.uint8)
    hits = [sum(bool((augment(augmentation(40, 40, (1.0, 1.0), 0.0, rare), image, labels, seed)[1] == 7).any())
                for seed in range(60)) for rare in ((), (7,))]
    assert hits[1] > hits[0] + 8


def test_strength_changes_colours_and_nothing_else(scenes):
    image, labels = scenes[0]
    plain = augment(augmentation(96, 128, (0.5, 0.5), 0.0), image, labels, 3)
    strong = augment(augmentation(96, 128, (0.5, 0.5), 1.0), image, labels, 3)
    assert torch.equal(plain[1], strong[1])
    assert (plain[0].float() - strong[0].float()).abs().mean() > 2
