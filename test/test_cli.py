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
import json
import shutil
import subprocess
import sys

import pytest
from tiny import tiny_bundle

from ee_seg_ros.inference.bundle import Bundle

typer = pytest.importorskip('typer', reason='typer is not installed (extra `demo`)')
pytest.importorskip('rich', reason='rich is not installed (extra `demo`)')

from ee_seg_ros.cli import main  # noqa: E402


def run(*args):
    """The exit status of `ee_seg ARGS`."""
    with pytest.raises(SystemExit) as ended:
        main([str(arg) for arg in args])
    return ended.value.code or 0


@pytest.fixture(scope='module')
def broken_bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp('broken')
    (folder / 'bundle.json').write_text('{')
    return folder


def test_help_imports_nothing_heavy():
    code = ("import sys, ee_seg_ros.cli; print(sorted({'torch', 'rclpy', 'onnxruntime', 'cv2', 'matplotlib', 'numpy'} "
            '& set(sys.modules)))')
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True).stdout.strip() == '[]'


def test_help_lists_the_commands(capsys):
    assert run('--help') == 0
    shown = capsys.readouterr().out
    for command in ('demo', 'train', 'search', 'export', 'evaluate', 'bench', 'info'):
        assert f'\n  {command} ' in shown


# What is wrong, and what the one line about it must say.
WRONG = [
    (['demo', '--source', 'nowhere'], "no source 'nowhere': give scenes, a folder of images, a video file, or"),
    (['demo', '--bundle', 'nowhere'], "no bundle 'nowhere': it is neither a folder nor a shipped bundle"),
    (['demo', '--criterion', 'luck'], "no criterion 'luck': choose one of"),
    (['demo', '--operating-point', 'warp'], "no operating point 'warp': choose one of fast, balanced, accurate"),
    (['demo', '--frames', '0'], 'frames is 0: expected 1 or more'),
    (['demo', '--rate', '0'], 'rate is 0.0: expected'),
    (['demo', '--out', 'FILE'], 'cannot write to'),
    (['evaluate', 'street', '--root', 'EMPTY', '--split', 'val', '--out', 'OUT'], 'no list val.txt in'),
    (['evaluate', 'street', '--root', 'EMPTY', '--split', '[', '--out', 'OUT'], "split '[' is not understood"),
    (['evaluate', 'street', '--out', 'OUT'], 'needs --root'),
    (['evaluate', 'street', '--dataset', 'kitti', '--out', 'OUT'], "data set 'kitti' is not known"),
    (['evaluate', 'street', '--dataset', 'scenes', '--split', 'x', '--out', 'OUT'], 'must be the seed of a drive'),
    (['evaluate', 'BROKEN', '--dataset', 'scenes', '--split', '0', '--out', 'OUT'], 'cannot be read'),
    (['info', 'BROKEN'], 'cannot be read'),
    (['info', 'EMPTY'], 'is a folder without bundle.json'),
    (['evaluate', 'street', '--dataset', 'scenes', '--split', '0', '--out', 'FILE'], 'cannot write to'),
    (['train', 'nowhere.yaml', '--root', 'EMPTY', '--out', 'OUT'], 'nowhere.yaml does not exist'),
    (['export', 'FILE', '--out', 'OUT', '--provenance', 'FILE', '--thresholds-of', 'street', '--split', 'val'],
     'Give either --split (with --root) or'),
    (['search', 'FILE', '--out', 'OUT', '--provenance', 'FILE', '--split', 'val'], 'must state at least'),
    (['bench', 'exits', '--bundle', 'street', '--single', 'nowhere', '--out', 'OUT'], "no bundle 'nowhere'"),
    (['export', 'FILE', '--out', 'OUT', '--provenance', 'FILE', '--thresholds-of', 'street'], 'must state at least'),
    (['bench', 'runtime', '--bundle', 'nowhere', '--out', 'OUT'], "no bundle 'nowhere'"),
    (['bench', 'distortions', '--criterion', 'luck', '--root', 'EMPTY', '--out', 'OUT'], "no criterion 'luck'"),
    (['demo', '--distort', 'noise', '--out', 'OUT'], "distortion 'noise' has no level: expected noise:LEVEL"),
]


