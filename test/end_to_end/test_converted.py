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
"""A network of torchvision with our exits, from recipe to masks: trained a little, exported, run through both nodes."""
import shutil

import numpy as np
import pytest
import yaml
from harness import ROOT, pixels, scene

torch = pytest.importorskip('torch', reason='torch is not installed (make train-env)')
pytest.importorskip('ee_seg_ros.training', reason='torchvision is not installed (make train-env)')
pytest.importorskip('lightning', reason='lightning is not installed (make train-env)')

from ee_seg_ros.data.datasets import open_dataset  # noqa: E402
from ee_seg_ros.evaluation.pair import run_pair  # noqa: E402
from ee_seg_ros.inference.bundle import Bundle  # noqa: E402
from ee_seg_ros.inference.engine import Engine  # noqa: E402
from ee_seg_ros.models.export import export  # noqa: E402
from ee_seg_ros.models.multi_exit import load_network, select_exits  # noqa: E402
from ee_seg_ros.nodes.conversions import mask_of  # noqa: E402
from ee_seg_ros.search.calibration import calibrate  # noqa: E402
from ee_seg_ros.training.train import train  # noqa: E402

RECIPE = ROOT / 'config' / 'recipes' / 'deeplabv3_resnet50.yaml'
WIDTH, HEIGHT = 128, 96
LITTLE = {'dataset': 'scenes', 'split': '3', 'batch_size': 2, 'workers': 0, 'precision': '32-true', 'warmup_steps': 1,
          'log_steps': 1}
CANDIDATES = [{'name': 'near', 'unit': 8, 'head': {'kind': 'deeplab', 'reduction': 8}},
              {'name': 'far', 'unit': 14, 'head': {'kind': 'fcn', 'reduction': 8, 'blocks': 1}}]


def train_a_little(folder, recipe, steps, weights=None):
    """A recipe on small crops of procedural scenes; the path of its weights.pt."""
    phase = {'steps': steps, 'height': 64, 'width': 96, 'scales': [0.3, 0.5], 'jitter': 0.5}
    folder.mkdir()
    (folder / 'recipe.yaml').write_text(yaml.safe_dump({**recipe, **LITTLE, 'phases': [phase]}))
    return train(folder / 'recipe.yaml', None, folder, weights, threads=1, report=lambda line: None)


@torch.no_grad()
def make_masks_tell(net):
    """After a few steps one class wins everywhere: centre the logits, so that masks show what is in the features."""
    scale, offset = (torch.tensor(net.spec['input'][key]).view(3, 1, 1) for key in ('scale', 'offset'))
    image = torch.from_numpy(scene(0, WIDTH, HEIGHT)).permute(2, 0, 1)
    for name, logits in net((image * scale + offset)[None]).items():
        (net.final if name == 'final' else net.exits[name]).classify.bias -= logits.mean((0, 2, 3))


@pytest.fixture(scope='module')
def converted(tmp_path_factory):
    """The shipped recipe's network after two steps of stage 1 and one of stage 2, as a bundle."""
    folder = tmp_path_factory.mktemp('converted')
    recipe, data = yaml.safe_load(RECIPE.read_text()), open_dataset('scenes', None, '3')
    recipe['network']['classes'] = len(data.class_names)
    first = train_a_little(folder / 'first', recipe, 2)
    heads = {'stage': 'heads', 'candidates': CANDIDATES, 'keep': False}
    net = load_network(train_a_little(folder / 'second', heads, 1, first))
    assert net.exit_names == ('near', 'far', 'final')
    make_masks_tell(net)
    classes = [{'name': name, 'color': [int(value) for value in color]}
               for name, color in zip(data.class_names, data.class_colors)]
    path = export(select_exits(net, {'exit1': 'near', 'exit2': 'far'}), folder / 'bundle', 'converted',
                  {'data': 'scenes', 'licence': 'none'}, classes, WIDTH, HEIGHT, with_weights=False)
    calibrate(str(path), 'scenes', None, '7', limit=3, threads=1)
    yield Bundle.load(path)
    shutil.rmtree(folder)    # 42 million weights, four times


def test_it_runs_through_both_nodes(start, peer, converted):
    assert [exit_.name for exit_ in converted.onboard_exits] == ['exit1']
    assert converted.document['calibration']['images'] == 3
    processes = [start(node, bundle=converted.path, criterion='never', **options)
                 for node, options in (('onboard', {'deadline_ms': 50000}), ('offboard', {}))]
    peer.listen_to_masks()
    peer.wait_for_onboard()
    peer.wait_for_diagnosis('ee_seg', 'offboard_present', 'true')
    image = scene(0, WIDTH, HEIGHT)

    def refined():
        stamp = peer.segment(image)
        assert peer.finals([stamp])[0]['final_source'] == 'refined'
        return stamp
    peer.send_until_heard(refined, 'refined_mask/compressed')
    stamp = peer.stamps('refined_mask/compressed')[-1]

    engine = Engine(converted, threads=1)
    frame = run_pair(engine, image, 'never', (0.0, 0.0))
    near, last = frame.sides[0].output.mask(WIDTH, HEIGHT), frame.mask(WIDTH, HEIGHT)
    assert len(np.unique(near)) > 1 and len(np.unique(last)) > 1 and (near != last).any()
    np.testing.assert_array_equal(pixels(peer.message('ee_seg/mask', stamp)), near)
    np.testing.assert_array_equal(mask_of(peer.message('refined_mask/compressed', stamp), WIDTH, HEIGHT, 11), last)
    np.testing.assert_array_equal(pixels(peer.message('ee_seg/final_mask', stamp)), last)
    for process in processes:
        assert process.running and 'Traceback' not in process.text, process.text
