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
"""The recipes that ship: each can be read and describes a network."""
from pathlib import Path

import pytest
import yaml

pytest.importorskip('torch', reason='torch is not installed (make train-env)')
pytest.importorskip('ee_seg_ros.training', reason='torchvision is not installed (make train-env)')
pytest.importorskip('lightning', reason='lightning is not installed (make train-env)')

from ee_seg_ros.data.datasets import FOLDERS  # noqa: E402
from ee_seg_ros.models.backbones import candidate_units, unit_macs  # noqa: E402
from ee_seg_ros.models.multi_exit import MultiExitNet, add_exits  # noqa: E402
from ee_seg_ros.training.recipe import LATER, read_recipe  # noqa: E402
from ee_seg_ros.training.train import candidate_name  # noqa: E402

FOLDER = Path(__file__).resolve().parents[2] / 'config' / 'recipes'
RECIPES = sorted(path.name for path in FOLDER.glob('*.yaml')
                 if yaml.safe_load(path.read_text()).get('stage') not in (None, 'detector'))


@pytest.mark.parametrize('name', RECIPES)
def test_recipes_describe_networks(name):
    recipe = read_recipe(FOLDER / name)
    if recipe.stage in LATER:
        earlier = MultiExitNet(read_recipe(FOLDER / 'street_twin_3.yaml').network)
        grown = add_exits(earlier, [{'name': entry.get('name') or candidate_name(entry['unit'], entry['head']),
                                     'unit': entry['unit'], 'head': entry['head']} for entry in recipe.candidates])
        assert len(grown.exit_names) == len(earlier.exit_names) + len(recipe.candidates)
        spec = earlier.spec
        MultiExitNet({**spec, 'backbone': {**spec['backbone'], 'pruned': recipe.pruned}})
        return
    net = MultiExitNet(recipe.network)
    assert recipe.network['classes'] == len(FOLDERS[recipe.dataset].class_names)
    for phase in recipe.phases:
        assert phase['height'] % net.stride == phase['width'] % net.stride == 0


@pytest.mark.parametrize('name', ['deeplabv3_resnet50', 'lraspp_mobilenet_v3_large'])
def test_converted_networks_have_their_exits_at_the_candidate_places(name):
    recipe = read_recipe(FOLDER / f'{name}.yaml')
    net = MultiExitNet(recipe.network)
    places = candidate_units(unit_macs(net.units, 128, 256))
    assert {exit_['unit'] for exit_ in recipe.network['exits']} <= set(places)
    assert recipe.network['split']['unit'] in places
