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
"""Training: a run that was killed goes on as if nothing had happened; each stage trains what it should."""
import subprocess
import sys

import cv2
import pytest
import yaml

torch = pytest.importorskip('torch', reason='torch is not installed (make train-env)')
pytest.importorskip('ee_seg_ros.training', reason='torchvision is not installed (make train-env)')
pytest.importorskip('lightning', reason='lightning is not installed (make train-env)')

from ee_seg_ros.data.scenes import StreetDrive  # noqa: E402
from ee_seg_ros.inference.windows import Window  # noqa: E402
from ee_seg_ros.models.multi_exit import MultiExitNet, add_exits, load_network, save_network  # noqa: E402
from ee_seg_ros.models.partial import with_means  # noqa: E402
from ee_seg_ros.models.splits import add_splits  # noqa: E402
from ee_seg_ros.training import stages  # noqa: E402
from ee_seg_ros.training import train as training  # noqa: E402
from ee_seg_ros.training.curves import read_metrics  # noqa: E402
from ee_seg_ros.training.recipe import LATER, read_recipe  # noqa: E402
from ee_seg_ros.training.stages import EndToEnd, Heads, Successors, Tail  # noqa: E402
from ee_seg_ros.training.train import train  # noqa: E402

PHASES = [{'steps': 2, 'height': 64, 'width': 96, 'scales': [0.5, 1.5], 'jitter': 1.0},
          {'steps': 2, 'height': 96, 'width': 128, 'scales': [0.9, 1.1], 'jitter': 0.5}]
NETWORK = {
    'backbone': {'name': 'mobilenet_v2'}, 'classes': 11, 'skip': 6,
    'exits': [{'name': 'exit1', 'unit': 7, 'head': {'kind': 'fcn', 'reduction': 4}},
              {'name': 'exit2', 'unit': 10, 'head': {'kind': 'context', 'width': 16, 'rates': [1, 2], 'skip': True}}],
    'split': {'unit': 10, 'low': 4, 'high': 8, 'levels': 16, 'skips': [3, 6], 'restored': 12},
    'final': {'kind': 'decoder', 'width': 16}}
CANDIDATES = [{'unit': 7, 'head': {'kind': 'deeplab', 'reduction': 8, 'blocks': 1, 'dilate': True}},
              {'unit': 12, 'head': {'kind': 'fcn', 'reduction': 8}, 'distillation_share': 0.0, 'name': 'plain'}]

SPLITS = [{'unit': 7, 'low': 4, 'high': 6, 'levels': 8, 'skips': [3, 6], 'restored': 12},
          {'unit': 12, 'low': 2, 'high': 12, 'skips': [6], 'restored': 12}]

EXPERTS = {'experts': ['blur', 'noise'], 'expert_exits': ['exit2'], 'expert_head': {'adapt': 1}, 'batch_size': 4}


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


def write_recipe(path, **changes):
    content = {'stage': 'round_robin', 'network': NETWORK, 'split': 'train', 'phases': PHASES, 'batch_size': 2,
               'scene_share': 0.3, 'rare_classes': [2, 6], 'warmup_steps': 1, 'average_decay': 0.9, 'workers': 0,
               'checkpoint_steps': 1, 'log_steps': 1, 'pixel_shares': [(1 + k) / 66 for k in range(11)], **changes}
    if content['stage'] in LATER:
        content.pop('network')
    path.write_text(yaml.safe_dump(content))
    return path


class Killed(BaseException):
    """Ends a training at once: no handler of the trainer sees it as an error to tidy up after."""


def kill_at(step):
    def report(line):
        if line.startswith(f'step {step}/'):
            raise Killed
    return report


def quiet(line):
    """Say nothing."""


@pytest.fixture(scope='module')
def first_stage(root, tmp_path_factory):
    """weights.pt of a stage 1 of four steps."""
    folder = tmp_path_factory.mktemp('first')
    return train(write_recipe(folder / 'recipe.yaml'), root, folder / 'out', threads=1, report=quiet)


