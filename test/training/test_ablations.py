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
"""Ablations: shared stages are trained once, and the table says what each run reached."""
import json

import numpy as np
import pytest
import yaml

torch = pytest.importorskip('torch', reason='torch is not installed (make train-env)')
pytest.importorskip('ee_seg_ros.training', reason='torchvision is not installed (make train-env)')
pytest.importorskip('lightning', reason='lightning is not installed (make train-env)')

from ee_seg_ros.data.datasets import open_dataset  # noqa: E402
from ee_seg_ros.evaluation.metrics import confusion, mean_iou  # noqa: E402
from ee_seg_ros.models.multi_exit import MultiExitNet  # noqa: E402
from ee_seg_ros.training.ablations import ablate, mean_ious  # noqa: E402

NETWORK = {'backbone': {'name': 'mobilenet_v2', 'units': 9}, 'classes': 11, 'final': {'kind': 'fcn'},
           'exits': [{'name': 'exit1', 'unit': 5, 'head': {'kind': 'fcn', 'reduction': 2}}]}


def stage(name, kind, **keys):
    phase = {'steps': 1, 'height': 64, 'width': 96, 'scales': [0.3, 0.5], 'jitter': 0.0}
    return {'name': name, 'stage': kind, 'phases': [phase], **keys}


def test_every_run_is_a_row_and_a_common_beginning_is_trained_once(tmp_path):
    first, plain = stage('first', 'round_robin'), stage('plain', 'heads', distillation_share=0.0)
    runs = [{'name': 'joint', 'stages': [stage('joint', 'joint')]}, {'name': 'plain', 'stages': [first, plain]},
            {'name': 'distilled', 'stages': [first, stage('distilled', 'heads')]}]
    path = tmp_path / 'ablations.yaml'
    path.write_text(yaml.safe_dump({
        'report_split': '5[0:2]', 'runs': runs,
        'shared': {'dataset': 'scenes', 'split': '1[0:2]', 'network': NETWORK, 'batch_size': 2, 'workers': 0}}))
    said = []
    found = ablate(path, None, tmp_path / 'out', threads=1, report=said.append)
    assert json.loads((tmp_path / 'out' / 'ablations.json').read_text()) == found
    assert [row['run'] for row in found['rows']] == ['joint', 'plain', 'distilled']
    assert [row['steps'] for row in found['rows']] == [1, 2, 2]
    assert sum(line.endswith(': first') for line in said) == 1
    plain, distilled = found['rows'][1:]
    assert plain['miou'].keys() == {'exit1', 'final'}
    assert plain['miou']['final'] == distilled['miou']['final']    # frozen in stage 2


def test_measured_as_the_evaluation_measures():
    torch.manual_seed(0)
    net, data = MultiExitNet(NETWORK).eval(), open_dataset('scenes', None, '5[0:2]')
    matrix = np.zeros((11, 12), np.int64)
    for index in range(2):
        image, labels = data[index]
        padded = np.full((384, 480, 3), 127, np.float32)
        padded[:360] = image
        with torch.no_grad():
            logits = net(torch.from_numpy(padded / 127.5 - 1).permute(2, 0, 1)[None])['final']
        whole = torch.nn.functional.interpolate(logits, (384, 480), mode='bilinear', align_corners=False)
        matrix += confusion(labels, whole[0, :, :360].argmax(0).numpy().astype(np.uint8), 11)
    assert mean_ious(net, data)['final'] == pytest.approx(mean_iou(matrix), abs=1e-4)


def test_a_file_that_is_none_is_explained(tmp_path):
    (tmp_path / 'ablations.yaml').write_text('runs: []')
    with pytest.raises(ValueError, match='expected the keys shared, report_split and runs'):
        ablate(tmp_path / 'ablations.yaml', None, tmp_path / 'out')


@pytest.mark.parametrize('runs, what', [
    ([{'name': 'a', 'stages': [stage('first', 'joint')]}, {'name': 'b', 'stages': [stage('first', 'round_robin')]}],
     "stage 'first' of run 'b' is not the one that an earlier run has"),
    ([{'name': 'a', 'stages': [{**stage('first', 'joint'), 'epochs': 3}]}], 'unknown keys epochs'),
    ([{'stages': [stage('first', 'joint')]}], "without 'name'"),
    ([{'name': 'a', 'stages': [stage('first', 'joint')]}], 'must be the seed')])    # of its report_split
def test_wrong_runs_are_found_before_any_training(runs, what, tmp_path):
    path = tmp_path / 'ablations.yaml'
    path.write_text(yaml.safe_dump({
        'report_split': 'val', 'runs': runs, 'shared': {'dataset': 'scenes', 'split': '1[0:2]', 'network': NETWORK}}))
    with pytest.raises(ValueError, match=what):
        ablate(path, None, tmp_path / 'out')
    assert not (tmp_path / 'out').exists()
