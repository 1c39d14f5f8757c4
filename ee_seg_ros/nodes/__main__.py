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
"""The executables: `ros2 run ee_seg_ros NODE`, or from a source tree `python -m ee_seg_ros.nodes NODE`.

What a node imports takes a second to load. Until `running.run` takes over, Ctrl-C and SIGTERM end the process at once
and without a word: there is nothing yet that would have to be put in order.
"""
import os
import signal
import sys
from importlib import import_module


def start(name: str) -> int:
    """Run the node of the module `ee_seg_ros.nodes.NAME`; the exit status of the process.

    0: it was told to end, or has done its work; 1: it cannot work, for a reason that it has logged.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: os._exit(0))
    return import_module(f'ee_seg_ros.nodes.{name}').main()


def onboard() -> int:
    """The node on the robot."""
    return start('onboard')


def offboard() -> int:
    """The node on the server."""
    return start('offboard')


def ground() -> int:
    """The node that brings masks to the ground."""
    return start('ground')


def camera() -> int:
    """The node that plays images."""
    return start('camera')


def recorder() -> int:
    """The node that writes down what the pair does."""
    return start('recorder')


if __name__ == '__main__':
    sys.exit(start(sys.argv.pop(1)))