@pytest.mark.parametrize('stage', ['round_robin', 'heads', 'experts'])
def test_a_killed_run_resumes_to_the_same_weights(stage, root, tmp_path, first_stage):
    options = {'heads': {'candidates': CANDIDATES, 'splits': SPLITS}, 'experts': EXPERTS}.get(stage, {})
    recipe = write_recipe(tmp_path / 'recipe.yaml', stage=stage, **options)
    weights = None if stage == 'round_robin' else first_stage
    whole = load_network(train(recipe, root, tmp_path / 'whole', weights, threads=1, report=quiet))
    with pytest.raises(Killed):    # between the step and its checkpoint: the step is done again
        train(recipe, root, tmp_path / 'killed', weights, threads=1, report=kill_at(3))
    assert not (tmp_path / 'killed' / 'weights.pt').exists()
    said = []
    resumed = load_network(train(recipe, root, tmp_path / 'killed', weights, threads=1, report=said.append))
    assert said[0].startswith('resuming at step 2')
    torch.testing.assert_close(resumed.state_dict(), whole.state_dict())
    losses = [read_metrics(tmp_path / run / 'logs') for run in ('whole', 'killed')]
    some = {'round_robin': 'final', 'heads': 'plain', 'experts': 'noise.exit2'}[stage]
    assert losses[0][some] == losses[1][some] and losses[1][some][0] == (0, 1, 2, 3)    # nor are logs lost
    assert (tmp_path / 'whole' / 'curves.png').is_file()


def test_a_run_that_has_ended_gives_the_same_weights_again(root, tmp_path):
    """As after a kill between the last checkpoint and weights.pt."""
    recipe = write_recipe(tmp_path / 'recipe.yaml')
    first, again = (load_network(train(recipe, root, tmp_path / 'out', threads=1, report=quiet)) for _ in range(2))
    torch.testing.assert_close(again.state_dict(), first.state_dict(), rtol=0, atol=0)


def test_exits_take_turns_in_stage_1_and_all_train_in_a_joint_run(tmp_path):
    net = MultiExitNet(NETWORK)
    in_turn = EndToEnd(net, read_recipe(write_recipe(tmp_path / 'a.yaml')), None)
    assert [in_turn.exits_of(step) for step in range(3)] == [['exit1', 'final'], ['exit2', 'final'], ['exit1', 'final']]
    joint = EndToEnd(net, read_recipe(write_recipe(tmp_path / 'b.yaml', stage='joint')), None)
    assert joint.exits_of(0) == ['exit1', 'exit2', 'final']


def test_stage_2_trains_the_heads_and_nothing_else(root, tmp_path, first_stage):
    recipe = write_recipe(tmp_path / 'recipe.yaml', stage='heads', candidates=CANDIDATES)
    before, after = (load_network(path) for path in (
        first_stage, train(recipe, root, tmp_path / 'out', first_stage, threads=1, report=quiet)))
    assert set(after.exit_names) == {'exit1', 'exit2', 'u7_deeplab_b1_d1_r8', 'plain', 'final'}
    old, new = before.state_dict(), after.state_dict()
    for name in old:
        same = torch.allclose(old[name].float(), new[name].float(), atol=1e-6)
        assert same or name.startswith('exits.'), name
        assert not (same and name.endswith('classify.weight') and name.startswith('exits.')), name


def test_the_final_exit_is_trained_with_what_only_it_uses(root, tmp_path, first_stage):
    recipe = write_recipe(tmp_path / 'recipe.yaml', stage='tail')
    before, after = (load_network(path) for path in (
        first_stage, train(recipe, root, tmp_path / 'out', first_stage, threads=1, report=quiet)))
    old, new = before.state_dict(), after.state_dict()
    changed = {name for name in old if not torch.allclose(old[name].float(), new[name].float(), atol=1e-6)}
    assert 'final.classify.weight' in changed and any(name.startswith('units.11.') for name in changed)
    # Nothing up to unit 10, behind which the last exit and the split are.
    assert all(name.startswith('final.') or name.split('.')[0] == 'units' and int(name.split('.')[1]) > 10
               for name in changed)


def test_a_pruned_network_comes_out_the_same_each_time(root, tmp_path, first_stage):
    """Only the pruned block changes; with `pixel_shares`, as in a training, the classifiers stay as they are, too."""
    recipe, said = write_recipe(tmp_path / 'recipe.yaml', stage='prune', pruned=[{'unit': 3, 'hidden': 96}]), []
    before, after, again = (load_network(path).state_dict() for path in (first_stage, *(
        train(recipe, root, tmp_path / run, first_stage, threads=1, report=said.append) for run in ('one', 'two'))))
    assert said[0] == said[1] and said[0].startswith('unit 3: 96 of 144 hidden channels left')
    torch.testing.assert_close(again, after, rtol=0, atol=0)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all(name.startswith('units.3.conv.') for name in changed)


