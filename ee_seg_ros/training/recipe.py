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
"""Training recipes: YAML files that say everything about a training but where its data lie."""
from dataclasses import dataclass, field, fields
from pathlib import Path

import yaml

from ee_seg_ros.data.distortions import FAMILIES

STAGES = ('round_robin', 'joint', 'heads', 'tail', 'experts', 'prune')
LATER = ('heads', 'tail', 'experts', 'prune')    # go on with an earlier stage's network


@dataclass(frozen=True)
class Recipe:
    """What a recipe file says; fields without a default must be in it.

    stage: `round_robin` (MESS's stage 1: everything, one early exit per iteration), `joint` (everything, all exits in
    every iteration), `heads` (stage 2: only the heads of `candidates`, backbone and final exit frozen), `tail` (what
    lies behind a unit, the rest frozen), `experts` (only the expert heads, all else frozen) or `prune` (nothing is
    trained; see `models.pruning`).
    network: spec of a `MultiExitNet`; of the last four, whose network comes from the weights, left out.
    candidates: of stage `heads`: list of {unit, head, name, distillation_share}; the last two are optional. Of stage
    `tail`: list of {unit, head, name}; one that is called like an exit of the earlier stage takes its place, and keeps
    the weights that fit it.
    heads_only: of stage `tail`: train nothing but the heads of `candidates`, each distilled from the one whose place it
    takes.
    first_unit: of stage `tail`: the first unit to train; None: the first that only the final exit uses.
    window: of stage `tail`: [lowest, highest] share of a map's cells, drawn anew each time, of the windows in which
    what lies behind the split learns to give what it gave for whole maps; see `stages.Successors`. partial: with window
    or heads_only: [lowest, highest] probability above which a pixel is settled, where it shall learn to do without the
    features of settled cells. teachers: with window or heads_only: exit -> exits of the network before, the mean of
    whose logits it shall learn (default: its own).
    experts: of stage `experts`: families of distortions (`data.distortions.FAMILIES`), each of which gets heads of its
    own; expert_exits: at these exits (default: all before the split). expert_head: what these heads have besides the
    exits' own, with whose weights they begin, such as {adapt: 1}. clean_share: of the samples that stay undistorted.
    deblur_error: blur is taken back before the expert's heads see it, with the detector's error (standard deviation of
    the logarithm of the variance); None: it stays.
    pruned: of stage `prune`: list of {unit, hidden}: how many hidden channels are left to which block.
    splits: of stage `heads`: further places to split the network at, described like its `split`; see `MultiExitNet`.
    keep: of stage `heads`: whether the exits of the earlier stage are trained on as candidates, too.
    dataset, split: see `data.datasets.open_dataset`. phases: list of {steps, height, width, scales, jitter}.
    pixel_shares: of each class, for class weights of (median / share) ** class_weight_power, at most class_weight_max;
    a share of class_weight_undone is taken off the classifiers' biases of what is written (`shift_classifiers`).
    exit_weight: of each early exit's loss against the final one's. Learning rates are those of AdamW, with linear
    warm-up, then poly decay of power 0.9. average_decay: of the moving average of the weights that is written.
    precision: Lightning's (`32-true`, `bf16-mixed` ...).
    """

    stage: str
    split: str
    phases: list
    network: dict = field(default_factory=dict)
    candidates: list = field(default_factory=list)
    splits: list = field(default_factory=list)
    keep: bool = True
    first_unit: int | None = None
    heads_only: bool = False
    window: list = field(default_factory=list)
    partial: list = field(default_factory=list)
    teachers: dict = field(default_factory=dict)
    experts: list = field(default_factory=list)
    expert_exits: list = field(default_factory=list)
    expert_head: dict = field(default_factory=dict)
    clean_share: float = 0.2
    deblur_error: float | None = None
    pruned: list = field(default_factory=list)
    dataset: str = 'camvid'
    seed: int = 1
    batch_size: int = 8
    scene_share: float = 0.0
    rare_classes: list = field(default_factory=list)
    backbone_lr: float = 0.0005
    head_lr: float = 0.002
    weight_decay: float = 0.02
    warmup_steps: int = 100
    clip_norm: float = 5.0
    average_decay: float = 0.998
    exit_weight: float = 0.5
    distillation_share: float = 0.5
    distillation_temperature: float = 1.0
    loss_stride: int = 4
    pixel_shares: list = field(default_factory=list)
    class_weight_power: float = 0.5
    class_weight_max: float = 3.0
    class_weight_undone: float = 0.75
    precision: str = '32-true'
    workers: int = 1
    checkpoint_steps: int = 50
    log_steps: int = 20

    @property
    def steps(self) -> int:
        """Steps of all phases."""
        return sum(phase['steps'] for phase in self.phases)


def read_yaml(path: str | Path) -> dict:
    """The mapping in a YAML file. Raises FileNotFoundError or ValueError."""
    try:
        content = yaml.safe_load(Path(path).read_text(encoding='utf-8'))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f'{path} is not YAML: {error}') from None
    if not isinstance(content, dict):
        raise ValueError(f'{path} is not a recipe: expected keys such as stage, split, phases')
    return content


def read_recipe(path: str | Path) -> Recipe:
    """The recipe of a YAML file. Raises FileNotFoundError or ValueError that says what is wrong."""
    return make_recipe(read_yaml(path), path)


