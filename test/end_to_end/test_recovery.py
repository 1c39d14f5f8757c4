# Copyright 2026 The ee_seg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The offboard node killed in the middle: nothing is missing on the robot, and refinement comes back by itself."""
import signal

from harness import scene


def test_killed_server_costs_only_refinement(start, peer):
    onboard = start('onboard', criterion='never', deadline_ms=1000.0)
    server = start('offboard')
    peer.listen_to_masks()
    peer.wait_for_onboard()
    peer.wait_for_diagnosis('ee_seg', 'offboard_present', 'true')
    stamps = []

    def show_until(wanted, what):
        """Frames one after the other until one has a final mask from `wanted`."""
        def seen():
            return any(message.status[0].message == wanted for message in peer.received['ee_seg/trace'])
        peer.received['ee_seg/trace'].clear()
        for index in range(200):
            stamps.append(peer.segment(scene(len(stamps) % 5)))
            if seen():
                return
        raise AssertionError(f'{what}: no final mask was {wanted}')

    show_until('refined', 'before the kill')
    server.end(signal.SIGKILL)
    stamps += [peer.segment(scene(1)) for _ in range(3)]
    # Within the lease the node still forwards, in vain: these final masks leave at the deadline. Then it knows.
    show_until('late', 'right after the kill')
    peer.wait_for_diagnosis('ee_seg', 'offboard_present', 'false')
    show_until('onboard', 'without a server')
    start('offboard')
    peer.wait_for_diagnosis('ee_seg', 'offboard_present', 'true')
    show_until('refined', 'after the restart')
    peer.wait_for_finals(0)
    peer.wait(lambda: len(peer.received['ee_seg/final_mask']) == len(stamps), 'a final mask for every frame')
    assert peer.stamps('ee_seg/mask') == peer.stamps('ee_seg/final_mask') == stamps
    assert onboard.running and 'Traceback' not in onboard.text, onboard.text