@pytest.mark.parametrize('changes', [{'pruned': []}, {'pruned': [{'unit': 3}]},
                                     {'stage': 'heads', 'pruned': [{'unit': 3, 'hidden': 96}]}])
def test_recipes_that_prune_nothing_or_elsewhere_are_refused(changes, tmp_path):
    with pytest.raises(ValueError, match='pruned is'):
        read_recipe(write_recipe(tmp_path / 'recipe.yaml', **{'stage': 'prune', **changes}))


REPLACED = [{'name': 'exit2', 'unit': 10, 'head': {'kind': 'fcn', 'reduction': 4}},
            {'name': 'late', 'unit': 14, 'head': {'kind': 'fcn', 'reduction': 8}}]


def test_a_tail_trains_what_lies_behind_its_first_unit_and_the_exits_there(root, tmp_path, first_stage):
    """Units from 8 on, the bottleneck behind unit 10, exit2 with another head, a new exit, the final one."""
    recipe = write_recipe(tmp_path / 'recipe.yaml', stage='tail', first_unit=8, candidates=REPLACED, exit_weight=1.0)
    before, after = (load_network(path) for path in (
        first_stage, train(recipe, root, tmp_path / 'out', first_stage, threads=1, report=quiet)))
    assert after.exit_names == ('exit1', 'exit2', 'late', 'final')
    assert [exit_['head'] for exit_ in after.spec['exits'] if exit_['name'] == 'exit2'] == [REPLACED[0]['head']]
    old, new = before.state_dict(), after.state_dict()
    free = ('exits.exit2.', 'exits.late.', 'final.', 'bottleneck.', *(f'units.{unit}.' for unit in range(8, 18)))
    for name in set(old) | set(new):
        if not name.startswith(free):
            assert torch.equal(old[name], new[name]), name
    changed = {name for name in set(old) & set(new) if old[name].shape == new[name].shape
               and not torch.allclose(old[name].float(), new[name].float(), atol=1e-6)}
    for part in ('final.classify.weight', 'units.8.', 'units.10.', 'units.11.', 'bottleneck.'):
        assert any(name.startswith(part) for name in changed), part


def test_the_networks_own_exits_stay_where_none_takes_their_place(tmp_path, first_stage):
    recipe = read_recipe(write_recipe(tmp_path / 'recipe.yaml', stage='tail', candidates=REPLACED[1:],
                                      first_unit=REPLACED[1]['unit']))
    module, earlier = training._tail(recipe, first_stage, None, torch.zeros(11)), load_network(first_stage)
    assert module.net.exit_names == ('exit1', 'exit2', 'late', 'final')
    for name, tensor in earlier.state_dict().items():
        torch.testing.assert_close(module.net.state_dict()[name], tensor)


LATE = {'name': 'late', 'unit': 14, 'head': {'kind': 'context', 'width': 16, 'rates': [1, 2], 'skip': True}}
LIGHTER = {**LATE, 'head': {**LATE['head'], 'width': 8}}


@pytest.fixture(scope='module')
def grown(first_stage, tmp_path_factory):
    """weights.pt of a network with an exit between the split and the final one."""
    path = tmp_path_factory.mktemp('grown') / 'weights.pt'
    save_network(add_exits(load_network(first_stage), [LATE]), path)
    return path


def test_a_head_that_takes_anothers_place_is_trained_alone_and_learns_from_it(root, tmp_path, grown):
    recipe = write_recipe(tmp_path / 'recipe.yaml', stage='tail', heads_only=True, candidates=[LIGHTER])
    before, after = (load_network(path) for path in (
        grown, train(recipe, root, tmp_path / 'out', grown, threads=1, report=quiet)))
    old, new = before.state_dict(), after.state_dict()
    assert after.exit_names == before.exit_names and after.spec['exits'][-1]['head'] == LIGHTER['head']
    for name in set(old) | set(new):
        assert name.startswith('exits.late.') or torch.equal(old[name], new[name]), name
    # What fits is taken over, then trained.
    begun = training._tail(read_recipe(recipe), grown, None, torch.zeros(11)).net.state_dict()
    assert torch.equal(begun['exits.late.skip.0.weight'], old['exits.late.skip.0.weight'])
    assert not torch.allclose(new['exits.late.skip.0.weight'], old['exits.late.skip.0.weight'], atol=1e-6)
    assert new['exits.late.mix.0.weight'].shape != old['exits.late.mix.0.weight'].shape


