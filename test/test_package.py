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
"""What the package promises about itself: its metadata, what it installs, its launch files and its import rules."""
import ast
import os
import re
import runpy
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml

from ee_seg_ros.inference.bundle import Bundle
from ee_seg_ros.nodes import parameters

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / 'ee_seg_ros'
LAUNCH_FILES = sorted((ROOT / 'launch').glob('*.launch.py'))
# Import name -> rosdep key where they differ. None: rosdep has no key, package.xml says so in a comment.
ROSDEP = {'cv2': 'python3-opencv', 'PIL': 'python3-pil', 'onnxruntime': 'python3-onnxruntime-pip', 'zstandard': None,
          'rosbags': None}
ROSDEP.update({name: f'python3-{name}' for name in
               ('numpy', 'yaml', 'jsonschema', 'msgpack', 'typer', 'rich', 'matplotlib')})
PIP = {'cv2': 'opencv-python-headless', 'PIL': 'pillow', 'yaml': 'pyyaml'}


def parse(path):
    return ast.parse(path.read_text(encoding='utf-8'), str(path))


def imports(tree, everywhere=True):
    """Dotted names that a module imports; everywhere=False: only those that run when it is imported itself."""
    names, todo = set(), list(tree.body)
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, 'imports are absolute here'
            names |= {node.module} | {f'{node.module}.{alias.name}' for alias in node.names}
        elif everywhere or not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            todo += ast.iter_child_nodes(node)
    return names


FILES = {'.'.join(path.relative_to(ROOT).with_suffix('').parts).removesuffix('.__init__'): path
         for path in sorted(PACKAGE.rglob('*.py'))}
MODULES = {name: parse(path) for name, path in FILES.items()}


def modules(*folders):
    """Names of the modules in these folders of the package; '' is its top level."""
    found = [name for name, path in FILES.items() if '/'.join(path.parent.relative_to(PACKAGE).parts) in folders]
    assert found
    return found


def loaded_by(name):
    """Top-level names of all that importing a module imports, through other modules of the package as well."""
    seen, todo, external = set(), [name], set()
    while todo:
        current = todo.pop()
        if current not in MODULES:
            external.add(current.partition('.')[0])
        elif current not in seen:
            seen.add(current)
            todo += imports(MODULES[current], everywhere=False)
            todo += [current.rpartition('.')[0]] if '.' in current else []  # the package that holds it
    return external


@pytest.fixture(scope='module')
def setup_arguments():
    """What setup.py hands to setuptools."""
    setuptools = pytest.importorskip('setuptools')
    caught, patch, here = {}, pytest.MonkeyPatch(), Path.cwd()
    patch.setattr(setuptools, 'setup', caught.update)
    patch.setattr(sys, 'argv', ['setup.py', 'install'])
    os.chdir(ROOT)
    try:
        runpy.run_path(str(ROOT / 'setup.py'))
    finally:
        os.chdir(here)
        patch.undo()
    return caught


@pytest.fixture(scope='module')
def manifest():
    return ElementTree.parse(ROOT / 'package.xml').getroot()


def test_package_xml_and_setup_py_say_the_same(manifest, setup_arguments):
    assert manifest.tag == 'package' and manifest.get('format') == '3'
    assert manifest.findtext('export/build_type') == 'ament_python'
    for key in ('name', 'version', 'license', 'maintainer'):
        assert manifest.findtext(key) == setup_arguments[key]
    assert manifest.find('maintainer').get('email') == setup_arguments['maintainer_email']
    assert re.fullmatch(r'\d+\.\d+\.\d+', manifest.findtext('version'))
    assert 'Apache License' in (ROOT / 'LICENSE').read_text(encoding='utf-8')


def test_all_that_runs_on_a_robot_is_declared_for_rosdep(manifest):
    declared = [element.text for element in manifest.iter('exec_depend')]
    assert len(declared) == len(set(declared))
    used = {name.partition('.')[0] for module in modules('', 'nodes', 'inference', 'data', 'evaluation')
            for name in imports(MODULES[module])}
    used |= {name.partition('.')[0] for path in LAUNCH_FILES for name in imports(parse(path))}
    used -= set(sys.stdlib_module_names) | {'ee_seg_ros', 'torch'}
    keys = {ROSDEP.get(name, name) for name in used} - {None}
    assert keys <= set(declared), 'imported, but not in package.xml'
    messages = {'lifecycle_msgs'}  # what the lifecycle services that rclpy offers are made of
    assert set(declared) <= keys | messages, 'in package.xml, but imported nowhere'


