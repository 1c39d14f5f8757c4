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
"""`ee_seg bench distortions`: claims by hand, and the whole command on tiny bundles and drawn scenes."""
import json

import numpy as np
import pytest
from tiny import CLASSES, tiny_bundle
from tiny_detector import add_detector

from ee_seg_ros.data import datasets
from ee_seg_ros.data.distortions import DISTORTIONS
from ee_seg_ros.data.scenes import StreetDrive
from ee_seg_ros.evaluation import bench_distortions as bench
from ee_seg_ros.evaluation import report
from ee_seg_ros.evaluation.bench_distortions import (
    DETECTOR,
    ORACLE,
    PRISTINE,
    Outcome,
    Runner,
    broken,
    claims_of,
    look,
    outage,
    recalls,
    recovered,
    settings,
)
from ee_seg_ros.inference.bundle import Bundle
from ee_seg_ros.inference.detector import Detection
from ee_seg_ros.inference.engine import Engine

CLAIMS = {'blur_recovered_share', 'noise_recovered_share', 'clean_loss_pp', 'oracle_gain_kept_share', 'clean_recall',
          'blur_recall', 'noise_recall', 'detector_ms', 'broken_promises_before', 'broken_promises_after',
          'onboard_share_before', 'onboard_share_after'}


def outcome(right, settled=True):
    """Of an image with 100 pixels of one class, `right` of which are told: mIoU is right / 100."""
    matrix = np.array([[right, 100 - right, 0], [0, 0, 0]])
    return Outcome(settled, not settled, matrix, matrix, ('', 'exit1' if settled else 'final'), 10.0 + right,
                   0 if settled else 100 * right)


def rows(**mious):
    """Rows with the onboard mIoU of (pristine, oracle, detector) by `name_level`."""
    return [{'distortion': key.split('_')[0], 'level': int(key.split('_')[1]), 'heads': heads, 'onboard_miou': miou}
            for key, three in mious.items() for heads, miou in zip((PRISTINE, ORACLE, DETECTOR), three)]


def test_what_is_won_back_by_hand():
    table = rows(clean_0=(0.6, 0.6, 0.59), blur_1=(0.56, 0.1, 0.1), blur_2=(0.5, 0.56, 0.55), blur_3=(0.4, 0.5, 0.5))
    found = recovered(table, ['blur'])
    assert found['levels'] == 2 and found['lost_pp'] == pytest.approx(15)    # the first level costs less than 5 pp
    assert found[ORACLE] == pytest.approx(8 / 15) and found[DETECTOR] == pytest.approx(7.5 / 15)
    assert recovered(table, ['noise']) == {}


def test_claims_by_hand():
    table = rows(clean_0=(0.6, 0.6, 0.59), blur_2=(0.5, 0.56, 0.55), noise_20=(0.4, 0.5, 0.5))
    seen = [{'distortion': name, 'recall': recall} for name, recall in (
        ('clean', 1.0), ('blur', 0.5), ('blur', 0.9), ('blur', 1.0), ('noise', 0.0), ('noise', 1.0))]
    pooled = {PRISTINE: [outcome(20), outcome(60), outcome(10, settled=False)], ORACLE: [outcome(90)],
              DETECTOR: [outcome(40), outcome(70), outcome(60)]}
    claims = claims_of(table, seen, pooled, 0.5, 0.8)
    assert set(claims) == CLAIMS
    assert claims['blur_recovered_share'] == pytest.approx(0.5)
    assert claims['noise_recovered_share'] == pytest.approx(0.5)
    assert claims['clean_loss_pp'] == pytest.approx(1) and claims['detector_ms'] == 0.8
    assert claims['oracle_gain_kept_share'] == pytest.approx((0.525 - 0.45) / (0.53 - 0.45))
    # Of blur and noise the mildest level does not count.
    assert (claims['clean_recall'], claims['blur_recall'], claims['noise_recall']) == (1, pytest.approx(0.95), 1)
    assert claims['broken_promises_before'] == 0.5 and claims['broken_promises_after'] == pytest.approx(1 / 3)
    assert claims['onboard_share_before'] == pytest.approx(2 / 3) and claims['onboard_share_after'] == 1


