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
"""What a run of the nodes left on disk (camera log, recorder's folder), joined per frame and summed up."""
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from ee_seg_ros.evaluation import codecs
from ee_seg_ros.evaluation.metrics import confusion, mean_iou, percentiles
from ee_seg_ros.inference.bundle import Bundle
from ee_seg_ros.inference.frame import fit

KINDS = ('mask', 'refined', 'final')
MOST_DROPPED = 0.05    # a run that loses more of its frames has failed


@dataclass
class Frame:
    """One published frame: its place in the source, its stamp in ns, and what the recorder has of it.

    record: the recorder's line (times of receipt in ns, trace), empty if nothing came. miou: by kind of mask, 0..1,
    where the frame has labels. image_bytes: as `codecs.image_bytes`.
    """

    index: int
    name: str
    stamp: int
    record: dict
    folder: Path
    miou: dict = field(default_factory=dict)
    image_bytes: dict = field(default_factory=dict)

    def received(self, kind: str) -> bool:
        """Whether the mask of that kind ('mask', 'refined', 'final') came."""
        return self.record.get(f'{kind}_at') is not None

    def delay_ms(self, kind: str) -> float:
        """Milliseconds from the camera's stamp to the receipt of the mask of that kind."""
        return (self.record[f'{kind}_at'] - self.stamp) / 1e6

    def mask(self, kind: str) -> np.ndarray | None:
        """The mask of that kind, uint8 (H, W) class ids; None where there is none on disk."""
        path = self.folder / f'{kind}_{self.stamp}.png'
        return cv2.imread(str(path), cv2.IMREAD_UNCHANGED) if path.is_file() else None

    @property
    def taken(self) -> bool:
        """Whether the onboard node took it: anything of it came."""
        return any(self.received(kind) for kind in KINDS) or bool(self.trace())

    def trace(self) -> dict:
        """The trace's keys and values, all strings."""
        return self.record.get('trace') or {}

    def flag(self, key: str) -> bool:
        """A true or false of the trace."""
        return self.trace().get(key, '').lower() in ('true', '1')

    def number(self, key: str) -> float | None:
        """A number of the trace, or None where it has none."""
        try:
            return float(self.trace()[key])
        except (KeyError, ValueError):
            return None


def load(camera_log: Path, folder: Path) -> list:
    """All published frames in order, as `Frame`s, from the camera's log and the recorder's folder."""
    path = folder / 'frames.jsonl'
    records = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    by_stamp = {record['stamp']: record for record in records}
    published = [json.loads(line) for line in camera_log.read_text().splitlines()] if camera_log.is_file() else []
    return [Frame(entry['index'], entry['name'], entry['stamp'], by_stamp.get(entry['stamp'], {}), folder)
            for entry in published]


def exit_of(frame: Frame, bundle: Bundle) -> str | None:
    """Name of the exit at which a frame ended onboard; None if it did not settle there, or nothing is known of it.

    Without a split the last exit is onboard: frames end there, settled or not.
    """
    name = frame.trace().get('exit')
    return name if frame.flag('settled') or name == bundle.exits[-1].name else None


def measure(frames: list, source, bundle: Bundle,
            report: Callable[[int, int], None] = lambda done, total: None) -> dict:
    """Read the frames' pictures again from `source`; fill in their `miou` and `image_bytes`.

    Returns {kind: confusion matrix} over the frames that have labels and that kind of mask.
    """
    classes, totals = len(bundle.classes), {}
    for done, frame in enumerate(frames, start=1):
        picture = source.frame(frame.index)
        place = fit(picture.image.shape[1], picture.image.shape[0], bundle)
        frame.image_bytes = codecs.image_bytes(picture.image, place.content_width, place.content_height)
        for kind in KINDS if picture.labels is not None else ():
            mask = frame.mask(kind)
            if mask is not None:
                matrix = confusion(picture.labels, mask, classes)
                if matrix.any():
                    frame.miou[kind] = mean_iou(matrix)
                totals[kind] = totals.get(kind, 0) + matrix
        report(done, len(frames))
    return totals


def summarise(frames: list, bundle: Bundle, totals: dict) -> dict:
    """`summary.json`: what can be measured of a run; keys of what cannot are absent. totals: from `measure`."""
    taken = [frame for frame in frames if frame.taken]
    summary = {'frames': len(frames), 'dropped': len(frames) - len(taken),
               'masks': sum(frame.received('mask') for frame in frames),
               'final_masks': sum(frame.received('final') for frame in frames),
               'refined_masks': sum(frame.received('refined') for frame in frames)}
    traced = [frame for frame in frames if frame.trace()]
    forwarded = [frame for frame in traced if frame.flag('forwarded')]
    if traced:
        names = [exit_.name for exit_ in bundle.onboard_exits]
        ended = [exit_of(frame, bundle) for frame in traced]
        shares = [ended.count(name) / len(traced) for name in (*names, None)]
        summary['exit_shares'] = shares    # the last one: did not settle onboard
        summary['exit_names'] = [*names, 'not settled']
        summary['forwarded_share'] = len(forwarded) / len(traced)
        sources = [frame.trace().get('final_source', '') for frame in traced]
        experts = [frame.trace().get('expert', '') for frame in traced]
        if any(experts):
            summary['experts'] = {name: experts.count(name) / len(traced) for name in sorted(set(experts))}
        summary['final_sources'] = {name: sources.count(name) / len(traced) for name in sorted(set(sources))}
    for kind in ('mask', 'refined'):
        delays = [frame.delay_ms(kind) for frame in frames if frame.received(kind)]
        if delays:
            summary[f'{kind}_ms'] = percentiles(delays)
    inside = [value for value in (frame.number('mask_ms') for frame in traced) if value is not None]
    if inside:
        summary['onboard_mask_ms'] = percentiles(inside)    # from the node's image callback to its publishing
    sizes = [value for value in (frame.number('feature_bytes') for frame in forwarded) if value]
    if sizes:
        summary['bytes_per_forwarded_frame'] = float(np.mean(sizes))
    compared = [frame.image_bytes for frame in forwarded or frames if frame.image_bytes]
    if compared:
        for codec in ('jpeg', 'webp'):
            summary[f'{codec}_bytes'] = float(np.mean([sizes[codec] for sizes in compared]))
        summary['image_codecs'] = {'quality': codecs.QUALITY, 'subsampling': codecs.SUBSAMPLING,
                                   'frames': 'forwarded' if forwarded else 'all'}
    miou = {kind: mean_iou(totals[kind]) for kind in KINDS if kind in totals and totals[kind].any()}
    if miou:
        summary['miou'] = miou
    return summary


def failures(frames: list) -> list:
    """Why a run of these frames has failed, a line each; empty if every frame taken got both masks and few dropped."""
    taken = [frame for frame in frames if frame.taken]
    found = [] if frames else ['the camera published no frame']
    for kind, name in (('mask', 'mask'), ('final', 'final mask')):
        missing = [frame.name for frame in taken if not frame.received(kind)]
        if missing:
            found.append(f'{len(missing)} of {len(taken)} frames taken got no {name}, the first is {missing[0]}')
    dropped = len(frames) - len(taken)
    if dropped > MOST_DROPPED * len(frames):
        found.append(f'{dropped} of {len(frames)} frames were dropped, more than {MOST_DROPPED:.0%}: '
                     'give a lower --rate')
    return found