def test_all_that_is_imported_is_named_for_pip(setup_arguments):
    extras = setup_arguments['extras_require']
    named = {re.split('[<>=~ ]', requirement)[0] for extra in ('pip', 'ros', 'demo', 'test')
             for requirement in extras[extra]}
    used = {name.partition('.')[0] for module in modules('', 'nodes', 'inference', 'data', 'evaluation')
            for name in imports(MODULES[module])} - set(sys.stdlib_module_names) - {'ee_seg_ros', 'torch'}
    without_wheel = {'vision_msgs', 'tf2_msgs', 'cv_bridge', 'diagnostic_updater'}
    by_others = {'rcl_interfaces'}  # comes with rclpy
    missing = {name for name in used - without_wheel - by_others
               if not {PIP.get(name, name), f"ros-{name.replace('_', '-')}"} & named}
    assert not missing


def test_nothing_but_setuptools_is_required_unconditionally(setup_arguments):
    """apt's OpenCV has no metadata that an entry point which checks its requirements would find."""
    assert setup_arguments['install_requires'] == ['setuptools']


@pytest.mark.parametrize('folder', ['launch', 'config', 'bundles'])
def test_every_file_of_the_shared_folders_is_installed(setup_arguments, folder):
    if not (ROOT / folder).is_dir():
        pytest.skip(f'no folder {folder} yet')
    installed = {f'{target}/{Path(file).name}': ROOT / file
                 for target, files in setup_arguments['data_files'] for file in files}
    files = [path for path in (ROOT / folder).rglob('*') if path.is_file() and '__pycache__' not in path.parts]
    assert files
    for path in files:
        assert installed.get(f'share/ee_seg_ros/{path.relative_to(ROOT).as_posix()}') == path


def test_ament_finds_the_package(setup_arguments):
    installed = dict(setup_arguments['data_files'])
    assert installed['share/ament_index/resource_index/packages'] == ['resource/ee_seg_ros']
    assert installed['share/ee_seg_ros'] == ['package.xml']
    assert (ROOT / 'resource/ee_seg_ros').is_file()


def test_all_modules_and_schemas_are_installed(setup_arguments):
    packages = {name for name in MODULES if (ROOT / name.replace('.', '/') / '__init__.py').is_file()}
    assert set(setup_arguments['packages']) == packages
    folders = {path.parent for path in PACKAGE.rglob('*.py')}
    assert all((folder / '__init__.py').is_file() for folder in folders), 'a folder without __init__.py'
    patterns = setup_arguments['package_data']['ee_seg_ros']
    installed = {path for pattern in patterns for path in PACKAGE.glob(pattern)}
    assert installed >= {*PACKAGE.rglob('*.json'), *PACKAGE.rglob('*.yaml')}


def executables(arguments):
    return dict(re.split(r'\s*=\s*', line) for line in arguments['entry_points']['console_scripts'])


def test_every_executable_exists(setup_arguments):
    scripts = executables(setup_arguments)
    assert set(scripts) >= {'onboard', 'offboard', 'ground', 'camera', 'recorder', 'ee_seg'}
    for target in scripts.values():
        module, function = target.split(':')
        assert function in {node.name for node in MODULES[module].body if isinstance(node, ast.FunctionDef)}, target


def calls(tree, name):
    """Calls of a function by its name: [(positional arguments, {keyword: value})]."""
    return [(node.args, {word.arg: word.value for word in node.keywords}) for node in ast.walk(tree)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name]


def declared_arguments(path):
    return {positional[0].value for positional, _ in calls(parse(path), 'DeclareLaunchArgument')}


@pytest.mark.parametrize('path', LAUNCH_FILES, ids=lambda path: path.name)
class TestLaunchFile:
    def test_arguments_are_declared_and_described(self, path):
        tree = parse(path)
        used = {positional[0].value for positional, _ in calls(tree, 'LaunchConfiguration')}
        assert used == declared_arguments(path)
        for positional, keywords in calls(tree, 'DeclareLaunchArgument'):
            assert 'default_value' in keywords and len(keywords['description'].value) > 10, positional[0].value

    def test_what_it_starts_exists(self, path, setup_arguments):
        tree = parse(path)
        nodes = calls(tree, 'Node')
        assert nodes
        assigned = [node.slice.value for node in ast.walk(tree) if isinstance(node, ast.Subscript)]
        for _, keywords in nodes:
            if keywords['package'].value == 'rviz2':
                continue
            assert keywords['package'].value == 'ee_seg_ros'
            assert keywords['executable'].value in executables(setup_arguments)
            table = getattr(parameters, keywords['executable'].value.upper())
            given = [key.value for dictionary in ast.walk(keywords['parameters']) if isinstance(dictionary, ast.Dict)
                     for key in dictionary.keys]
            assert {*given, *assigned} <= {parameter.name for parameter in table}
        for positional, _ in calls(tree, 'FindPackageShare'):
            assert positional[0].value == 'ee_seg_ros'

    def test_the_files_it_names_exist(self, path):
        for positional, _ in calls(parse(path), 'PathJoinSubstitution'):
            parts = [element.value for element in positional[0].elts if isinstance(element, ast.Constant)]
            assert ROOT.joinpath(*parts).is_file(), parts

    def test_what_it_includes_knows_the_arguments(self, path):
        for positional, keywords in calls(parse(path), 'IncludeLaunchDescription'):
            included = next(node.value for node in ast.walk(positional[0]) if isinstance(node, ast.Constant)
                            and str(node.value).endswith('.launch.py'))
            given = {key.value for key in keywords['launch_arguments'].func.value.keys}
            assert given <= declared_arguments(ROOT / 'launch' / included)


