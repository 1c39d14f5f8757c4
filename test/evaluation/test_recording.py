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
"""What a run left on disk, summed up; the run is written by hand."""
import json

import cv2
import numpy as np
import pytest
from tiny import tiny_bundle

from ee_seg_ros.data.sources import SourceFrame
from ee_seg_ros.evaluation import contact_sheet, recording
from ee_seg_ros.evaluation.report import demo_table
from ee_seg_ros.inference.bundle import Bundle

MS = 1_000_000
LAST = Bundle.load('street').onboard_exits[-1].name


class TwoHalves:
    """A source whose images have class 0 left and class 3 right."""

    name, count = 'halves', None

    def __init__(self, labelled=True):
        self._labelled = labelled

    def frame(self, index):
        labels = np.zeros((60, 80), np.uint8)
        labels[:, 40:] = 3
        image = np.random.default_rng(index).integers(0, 255, (60, 80, 3), dtype=np.uint8)
        return SourceFrame(image, labels if self._labelled else None, f'frame{index}')


def write_run(folder, kinds_of, forwarded=(), settled_at='exit1'):
    """A recording: kinds_of[i] says which masks frame i got; onboard masks are all class 0, refined ones are right."""
    records, published = [], []
    right = np.zeros((60, 80), np.uint8)
    right[:, 40:] = 3
    for index, kinds in enumerate(kinds_of):
        stamp = 1_000 * MS * (index + 1)
        published.append({'index': index, 'name': f'frame{index}', 'stamp': stamp})
        if not kinds:
            continue
        sent = index in forwarded
        records.append({
            'stamp': stamp, 'frame_id': 'camera',
            'mask_at': stamp + 20 * MS if 'mask' in kinds else None,
            'final_at': stamp + 90 * MS if 'final' in kinds else None,
            'refined_at': stamp + 80 * MS if 'refined' in kinds else None,
            'trace': {'exit': LAST if sent else settled_at, 'settled': str(not sent).lower(), 'criterion': 'entropy',
                      'forwarded': str(sent).lower(), 'feature_bytes': '1000' if sent else '0', 'score': '0.1',
                      'threshold': '0.2', 'final_source': 'refined' if 'refined' in kinds else 'onboard',
                      'mask_ms': '15.5'}})
        for kind in kinds:
            mask = right if kind == 'refined' or (kind == 'final' and 'refined' in kinds) else np.zeros_like(right)
            cv2.imwrite(str(folder / f'{kind}_{stamp}.png'), mask)
    (folder / 'frames.jsonl').write_text(''.join(json.dumps(record) + '\n' for record in records))
    (folder / 'camera.jsonl').write_text(''.join(json.dumps(entry) + '\n' for entry in published))
    return recording.load(folder / 'camera.jsonl', folder)


BOTH, ALL = ('mask', 'final'), ('mask', 'final', 'refined')


@pytest.fixture(scope='module')
def bundle():
    return Bundle.load('street')


def test_a_whole_run(tmp_path, bundle):
    frames = write_run(tmp_path, [BOTH, ALL, ALL, BOTH], forwarded=(1, 2))
    totals = recording.measure(frames, TwoHalves(), bundle)
    summary = recording.summarise(frames, bundle, totals)
    assert recording.failures(frames) == []
    assert (summary['frames'], summary['dropped'], summary['masks'], summary['final_masks'],
            summary['refined_masks']) == (4, 0, 4, 4, 2)
    assert summary['exit_shares'] == [0.5] + [0] * (len(bundle.onboard_exits) - 1) + [0.5]
    assert summary['forwarded_share'] == 0.5
    assert summary['final_sources'] == {'onboard': 0.5, 'refined': 0.5}
    assert summary['mask_ms'] == {'p50': 20, 'p95': 20} and summary['refined_ms'] == {'p50': 80, 'p95': 80}
    assert summary['onboard_mask_ms']['p50'] == 15.5
    assert summary['bytes_per_forwarded_frame'] == 1000
    # Class 0 half right in every onboard mask, class 3 never; the refined masks are right; half of the finals are.
    assert summary['miou']['mask'] == pytest.approx((0.5 + 0) / 2)
    assert summary['miou']['refined'] == 1
    assert summary['miou']['final'] == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert summary['jpeg_bytes'] > summary['webp_bytes'] > 0
    assert summary['image_codecs'] == {'quality': 75, 'subsampling': '4:2:0', 'frames': 'forwarded'}
    json.dumps(summary, allow_nan=False)


def test_without_a_split_frames_end_at_the_last_exit(tmp_path):
    """There nothing is forwarded, and the last exit is not judged."""
    unsplit = Bundle.load(tiny_bundle(tmp_path / 'unsplit', split=None))
    frames = write_run(tmp_path, [BOTH] * 4, settled_at='final')
    frames[0].record['trace'].update(exit='exit2')
    for frame in frames[1:]:
        frame.record['trace'].update(settled='false')
    summary = recording.summarise(frames, unsplit, {})
    assert summary['exit_names'] == [exit_.name for exit_ in unsplit.exits] + ['not settled']
    assert summary['exit_shares'] == [0, 0.25, 0, 0, 0.75, 0] and summary['forwarded_share'] == 0


def test_what_was_not_measured_is_absent(tmp_path, bundle):
    frames = write_run(tmp_path, [BOTH, BOTH])
    summary = recording.summarise(frames, bundle, recording.measure(frames, TwoHalves(labelled=False), bundle))
    assert not {'miou', 'refined_ms', 'bytes_per_forwarded_frame'} & set(summary)
    assert summary['image_codecs']['frames'] == 'all'
    assert not {'exit_shares', 'mask_ms'} & set(recording.summarise([], bundle, {}))