def test_what_was_not_measured_is_absent():
    table = [row for row in rows(clean_0=(0.6, 0.6, 0.59), blur_2=(0.58, 0.6, 0.6)) if row['heads'] != DETECTOR]
    claims = claims_of(table, [], {PRISTINE: [outcome(20)], ORACLE: [outcome(90)]}, None, None)
    assert claims == {'onboard_share_before': 1}


def test_promises_and_outages_by_hand():
    frames = [outcome(40), outcome(60, settled=False), *[outcome(80)] * (bench.BATCH - 2),    # a mean above 50
              outcome(30), outcome(60), outcome(90, settled=False)]                           # one below
    assert sum(broken(frames, 0.5)) == 2 and len(list(broken(frames, 0.5))) == len(frames) - 2
    assert outage(frames, 0.5) == 0.5
    assert outage([outcome(40, settled=False)], 0.5) is None and outage(frames, None) is None
    assert list(broken(frames, None)) == []


def test_missed_deadlines_by_hand():
    frames = [outcome(80), outcome(90), outcome(20, settled=False), outcome(90, settled=False)]
    times = bench.fastest(frames)
    assert times == {('', 'exit1'): 90, ('', 'final'): 30}    # the fastest of each way
    # On the link: 20 ms, and 2000 or 9000 bytes at a megabit per second.
    assert bench.missed(frames, times, 0.0) == 0.25
    assert bench.missed(frames, times, 11.0) == 0.75


def test_recalls_by_hand():
    found = [Detection(family, level, dict.fromkeys(('clean', 'blur', 'noise'), 0), 1.0)
             for family, level in (('blur', 0.2), ('blur', 0.4), ('clean', 0.0), ('noise', 0.2))]
    assert recalls({('motion', 5): found}) == [{
        'distortion': 'motion', 'level': 5, 'family': 'blur', 'recall': 0.5, 'level_found': pytest.approx(0.2),
        'clean': 0.25, 'blur': 0.5, 'noise': 0.25}]


def test_settings_are_all_levels():
    assert settings()[0] == ('clean', 0) and len(settings()) == 1 + sum(len(d.levels) for d in DISTORTIONS.values())
    assert ('noise', 40) in settings() and settings(['fog']) == [('clean', 0), *(
        ('fog', level) for level in DISTORTIONS['fog'].levels)]