def test_there_are_launch_files():
    assert {path.name for path in LAUNCH_FILES} >= {
        'onboard.launch.py', 'offboard.launch.py', 'pair.launch.py', 'demo.launch.py', 'ground.launch.py'}


def test_rviz_shows_topics_that_the_nodes_have():
    document = yaml.safe_load((ROOT / 'config/ee_seg.rviz').read_text(encoding='utf-8'))
    displays = document['Visualization Manager']['Displays']
    shown = {display['Topic']['Value'] for display in displays if 'Topic' in display}
    texts = {node.value for module in modules('nodes') for node in ast.walk(MODULES[module])
             if isinstance(node, ast.Constant)}
    assert shown == {'/image', '/ee_seg/overlay', '/ee_seg/color', '/ee_seg/final_color', '/ground/grid'}
    for topic in shown - {'/image'}:
        _, node, name = topic.split('/')
        assert node in texts and f'~/{name}' in texts, topic


@pytest.mark.parametrize('name', ['onboard', 'offboard', 'ground'])
def test_parameter_files_give_the_defaults_of_known_parameters(name):
    document = yaml.safe_load((ROOT / 'config' / f'{name}.yaml').read_text(encoding='utf-8'))
    assert list(document) == ['/**'] and list(document['/**']) == ['ros__parameters']
    table = {parameter.name: parameter for parameter in getattr(parameters, name.upper())}
    for key, value in document['/**']['ros__parameters'].items():
        assert key in table, key
        assert (value, type(value)) == (table[key].default, type(table[key].default)), key
        table[key].check(value)


def test_the_nav2_example_has_topics_and_classes_that_exist():
    document = yaml.safe_load((ROOT / 'config' / 'nav2_semantic_costmap.yaml').read_text(encoding='utf-8'))
    costmap = document['local_costmap']['local_costmap']['ros__parameters']
    assert set(costmap['plugins']) <= set(costmap)
    layer = costmap['semantic_layer']
    classes = sorted(info.name for info in Bundle.load('street').classes)
    assert layer['observation_sources'].split() == ['onboard', 'final']
    for source, mask, confidence in (('onboard', 'mask', 'confidence'), ('final', 'final_mask', 'final_confidence')):
        given = layer[source]
        assert (given['segmentation_topic'], given['confidence_topic'], given['labels_topic']) == (
            f'/ee_seg/{mask}', f'/ee_seg/{confidence}', '/ee_seg/label_info')
        # A class in no list is an error of the layer's, one in two lists would have the costs of either.
        assert sorted(name for kind in given['class_types'] for name in given[kind]['classes']) == classes
        assert all(0 <= given[kind][cost] <= 254 for kind in given['class_types'] for cost in ('base_cost', 'max_cost'))


def test_continuous_integration_can_start():
    assert os.access(ROOT / '.ci/run', os.X_OK)


@pytest.mark.parametrize('module', [name for name in MODULES if not name.startswith('ee_seg_ros.nodes')])
def test_only_nodes_import_rclpy(module):
    assert 'rclpy' not in {name.partition('.')[0] for name in imports(MODULES[module])}


@pytest.mark.parametrize('module', modules('inference', 'nodes'))
def test_what_runs_on_a_robot_never_imports_torch(module):
    assert not {name.partition('.')[0] for name in imports(MODULES[module])} & {'torch', 'torchvision'}


@pytest.mark.parametrize('module', modules('', 'inference', 'nodes', 'data', 'evaluation'))
def test_torch_is_not_needed_to_start(module):
    """Nor through another module of the package: `make demo` installs no torch."""
    assert not loaded_by(module) & {'torch', 'torchvision'}


@pytest.mark.parametrize('module', modules('inference'))
def test_inference_needs_no_ros(module):
    assert 'rclpy' not in loaded_by(module)