def test_all_behind_the_split_learns_to_work_in_windows_and_nothing_else(root, tmp_path, grown):
    """Statistics of batch norms stay: those of windows, or of missing features, are not what a run sees."""
    recipe = write_recipe(tmp_path / 'recipe.yaml', stage='tail', window=[0.3, 1.0], partial=[0.1, 0.9])
    before, after = (load_network(path) for path in (
        grown, train(recipe, root, tmp_path / 'out', grown, threads=1, report=quiet)))
    old, new = before.state_dict(), after.state_dict()
    free = ('exits.late.', 'final.', *(f'units.{unit}.' for unit in range(11, 18)))
    assert set(old) == set(new) and all(tensor.isfinite().all() for tensor in new.values())
    for name in old:
        if not name.startswith(free) or 'running' in name:
            assert torch.equal(old[name], new[name]), name
    changed = {name for name in old if not torch.allclose(old[name].float(), new[name].float(), atol=1e-6)}
    for part in free:
        assert any(name.startswith(part) for name in changed), part


INNER, OUTER, GRID = Window(1, 3, 2, 5), Window(0, 4, 1, 6), (4, 6)    # cells of images of 96x64


@pytest.mark.parametrize('heads_only', [True, False])
def test_successors_learn_in_windows_what_whole_maps_of_whole_features_gave(tmp_path, grown, monkeypatch, heads_only):
    """Four steps: whole, two in a window and without the features of settled cells, one in a window only."""
    recipe = read_recipe(write_recipe(
        tmp_path / 'recipe.yaml', stage='tail', window=[0.2, 0.5], partial=[0.1, 0.2],
        **({'heads_only': True, 'candidates': [LIGHTER]} if heads_only else {})))
    module, teacher = training._tail(recipe, grown, None, torch.zeros(11)), load_network(grown)
    assert isinstance(module, Successors)
    names = ['late'] if heads_only else ['late', 'final']
    torch.manual_seed(0)
    images = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8)
    labels = torch.randint(0, 11, (2, 64, 96), dtype=torch.uint8)
    settled, classes = torch.zeros(2, *GRID, dtype=torch.bool), torch.zeros(2, *GRID, dtype=torch.int64)
    settled[0, :2], limits, given, asked = True, [], [], []
    monkeypatch.setattr(stages, 'settled_cells', lambda logits, size, limit: limits.append(
        (tuple(logits.shape), tuple(size), limit)) or (settled, classes))
    monkeypatch.setattr(stages, 'random_window', lambda cells, shares: (cells, list(shares)) == (
        GRID, recipe.window) and INNER)
    tail, loss = stages.tail_logits, stages.positive_filtering_loss
    monkeypatch.setattr(stages, 'tail_logits', lambda net, restored, exits: given.append(restored) or tail(
        net, restored, exits))
    monkeypatch.setattr(stages, 'positive_filtering_loss', lambda *each: asked.append(each) or loss(*each))
    logged = {}
    module.log_dict = logged.update

    with torch.no_grad():
        tensors = teacher.features(module._input(images))
        expected = teacher(module._input(images), names)
        levels = [with_means(tensors[name], settled, classes) for name in ('low', 'high')]
        partial = dict(zip(('restored_skip', 'restored10'), teacher.bottleneck.decode(*levels)))
    kept = torch.full_like(labels, 255)
    kept[:, 16:48, 32:80] = labels[:, 16:48, 32:80]
    unsettled = kept.clone()
    unsettled[0, :32] = 255
    norm = next(each for each in module._norms if each.track_running_stats)
    for step, seen in enumerate((labels, unsettled, unsettled, kept)):
        asked.clear()
        monkeypatch.setattr(Successors, 'global_step', step, raising=False)
        before = norm.running_mean.clone()
        total = module.training_step((images, labels), 0)
        assert total.requires_grad and set(logged) == {f'loss_{name}' for name in names}
        assert not any(each.training for each in module._norms) and torch.equal(norm.running_mean, before)
        for name, tensor in (partial if step in (1, 2) else tensors).items():
            if name in ('restored_skip', 'restored10'):
                torch.testing.assert_close(given[step][name], OUTER.of(tensor, GRID) if step else tensor)
        assert len(asked) == len(names)
        for name, (output, before, grid, *_) in zip(names, asked):
            whole = expected[name]
            torch.testing.assert_close(before, OUTER.of(whole, GRID) if step else whole, rtol=1e-4, atol=1e-4)
            assert output.shape == before.shape
            assert torch.equal(grid, OUTER.of(seen, GRID) if step else seen)
    assert [each[:2] for each in limits] == [((2, 11, 8, 12), GRID)] * 2    # by the last exit before the split
    assert limits[0][2] != limits[1][2] and all(0.1 <= limit <= 0.2 for _, _, limit in limits)