class Drawn:
    """Drawn street scenes in the classes of the tiny bundles."""

    class_names = tuple(f'class{number}' for number in range(CLASSES))

    def __init__(self, root, split):
        self._drive = StreetDrive(5)

    def __len__(self):
        return 2

    def __getitem__(self, index):
        scene = self._drive.frame(40 * index)
        return scene.image, np.minimum(scene.labels, CLASSES - 1)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A tiny bundle with two experts and a detector that knows smooth from rough."""
    folder = tiny_bundle(tmp_path_factory.mktemp('bundles') / 'tiny',
                         experts={'blur': ('exit1', 'exit2'), 'noise': ('exit1',)})
    document = json.loads((folder / 'bundle.json').read_text())
    for point in document['criteria']['entropy']['operating_points'].values():
        point['promise'] = 0.1
    (folder / 'bundle.json').write_text(json.dumps(document))
    return add_detector(folder)


@pytest.mark.parametrize('setting, oracle, detector', [
    (('clean', 0), '', ''), (('blur', 5), 'blur', 'blur'), (('noise', 40), 'noise', 'noise'),
    (('rain', 50), '', None)])    # there is no expert for weather
def test_each_choice_of_heads_runs_its_expert_once(folder, setting, oracle, detector):
    from ee_seg_ros.inference.detector import Detector
    bundle, ran, seen = Bundle.load(folder), [], []

    class Noting(Runner):
        def run(self, image, labels, expert, strength=None):
            ran.append(expert)
            seen.append(strength)
            return super().run(image, labels, expert, strength)
    runner = Noting(Engine(bundle, threads=1), 'entropy', 'fast')
    scene = StreetDrive(5).frame(3)
    outcomes, detections = look(runner, Detector(bundle), bundle.experts,
                                [(scene.image, np.minimum(scene.labels, CLASSES - 1))], setting, lambda: None)
    assert set(outcomes) == {PRISTINE, ORACLE, DETECTOR} and len(detections) == 1
    assert set(seen) == {detections[0].level}
    assert ran[0] == '' and len(ran) == len(set(ran)) and oracle in ran
    if detector is not None:
        assert set(ran) == {'', oracle, detector}
        assert outcomes[DETECTOR][0] is outcomes[ORACLE][0]
    assert (outcomes[ORACLE][0] is outcomes[PRISTINE][0]) == (oracle == '')


def test_the_whole_command(folder, tmp_path, monkeypatch):
    pytest.importorskip('typer', reason='typer is not installed (extra `demo`)')
    pytest.importorskip('matplotlib', reason='matplotlib is not installed (extra `demo`)')
    from ee_seg_ros.cli import main
    monkeypatch.setitem(datasets.FOLDERS, 'camvid', Drawn)
    # Few settings are as good as all.
    monkeypatch.setattr(bench, 'settings', lambda: [('clean', 0), ('blur', 1), ('blur', 5), ('noise', 5),
                                                    ('noise', 40), ('fog', 40)])
    with pytest.raises(SystemExit) as ended:
        main(['bench', 'distortions', '--bundle', str(folder), '--criterion', 'entropy', '--operating-point', 'fast',
              '--root', str(tmp_path), '--split', '0', '--limit', '2', '--out', str(tmp_path / 'out')])
    assert ended.value.code in (0, None)
    found = json.loads((tmp_path / 'out/distortions.json').read_text())
    assert len(found['rows']) == 6 * 3 and found['images'] == 2 and found['promise'] == 0.1
    assert set(found['claims']) <= CLAIMS
    assert {'clean_recall', 'blur_recall', 'noise_recall', 'detector_ms', 'clean_loss_pp', 'onboard_share_before',
            'onboard_share_after'} <= set(found['claims'])
    assert found['claims']['blur_recall'] == 1 and found['claims']['noise_recall'] == 1
    assert set(found['mildest_recall']) == {'blur', 'noise'}
    for row in found['rows']:
        assert row['onboard_share'] + row['forwarded_share'] <= 1 + 1e-9
        assert (row['bytes'] or 0) >= 0 and 0 <= row['missed_deadlines'] <= 1
    assert (tmp_path / 'out/distortions.png').stat().st_size > 10_000
    assert len(report.distortion_tables(found)) == 3


def test_a_bundle_without_detector_and_experts(tmp_path, monkeypatch):
    monkeypatch.setitem(datasets.FOLDERS, 'camvid', Drawn)
    monkeypatch.setattr(bench, 'settings', lambda: [('clean', 0), ('noise', 40)])
    found = bench.measure(str(tiny_bundle(tmp_path / 'tiny')), 'camvid', str(tmp_path), '0', 'entropy', 'fast', 1, 1)
    assert {row['heads'] for row in found['rows']} == {PRISTINE, ORACLE} and found['detector'] == []
    assert set(found['claims']) == {'onboard_share_before'} and found['promise'] is None
    assert len(report.distortion_tables(found)) == 2
    json.dumps(found, allow_nan=False)


def test_a_wrong_operating_point_is_told_first(folder):
    with pytest.raises(ValueError, match='no operating point'):
        bench.measure(str(folder), 'camvid', 'nowhere', '0', 'entropy', 'slow')
