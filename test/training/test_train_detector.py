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
"""Training the detector of distortions: seeded, cached, exported, put into a bundle."""
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from tiny import tiny_bundle

torch = pytest.importorskip('torch', reason='torch is not installed (make train-env)')
pytest.importorskip('ee_seg_ros.training', reason='torchvision is not installed (make train-env)')

from ee_seg_ros.data.distortions import DISTORTIONS, blur_of, distort  # noqa: E402
from ee_seg_ros.data.scenes import StreetDrive  # noqa: E402
from ee_seg_ros.inference.bundle import Bundle  # noqa: E402
from ee_seg_ros.inference.detector import Detector  # noqa: E402
from ee_seg_ros.models.export import add_detector  # noqa: E402
from ee_seg_ros.training import detector as training  # noqa: E402
from ee_seg_ros.training.detector import (  # noqa: E402
    blur_from_log,
    gather,
    log_blur,
    read_detector_recipe,
    severity,
    train_detector,
    varied,
)

SHIPPED = Path(__file__).resolve().parents[2] / 'config/recipes/detector.yaml'


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A folder with CamVid's layout of four street scenes, and a small recipe beside it."""
    folder = tmp_path_factory.mktemp('detector')
    for kind in ('images', 'labels'):
        (folder / 'camvid' / kind / 'train').mkdir(parents=True)
    drive = StreetDrive(seed=1)
    for index in range(4):
        scene = drive.frame(index * 8)
        cv2.imwrite(str(folder / f'camvid/images/train/a_{index}.png'), scene.image[:, :, ::-1])
        cv2.imwrite(str(folder / f'camvid/labels/train/a_{index}.png'), scene.labels)
    (folder / 'camvid/train.txt').write_text('\n'.join(f'a_{index}' for index in range(4)))
    write(folder / 'recipe.yaml')
    return folder


def write(path, **changes):
    content = {'stage': 'detector', 'split': 'train', 'provenance': {'data': 'drawn', 'licence': 'none'},
               'samples': 120, 'scene_share': 0.0, 'hidden': 24, 'steps': 150, 'batch_size': 64, **changes}
    path.write_text(yaml.safe_dump({key: value for key, value in content.items() if value is not None}))
    return path


@pytest.fixture(scope='module')
def trained(folder):
    out = folder / 'out'
    out.mkdir()
    return train_detector(folder / 'recipe.yaml', str(folder / 'camvid'), out, 1)


def test_what_is_written_goes_into_a_bundle_and_works(trained, folder):
    bundle = tiny_bundle(folder / 'tiny')
    fingerprint = Bundle.load(bundle).fingerprint
    add_detector(bundle, trained.parent)
    assert Bundle.load(bundle).fingerprint == fingerprint
    described = Bundle.load(bundle).detector
    assert described['provenance']['recipe']['samples'] == 120 and described['provenance']['licence'] == 'none'
    detector, image = Detector(Bundle.load(bundle)), StreetDrive(seed=1).frame(4).image
    for name, level in (('blur', 5), ('noise', 40), ('fog', 80)):    # even so small a training sees these
        found = detector.detect(distort(image, name, level, 1))
        assert found.family == DISTORTIONS[name].family and 0 <= found.level <= 1
    assert detector.detect(image).family == 'clean'
    xx, yy, _ = detector.detect(distort(image, 'blur', 4, 1)).blur
    assert 5 < min(xx, yy) and max(xx, yy) < 30    # it is 11.5
    xx, yy, _ = detector.detect(distort(image, 'motion', 15, 1)).blur
    assert xx > 3 * yy
    other = tiny_bundle(folder / 'other')
    add_detector(other, bundle)    # from one bundle into another
    assert Bundle.load(other).detector == described


def test_features_are_a_function_of_the_recipe_and_kept(trained, folder, monkeypatch):
    recipe = read_detector_recipe(write(folder / 'few.yaml', samples=8, scene_share=0.5))
    first, again = (gather(recipe, str(folder / 'camvid')) for _ in range(2))
    for one, other in zip(first, again):
        assert np.array_equal(one, other)
    assert first[1].tolist() == [0, 1, 2, 3] * 2 and np.all((first[2] == 0) == (first[1] == 0))
    monkeypatch.setattr(training, 'gather', None)    # would fail if it were called
    before = json.loads(trained.read_text())
    write(folder / 'recipe.yaml', steps=151)
    train_detector(folder / 'recipe.yaml', str(folder / 'camvid'), trained.parent, 1)
    assert json.loads(trained.read_text())['sha256'] != before['sha256']


def test_a_blur_has_a_logarithm_and_back():
    blurs = torch.tensor(np.array([blur_of('motion', 15, 1), blur_of('blur', 3), (0, 0, 0)]), dtype=torch.float32)
    logarithms = log_blur(blurs)
    torch.testing.assert_close(blur_from_log(logarithms), blurs, atol=1e-4, rtol=1e-4)
    for (xx, yy, xy), (across, down, both) in zip(blurs.tolist(), logarithms.tolist()):
        expected = torch.matrix_exp(torch.tensor([[across, both], [both, down]]))
        torch.testing.assert_close(torch.tensor([[xx + 0.1, xy], [xy, yy + 0.1]]), expected, atol=1e-3, rtol=1e-3)


def test_varied_images_stay_images():
    image = StreetDrive(seed=3).frame(0).image
    first, again, other = (varied(image, (0.65, 1.15), np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert np.array_equal(first, again) and not np.array_equal(first[:50, :50], other[:50, :50])
    small = varied(image[:20, :30], (0.5, 0.5), np.random.default_rng(0))
    assert small.dtype == np.uint8 and small.shape == (10, 15, 3)


def test_severity_is_by_ratio():
    assert severity('noise', 5) == 0 and severity('noise', 40) == pytest.approx(1)
    assert severity('noise', 200 ** 0.5) == pytest.approx(0.5)


def test_a_folder_without_a_detector_is_explained(tmp_path):
    with pytest.raises(ValueError, match='holds no detector'):
        add_detector(tiny_bundle(tmp_path / 'tiny'), tmp_path)


@pytest.mark.parametrize('changes, says', [
    ({'speed': 3}, 'unknown keys speed'), ({'split': None}, 'missing keys split'), ({'steps': 0}, 'at least 4 samples'),
    ({'provenance': {'data': 'x'}}, 'must state at least')])
def test_wrong_recipes_are_explained(tmp_path, changes, says):
    with pytest.raises(ValueError, match=says):
        read_detector_recipe(write(tmp_path / 'recipe.yaml', **changes))


def test_the_shipped_recipe_holds_back_a_drive():
    recipe = read_detector_recipe(SHIPPED)
    assert recipe.split == 'train:!0006R0' and {'data', 'licence'} <= set(recipe.provenance)
