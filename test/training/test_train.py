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
from ee_seg_ros.models.multi_exit import MultiExitNet, add_exits, load_network, save_network  # noqa: E402
from ee_seg_ros.models.splits import add_splits  # noqa: E402
from ee_seg_ros.models.tiles import partial_logits, tiled_logits  # noqa: E402
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
    recipe = write_recipe(tmp_path / 'recipe.yaml', stage='tail', first_unit=8, tile=[2, 2], candidates=REPLACED,
                          exit_weight=1.0)
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


LATE = [{'name': 'exit2', 'unit': 10, 'head': {'kind': 'context', 'width': 8, 'rates': [1, 2], 'skip': True}}]


def test_a_head_that_takes_anothers_place_is_trained_alone_and_learns_from_it(root, tmp_path, first_stage):
    recipe = write_recipe(tmp_path / 'recipe.yaml', stage='tail', heads_only=True, candidates=LATE)
    before, after = (load_network(path) for path in (
        first_stage, train(recipe, root, tmp_path / 'out', first_stage, threads=1, report=quiet)))
    old, new = before.state_dict(), after.state_dict()
    assert after.exit_names == before.exit_names and after.spec['exits'][-1]['head'] == LATE[0]['head']
    for name in set(old) | set(new):
        assert name.startswith('exits.exit2.') or torch.equal(old[name], new[name]), name
    # What fits is taken over, then trained.
    begun = training._tail(read_recipe(recipe), first_stage, None, torch.zeros(11)).net.state_dict()
    assert torch.equal(begun['exits.exit2.skip.0.weight'], old['exits.exit2.skip.0.weight'])
    assert not torch.allclose(new['exits.exit2.skip.0.weight'], old['exits.exit2.skip.0.weight'], atol=1e-6)
    assert new['exits.exit2.mix.0.weight'].shape != old['exits.exit2.mix.0.weight'].shape


def test_such_a_head_learns_what_the_one_before_makes_of_whole_features(tmp_path, first_stage, monkeypatch):
    """Every second step the features of settled cells are missing: there batch norms keep their statistics."""
    late = [{'name': 'late', 'unit': 14, 'head': {'kind': 'fcn', 'reduction': 8}}]
    grown, asked = tmp_path / 'grown.pt', []
    save_network(add_exits(load_network(first_stage), late), grown)
    recipe = read_recipe(write_recipe(tmp_path / 'recipe.yaml', stage='tail', heads_only=True, candidates=late,
                                      partial=[0.1, 0.2]))
    module, teacher = training._tail(recipe, grown, None, torch.zeros(11)), load_network(grown)
    module.log_dict = lambda losses: None
    loss = stages.positive_filtering_loss
    monkeypatch.setattr(stages, 'positive_filtering_loss', lambda *given: asked.append(given) or loss(*given))
    torch.manual_seed(0)
    images = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8)
    labels, norm = torch.randint(0, 11, (2, 64, 96), dtype=torch.uint8), module._norms[0]
    settled = torch.zeros(2, 4, 6, dtype=torch.bool)
    settled[0, :2] = True
    monkeypatch.setattr(stages, 'partial_logits', lambda *given: (partial_logits(*given)[0], settled))
    for step in (0, 1):
        monkeypatch.setattr(Successors, 'global_step', step, raising=False)
        before = norm.running_mean.clone()
        assert module.training_step((images, labels), 0).requires_grad
        assert norm.training == (step == 0) and torch.equal(norm.running_mean, before) == (step == 1)
    whole = teacher(module._input(images), ['late'])['late'].detach()
    for output, expected, grid, *_ in asked:
        torch.testing.assert_close(expected, whole, rtol=1e-4, atol=1e-4)
        assert output.shape == whole.shape
    assert torch.equal(asked[0][2], labels)
    assert (asked[1][2][0, :32] == 255).all() and torch.equal(asked[1][2][1], labels[1])


def test_a_head_without_one_before_has_nobody_to_learn_from(tmp_path, first_stage):
    recipe = read_recipe(write_recipe(tmp_path / 'recipe.yaml', stage='tail', heads_only=True,
                                      candidates=REPLACED[1:]))
    with pytest.raises(ValueError, match='there is no late in this network .it has exit1, exit2.'):
        training._tail(recipe, first_stage, None, torch.zeros(11))


