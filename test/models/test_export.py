# Copyright 2026 The ee_seg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The shipped bundle against the torch network that it was exported from."""
import numpy as np
import pytest

pytest.importorskip('torch', reason='torch is not installed (make train-env)')
pytest.importorskip('safetensors', reason='safetensors is not installed (make train-env)')

import torch  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

from ee_seg_ros.data.scenes import StreetDrive  # noqa: E402
from ee_seg_ros.inference.bundle import Bundle  # noqa: E402
from ee_seg_ros.inference.engine import Engine  # noqa: E402
from ee_seg_ros.inference.features import pack, unpack  # noqa: E402
from ee_seg_ros.inference.frame import preprocess  # noqa: E402
from ee_seg_ros.models.multi_exit import StreetNet  # noqa: E402


@pytest.fixture(scope='module')
def bundle():
    return Bundle.load('street')


@pytest.fixture(scope='module')
def net(bundle):
    net = StreetNet(len(bundle.classes)).eval()
    net.load_state_dict(load_file(str(bundle.path / 'weights.safetensors')))
    return net


def test_split_run_equals_the_whole_network_in_torch(bundle, net):
    """Onboard exits within 1e-3 of the largest logit; final masks equal at 99.9 % of the pixels.

    The final output passes a quantiser: a feature on the edge between two levels may round either way.
    """
    image = StreetDrive(seed=3).frame(5).image
    tensor, placement = preprocess(image, bundle)
    with torch.no_grad():
        *onboard, final = [logits[0].numpy() for logits in net(torch.from_numpy(tensor))]
    robot, server = Engine(bundle, part='onboard'), Engine(bundle, part='offboard')
    result = robot.segment(image, 'never', (0.0,) * 3)
    for expected, output in zip(onboard, result.outputs):
        np.testing.assert_allclose(output.logits, expected, atol=1e-3 * np.abs(expected).max())
    received = unpack(bundle, pack(bundle, robot.encode(result), placement, (480, 360)))
    refined = server.finish(received.tensors, received.placement)
    whole = type(refined)(bundle, refined.exit, np.ascontiguousarray(final), placement)
    assert np.mean(refined.mask(480, 360) == whole.mask(480, 360)) > 0.999


def test_random_weights_export_and_load(tmp_path, net):
    from ee_seg_ros.models.export import export
    torch.save(net.state_dict(), tmp_path / 'weights.pt')
    card = {'data': 'none', 'licence': 'none'}
    export(tmp_path / 'weights.pt', tmp_path / 'small', 'small', card, width=160, height=96)
    bundle = Bundle.load(tmp_path / 'small')
    engine = Engine(bundle)
    run = engine.segment(np.zeros((90, 160, 3), np.uint8), 'never', (0.0,) * 3)
    assert engine.finish(engine.encode(run), run.placement).mask(160, 90).shape == (90, 160)