@pytest.mark.parametrize('args, says', WRONG, ids=[' '.join(args) for args, _ in WRONG])
def test_wrong_input_is_one_clear_line(args, says, tmp_path, broken_bundle, capsys, monkeypatch):
    pytest.importorskip('matplotlib', reason='matplotlib is not installed (extra `demo`)')
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'FILE').write_text('text')
    (tmp_path / 'EMPTY').mkdir()
    assert run(*(broken_bundle if arg == 'BROKEN' else arg for arg in args)) == 2
    captured = capsys.readouterr()
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith('ee_seg: ') and says in lines[0], captured.err


@pytest.mark.parametrize('args', [['demo', '--frames', 'many'], ['demo', '--colour', 'red'], ['evaluate'], ['dance']])
def test_wrong_usage_is_status_2(args, capsys):
    assert run(*args) == 2
    assert 'Traceback' not in capsys.readouterr().err


def test_training_without_torch_says_what_to_install(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, 'torch', None)    # as if it were not there
    monkeypatch.delitem(sys.modules, 'ee_seg_ros.training.train', raising=False)
    (tmp_path / 'recipe.yaml').write_text('{}')
    assert run('train', tmp_path / 'recipe.yaml', '--root', tmp_path, '--out', tmp_path / 'out') == 2
    assert 'torch is not installed' in capsys.readouterr().err


def test_info_as_json_and_as_tables(capsys):
    assert run('info', 'street', '--json') == 0
    document = json.loads(capsys.readouterr().out)
    bundle = Bundle.load('street')
    assert document['fingerprint'] == bundle.fingerprint
    assert [exit_['name'] for exit_ in document['exits']] == [exit_.name for exit_ in bundle.exits]
    assert document['bytes'] == sum(document['files'].values()) > 1e6
    assert document['experts']['blur']['forwarding']['last_exit'] == bundle.last_exit('blur')
    assert run('info', 'street') == 0
    shown = capsys.readouterr().out
    for text in (bundle.fingerprint, 'Bicyclist', 'entropy', 'accurate', 'bundle.json', 'detector of', 'by strength'):
        assert text in shown


def test_info_of_a_bundle_of_a_newer_version(tmp_path, capsys):
    shutil.copytree(Bundle.load('street').path, tmp_path / 'newer')
    document = json.loads((tmp_path / 'newer/bundle.json').read_text())
    (tmp_path / 'newer/bundle.json').write_text(json.dumps({**document, 'format': 99}))
    assert run('info', tmp_path / 'newer') == 2
    assert 'newer than this version of ee_seg_ros' in capsys.readouterr().err


def test_evaluate_writes_json_and_table(tmp_path, capsys):
    assert run('evaluate', 'street', '--dataset', 'scenes', '--split', '3', '--limit', '2', '--out', tmp_path) == 0
    found = json.loads((tmp_path / 'evaluation.json').read_text())
    assert found['images'] == 2 and found['dataset'] == 'scenes' and found['split'] == '3'
    shown = capsys.readouterr().out
    assert 'final' in shown and 'region_change' in shown


def test_evaluate_without_matplotlib_still_gives_figures(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, 'matplotlib', None)
    assert run('evaluate', 'street', '--dataset', 'scenes', '--split', '3', '--limit', '1', '--out', tmp_path) == 0
    assert (tmp_path / 'evaluation.json').is_file() and not (tmp_path / 'evaluation.png').exists()
    assert 'matplotlib is not installed' in capsys.readouterr().err


def test_the_demo_runs_what_the_node_would():
    import inspect

    from ee_seg_ros.commands import run as commands
    from ee_seg_ros.nodes.parameters import ONBOARD
    defaults = {parameter.name: parameter.default for parameter in ONBOARD}
    for name, option in inspect.signature(commands.demo).parameters.items():
        if name in ('bundle', 'criterion', 'operating_point'):
            assert option.default.default == defaults[name], name


@pytest.fixture
def trained(tmp_path):
    """weights.pt of a network with a split, and the card of a bundle."""
    torch = pytest.importorskip('torch', reason='torch is not installed (make train-env)')
    pytest.importorskip('ee_seg_ros.models.torchvision_compat')
    pytest.importorskip('safetensors', reason='safetensors is not installed (make train-env)')
    from ee_seg_ros.models.multi_exit import MultiExitNet, save_network
    torch.manual_seed(0)
    save_network(MultiExitNet({
        'backbone': {'name': 'mobilenet_v2', 'units': 9}, 'classes': 11, 'final': {'kind': 'fcn', 'reduction': 8},
        'exits': [{'name': f'u{unit}', 'unit': unit, 'head': {'kind': 'fcn', 'reduction': 8}} for unit in (4, 6, 7)],
        'split': {'unit': 6, 'high': 8, 'levels': 16}}), tmp_path / 'weights.pt')
    (tmp_path / 'card.yaml').write_text('{data: none, licence: none}')
    return tmp_path


