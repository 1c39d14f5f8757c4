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
"""The linters of ROS 2, where a distribution (or PYTHONPATH) has them; `make lint` checks nearly the same without."""
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# Not what colcon and make put beside the sources.
SOURCES = ['ee_seg_ros', 'launch', 'test', 'setup.py']
# The manner of the house: docstrings begin on the first line and say what something is; see pyproject.toml.
OURS = ['D213', 'D400', 'D401', 'D402', 'D403']


@pytest.fixture(autouse=True)
def in_the_source_tree(monkeypatch):
    monkeypatch.chdir(ROOT)


def linter(name):
    """The function `main` of a linter; skips where it is not installed."""
    return pytest.importorskip(f'{name}.main', reason=f'needs {name}, of a ROS 2 distribution').main


def test_flake8():
    assert linter('ament_flake8')(['--config', 'setup.cfg', *SOURCES]) == 0


def test_pep257():
    assert linter('ament_pep257')(['--add-ignore', *OURS, '--', *SOURCES]) == 0


def test_copyright():
    assert linter('ament_copyright')([*SOURCES, 'LICENSE', 'CONTRIBUTING.md']) == 0


def test_xmllint():
    """Against the schema that package.xml names, so it needs the network."""
    main = linter('ament_xmllint')
    if main(['package.xml']) == 0:
        return
    from urllib.error import URLError
    from urllib.request import urlopen
    try:
        urlopen('http://download.ros.org/schema/package_format3.xsd', timeout=5)
    except (URLError, OSError) as error:
        pytest.skip(f'the schema of package.xml cannot be reached: {error}')
    pytest.fail('package.xml does not follow its schema')
