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
"""Bundles: what is loaded, what is refused, and how it is said."""
import copy as copying
import json
import shutil

import numpy as np
import pytest

from ee_seg_ros.inference.bundle import OPERATING_POINTS, Bundle, BundleError, find_bundle
from ee_seg_ros.inference.criteria import CRITERIA
from ee_seg_ros.inference.engine import Engine


@pytest.fixture
def copy(bundle, tmp_path):
    folder = tmp_path / 'copy'
    shutil.copytree(bundle.path, folder)
    return folder


def edit(folder, change):
    document = json.loads((folder / 'bundle.json').read_text())
    change(document)
    (folder / 'bundle.json').write_text(json.dumps(document))


def test_shipped_bundle_has_what_the_nodes_need(bundle):
    assert len(bundle.classes) == 11
    assert bundle.onboard_exits and not bundle.exits[-1].onboard
    assert bundle.width % 16 == 0 and bundle.height % 16 == 0
    assert sum(file.stat().st_size for file in bundle.path.iterdir()) <= 40e6
    for name, criterion in CRITERIA.items():
        assert name in bundle.criteria
        for point in OPERATING_POINTS:
            assert len(bundle.thresholds(name, point)) == len(bundle.judged_exits)
        if criterion.score:
            assert bundle.document['criteria'][name]['direction'] == criterion.direction
            assert len(bundle.document['criteria'][name]['curve']) >= 10


def test_operating_points_cost_more_the_more_accurate_they_are(bundle):
    for name, entry in bundle.document['criteria'].items():
        costs = [entry['operating_points'][point]['mean_macs'] for point in OPERATING_POINTS]
        assert costs == sorted(costs), name


def test_fingerprint_ignores_thresholds_but_not_classes(bundle, copy):
    edit(copy, lambda document: document['provenance'].update(note='another'))
    edit(copy, lambda document: document['criteria']['entropy']['operating_points']['fast'].update(
        thresholds=[0.5] * len(bundle.judged_exits)))
    assert Bundle.load(copy).fingerprint == bundle.fingerprint
    edit(copy, lambda document: document['classes'][0].update(name='Ceiling'))
    assert Bundle.load(copy).fingerprint != bundle.fingerprint


def test_found_by_name_and_by_path(bundle, copy):
    assert find_bundle('street') == bundle.path
    assert find_bundle(str(copy)) == copy


@pytest.mark.parametrize('name', ['no_such_bundle', ''])
def test_missing_bundle_names_what_exists(name):
    with pytest.raises(BundleError, match='shipped'):
        find_bundle(name)


def test_folder_without_bundle(tmp_path):
    with pytest.raises(BundleError, match='without bundle.json'):
        Bundle.load(tmp_path)


@pytest.mark.parametrize('change, message', [
    (lambda d: d.update(format=2), 'newer than this version.*update ee_seg_ros'),
    (lambda d: d.pop('graphs'), "'graphs' is a required property"),
    (lambda d: d['input'].update(width='wide'), 'input/width'),
    (lambda d: d['stages'].append('stage9'), "names the graph 'stage9'"),
    (lambda d: d['classes'].pop(), 'puts out 11 classes, the bundle has 10'),
    (lambda d: d['graphs']['exit1'].update(file='../exit1.onnx'), 'graphs/exit1/file'),
    (lambda d: d['criteria']['entropy']['operating_points']['fast'].update(thresholds=[1.0]),
     'one per exit but the last'),
])
def test_invalid_documents_are_explained(copy, change, message):
    edit(copy, change)
    with pytest.raises(BundleError, match=message):
        Bundle.load(copy)


def test_document_that_is_no_json(copy):
    (copy / 'bundle.json').write_text('{"format": 1,')
    with pytest.raises(BundleError, match='cannot be read'):
        Bundle.load(copy)


def test_damaged_graph_is_named(bundle, copy):
    path = copy / bundle.graphs[bundle.stages[0]]['file']
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(BundleError, match=f'{path.name} is damaged'):
        Engine(Bundle.load(copy), part='onboard')


def test_missing_graph_matters_only_to_who_needs_it(bundle, copy):
    path = copy / bundle.graphs[bundle.stages[-1]]['file']
    path.unlink()
    Engine(Bundle.load(copy), part='onboard')
    with pytest.raises(BundleError, match=f'{path.name} cannot be read'):
        Engine(Bundle.load(copy), part='offboard')


def test_unknown_names_list_the_known_ones(bundle):
    with pytest.raises(BundleError, match='choose one of entropy'):
        bundle.thresholds('entropi', 'fast')
    with pytest.raises(BundleError, match='choose one of fast'):
        bundle.thresholds('entropy', 'faster')


def test_exits_lie_on_the_side_of_the_split_that_their_stage_is_on(tiny):
    assert [exit_.name for exit_ in tiny.onboard_exits] == ['exit1', 'exit2']
    assert [exit_.name for exit_ in tiny.offboard_exits] == ['exit3', 'exit4', 'final']
    assert len(tiny.thresholds('entropy', 'fast')) == len(tiny.judged_exits) == 4
    assert tiny.path_to('exit2') == ('stage1', 'stage2', 'exit2')
    assert tiny.path_to('exit3') == ('stage1', 'stage2', 'encode', 'decode', 'stage3', 'exit3')
    with pytest.raises(BundleError, match="no exit 'exit9': choose one of exit1, exit2"):
        tiny.path_to('exit9')


def test_without_a_split_all_exits_are_onboard(unsplit):
    assert len(unsplit.onboard_exits) == 5 and not unsplit.offboard_exits and not unsplit.feature_tensors
    assert unsplit.path_to('final') == ('stage1', 'stage2', 'stage3', 'stage4', 'stage5', 'final')