def test_the_mean_of_several_outputs_may_teach(tmp_path, grown, monkeypatch):
    recipe = read_recipe(write_recipe(tmp_path / 'recipe.yaml', stage='tail', heads_only=True, candidates=[LIGHTER],
                                      teachers={'late': ['late', 'final']}))
    module, asked = training._tail(recipe, grown, None, torch.zeros(11)), []
    loss = stages.positive_filtering_loss
    monkeypatch.setattr(stages, 'positive_filtering_loss', lambda *each: asked.append(each[1]) or loss(*each))
    monkeypatch.setattr(Successors, 'global_step', 0, raising=False)
    module.log_dict = dict
    images = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8)
    module.training_step((images, torch.zeros(2, 64, 96, dtype=torch.uint8)), 0)
    with torch.no_grad():
        late, final = load_network(grown)(module._input(images), ['late', 'final']).values()
    late = torch.nn.functional.interpolate(late, size=final.shape[-2:], mode='bilinear', align_corners=False)
    assert not torch.allclose(late, final)
    torch.testing.assert_close(asked[0], (late + final) / 2, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match='teachers: there is no exit other in the network before'):
        training._tail(read_recipe(write_recipe(tmp_path / 'recipe.yaml', stage='tail', heads_only=True,
                                                candidates=[LIGHTER], teachers={'late': ['other']})),
                       grown, None, torch.zeros(11))
    with pytest.raises(ValueError, match='teachers: early is not trained here .trained: late'):
        training._tail(read_recipe(write_recipe(tmp_path / 'recipe.yaml', stage='tail', heads_only=True,
                                                candidates=[LIGHTER], teachers={'early': ['final']})),
                       grown, None, torch.zeros(11))


