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
"""Starting a node's process, spinning it, and ending it cleanly on Ctrl-C or SIGTERM."""
import signal
import socket
import threading
from typing import Callable

import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.logging import get_logger
from rclpy.signals import SignalHandlerOptions

from ee_seg_ros.nodes.parameters import ParameterError


class StartError(Exception):
    """The node cannot do its work, for a reason that it has logged already: the process ends with status 1."""


def run(make_node: Callable, name: str, args: list | None = None) -> int:
    """Run one node until a signal comes or its `done` event is set; returns the exit status of the process.

    make_node: called without arguments after rclpy is up. The node has `start()` (may raise StartError or
    ParameterError), `stop()` and `done`, a threading.Event.
    """
    try:
        # rclpy's own handlers invalidate the context first, so that nothing could be published while stopping.
        rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
    except RuntimeError as error:    # malformed --ros-args or parameter file
        get_logger(name).fatal(f'cannot start: {error}')
        return 1
    executor = SingleThreadedExecutor()
    node = None
    try:
        try:
            node = make_node()
            guard = node.create_guard_condition(lambda: None)

            def finish():
                node.done.set()
                guard.trigger()    # counts as work, so that spin_once returns

            _on_signals(finish)
            executor.add_node(node)
            node.start()
        except (ParameterError, RuntimeError) as error:    # rclpy's own errors are RuntimeErrors
            get_logger(name).fatal(f'cannot start: {error}')
            return 1
        except StartError:
            return 1
        while not node.done.is_set():
            executor.spin_once()
        return 0
    finally:
        if node is not None:
            node.stop()
            executor.remove_node(node)
            node.destroy_node()
        executor.shutdown()
        rclpy.shutdown()


def _on_signals(callback):
    """Call `callback` from a thread of its own at the first SIGINT or SIGTERM; a second one kills.

    Python's handlers run only when the main thread is in Python, and it waits in C for messages. The wake-up socket is
    written to at once.
    """
    receiving, sending = socket.socketpair()
    sending.setblocking(False)

    def restore(number, _):
        signal.signal(number, signal.SIG_DFL)

    def wait():
        receiving.recv(1)
        sending.fileno()    # keeps the socket open until now
        callback()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, restore)
    signal.set_wakeup_fd(sending.fileno())
    threading.Thread(target=wait, name='signals', daemon=True).start()
