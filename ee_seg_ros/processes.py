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
"""Nodes as child processes on this machine only: started, watched, and ended on every path."""
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import yaml

from ee_seg_ros.environment import fastdds_profile, local_range

STOP_S = 5.0    # how long a node may take to end after SIGINT
# Ctrl-C shall reach this process alone, which then ends the nodes. A session of their own would do that, too, but Linux
# shares the processor between sessions first: on a busy machine nodes would be faster than what they are compared with.
APART = {'process_group': 0} if sys.version_info >= (3, 11) else {'start_new_session': True}


class ChildError(RuntimeError):
    """A node ended although it was still needed, or did not do its part in time; the message quotes its log."""


def local_environment(domain: int) -> dict:
    """The environment of nodes that talk to each other on this machine only, in a ROS domain of their own."""
    ours = {'ROS_DOMAIN_ID': str(domain), 'PYTHONUNBUFFERED': '1', **fastdds_profile(), **local_range()}
    others = ('FASTDDS_DEFAULT_PROFILES_FILE', 'FASTRTPS_DEFAULT_PROFILES_FILE', 'ROS_LOCALHOST_ONLY')
    environment = {key: value for key, value in os.environ.items() if key not in others}
    package = Path(__file__).resolve().parents[1]
    if not package.name.endswith('-packages'):    # a source tree: nodes find it wherever the command was started
        known = environment.get('PYTHONPATH')
        ours['PYTHONPATH'] = os.pathsep.join([str(package)] + ([known] if known else []))
    return {**environment, **ours}


class Child:
    """One node in a process of its own. events: queue of the JSON lines it prints, if it was started to be heard."""

    def __init__(self, name: str, process: subprocess.Popen, log: Path):
        self.name, self.process, self.log = name, process, log
        self.events = queue.Queue()
        self.started = time.time()

    def listen(self):
        """Read the JSON lines of its standard output into `events`, in the background."""
        def read():
            for line in self.process.stdout:
                try:
                    event = json.loads(line)
                except ValueError:
                    continue
                if isinstance(event, dict) and 'event' in event:
                    self.events.put(event)
        threading.Thread(target=read, daemon=True).start()

    def last_words(self, lines: int = 8) -> str:
        """The end of what it wrote to standard error."""
        text = self.log.read_text(errors='replace').splitlines() if self.log.is_file() else []
        return '\n'.join(f'  {line}' for line in text[-lines:]) or '  (it said nothing)'


class Children:
    """Nodes started together; leaving the `with` block ends all that still run.

    SIGINT, and SIGKILL if that is not enough. Their standard error goes to `logs`/NAME.log, their parameters to
    `logs`/NAME.yaml.
    """

    def __init__(self, logs: Path, domain: int):
        self.logs, self.environment = logs, local_environment(domain)
        self.children = {}
        logs.mkdir(parents=True, exist_ok=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()

    def start(self, name: str, parameters: dict, listen: bool = False) -> Child:
        """Start `ee_seg_ros.nodes.NAME` with these ROS parameters."""
        # A file rather than arguments: ROS would read a folder named 2024 as a number.
        file = self.logs / f'{name}.yaml'
        file.write_text(yaml.safe_dump({'/**': {'ros__parameters': parameters}}, allow_unicode=True))
        command = [sys.executable, '-m', 'ee_seg_ros.nodes', name, '--ros-args', '--params-file', str(file)]
        with (self.logs / f'{name}.log').open('w') as log:
            process = subprocess.Popen(command, env=self.environment, stdin=subprocess.DEVNULL, stderr=log,
                                       stdout=subprocess.PIPE if listen else log, text=True, **APART)
        child = self.children[name] = Child(name, process, self.logs / f'{name}.log')
        if listen:
            child.listen()
        return child

    def check(self, *may_end: str) -> None:
        """Raise ChildError if one has died; those in `may_end` may have ended, but only with status 0."""
        for name, child in self.children.items():
            status = child.process.poll()
            if status is not None and not (name in may_end and status == 0):
                how = f'was ended by signal {-status}' if status < 0 else f'ended with status {status}'
                raise ChildError(f'{name} {how} too early; the end of {child.log}:\n{child.last_words()}')

    def wait_for(self, child: Child, event: str, timeout: float) -> dict:
        """Wait for an event that a child prints; ChildError if it does not come in `timeout` seconds or one dies."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            self.check()
            try:
                found = child.events.get(timeout=0.2)
            except queue.Empty:
                continue
            if found['event'] == event:
                return found
        logs = '\n'.join(f'{other.log}:\n{other.last_words(4)}' for other in self.children.values())
        raise ChildError(f'{child.name} was not {event!r} within {timeout:.0f} s; the ends of the logs:\n{logs}')

    def stop(self) -> None:
        """End all that still run."""
        self.end(*self.children.values())

    @staticmethod
    def end(*children: Child) -> None:
        """End these children if they still run: SIGINT, after a while SIGKILL."""
        try:
            for child in children:
                if child.process.poll() is None:
                    child.process.send_signal(signal.SIGINT)
            deadline = time.monotonic() + STOP_S
            for child in children:
                try:
                    child.process.wait(max(0.0, deadline - time.monotonic()))
                except subprocess.TimeoutExpired:
                    pass
        finally:    # also when Ctrl-C is pressed a second time
            for child in children:
                if child.process.poll() is None:
                    os.killpg(child.process.pid, signal.SIGKILL)
                    child.process.wait()
