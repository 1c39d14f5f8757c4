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
"""The documents: links lead somewhere, commands and the workflow name what exists."""
import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob('*.md'), *ROOT.glob('docs/*.md')])
LINK = re.compile(r'\[[^\]]*\]\(([^)\s]+)\)')


def without_code(text):
    """A page without its code blocks and spans, in which brackets mean something else."""
    text = re.sub(r'^```.*?^```$', '', text, flags=re.MULTILINE | re.DOTALL)
    return re.sub(r'^(?: {4}|\t).*$|`[^`\n]*`', '', text, flags=re.MULTILINE)


def anchors(page):
    """The anchors that GitHub gives to the headings of a page."""
    titles = re.findall(r'^#+ (.+)$', page.read_text(encoding='utf-8'), re.MULTILINE)
    return {re.sub(r'[^\w\- ]', '', title.lower()).replace(' ', '-') for title in titles}


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for link in LINK.findall(without_code(page.read_text(encoding='utf-8'))):
        if re.match(r'[a-z]+:', link):
            continue
        path, _, anchor = link.partition('#')
        target = (page.parent / path).resolve() if path else page
        assert target.is_relative_to(ROOT) and target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_every_page_can_be_reached_from_the_readme():
    found, todo = set(), [ROOT / 'README.md']
    while todo:
        page = todo.pop()
        if page not in found and page.suffix == '.md' and page.is_file():
            found.add(page)
            todo += [(page.parent / link.partition('#')[0]).resolve()
                     for link in LINK.findall(without_code(page.read_text(encoding='utf-8')))]
    assert found >= set(PAGES)


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_launch_files_and_their_arguments_exist(page):
    for name, rest in re.findall(r'ros2 launch ee_seg_ros (\S+)([^\n`#]*)', page.read_text(encoding='utf-8')):
        launch_file = ROOT / 'launch' / name
        assert launch_file.is_file(), name
        declared = re.findall(r"DeclareLaunchArgument\(\s*'(\w+)'", launch_file.read_text(encoding='utf-8'))
        assert set(re.findall(r'(\w+):=', rest)) <= set(declared), name


def test_the_workflow_runs_every_distribution_that_is_promised():
    workflow = yaml.safe_load((ROOT / '.github/workflows/ros2.yaml').read_text(encoding='utf-8'))
    colcon = workflow['jobs']['colcon']
    assert colcon['strategy']['matrix']['distribution'] == ['humble', 'jazzy', 'kilted']
    steps = '\n'.join(step.get('run', '') for step in colcon['steps'])
    assert all(command in steps for command in ('rosdep install', 'colcon build', 'colcon test', 'colcon test-result'))
    assert any(step.get('run') == '.ci/run' for step in workflow['jobs']['pip']['steps'])
