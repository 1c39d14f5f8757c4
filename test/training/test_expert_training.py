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
"""Stage `experts`: only the experts' heads are trained, each on its own family of distortions."""
import numpy as np
import pytest

torch = pytest.importorskip('torch', reason='torch is not installed (make train-env)')
pytest.importorskip('ee_seg_ros.training', reason='torchvision is not installed (make train-env)')
pytest.importorskip('lightning', reason='lightning is not installed (make train-env)')

from ee_seg_ros.data.distortions import DISTORTIONS  # noqa: E402
from ee_seg_ros.models.experts import add_experts  # noqa: E402
from ee_seg_ros.models.multi_exit import MultiExitNet, load_network, save_network  # noqa: E402
from ee_seg_ros.training import batches  # noqa: E402
from ee_seg_ros.training.batches import Batches  # noqa: E402
from ee_seg_ros.training.experts import Experts  # noqa: E402
from ee_seg_ros.training.recipe import make_recipe  # noqa: E402
from ee_seg_ros.training.train import train  # noqa: E402

PHASES = [{'steps': 2, 'height': 64, 'width': 96, 'scales': [1.0, 1.0], 'jitter': 0.0}]
RECIPE = {'stage': 'experts', 'split': '0', 'dataset': 'scenes', 'phases': PHASES, 'experts': ['noise', 'blur'],
          'batch_size': 4, 'warmup_steps': 1, 'workers': 0, 'log_steps': 1}
SPEC = {
    'backbone': {'name': 'mobilenet_v2', 'units': 12}, 'classes': 11, 'final': {'kind': 'fcn', 'reduction': 8},
    'exits': [{'name': f'u{unit}', 'unit': unit, 'head': {'kind': 'fcn', 'reduction': 8}} for unit in (4, 6, 10)],
    'split': {'unit': 6, 'high': 8, 'levels': 16}}


@pytest.fixture
def weights(tmp_path):
    torch.manual_seed(0)
    save_network(MultiExitNet(SPEC), tmp_path / 'weights.pt')
    return tmp_path / 'weights.pt'


def test_nothing_but_the_experts_changes(weights, tmp_path):
    path = train(make_recipe(RECIPE, 'recipe'), None, tmp_path / 'out', weights, 1, lambda line: None)
    before, after = (load_network(each).state_dict() for each in (weights, path))
    grown = add_experts(load_network(weights), ['noise', 'blur'], ['u4', 'u6']).state_dict()
    assert set(after) == set(grown)    # the exits before the split, where none are named
    torch.testing.assert_close({key: after[key] for key in before}, before, rtol=0, atol=0)
    for head in ('noise.u4', 'noise.u6', 'blur.u4', 'blur.u6'):
        assert any(not torch.equal(after[key], grown[key]) for key in grown if key.startswith(f'experts.{head}.'))
    begun = train(make_recipe({**RECIPE, 'head_lr': 0.0, 'experts': ['noise']}, 'recipe'), None, tmp_path / 'begun',
                  weights, 1, lambda line: None, experts=path)
    for name, parameter in load_network(path).experts['noise'].named_parameters():    # batch norms have seen new images
        torch.testing.assert_close(load_network(begun).experts['noise'].get_parameter(name), parameter)
    with pytest.raises(ValueError, match='for stage experts, not heads'):
        train(make_recipe({'stage': 'heads', 'split': '0', 'dataset': 'scenes', 'phases': PHASES}, 'recipe'), None,
              tmp_path / 'other', weights, 1, lambda line: None, experts=path)
    # Those of another family are added; the ones that are there stay.
    more = train(make_recipe({**RECIPE, 'experts': ['weather'], 'expert_exits': ['u10']}, 'recipe'), None,
                 tmp_path / 'more', path, 1, lambda line: None)
    final = load_network(more).state_dict()
    torch.testing.assert_close({key: final[key] for key in after}, after, rtol=0, atol=0)
    assert load_network(more).spec['experts'].keys() == {'noise', 'blur', 'weather'}


