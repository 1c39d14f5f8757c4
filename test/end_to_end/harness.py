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
"""Real nodes in processes of their own, and a node in the test's process that plays camera, robot or server."""
import os
import signal
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rcl_interfaces.srv import GetParameters, SetParameters
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile, qos_profile_sensor_data
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header

from ee_seg_ros.data.scenes import StreetDrive
from ee_seg_ros.nodes.conversions import image_message, stamp_ns

PATIENCE = 60.0    # seconds until a wait gives up; a wait that succeeds takes as long as what it waits for
ROOT = Path(__file__).resolve().parents[2]
DEEP = QoSProfile(depth=100)


def scene(index: int, width: int = 240, height: int = 180, seed: int = 5) -> np.ndarray:
    """A street scene, uint8 (height, width, 3) RGB."""
    return StreetDrive(seed, width, height).frame(index).image


def header_of(stamp: int, frame_id: str = 'test_camera') -> Header:
    """A header with a stamp in ns."""
    header = Header(frame_id=frame_id)
    header.stamp.sec, header.stamp.nanosec = divmod(stamp, 1_000_000_000)
    return header


def pixels(message: Image) -> np.ndarray:
    """uint8 (H, W) of a mono8 image without padding."""
    assert (message.encoding, message.step) == ('mono8', message.width)
    return np.frombuffer(message.data, np.uint8).reshape(message.height, message.width)