@pytest.mark.parametrize('split, after', [(6, 'stage2'), (None, None)])
def test_export_of_what_a_search_chose(trained, split, after):
    """For two computers, or for one: then all exits are onboard, as the search saw them."""
    (trained / 'search.json').write_text(json.dumps({'chosen': {'exits': ['u4', 'u7', 'final'], 'split': split}}))
    tiny_bundle(trained / 'twin', after and 'stage1', ('exit1', 'exit2', 'final'))
    assert run('export', trained / 'weights.pt', '--out', trained / 'out', '--provenance', trained / 'card.yaml',
               '--exits-of', trained / 'search.json', '--thresholds-of', trained / 'twin', '--width', '96', '--height',
               '80') == 0
    bundle = Bundle.load(trained / 'out')
    assert [exit_.name for exit_ in bundle.exits] == ['exit1', 'exit2', 'final']
    assert (bundle.split and bundle.split['after']) == after
    assert [exit_.onboard for exit_ in bundle.exits] == [True, after is None, after is None]


def test_export_with_experts_of_another_training(trained):
    """The tail was trained on after the experts, which see nothing of it; exits have got the names of the search."""
    from ee_seg_ros.models.experts import add_experts
    from ee_seg_ros.models.multi_exit import load_network, save_network, select_exits
    net = load_network(trained / 'weights.pt')
    save_network(add_experts(select_exits(net, {'exit1': 'u4', 'exit2': 'u7'}), ['blur'], ['exit1']),
                 trained / 'experts.pt')
    net.final.classify.bias.data += 1
    save_network(net, trained / 'weights.pt')
    (trained / 'search.json').write_text(json.dumps({'chosen': {'exits': ['u4', 'u7', 'final'], 'split': 6}}))
    tiny_bundle(trained / 'twin', 'stage1', ('exit1', 'exit2', 'final'), experts={'blur': ['exit1']})
    options = ['export', trained / 'weights.pt', '--out', trained / 'out', '--provenance', trained / 'card.yaml',
               '--exits-of', trained / 'search.json', '--thresholds-of', trained / 'twin', '--width', '96', '--height',
               '80', '--experts']
    assert run(*options, trained / 'experts.pt') == 0
    bundle = Bundle.load(trained / 'out')
    assert bundle.experts == ('blur',) and bundle.exits_for('blur')[0].graph == 'exit1_blur'
    assert bundle.exits_for('blur')[0].temperature == 2.0 and bundle.thresholds('entropy', 'fast', 'blur')[0] == 0.25
    assert run(*options, trained / 'weights.pt') == 2    # has none


def test_export_with_a_file_that_no_search_wrote(trained, capsys):
    for content in ('text', '[]', '{"chosen": {}}'):
        (trained / 'search.json').write_text(content)
        assert run('export', trained / 'weights.pt', '--out', trained / 'out', '--provenance', trained / 'card.yaml',
                   '--exits-of', trained / 'search.json', '--thresholds-of', 'street') == 2
        assert capsys.readouterr().err.strip().endswith('search.json is not a search.json that `ee_seg search` wrote')
    assert not (trained / 'out').exists()


@pytest.mark.parametrize('options, cost, limits', [
    (['--most-macs', '0.5'], 'macs', {'macs': 5e8}), (['--most-ms', '20'], 'ms', {'ms': 20}),
    (['--miou', '0.6'], 'macs', {}), (['--most-ms', '20', '--miou', '0.6', '--cost', 'macs'], 'macs', {'ms': 20})])
def test_a_search_is_over_the_cost_that_is_limited(trained, monkeypatch, options, cost, limits):
    from ee_seg_ros.search import search as searching
    goals = []
    monkeypatch.setattr(searching, 'search', lambda *given: goals.append(given[7]) or {'chosen': {}})
    assert run('search', trained / 'weights.pt', '--out', trained / 'out', '--provenance', trained / 'card.yaml',
               '--split', '0', *options) == 0
    assert goals[0].cost == cost and goals[0].limits == limits
