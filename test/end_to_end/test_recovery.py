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
"""The offboard node killed in the middle: nothing is missing on the robot, and refinement comes back by itself."""
import signal

from harness import scene

from ee_seg_ros.nodes.conversions import stamp_ns


def test_killed_server_costs_only_refinement(start, peer):
    onboard = start('onboard', criterion='never', deadline_ms=1000.0)
    server = start('offboard')
    peer.listen_to_masks()
    peer.wait_for_onboard()
    peer.wait_for_diagnosis('ee_seg', 'offboard_present', 'true')
    stamps = []

    def show_until(wanted, when):
        """Frames one after the other until one of them has a final mask from `wanted`; the sources of all of them."""
        first = len(stamps)
        for _ in range(200):
            stamps.append(peer.segment(scene(len(stamps) % 5)))
            sources = {stamp_ns(message.header): message.status[0].message for message in peer.received['ee_seg/trace']}
            sources = [sources[stamp] for stamp in stamps[first:] if stamp in sources]
            if wanted in sources:
                return sources
        raise AssertionError(f'{when}: no final mask was {wanted}')

    show_until('refined', 'before the kill')
    server.end(signal.SIGKILL)
    # Within the lease the node may still forward, in vain: these final masks leave at the deadline. Then it knows.
    assert 'refined' not in show_until('onboard', 'after the kill')
    peer.wait_for_diagnosis('ee_seg', 'offboard_present', 'false')
    start('offboard')
    peer.wait_for_diagnosis('ee_seg', 'offboard_present', 'true')
    show_until('refined', 'after the restart')
    peer.wait(lambda: len(peer.received['ee_seg/final_mask']) == len(stamps), 'a final mask for every frame')
    assert peer.stamps('ee_seg/mask') == peer.stamps('ee_seg/final_mask') == stamps
    assert onboard.running and 'Traceback' not in onboard.text, onboard.text
