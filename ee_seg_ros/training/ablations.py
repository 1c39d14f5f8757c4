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
"""Several ways to train the same network, measured on the same images: the table that says what each way is worth."""
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional
from torchmetrics.classification import MulticlassJaccardIndex

from ee_seg_ros.data.datasets import open_dataset
from ee_seg_ros.data.labelled import UNLABELLED
from ee_seg_ros.models.multi_exit import MultiExitNet, load_network
from ee_seg_ros.training.recipe import make_recipe, read_yaml
from ee_seg_ros.training.train import train

MULTIPLE, PAD = 32, 127    # network inputs are padded to a multiple of this many pixels, with this grey


@torch.no_grad()
def mean_ious(net: MultiExitNet, dataset) -> dict:
    """mIoU (0..1) of every exit of a network on a reader's images, over the classes that occur, by exit name."""
    classes = net.spec['classes']
    metrics = {name: MulticlassJaccardIndex(classes, average=None, ignore_index=UNLABELLED) for name in net.exit_names}
    seen = torch.zeros(classes, dtype=torch.bool)
    for index in range(len(dataset)):
        image, labels = dataset[index]
        height, width = labels.shape
        planes = functional.pad(torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1).float(),
                                (0, -width % MULTIPLE, 0, -height % MULTIPLE), value=PAD)
        target = torch.from_numpy(labels.astype(np.int64))[None]
        seen[target[target != UNLABELLED]] = True
        for name, logits in net.eval()(net.scaled(planes)[None]).items():
            whole = functional.interpolate(logits, planes.shape[-2:], mode='bilinear', align_corners=False)
            metrics[name].update(whole[..., :height, :width].argmax(1), target)
    return {name: float(metric.compute()[seen].mean()) for name, metric in metrics.items()}


def _plan(content, path, out):
    """For each run its name and [(label, folder, recipe)] of its stages. Raises ValueError."""
    recipes, plan = {}, []
    for run in content['runs']:
        folder, stages = out, []
        for stage in run['stages']:
            keys = {**content['shared'], **stage}
            without = {'name', 'network'} if stage['stage'] == 'heads' else {'name'}
            recipe = make_recipe({key: value for key, value in keys.items() if key not in without}, path)
            folder /= stage['name']
            if recipes.setdefault(folder, recipe) != recipe:
                raise ValueError(f"{path}: stage {stage['name']!r} of run {run['name']!r} is not the one that an "
                                 'earlier run has by this name: give it a name of its own')
            stages.append((stage['name'], folder, recipe))
        plan.append((run['name'], stages))
    return plan


def ablate(path: str | Path, root: str | None, out: str | Path, weights: str | Path | None = None, threads: int = 2,
           report: Callable[[str], None] = print) -> dict:
    """Train every run of an ablation file (YAML), measure each, and write OUT/ablations.json, which is returned.

    The file has `shared` (keys of every recipe), `report_split` (images that no run trains on), and `runs`: a list of
    {name, stages: [{name, keys of a recipe ...}]}; stages run in turn, each from the weights of the one before. A stage
    that several runs begin with is trained once. Runs that are done, and checkpoints, in `out` are gone on with.
    root, weights, threads, report: see `train`. Raises ValueError or FileNotFoundError.
    """
    content, out = read_yaml(path), Path(out)
    if not {'shared', 'report_split', 'runs'} <= set(content):
        raise ValueError(f'{path} is no ablation file: expected the keys shared, report_split and runs')
    try:
        plan = _plan(content, path, out)
    except KeyError as error:
        raise ValueError(f'{path}: a run has a name and stages, each of which has a name and a stage; there is one '
                         f'without {error}') from None
    rows, reported = [], [open_dataset(stages[-1][2].dataset, root, content['report_split']) for _, stages in plan]
    for (name, stages), data in zip(plan, reported):
        trained = weights
        for label, folder, recipe in stages:
            if not (folder / 'weights.pt').is_file():
                report(f'{name}: {label}')
                train(recipe, root, folder, trained, threads, report)
            trained = folder / 'weights.pt'
        rows.append({'run': name, 'steps': sum(recipe.steps for _, _, recipe in stages), 'images': len(data),
                     'miou': mean_ious(load_network(trained), data)})
        report(f'{name}: ' + ', '.join(f'{exit_} {100 * miou:.1f}' for exit_, miou in rows[-1]['miou'].items()))
    document = {'rows': rows, 'report_split': content['report_split'], 'recipe': Path(path).name}
    (out / 'ablations.json').write_text(json.dumps(document, indent=2) + '\n', encoding='utf-8')
    return document