def test_an_exit_without_teachers_learns_what_it_gave(tmp_path, grown, monkeypatch):
    recipe = read_recipe(write_recipe(tmp_path / 'recipe.yaml', stage='tail', window=[0.5, 0.5],
                                      teachers={'late': ['late', 'final']}))
    module = training._tail(recipe, grown, None, torch.zeros(11))
    images = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8)
    with torch.no_grad():
        before = load_network(grown)(module._input(images), ['final'])['final']
        expected = module._expected(module._before[0].features(module._input(images)))
    torch.testing.assert_close(expected['final'], before, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(expected['late'], before, rtol=1e-4, atol=1e-4)


def test_windows_have_whole_values_of_the_coarsest_map_behind_the_split(tmp_path, monkeypatch):
    """A split at stride 8, before the last stride: cells are of 16 pixels all the same, as in the engine."""
    split, seen = {**NETWORK['split'], 'unit': 6, 'skips': [3]}, []
    save_network(MultiExitNet({**NETWORK, 'split': split, 'exits': [
        {'name': 'exit1', 'unit': 5, 'head': {'kind': 'fcn', 'reduction': 4}},
        {'name': 'exit2', 'unit': 10, 'head': {'kind': 'fcn', 'reduction': 4}}]}), tmp_path / 'early.pt')
    recipe = read_recipe(write_recipe(tmp_path / 'recipe.yaml', stage='tail', window=[0.2, 0.5]))
    module = training._tail(recipe, tmp_path / 'early.pt', None, torch.zeros(11))
    monkeypatch.setattr(stages, 'random_window', lambda cells, shares: seen.append(cells) or INNER)
    monkeypatch.setattr(Successors, 'global_step', 1, raising=False)
    module.log_dict = lambda losses: None
    images, labels = torch.zeros(2, 3, 64, 96, dtype=torch.uint8), torch.zeros(2, 64, 96, dtype=torch.uint8)
    assert module.training_step((images, labels), 0).isfinite() and seen == [GRID]


def test_heads_before_the_split_have_no_part_in_windows(tmp_path, first_stage):
    """The robot's own exits run on whole features; nor is there a window without a split."""
    recipe = read_recipe(write_recipe(tmp_path / 'recipe.yaml', stage='tail', heads_only=True, candidates=REPLACED[:1]))
    with pytest.raises(ValueError, match='for exits behind the split: exit2 is not'):
        training._tail(recipe, first_stage, None, torch.zeros(11))
    save_network(MultiExitNet({**NETWORK, 'split': None, 'skip': 6}), tmp_path / 'unsplit.pt')
    recipe = read_recipe(write_recipe(tmp_path / 'recipe.yaml', stage='tail', window=[0.2, 0.5]))
    with pytest.raises(ValueError, match='for exits behind the split: exit1, exit2, final are not'):
        training._tail(recipe, tmp_path / 'unsplit.pt', None, torch.zeros(11))


def test_a_head_without_one_before_has_nobody_to_learn_from(tmp_path, first_stage):
    recipe = read_recipe(write_recipe(tmp_path / 'recipe.yaml', stage='tail', heads_only=True,
                                      candidates=REPLACED[1:]))
    with pytest.raises(ValueError, match='there is no late in this network .it has exit1, exit2.'):
        training._tail(recipe, first_stage, None, torch.zeros(11))


def test_a_tail_sees_the_final_exit_in_every_second_pair_of_steps(tmp_path, first_stage, monkeypatch):
    seen, net = [], load_network(first_stage)
    module = Tail(net, read_recipe(write_recipe(tmp_path / 'recipe.yaml', stage='tail', first_unit=8)), None)
    forward = net.forward
    monkeypatch.setattr(net, 'forward', lambda images, exits: seen.append(tuple(exits)) or forward(images, exits))
    torch.manual_seed(0)
    images = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8)
    labels = torch.randint(0, 11, (2, 64, 96), dtype=torch.uint8)
    losses = {}
    module.log_dict = losses.update
    for step in range(5):
        monkeypatch.setattr(Tail, 'global_step', step, raising=False)
        total = module.training_step((images, labels), 0)
    assert seen == [('exit2', 'final'), ('exit2', 'final'), ('exit2',), ('exit2',), ('exit2', 'final')]
    torch.testing.assert_close(total.detach(), losses['loss_final'] + 0.5 * losses['loss_exit2'])


def test_a_tail_without_exits_trains_the_final_one_in_every_step(tmp_path, first_stage, monkeypatch):
    net = load_network(first_stage)
    module = Tail(net, read_recipe(write_recipe(tmp_path / 'recipe.yaml', stage='tail')), None)
    seen, forward = [], net.forward
    monkeypatch.setattr(net, 'forward', lambda images, exits: seen.append(tuple(exits)) or forward(images, exits))
    images, labels = torch.zeros(2, 3, 64, 96, dtype=torch.uint8), torch.zeros(2, 64, 96, dtype=torch.uint8)
    module.log_dict = lambda losses: None
    for step in range(4):
        monkeypatch.setattr(Tail, 'global_step', step, raising=False)
        module.training_step((images, labels), 0)
    assert seen == [('final',)] * 4


def test_a_tail_freezes_also_the_statistics_of_what_lies_before(tmp_path, first_stage):
    module = Tail(load_network(first_stage), read_recipe(write_recipe(
        tmp_path / 'recipe.yaml', stage='tail', first_unit=8)), None)
    module.train()
    module.on_train_start()
    modes = {name: child.training for name, child in module.net.named_modules()
             if isinstance(child, torch.nn.BatchNorm2d)}
    learning = ('exits.exit2.', 'final.', 'bottleneck.', *(f'units.{unit}.' for unit in range(8, 18)))
    assert {name for name, learns in modes.items() if learns} == {
        name for name in modes if name.startswith(learning)}
    for name, parameter in module.net.named_parameters():
        assert parameter.requires_grad == name.startswith(learning), name


