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
"""When a part of a node is well, and when it is not: figures in, findings for `/diagnostics` out, no state.

In the functions here `since` is what was counted in the last second, `total` what since the start (see Tally).
"""
from ee_seg_ros.nodes.diagnostics import ERROR, OK, WARN, Finding

DROPPED_WARN, DROPPED_ERROR = 0.05, 0.5    # shares of what came in the last second that was overwritten by newer ones
LATE_WARN = 0.5     # share of the refinements awaited in the last second that were not in time
DEAD_TIMES = 5      # a camera that is silent for so many times its time-out is an error


def camera(topic: str, silent_s: float, timeout_s: float, total: dict, since: dict, seconds: float) -> Finding:
    """Whether images come, and whether they can be used. silent_s: seconds since the last one came."""
    images, bad = since['arrived'], since['bad_images']
    values = {'image_topic': topic, 'image_rate': images / seconds, 'bad_images': total['bad_images']}
    if silent_s > timeout_s:
        return Finding(ERROR if silent_s > DEAD_TIMES * timeout_s else WARN,
                       f'no images on {topic} for more than {timeout_s:g} s (camera_timeout_ms)', values)
    if bad:
        return Finding(ERROR if bad >= images else WARN, 'images are refused: see the log', values)
    return Finding(OK, 'images come', values)


def inference(total: dict, since: dict, working_ms: float, max_rate: float, values: dict) -> Finding:
    """Whether the node keeps up with what comes. Counts arrived, dropped, failed_frames, worked and work_ms.

    working_ms: how long the frame in progress has taken so far. max_rate: frames per second that are asked for, 0: all
    that come; what is dropped to keep to it is no overload.
    """
    work_ms = max(working_ms, since['work_ms'] / since['worked'] if since['worked'] else 0.0)
    dropped = since['dropped'] / max(1, since['arrived'])
    values = {**values, 'work_ms': work_ms, 'dropped': total['dropped'], 'dropped_share': dropped,
              'failed_frames': total['failed_frames']}
    if since['failed_frames']:
        return Finding(ERROR, 'frames fail: see the log', values)
    if dropped > DROPPED_WARN and not (max_rate and work_ms <= 1e3 / max_rate):
        share = DROPPED_ERROR if dropped > DROPPED_ERROR else DROPPED_WARN
        return Finding(ERROR if share == DROPPED_ERROR else WARN,
                       f'overload: more than {share:g} of what comes is dropped', values)
    return Finding(OK, 'keeping up', values)


def link(finish: str, present: bool, foreign: str, total: dict, since: dict, values: dict) -> Finding:
    """Whether the onboard node gets its refinements. foreign: fingerprint of an offboard node with another bundle."""
    values = {**values, 'finish': finish, 'offboard_present': present, 'forwarded': total['forwarded'],
              'refined': total['refined'], 'refined_late': total['refined_late'],
              'refined_refused': total['refined_refused'],
              'refined_lost': max(0, total['final_late'] - total['refined_late'])}
    if foreign:
        return Finding(ERROR, f'the offboard node runs another bundle ({foreign})', values)
    if finish != 'offboard':
        return Finding(OK, f'not in use: finish is {finish}', values)
    if not present:
        return Finding(WARN, 'no offboard node: final masks are the onboard ones', values)
    if since['refined_refused']:
        return Finding(WARN, 'refined masks are refused: see the log', values)
    late = since['final_late']
    if late and late > LATE_WARN * (late + since['final_refined']):
        return Finding(WARN, 'most refinements are late or lost (deadline_ms)', values)
    return Finding(OK, 'an offboard node is there', values)


def robots(absent: list, total: dict, since: dict, served: list) -> Finding:
    """Whether the offboard node is asked, and by whom. absent: names of robots of which no node publishes features."""
    refused = {name: number for name, number in sorted(total.items()) if name.startswith('refused.')}
    values = {'robots': len(served), 'robots_absent': len(absent), 'refused': sum(refused.values()), **refused,
              **{f"refined.{name or 'own'}": total[f'refined.{name}'] for name in served}}
    if since['refused.foreign']:
        return Finding(ERROR, 'features of another bundle are refused: see the log', values)
    if any(since[name] for name in refused):
        return Finding(WARN, 'features are refused: see the log', values)
    if absent:
        return Finding(WARN, f"no features from {', '.join(name or 'the own namespace' for name in absent)}: no "
                             'onboard node is there', values)
    return Finding(OK, 'serving', values)


def model(bundle, asked: list, used: tuple) -> Finding:
    """Whether the bundle runs on what it was asked to run on: onnxruntime's providers, asked for and in use."""
    values = {'bundle': bundle.name, 'fingerprint': bundle.fingerprint, 'providers': ' '.join(used)}
    missing = [name for name in asked if name not in used]
    if missing:
        return Finding(WARN, f"{', '.join(missing)} could not be used: running on {', '.join(used)}", values)
    return Finding(OK, f'{bundle.name} loaded', values)