def test_a_tail_sees_tiles_every_second_step_and_the_final_exit_every_second_pair(tmp_path, first_stage, monkeypatch):
    seen, net = [], load_network(first_stage)
    recipe = read_recipe(write_recipe(tmp_path / 'recipe.yaml', stage='tail', first_unit=8, tile=[2, 2]))
    module = Tail(net, recipe, None)
    forward = net.forward
    monkeypatch.setattr(net, 'forward', lambda images, exits: seen.append(('whole', *exits)) or forward(images, exits))
    monkeypatch.setattr(stages, 'tiled_logits', lambda net, images, tile, exits: seen.append(
        (tuple(tile), *exits)) or tiled_logits(net, images, tile, exits))
    torch.manual_seed(0)
    images = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8)
    labels = torch.randint(0, 11, (2, 64, 96), dtype=torch.uint8)
    losses = {}
    module.log_dict = losses.update
    for step in range(5):
        monkeypatch.setattr(Tail, 'global_step', step, raising=False)
        total = module.training_step((images, labels), 0)
    assert seen == [('whole', 'exit2', 'final'), ((2, 2), 'exit2', 'final'), ('whole', 'exit2'), ((2, 2), 'exit2'),
                    ('whole', 'exit2', 'final')]
    torch.testing.assert_close(total.detach(), losses['loss_final'] + 0.5 * losses['loss_exit2'])


def test_a_tail_learns_to_do_without_the_features_of_settled_cells(tmp_path, first_stage, monkeypatch):
    """In two steps of four, one of them on tiles; what the robot's label stays for has no say in the loss."""
    recipe = read_recipe(write_recipe(tmp_path / 'recipe.yaml', stage='tail', first_unit=11, tile=[2, 2],
                                      partial=[0.4, 0.6], candidates=REPLACED[1:]))
    module = training._tail(recipe, first_stage, None, torch.zeros(11))
    seen, limits, settled = [], [], torch.zeros(2, 4, 6, dtype=torch.bool)
    settled[0, :2] = True

    def partial(net, images, exits, limit, tile):
        seen.append(('partial', tile and tuple(tile), *exits))
        limits.append(limit)
        return partial_logits(net, images, exits, limit, tile)[0], settled
    monkeypatch.setattr(stages, 'partial_logits', partial)
    asked, loss = [], stages.exit_loss
    monkeypatch.setattr(stages, 'exit_loss', lambda logits, labels, *more: asked.append(labels) or loss(
        logits, labels, *more))
    torch.manual_seed(0)
    images = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8)
    labels = torch.randint(0, 11, (2, 64, 96), dtype=torch.uint8)
    module.log_dict = lambda losses: None
    for step in range(5):
        monkeypatch.setattr(Tail, 'global_step', step, raising=False)
        asked.clear()
        assert module.training_step((images, labels), 0).isfinite()
        for given in asked:
            if step in (1, 2):
                assert (given[0, :32] == 255).all() and torch.equal(given[0, 32:], labels[0, 32:])
                assert torch.equal(given[1], labels[1])
            else:
                assert torch.equal(given, labels)
    assert seen == [('partial', (2, 2), 'late', 'final'), ('partial', None, 'late')]
    assert len(set(limits)) == 2 and all(0.4 <= limit <= 0.6 for limit in limits)


def test_a_tail_without_tiles_or_exits_trains_the_final_one_in_every_step(tmp_path, first_stage, monkeypatch):
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


def test_tiles_that_do_not_fit_the_images_are_said(root, tmp_path, first_stage):
    recipe = write_recipe(tmp_path / 'recipe.yaml', stage='tail', first_unit=8, tile=[3, 4])
    with pytest.raises(ValueError, match='a map of 6x4 cells has no whole number of tiles of 4x3'):
        train(recipe, root, tmp_path / 'out', first_stage, threads=1, report=quiet)


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
    ({'stage': 'tail', 'tile': [4]}, 'tile is .4.: expected two positive numbers'),
    ({'stage': 'heads', 'tile': [3, 4]}, 'first_unit, tile, partial and heads_only are for stage tail, not heads'),
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
