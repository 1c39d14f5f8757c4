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
"""The demo: camera, onboard, offboard and recorder as separate processes over DDS, then what they did, in figures."""
import os
import queue
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ee_seg_ros.data.sources import open_source
from ee_seg_ros.inference.bundle import Bundle
from ee_seg_ros.processes import ChildError, Children

START_S = 60.0     # for four Python processes and a model on a busy machine
DRAIN_S = 30.0     # from the end of the camera to the end of the recorder
SEED = 0


@dataclass(frozen=True)
class DemoOptions:
    """What to run; as on the command line. frames: at most so many. rate: Hz. out: an existing folder.

    distort: what the camera does to its images, `noise:20`; '': nothing.
    """

    source: str
    frames: int
    rate: float
    bundle: str
    criterion: str
    operating_point: str
    out: Path
    distort: str = ''


def check(options: DemoOptions) -> tuple:
    """(bundle, source, number of frames) of the options; ValueError or FileNotFoundError says what is wrong."""
    bundle = Bundle.load(options.bundle)
    bundle.thresholds(options.criterion, options.operating_point)
    if options.frames < 1:
        raise ValueError(f'frames is {options.frames}: expected 1 or more')
    if not 0.01 <= options.rate <= 1000:
        raise ValueError(f'rate is {options.rate}: expected 0.01 to 1000 Hz')
    source = open_source(options.source, SEED, options.distort)
    source.frame(0)
    return bundle, source, min(options.frames, source.count or options.frames)


def clear(out: Path) -> tuple:
    """(recording, logs): the folders of a run in `out`, without what an earlier run left there."""
    recording, logs = out / 'recording', out / 'logs'
    for folder, patterns in ((recording, ('*.jsonl', '*_[0-9]*.png')), (logs, ('*.log', '*.yaml')),
                             (out, ('summary.json', 'contact_sheet.png', 'drive.gif'))):
        folder.mkdir(parents=True, exist_ok=True)
        for pattern in patterns:
            for path in folder.glob(pattern):
                path.unlink()
    return recording, logs


def run_nodes(options: DemoOptions, bundle: Bundle, frames: int, report: Callable[[dict], None],
              say: Callable[[str], None]) -> tuple:
    """Run the four nodes over `frames` frames; returns (camera log, folder of the recording).

    report: called with the recorder's progress events. say: called with a line for people now and then. Raises
    ChildError if a node dies early or nothing comes; all nodes have ended when this returns or raises.
    """
    recording, logs = clear(options.out)
    domain = 101 + os.getpid() % 100
    camera_log = recording / 'camera.jsonl'
    model = {'bundle': str(bundle.path.resolve()), 'criterion': options.criterion,
             'operating_point': options.operating_point}
    say(f'starting the nodes (ROS_DOMAIN_ID={domain}, this machine only) ...')
    with Children(logs, domain) as children:
        recorder = children.start('recorder', {
            'out': str(recording), 'frames': frames, 'idle_s': max(5.0, 3 / options.rate),
            'offboard': bundle.split is not None}, listen=True)
        if bundle.split is not None:
            children.start('offboard', model)
        children.start('onboard', model)
        children.wait_for(recorder, 'ready', START_S)
        say(f'camera: {frames} frames of {options.source} at {options.rate:g} Hz ...')
        children.start('camera', {'source': _absolute(options.source), 'rate': float(options.rate), 'frames': frames,
                                  'seed': SEED, 'distort': options.distort, 'log': str(camera_log)})
        _listen(children, recorder, frames / options.rate + START_S + DRAIN_S, report)
    return camera_log, recording


def _absolute(source):
    return source if source == 'scenes' else str(Path(source).expanduser().resolve())


def _listen(children, recorder, seconds, report):
    """Pass on the recorder's progress until it is done."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            event = recorder.events.get(timeout=0.2)
        except queue.Empty:
            children.check('camera', 'recorder')
            if recorder.process.poll() is not None and recorder.events.empty():
                return    # what it wrote says the rest
            continue
        report(event)
        if event['event'] == 'done':
            return
    raise ChildError(f"the run took longer than {seconds:.0f} s; the end of the camera's log:\n"
                     + children.children['camera'].last_words())


def run(options: DemoOptions, say: Callable[[str], None], progress: Callable) -> tuple:
    """Run the demo; writes summary.json, contact_sheet.png and drive.gif. Returns (summary, list of failures).

    say: called with a line for people. progress: `report.progress`, or a context manager like it.
    Raises ValueError or FileNotFoundError for wrong options, ChildError where a node fails.
    """
    from ee_seg_ros.evaluation import contact_sheet, drive, recording
    from ee_seg_ros.evaluation.report import write_json
    bundle, source, count = check(options)
    with progress('final masks') as report:
        camera_log, folder = run_nodes(options, bundle, count,
                                       lambda event: report(event.get('final_masks', 0), count), say)
    frames = recording.load(camera_log, folder)
    with progress('measuring frames') as report:
        totals = recording.measure(frames, source, bundle, report)
    summary = {**recording.summarise(frames, bundle, totals), 'source': options.source, 'rate': options.rate,
               'bundle': bundle.name, 'bundle_fingerprint': bundle.fingerprint, 'criterion': options.criterion,
               'operating_point': options.operating_point, 'distort': options.distort}
    write_json(options.out / 'summary.json', summary)
    if any(frame.received('mask') for frame in frames):
        contact_sheet.write(options.out / 'contact_sheet.png', frames, source, bundle, summary)
        drive.write(options.out / 'drive.gif', frames, source, bundle, options.rate)
    return summary, recording.failures(frames)