def test_several_processes_expect_exits_to_be_left_out_where_they_are(tmp_path):
    """Without that word, parameters that had no part in an iteration end a training by several processes."""
    for stage, expected in (('round_robin', 'ddp_find_unused_parameters_true'), ('joint', 'ddp'), ('heads', 'ddp'),
                            ('tail', 'ddp_find_unused_parameters_true')):
        recipe = read_recipe(write_recipe(tmp_path / f'{stage}.yaml', stage=stage))
        assert training._strategy(recipe, 2, 1) == expected


def test_stage_2_trains_split_candidates_beside_the_heads(root, tmp_path, first_stage):
    """Heads come out as they do without them, and the rest of the network stays as it is."""
    recipes = [write_recipe(tmp_path / f'{name}.yaml', stage='heads', candidates=CANDIDATES, **options)
               for name, options in (('plain', {}), ('splits', {'splits': SPLITS}))]
    plain, both = (load_network(train(recipe, root, tmp_path / recipe.stem, first_stage, threads=1, report=quiet))
                   for recipe in recipes)
    assert [split['unit'] for split in both.splits] == [10, 7, 12]
    old, new = plain.state_dict(), both.state_dict()
    torch.testing.assert_close({name: new[name] for name in old}, old)
    assert all(tensor.isfinite().all() for tensor in new.values())
    assert {'split7', 'split12', 'plain'} < set(read_metrics(tmp_path / 'splits' / 'logs'))


def test_a_split_candidate_learns_what_the_final_exit_expects(first_stage, root, tmp_path):
    """On one batch its loss falls below that of its principal components, whose loss is below that of random ones."""
    recipe = read_recipe(write_recipe(tmp_path / 'recipe.yaml', stage='heads', splits=SPLITS))
    torch.manual_seed(0)
    net = add_splits(load_network(first_stage), SPLITS)
    module = Heads(net, recipe, None, dict.fromkeys(net.exit_names, 0.5))
    images = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8)
    labels = torch.randint(0, 11, (2, 64, 96), dtype=torch.uint8)
    found = {}
    module.log_dict = found.update

    def losses():
        return module.training_step((images, labels), 0), {
            unit: float(found[f'loss_split{unit}']) for unit in (7, 12)}
    _, random = losses()
    module.start_splits(images, SPLITS)
    _, started = losses()
    optimiser = module.configure_optimizers()['optimizer']
    for group in optimiser.param_groups:
        group['lr'] = 0.002
    for _ in range(8):
        optimiser.zero_grad()
        total, _ = losses()
        total.backward()
        module.configure_gradient_clipping(optimiser)
        optimiser.step()
    _, trained = losses()
    for unit in (7, 12):
        assert trained[unit] < started[unit] < random[unit]
    assert not any(parameter.requires_grad for name, parameter in net.named_parameters()
                   if not name.startswith(('exits.', 'bottlenecks.')))


def test_going_on_from_trained_weights(root, tmp_path):
    net = MultiExitNet(NETWORK)
    save_network(net, tmp_path / 'start.pt')
    trained = load_network(train(write_recipe(tmp_path / 'recipe.yaml'), root, tmp_path / 'out', tmp_path / 'start.pt',
                                 threads=1, report=quiet))
    moved = (trained.final.classify.weight - net.final.classify.weight).abs().max()
    assert 0 < moved < 0.1


def test_an_exit_that_the_weights_lack_starts_new(root, tmp_path):
    net, one = MultiExitNet(NETWORK), {**NETWORK, 'exits': NETWORK['exits'][:1]}
    save_network(MultiExitNet(one), tmp_path / 'one.pt')
    trained = load_network(train(write_recipe(tmp_path / 'recipe.yaml', stage='joint'), root, tmp_path / 'out',
                                 tmp_path / 'one.pt', threads=1, report=quiet))
    assert trained.exit_names == net.exit_names
    save_network(net, tmp_path / 'both.pt')
    recipe = write_recipe(tmp_path / 'less.yaml', network=one)
    with pytest.raises(ValueError, match='of another network than the recipe'):
        train(recipe, root, tmp_path / 'less', tmp_path / 'both.pt', threads=1, report=quiet)