class NodeProcess:
    """One of our nodes as a process, its output in a file."""

    def __init__(self, log: Path, node: str, namespace: str, /, **parameters):
        self.log = log
        arguments = ['-r', f'__ns:={namespace}']
        for name, value in parameters.items():
            text = str(value).lower() if isinstance(value, bool) else str(value)
            arguments += ['-p', f'{name}:={text}']
        with open(log, 'wb') as file:
            self._process = subprocess.Popen(
                [sys.executable, '-m', 'ee_seg_ros.nodes', node, '--ros-args', *arguments], stdout=file,
                stderr=subprocess.STDOUT, cwd=ROOT, env=dict(os.environ, PYTHONUNBUFFERED='1'))

    @property
    def text(self) -> str:
        """What it has said so far."""
        return self.log.read_text(errors='replace')

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether it still runs."""
        return self._process.poll() is None

    def wait(self) -> int:
        """Wait for its end; the exit status."""
        return self._process.wait(PATIENCE)

    def end(self, number: int = signal.SIGINT) -> int:
        """Send a signal and wait for its end; the exit status."""
        if self.running:
            self._process.send_signal(number)
        return self.wait()

    def clean_up(self) -> None:
        """Make sure that it is gone."""
        if self.running:
            self._process.kill()
        self._process.wait()


class Diagnoses(dict):
    """(level, message, values) of each node and part in /diagnostics; empty ones of those not heard yet."""

    def __missing__(self, name):
        return None, '', {}


class Peer:
    """A node in this process, in the namespace of those under test, with what it received by topic."""

    def __init__(self, namespace: str):
        self.context = rclpy.Context()
        rclpy.init(context=self.context)
        self.node = rclpy.create_node('peer', namespace=namespace, context=self.context)
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.node)
        self.received = defaultdict(list)
        self.clients = {}
        self.stamp = 1_000_000_000_000
        self.images = self.node.create_publisher(Image, 'image', qos_profile_sensor_data)
        self.diagnostics = Diagnoses()
        self.node.create_subscription(DiagnosticArray, '/diagnostics', self._on_diagnostics, DEEP)

    def close(self) -> None:
        """Leave."""
        self.executor.remove_node(self.node)
        self.node.destroy_node()
        self.executor.shutdown()
        rclpy.shutdown(context=self.context)

    def _on_diagnostics(self, message):
        for status in message.status:
            if status.name.startswith(self.node.get_namespace()[1:]):
                values = {pair.key: pair.value for pair in status.values}
                self.diagnostics[status.name.rsplit('/', 1)[1]] = status.level, status.message, values

    def listen(self, type_, *topics, qos=DEEP) -> list:
        """Collect the messages of topics in `received`; the subscriptions."""
        return [self.node.create_subscription(
            type_, topic, lambda message, topic=topic: self.received[topic].append(message), qos) for topic in topics]

    def listen_to_masks(self) -> None:
        """Everything that the onboard node says of a frame, and the refined masks."""
        self.listen(Image, 'ee_seg/mask', 'ee_seg/final_mask')
        self.listen(DiagnosticArray, 'ee_seg/trace')
        self.listen(CompressedImage, 'refined_mask/compressed')

    def wait(self, condition, what: str) -> None:
        """Work on messages until a condition holds; fails with `what` after a minute."""
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline, f'{what} did not come; received: ' + str(
                {topic: len(messages) for topic, messages in self.received.items()})
            self.executor.spin_once(timeout_sec=0.05)

    def send_until_heard(self, send, topic: str) -> None:
        """Send with `send`, which returns a stamp, until an answer is heard on a topic.

        Another node may answer before its publisher has found the subscription of this one; such answers are lost.
        """
        sent = []
        while not set(sent) & set(self.stamps(topic)):
            assert len(sent) < PATIENCE, f'nothing is heard on {topic}'
            sent.append(send())
            until = time.monotonic() + 1
            while time.monotonic() < until and sent[-1] not in self.stamps(topic):
                self.executor.spin_once(timeout_sec=0.05)
        self.wait(lambda: sent[-1] in self.stamps(topic), f'the last answer on {topic}')

    def wait_for_onboard(self) -> None:
        """Wait until the onboard node hears images and is heard."""
        self.wait(lambda: self.images.get_subscription_count() > 0 and 'ee_seg' in self.diagnostics
                  and self.node.count_publishers('ee_seg/final_mask') > 0, 'the onboard node')

    def wait_for_diagnosis(self, node: str, key: str, value: str) -> None:
        """Wait until a node reports a value in /diagnostics."""
        self.wait(lambda: self.diagnostics[node][2].get(key) == value, f'{key} = {value} of {node}')

    def show(self, image, encoding: str = 'rgb8', stamp: int = None, frame_id: str = 'test_camera') -> int:
        """Publish an image, an array or a message, 100 ms after the last one unless a stamp is given; its stamp."""
        if stamp is None:
            self.stamp += 100_000_000
            stamp = self.stamp
        message = image
        if isinstance(image, np.ndarray):
            message = image_message(header_of(stamp, frame_id), image, encoding)
        message.header = header_of(stamp, frame_id)
        self.images.publish(message)
        return stamp

    def stamps(self, topic: str) -> list:
        """Stamps in ns of the messages of a topic, in the order of arrival."""
        return [stamp_ns(message.header) for message in self.received[topic]]

    def message(self, topic: str, stamp: int):
        """The only message of a topic with that stamp."""
        found = [message for message in self.received[topic] if stamp_ns(message.header) == stamp]
        assert len(found) == 1, f'{len(found)} messages of {stamp} on {topic}'
        return found[0]

    def trace(self, stamp: int) -> dict:
        """The trace of a frame."""
        return {pair.key: pair.value for pair in self.message('ee_seg/trace', stamp).status[0].values}

    def segment(self, *arguments, **named) -> int:
        """Show an image and wait for its mask; its stamp. So no image overwrites another."""
        before = len(self.received['ee_seg/mask'])
        stamp = self.show(*arguments, **named)
        self.wait(lambda: len(self.received['ee_seg/mask']) > before, f'the mask of {stamp}')
        return stamp

    def wait_for_finals(self, number: int) -> None:
        """Wait until so many final masks, and their traces, came in all."""
        self.wait(lambda: min(len(self.received['ee_seg/final_mask']), len(self.received['ee_seg/trace'])) >= number,
                  f'final mask number {number}')

    def finals(self, stamps: list) -> list:
        """The traces of these frames, once their final masks came."""
        self.wait(lambda: set(stamps) <= set(self.stamps('ee_seg/final_mask')) & set(self.stamps('ee_seg/trace')),
                  'all final masks')
        return [self.trace(stamp) for stamp in stamps]

    def call(self, type_, service: str, request, again: bool = False):
        """Call a service; its response.

        again: ask again if none comes, as where a new node has taken the name of another: the first answer may get
        lost. For requests that change nothing.
        """
        if service not in self.clients:
            self.clients[service] = self.node.create_client(type_, service)
            self._be_known(service.rpartition('/')[0])
        return self._ask(self.clients[service], service, request, again)

    def _be_known(self, node: str) -> None:
        """Wait until a node knows the clients made so far; where it does not know one yet, its answer gets lost.

        Clients become known in the order in which they were made, so this one, made last, is answered when all are.
        """
        client = self.node.create_client(GetParameters, f'{node}/get_parameters')
        self._ask(client, f'{node}/get_parameters', GetParameters.Request(), again=True)
        self.node.destroy_client(client)

    def _ask(self, client, service, request, again):
        self.wait(client.service_is_ready, service)
        asked, futures = 0.0, []

        def answered():
            nonlocal asked
            if not futures or (again and time.monotonic() - asked > 1):
                asked = time.monotonic()
                futures.append(client.call_async(request))
            return any(future.done() for future in futures)
        self.wait(answered, f'an answer of {service}')
        return next(future for future in futures if future.done()).result()

    def set(self, node: str = 'ee_seg', **values) -> list:
        """Set parameters one by one; (accepted, reason) of each."""
        request = SetParameters.Request(
            parameters=[Parameter(name, value=value).to_parameter_msg() for name, value in values.items()])
        response = self.call(SetParameters, f'{node}/set_parameters', request)
        return [(result.successful, result.reason) for result in response.results]
