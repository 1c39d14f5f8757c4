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
"""A bundle without a split: all of it runs onboard, nothing is forwarded, and no offboard node takes it."""
import numpy as np
import pytest
from harness import pixels
from tiny import HEIGHT, WIDTH, tiny_bundle

from ee_seg_ros.inference.bundle import Bundle
from ee_seg_ros.inference.engine import Engine


@pytest.fixture(scope='module')
def unsplit(tmp_path_factory):
    return Bundle.load(tiny_bundle(tmp_path_factory.mktemp('bundles') / 'unsplit', split=None))


def test_nothing_is_forwarded(start, peer, unsplit):
    image = np.random.default_rng(4).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    expected = Engine(unsplit).run_exit(image, 'final').output.mask(WIDTH, HEIGHT)
    onboard = start('onboard', bundle=unsplit.path, criterion='never')
    peer.listen_to_masks()
    peer.wait_for_onboard()
    for finish in ('offboard', 'onboard'):
        assert peer.set(finish=finish)[0][0]
        stamp = peer.segment(image)
        trace, = peer.finals([stamp])
        assert (trace['exit'], trace['settled'], trace['forwarded']) == ('final', 'false', 'false')
        assert trace['final_source'] == 'onboard'
        np.testing.assert_array_equal(pixels(peer.message('ee_seg/final_mask', stamp)), expected)
    assert onboard.text.count('has no split: all of it runs here') == 1 and 'rror' not in onboard.text, onboard.text


def test_an_offboard_node_needs_a_split(start, unsplit):
    offboard = start('offboard', bundle=unsplit.path)
    assert offboard.wait() == 1
    assert offboard.text.count('bundle unsplit has no split') == 1 and 'Traceback' not in offboard.text, offboard.text