def test_each_family_learns_from_its_own_samples_and_stops_at_its_last_exit():
    torch.manual_seed(0)
    net = add_experts(MultiExitNet(SPEC), ['noise', 'blur'], ['u4'])
    module = Experts(net, make_recipe({**RECIPE, 'expert_exits': ['u4']}, 'recipe'), None, ['u4'])
    module.log_dict, seen = lambda losses: seen.update(losses), {}
    ran = []
    for unit in net.units:
        unit.register_forward_hook(lambda *call: ran.append(call[0]))
    images, labels = torch.zeros(4, 3, 64, 96), torch.zeros(4, 64, 96, dtype=torch.uint8)
    images[1::2] = torch.rand(2, 3, 64, 96) * 255
    losses = []
    for other in (0.0, 255.0):    # what the other family sees does not matter
        images[0::2] = other
        torch.manual_seed(1)    # dropout
        module.training_step((images, labels), 0)
        losses.append({name: float(loss) for name, loss in seen.items()})
    assert losses[0]['loss_blur.u4'] == losses[1]['loss_blur.u4']
    assert losses[0]['loss_noise.u4'] != losses[1]['loss_noise.u4']
    assert ran == [*net.units[:5], *net.units[:5]]
    assert not net.units.training and net.experts['blur']['u4'].training


class Grey:
    """One grey image."""

    def __len__(self):
        return 1

    def __getitem__(self, index):
        return np.full((64, 96, 3), 127, np.uint8), np.zeros((64, 96), np.uint8)    # as the padding


def test_samples_take_turns_at_the_families_and_some_stay_clean(monkeypatch):
    drawn = []
    monkeypatch.setattr(batches, 'distort', lambda image, name, level, seed: drawn.append((name, level)) or image)
    for share, expected in ((0.0, 240), (0.5, 120)):
        drawn.clear()
        list(Batches(Grey(), [{**PHASES[0], 'steps': 60}], 4, families=('noise', 'blur'), clean_share=share))
        assert expected * 0.8 <= len(drawn) <= expected * 1.2
        kinds = {name for name, _ in drawn}
        assert {DISTORTIONS[name].family for name in kinds} == {'noise', 'blur'} and len(kinds) > 2
        for name, level in drawn:
            assert DISTORTIONS[name].levels[0] <= level <= DISTORTIONS[name].levels[-1]
    drawn.clear()
    list(Batches(Grey(), PHASES, 4))
    assert not drawn


def test_only_the_own_samples_are_distorted_before_the_augmentation():
    (images, _), *_ = Batches(Grey(), PHASES, 4, families=('noise', 'blur'))
    flat = images.float().std((1, 2, 3))
    assert (flat[::2] > 1).all() and (flat[1::2] < 1).all()    # there is nothing to blur in a grey image


def test_blur_is_taken_back_about_as_well_as_it_is_measured(monkeypatch):
    taken = []
    monkeypatch.setattr(batches, 'deblurred', lambda image, blur: taken.append(blur) or image)
    monkeypatch.setattr(batches, 'blur_of', lambda name, level, seed: np.array([2.0, 1.0, 0.5]) * (name == 'blur'))
    phases = [{**PHASES[0], 'steps': 60}]
    list(Batches(Grey(), phases, 4, families=('noise', 'blur')))
    assert not taken    # it stays, unless a recipe asks for that
    list(Batches(Grey(), phases, 4, families=('noise', 'blur'), deblur_error=0.2))
    ratios = np.array(taken) / [2.0, 1.0, 0.5]
    np.testing.assert_allclose(ratios, ratios[:, :1].repeat(3, 1))
    assert 30 < len(ratios) <= 120 and 0.1 < np.log(ratios[:, 0]).std() < 0.3


@pytest.mark.parametrize('changes, message', [
    ({'experts': ['clean']}, r"experts is \['clean'\]: expected some of blur, noise, weather"),
    ({'experts': []}, 'expected some of'), ({'batch_size': 3}, 'expected batch_size 4 or more'),
    ({'clean_share': 1.0}, 'clean_share is 1.0'), ({'network': SPEC}, 'takes its network from --weights'),
    ({'stage': 'tail'}, 'for stage experts, not tail'),
    ({'stage': 'tail', 'experts': [], 'deblur_error': 0.1}, 'deblur_error are for stage experts')])
def test_recipes_that_make_no_sense(changes, message):
    with pytest.raises(ValueError, match=message):
        make_recipe({**RECIPE, **changes}, 'recipe.yaml')
