# Copyright 2026 The ee_seg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Training: a run that was killed goes on as if nothing had happened; the batches are what the recipe says."""
import cv2
import numpy as np
import pytest
import yaml

torch = pytest.importorskip('torch', reason='torch is not installed (make train-env)')

from ee_seg_ros.data.camvid import CLASS_NAMES, UNLABELLED, CamVid  # noqa: E402
from ee_seg_ros.data.scenes import StreetDrive  # noqa: E402
from ee_seg_ros.models.multi_exit import StreetNet  # noqa: E402
from ee_seg_ros.training.batches import Batches, jitter, random_crop  # noqa: E402
from ee_seg_ros.training.losses import class_weights, exit_loss, undo_class_weights  # noqa: E402
from ee_seg_ros.training.train import train  # noqa: E402

PHASES = [{'steps': 2, 'height': 64, 'width': 96, 'scales': [0.5, 1.5], 'jitter': 1.0},
          {'steps': 2, 'height': 96, 'width': 128, 'scales': [0.9, 1.1], 'jitter': 0.5}]


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    """A folder in CamVid's layout with four procedural scenes."""
    root = tmp_path_factory.mktemp('camvid')
    for kind in ('images', 'labels'):
        (root / kind / 'train').mkdir(parents=True)
    drive = StreetDrive(seed=1, width=160, height=120)
    for index in range(4):
        scene = drive.frame(index * 20)
        cv2.imwrite(str(root / f'images/train/a_{index}.png'), scene.image[:, :, ::-1])
        cv2.imwrite(str(root / f'labels/train/a_{index}.png'), scene.labels)
    (root / 'train.txt').write_text('\n'.join(f'a_{index}' for index in range(4)))
    return root


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / 'recipe.yaml'
    path.write_text(yaml.safe_dump({
        'split': 'train', 'seed': 1, 'batch_size': 2, 'scene_share': 0.3, 'phases': PHASES, 'backbone_lr': 1e-3,
        'head_lr': 1e-3, 'weight_decay': 0.01, 'warmup_steps': 1, 'clip_norm': 5.0, 'average_decay': 0.9,
        'workers': 0, 'checkpoint_steps': 1, 'log_steps': 1, 'exit_weights': [0.4, 0.4, 0.5, 1.0], 'loss_stride': 4,
        'class_weight_power': 0.5, 'class_weight_max': 3.0, 'class_weight_undone': 0.75,
        'pixel_shares': [1 / 11] * 11}))
    return path


class Killed(Exception):
    pass


def kill_at(step):
    def report(line):
        if line.startswith(f'step {step}/'):
            raise Killed
    return report


def test_a_killed_run_resumes_to_the_same_weights(root, recipe, tmp_path):
    whole = torch.load(train(recipe, root, tmp_path / 'whole', threads=1, report=lambda line: None), weights_only=True)
    with pytest.raises(Killed):    # between the step and its checkpoint: the step is done again
        train(recipe, root, tmp_path / 'killed', threads=1, report=kill_at(3))
    said = []
    resumed = torch.load(train(recipe, root, tmp_path / 'killed', threads=1, report=said.append), weights_only=True)
    assert said[0].startswith('resuming at step 2')
    assert whole.keys() == resumed.keys()
    for name in whole:
        torch.testing.assert_close(resumed[name], whole[name])


def test_going_on_from_trained_weights(root, recipe, tmp_path):
    net = StreetNet(len(CLASS_NAMES))
    torch.save(net.state_dict(), tmp_path / 'start.pt')
    out = train(recipe, root, tmp_path / 'on', threads=1, weights=tmp_path / 'start.pt', report=lambda line: None)
    trained = torch.load(out, weights_only=True)
    start = net.state_dict()['final.classify.weight']
    assert 0 < (trained['final.classify.weight'] - start).abs().max() < 0.1


def test_batches_are_a_function_of_seed_and_step(root):
    data = CamVid(root, 'train')
    whole = list(Batches(data, PHASES, 2, 0.3, seed=5))
    assert [tuple(images.shape[2:]) for images, _ in whole] == [(64, 96)] * 2 + [(96, 128)] * 2
    later = list(Batches(data, PHASES, 2, 0.3, seed=5, start=3))
    assert len(later) == 1
    torch.testing.assert_close(later[0][0], whole[3][0])
    assert whole[0][0].min() >= -1 and whole[0][0].max() <= 1
    assert set(np.unique(torch.cat([labels.flatten() for _, labels in whole]))) <= {*range(11), UNLABELLED}


def test_crop_moves_image_and_labels_together():
    rng = np.random.default_rng(0)
    labels = np.kron(rng.integers(0, 11, (12, 16)), np.ones((10, 10))).astype(np.uint8)
    image = np.repeat(labels[:, :, None], 3, 2)
    for _ in range(20):
        cut, cut_labels = random_crop(image, labels, 64, 96, rng, (0.3, 2.0))
        assert cut.shape == (64, 96, 3) and cut_labels.shape == (64, 96)
        inside = cut_labels != UNLABELLED
        assert np.mean(cut[..., 0][inside] == cut_labels[inside]) > 0.6    # equal but for the borders of the blocks
        assert (cut[~inside] == 127).all()


def test_jitter_of_strength_zero_changes_nothing():
    image = StreetDrive(seed=1, width=64, height=48).frame(0).image
    np.testing.assert_allclose(jitter(image, np.random.default_rng(0), 0.0).astype(int), image, atol=1)


def test_class_weights_are_median_frequency_balancing():
    weights = class_weights([0.1, 0.2, 0.4], 1.0, 1.5)
    torch.testing.assert_close(weights, torch.tensor([1.5, 1.0, 0.5]))


def test_undone_class_weights_restore_the_plain_posterior():
    weights, bias = torch.tensor([0.5, 1.0, 2.0]), torch.tensor([0.1, 0.2, 0.3])
    state = {'final.classify.bias': (bias.softmax(0) * weights).log(), 'final.classify.weight': torch.ones(3)}
    undo_class_weights(state, weights, 1.0)
    torch.testing.assert_close(state['final.classify.bias'].softmax(0), bias.softmax(0))
    assert (state['final.classify.weight'] == 1).all()


def test_loss_ignores_unlabelled_pixels():
    logits = torch.zeros(1, 11, 2, 2)
    labels = torch.full((1, 8, 8), UNLABELLED)
    labels[:, :4] = 3
    loss = exit_loss(logits, labels, torch.ones(11), 4)
    assert loss.item() == pytest.approx(np.log(11))