def test_a_single_exit_needs_no_thresholds(single):
    assert not single.judged_exits and single.criteria == ('always', 'never')
    assert single.thresholds('region_change', 'balanced') == ()    # what the nodes ask for if nobody says otherwise


def test_what_single_pixels_need_is_read_as_arrays(windowed, tiny):
    assert windowed.cells == (6, 8) and windowed.forwards_cells
    assert windowed.worth('class_threshold') == (0.05, 0.1)
    assert windowed.worth('uniform') == (0, 0) and windowed.send_worth == 0
    np.testing.assert_allclose(windowed.limits['class_threshold'], [0.5, 0.6, 0.7])
    np.testing.assert_allclose(windowed.send_limits, [0.95] * 3)
    assert windowed.class_means['code'].shape == (3, 4) and windowed.class_means['code'].dtype == np.uint8
    assert {'class_threshold', 'uniform'} < set(windowed.criteria) and 'uniform' not in tiny.criteria
    assert len(windowed.thresholds('uniform', 'fast')) == 4


@pytest.mark.parametrize('key', ['cells', 'pixels', 'class_means'])
def test_cells_stay_behind_only_where_all_that_needs_is_known(windowed, key):
    document = copying.deepcopy(windowed.document)
    del (document['codec'] if key == 'class_means' else document)[key]
    assert not Bundle(windowed.path, document).forwards_cells


@pytest.mark.parametrize('change, message', [
    (lambda d: d['cells'].update(rows=9), 'the map features1 of 8x6 is no multiple of the 8x9 cells'),
    (lambda d: d['cells'].update(columns=5), 'is no multiple of the 5x6 cells'),
    (lambda d: d['cells'].update(rows=2), 'is no multiple of the 8x2 cells'),    # 3 and 1 values per cell
    (lambda d: d['cells'].update(rows=0), 'cells/rows'),
    (lambda d: d['cells'].pop('rows'), "'rows' is a required property"),
    (lambda d: d['cells'].update(halo=1.5), 'cells/halo'),
    (lambda d: d['pixels']['limits'].update(uniform=[0.9]), 'an entry for each of the 3 classes'),
    (lambda d: d['pixels']['limits'].pop('uniform'), "'uniform' is a required property"),
    (lambda d: d['pixels'].update(send=[0.9] * 4), 'an entry for each of the 3 classes'),
    (lambda d: d.pop('pixels'), 'thresholds of the criterion class_threshold, but not the `pixels` that it needs'),
    (lambda d: d['pixels'].pop('send'), "'send' is a required property"),
    (lambda d: d['pixels'].update(send_worth=1.5), 'pixels/send_worth'),
    (lambda d: d['pixels'].update(weights=[1, 2]), 'an entry for each of the 3 classes'),
    (lambda d: d['pixels'].update(weights=[1, 2, -1]), 'pixels/weights/2'),
    (lambda d: d['pixels'].update(exits=['exit1']), 'the exits exit1, expected some of .*, the last one onboard'),
    (lambda d: d['pixels'].update(exits=['exit2', 'final']), 'looks at the exits exit2, final, expected some of'),
    (lambda d: d['pixels']['worth'].update(uniform=[0.1]), 'pixels/worth/uniform'),
    (lambda d: d['pixels']['worth'].update(uniform=[0.1, -0.1]), 'pixels/worth/uniform/1'),
    (lambda d: d['pixels'].update(worth=0.1), 'pixels/worth'),
    (lambda d: d['codec']['class_means']['code'].pop(), 'an entry for each of the 3 classes'),
    (lambda d: d['codec']['class_means']['code'][1].pop(), '`class_means` of code have not as many channels'),
    (lambda d: d['codec']['class_means'].update(restored=[[1] * 4] * 3), '`class_means` of restored have not as many'),
    (lambda d: d['codec']['class_means']['code'][0].__setitem__(0, 256), 'codec/class_means/code/0/0'),
    (lambda d: d['graphs']['encode']['outputs'].append('features1'), '`class_means` of features1 have not as many'),
    (lambda d: d['tensors']['code'].update(shape=[1, 4, 3, 8]), 'the map code of 8x3 is no multiple of the 8x6 cells'),
])
def test_cells_and_pixels_that_do_not_fit_are_explained(windowed, tmp_path, change, message):
    folder = tmp_path / 'copy'
    shutil.copytree(windowed.path, folder)
    edit(folder, change)
    with pytest.raises(BundleError, match=message):
        Bundle.load(folder)


@pytest.mark.parametrize('change, message', [
    (lambda d: d['exits'].reverse(), 'in the order of their stages'),
    (lambda d: d['exits'].pop(), 'the last one behind the last stage'),
    (lambda d: d['split'].update(after='stage5'), 'an exit on either side'),
    (lambda d: d['split'].update(after='stage9'), "the stage 'stage9'"),
    (lambda d: d.update(exits=d['exits'][2:]), 'an exit on either side'),
    (lambda d: d.update(codec=None), 'no codec'),
    (lambda d: d.update(split=None), "graph stage3 needs the tensor 'restored'"),
    (lambda d: d['graphs']['final'].update(inputs=['features1']), "graph final needs the tensor 'features1'"),
])
def test_a_split_that_does_not_fit_is_explained(tiny, tmp_path, change, message):
    folder = tmp_path / 'copy'
    shutil.copytree(tiny.path, folder)
    edit(folder, change)
    with pytest.raises(BundleError, match=message):
        Bundle.load(folder)