def make_recipe(content: dict, path: str | Path) -> Recipe:
    """A checked recipe from its keys; `path` is what errors name. Raises ValueError."""
    known = {entry.name for entry in fields(Recipe)}
    unknown, missing = set(content) - known, {'stage', 'split', 'phases'} - set(content)
    if unknown or missing:
        raise ValueError(f'{path}: ' + '; '.join(
            text for text, names in ((f"unknown keys {', '.join(sorted(unknown))} (known: {', '.join(sorted(known))})",
                                      unknown), (f"missing keys {', '.join(sorted(missing))}", missing)) if names))
    recipe = Recipe(**content)
    if recipe.stage not in STAGES:
        raise ValueError(f"{path}: stage {recipe.stage!r} is none of {', '.join(STAGES)}")
    if (recipe.stage in LATER) == bool(recipe.network):
        raise ValueError(f'{path}: stage {recipe.stage} ' + (
            'takes its network from --weights: leave `network` out' if recipe.network else 'needs a `network`'))
    if recipe.splits and recipe.stage != 'heads':
        raise ValueError(f'{path}: `splits` are trained in stage heads; stage {recipe.stage} trains the one split '
                         'of its network')
    _check_tail(recipe, path)
    _check_experts(recipe, path)
    if (recipe.stage == 'prune') != bool(recipe.pruned) or not all(
            isinstance(entry, dict) and set(entry) == {'unit', 'hidden'} for entry in recipe.pruned):
        raise ValueError(f'{path}: pruned is {recipe.pruned}: stage prune, and no other, takes a list of entries with '
                         'unit and hidden')
    if not isinstance(recipe.phases, list) or not recipe.phases:
        raise ValueError(f'{path}: `phases` is a list of at least one phase, not {recipe.phases}')
    for phase in recipe.phases:
        if not isinstance(phase, dict) or set(phase) != {'steps', 'height', 'width', 'scales', 'jitter'}:
            raise ValueError(f'{path}: a phase has the keys steps, height, width, scales and jitter, not {phase}')
        if not isinstance(phase['steps'], int) or phase['steps'] < 1:
            raise ValueError(f"{path}: a phase has 1 or more steps, not {phase['steps']!r}")
    if recipe.warmup_steps < 1:
        raise ValueError(f'{path}: warmup_steps is {recipe.warmup_steps}: expected 1 or more (1: no warm-up)')
    return recipe


def _check_tail(recipe, path):
    """What only stage `tail` takes."""
    if recipe.stage != 'tail':
        if recipe.window or recipe.partial or recipe.teachers or recipe.first_unit is not None or recipe.heads_only:
            raise ValueError(f'{path}: first_unit, window, partial, teachers and heads_only are for stage tail, not '
                             f'{recipe.stage}')
        return
    if recipe.heads_only and not recipe.candidates:
        raise ValueError(f'{path}: heads_only trains the heads of `candidates`, which it needs')
    if recipe.window and recipe.candidates and not recipe.heads_only:
        raise ValueError(f'{path}: window trains the exits that there are: leave candidates out, or set heads_only')
    if (recipe.window or recipe.heads_only) and recipe.first_unit is not None:
        raise ValueError(f'{path}: window and heads_only say themselves what they train: leave first_unit out')
    if (recipe.partial or recipe.teachers) and not (recipe.window or recipe.heads_only):
        raise ValueError(f'{path}: partial and teachers go with window or heads_only')
    if not isinstance(recipe.teachers, dict) or not all(
            isinstance(names, list) and names for names in recipe.teachers.values()):
        raise ValueError(f'{path}: teachers is {recipe.teachers}: expected for each exit that has some a list of exits '
                         'of the network before')
    nameless = [entry for entry in recipe.candidates if not entry.get('name')]
    if nameless:
        raise ValueError(f'{path}: a candidate of stage tail needs a name, that of the exit it takes the place of or a '
                         f'new one: {nameless[0]}')
    for name, value in (('window', recipe.window), ('partial', recipe.partial)):
        if value and not (isinstance(value, list) and len(value) == 2
                          and all(isinstance(each, (int, float)) for each in value) and 0 < value[0] <= value[1] <= 1):
            raise ValueError(f'{path}: {name} is {value}: expected two numbers in 0..1, the lower one first')


def _check_experts(recipe, path):
    """What only stage `experts` takes."""
    if recipe.stage != 'experts':
        if recipe.experts or recipe.expert_exits or recipe.expert_head or recipe.deblur_error is not None:
            raise ValueError(f'{path}: experts, expert_exits, expert_head and deblur_error are for stage experts, not '
                             f'{recipe.stage}')
        return
    able = [family for family in FAMILIES if family != 'clean']
    if not recipe.experts or not set(recipe.experts) <= set(able):
        raise ValueError(f"{path}: experts is {recipe.experts}: expected some of {', '.join(able)}")
    if recipe.batch_size < 2 * len(recipe.experts):
        raise ValueError(f'{path}: a batch of {recipe.batch_size} is shared by {len(recipe.experts)} experts: expected '
                         f'batch_size {2 * len(recipe.experts)} or more')
    if not 0 <= recipe.clean_share < 1:
        raise ValueError(f'{path}: clean_share is {recipe.clean_share}: expected 0 to below 1')
