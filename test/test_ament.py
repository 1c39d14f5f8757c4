# Copyright 2026 The ee_seg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The linters of ROS 2, where a distribution (or PYTHONPATH) has them; `make lint` checks nearly the same without."""
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parents[1]
# Not what colcon and make put beside the sources.
SOURCES = ['ee_seg_ros', 'launch', 'test', 'setup.py']
# The manner of the house: docstrings begin on the first line and say what something is; see pyproject.toml.
OURS = ['D213', 'D400', 'D401', 'D402', 'D403']
SHORT = SimpleNamespace(name='Apache License, Version 2.0, by its SPDX identifier', spdx='Apache-2.0',
                        file_headers=['{copyright}\nSPDX-License-Identifier: Apache-2.0'], license_files=[],
                        contributing_files=[])


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


def test_copyright(monkeypatch):
    """ament_copyright takes further licences; the two-line form is one that it does not know by itself."""
    main, parser = linter('ament_copyright'), pytest.importorskip('ament_copyright.parser')
    known = parser.get_licenses
    monkeypatch.setattr(parser, 'get_licenses', lambda: {**known(), 'apache2_spdx': SHORT})
    assert main([*SOURCES, 'LICENSE', 'CONTRIBUTING.md']) == 0


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