@pytest.mark.parametrize('kinds, says', [
    ([BOTH] * 19 + [('mask',)], '1 of 20 frames taken got no final mask, the first is frame19'),
    ([('final',)] + [BOTH] * 19, '1 of 20 frames taken got no mask, the first is frame0'),
    ([BOTH] * 18 + [()] * 2, '2 of 20 frames were dropped, more than 5%'),
    ([], 'published no frame'),
])
def test_failed_runs_say_why(tmp_path, kinds, says):
    failures = recording.failures(write_run(tmp_path, kinds))
    assert len(failures) == 1 and says in failures[0]


def test_five_percent_may_be_dropped(tmp_path):
    assert recording.failures(write_run(tmp_path, [BOTH] * 19 + [()])) == []


def test_rows_of_the_sheet_are_telling_and_in_order(tmp_path, bundle):
    frames = write_run(tmp_path, [BOTH, BOTH, ALL, BOTH, (), BOTH, BOTH, ALL, BOTH, BOTH], forwarded=(2, 7))
    recording.measure(frames, TwoHalves(), bundle)
    rows = contact_sheet.pick_rows(frames, 6)
    indices = [frame.index for frame, _ in rows]
    assert len(rows) == 6 and indices == sorted(set(indices)) and 4 not in indices
    remarks = {remark: frame for frame, remark in rows if remark}
    assert remarks['settled early'].flag('settled')
    assert remarks['refinement gained most'].index in (2, 7)
    assert [frame.index for frame, _ in contact_sheet.pick_rows(frames[:2], 6)] == [0, 1]


@pytest.mark.parametrize('split, onboard', [(None, 5), ('stage4', 4), ('stage2', 2)])
def test_every_exit_has_a_colour_of_its_own(tmp_path, split, onboard):
    tiny = Bundle.load(tiny_bundle(tmp_path / 'tiny', split=split))
    frames = write_run(tmp_path, [BOTH] * 6 + [()])
    for frame, exit_ in zip(frames, tiny.onboard_exits):
        frame.record['trace'].update(exit=exit_.name, settled=str(exit_ != tiny.exits[-1]).lower())
    frames[5].record['trace'].update(exit=tiny.judged_exits[0].name, settled='false')
    colors = [contact_sheet.frame_color(frame, tiny) for frame in frames]
    assert len(set(colors[:onboard] + colors[5:])) == onboard + 2
    assert colors[5:] == [contact_sheet.UNSETTLED, contact_sheet.LOST]


def test_the_sheet_of_a_bundle_without_a_split(tmp_path):
    pytest.importorskip('matplotlib', reason='matplotlib is not installed')
    unsplit = Bundle.load(tiny_bundle(tmp_path / 'unsplit', split=None))
    frames = write_run(tmp_path, [BOTH] * 3, settled_at='final')
    for frame in frames:
        frame.record['trace'].update(settled='false')
    summary = {**recording.summarise(frames, unsplit, {}), 'source': 'halves', 'rate': 10.0, 'bundle': 'unsplit',
               'criterion': 'entropy', 'operating_point': 'balanced'}
    contact_sheet.write(tmp_path / 'sheet.png', frames, TwoHalves(False), unsplit, summary)
    sheet = cv2.cvtColor(cv2.imread(str(tmp_path / 'sheet.png')), cv2.COLOR_BGR2RGB)
    strip = sheet[150:230]    # legend of the exits, and the bar of each frame
    final, unsettled = ((strip == color).all(-1).any() for color in (contact_sheet.EXIT_COLORS[4],
                                                                     contact_sheet.UNSETTLED))
    assert final and not unsettled


@pytest.mark.parametrize('labelled', [True, False])
def test_the_sheet_is_drawn(tmp_path, bundle, labelled):
    pytest.importorskip('matplotlib', reason='matplotlib is not installed')
    frames = write_run(tmp_path, [BOTH, ALL, (), ('mask',)], forwarded=(1,))
    totals = recording.measure(frames, TwoHalves(labelled), bundle)
    summary = {**recording.summarise(frames, bundle, totals), 'source': 'halves', 'rate': 10.0, 'bundle': 'street',
               'criterion': 'entropy', 'operating_point': 'balanced'}
    contact_sheet.write(tmp_path / 'sheet.png', frames, TwoHalves(labelled), bundle, summary)
    sheet = cv2.cvtColor(cv2.imread(str(tmp_path / 'sheet.png')), cv2.COLOR_BGR2RGB)
    assert sheet.shape[1] == contact_sheet.WIDTH and sheet.shape[0] > 800
    # The legend shows every class in its own colour.
    for info in bundle.classes:
        assert (sheet[-120:] == info.color).all(-1).sum() > 100, info.name


def test_experts_in_use_are_counted_and_named(tmp_path, bundle):
    frames = write_run(tmp_path, [BOTH] * 4)
    assert 'experts' not in recording.summarise(frames, bundle, {})
    for frame, expert in zip(frames, ('', 'noise', 'noise', 'blur')):
        frame.record['trace']['expert'] = expert
    summary = recording.summarise(frames, bundle, {})
    assert summary['experts'] == {'': 0.25, 'blur': 0.25, 'noise': 0.5}
    picture = TwoHalves().frame(1)
    caption = contact_sheet._cells(frames[1], '', picture, bundle, 160, 120, False)[1][1]
    assert any('expert noise' in text for text, *_ in caption)
    summary |= {'source': 'scenes', 'rate': 5.0, 'bundle': 'b', 'criterion': 'c', 'operating_point': 'p'}
    table = demo_table({**summary, 'distort': 'noise:20'})
    assert 'noise:20' in table.title and any('expert noise' in cell for cell in table.columns[0].cells)
    assert 'noise:20' not in demo_table({**summary, 'distort': ''}).title