def test_two_processes_train_one_network(root, tmp_path):
    """By the command line: every process but the first is started by running the command again."""
    recipe = write_recipe(tmp_path / 'recipe.yaml', phases=PHASES[:1])
    command = [sys.executable, '-m', 'ee_seg_ros.cli', 'train', str(recipe), '--root', str(root), '--out',
               str(tmp_path / 'out'), '--threads', '1', '--devices', '2']
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    assert 'MEMBER: 2/2' in ended.stderr
    assert ended.stdout.count('step 2/2') == 1
    assert load_network(tmp_path / 'out' / 'weights.pt').exit_names == ('exit1', 'exit2', 'final')


@pytest.mark.parametrize('stage', ['heads', 'tail'])
def test_later_stages_need_weights_of_an_earlier_one(stage, root, tmp_path):
    recipe = write_recipe(tmp_path / 'recipe.yaml', stage=stage, candidates=CANDIDATES if stage == 'heads' else [])
    with pytest.raises(ValueError, match='weights.pt of an earlier stage, or a bundle'):
        train(recipe, root, tmp_path / 'out', None, report=quiet)


@pytest.mark.parametrize('changes, what', [
    ({'stage': 'third'}, "'third' is none of"), ({'epochs': 3}, 'unknown keys epochs'), ({'network': {}}, 'needs a'),
    ({'splits': SPLITS}, 'trained in stage heads'),
    ({'stage': 'tail', 'candidates': [{'unit': 7, 'head': {'kind': 'fcn'}}]}, 'candidate of stage tail needs a name'),
    ({'stage': 'tail', 'heads_only': True}, 'heads_only trains the heads of `candidates`, which it needs'),
    ({'stage': 'tail', 'window': [0.5]}, 'window is .0.5.: expected two numbers in 0..1, the lower one first'),
    ({'stage': 'tail', 'window': [0.5, 0.2]}, 'window is .0.5, 0.2.: expected'),
    ({'stage': 'tail', 'window': 0.5}, 'window is 0.5: expected'),
    ({'stage': 'tail', 'window': [0.2, 0.5], 'partial': [0.5, 1.5]}, 'partial is .0.5, 1.5.: expected'),
    ({'stage': 'tail', 'partial': [0.5, 0.9]}, 'partial and teachers go with window or heads_only'),
    ({'stage': 'tail', 'window': [0.2, 0.5], 'teachers': ['final']}, "teachers is .'final'.: expected for each exit"),
    ({'stage': 'tail', 'window': [0.2, 0.5], 'first_unit': 11}, 'say themselves what they train: leave first_unit out'),
    ({'stage': 'tail', 'window': [0.2, 0.5], 'candidates': [CANDIDATES[1]]}, 'leave candidates out, or set heads_only'),
    ({'stage': 'tail', 'tile': [3, 4]}, 'unknown keys tile'),
    ({'stage': 'heads', 'window': [0.2, 0.5]}, 'first_unit, window, partial, teachers and heads_only are for stage'),
    ({'stage': 'tail', 'splits': SPLITS}, 'trained in stage heads; stage tail trains the one split'),
    ({'phases': [{'steps': 1}]}, 'a phase has the keys'), ({'phases': []}, 'at least one phase'),
    ({'phases': [{**PHASES[0], 'steps': 0}]}, '1 or more steps'), ({'warmup_steps': 0}, 'no warm-up')])
def test_wrong_recipes_are_refused(changes, what, tmp_path):
    with pytest.raises(ValueError, match=what):
        read_recipe(write_recipe(tmp_path / 'recipe.yaml', **changes))


@pytest.mark.parametrize('changes, what', [
    ({'network': {**NETWORK, 'classes': 5}}, 'network.classes of the recipe says 5, data set camvid has 11'),
    ({'pixel_shares': [0.5, 0.5]}, 'pixel_shares of the recipe says 2')])
def test_a_recipe_for_other_classes_is_refused(changes, what, root, tmp_path):
    with pytest.raises(ValueError, match=what):
        train(write_recipe(tmp_path / 'recipe.yaml', **changes), root, tmp_path / 'out', report=quiet)


def test_missing_keys_are_named(tmp_path):
    (tmp_path / 'recipe.yaml').write_text('stage: joint')
    with pytest.raises(ValueError, match='missing keys phases, split'):
        read_recipe(tmp_path / 'recipe.yaml')
