# Copyright 2026 owseg_ros contributors
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
"""Real nodes over real DDS for tests: private contexts, processes, and polling."""

from __future__ import annotations

import itertools
import os
from pathlib import Path
import signal
import subprocess
import sys
import threading
import time
from typing import Any, Callable, Mapping, Sequence

import numpy as np
from owseg_ros.frame import array_to_image
import rclpy
from rclpy.context import Context
from rclpy.executors import ExternalShutdownException
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import DurabilityPolicy
from rclpy.qos import QoSProfile
from rclpy.qos import ReliabilityPolicy
from sensor_msgs.msg import Image

REPOSITORY = Path(__file__).resolve().parents[2]
DOMAIN = int(os.environ.get('OWSEG_TEST_DOMAIN') or 20 + os.getpid() % 20)
"""ROS domain of this test run; parallel runs should differ."""

TIMEOUT = 20.0
BEST_EFFORT = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
RELIABLE = QoSProfile(depth=10, reliability=ReliabilityPolicy.RELIABLE)
LATCHED = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE,
                     durability=DurabilityPolicy.TRANSIENT_LOCAL)
ECHO = QoSProfile(depth=10, reliability=ReliabilityPolicy.RELIABLE,
                  durability=DurabilityPolicy.TRANSIENT_LOCAL)
"""As `ros2 topic echo` reads what is latched."""

_namespaces = itertools.count()


def wait_until(predicate: Callable[[], Any], timeout: float = TIMEOUT, what: Any = '') -> Any:
    """
    Poll until the predicate is true and return its value.

    :param what: what is waited for; a callable is evaluated when the time is over.
    :raises AssertionError: it did not become true in time.
    """
    deadline = time.monotonic() + timeout
    while True:
        value = predicate()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(
                f'not within {timeout} s: {what() if callable(what) else what or predicate}')
        time.sleep(0.005)


class Collector:
    """Keeps the messages of a topic."""

    def __init__(self, node: Node, message_type: type, topic: str, qos: QoSProfile) -> None:
        self.messages: list[Any] = []
        self.subscription = node.create_subscription(
            message_type, topic, self._received, qos)

    def _received(self, message: Any) -> None:
        # An Image collector of a long test would otherwise hold hundreds of megabytes.
        self.messages.append(message)
        del self.messages[:-500]

    def first(self, accept: Callable[[Any], bool] = lambda message: True,
              timeout: float = TIMEOUT) -> Any:
        """Wait for a message that is accepted and return it."""
        return wait_until(
            lambda: next((message for message in list(self.messages) if accept(message)), None),
            timeout, lambda: f'{self.subscription.topic_name}: {len(self.messages)} messages, '
                             f'the last {str(self.messages[-1:])[:2000]}')

    def stamps(self) -> list[tuple[int, int]]:
        """Return the stamps of what has come, in order."""
        return [stamp_of(message) for message in list(self.messages)]


def diagnosis(diagnostics: Collector, node: Node, task: str,
              accept: Callable[[Any], bool] = lambda status: True) -> Any:
    """Wait for a status of a task of a node, from now on, that is accepted, and return it."""
    name = f'{node.get_fully_qualified_name()}: {task}'
    diagnostics.messages.clear()

    def find(message: Any) -> Any:
        return next((status for status in message.status
                     if status.name == name and accept(status)), None)
    return find(diagnostics.first(find))


class Ros:
    """
    A private context with a client node, spun in a thread; nodes under test spin in another.

    All names are relative to a namespace of the test's own.
    """

    def __init__(self, domain: int = DOMAIN) -> None:
        self.domain = domain
        self.namespace = f'/t{os.getpid()}_{next(_namespaces)}'
        self.context = Context()
        rclpy.init(context=self.context, domain_id=domain)
        self.client = Node('client', context=self.context, namespace=self.namespace,
                           use_global_arguments=False)
        self._nodes: list[Node] = [self.client]
        self._executors: list[SingleThreadedExecutor] = []
        self._threads: list[threading.Thread] = []
        self._processes: list[Process] = []
        self.spin(self.client)

    def spin(self, node: Node) -> Node:
        """Spin a node in an executor and thread of its own, and destroy it at the end."""
        executor = SingleThreadedExecutor(context=self.context)
        executor.add_node(node)
        thread = threading.Thread(target=_spin, args=(executor,), daemon=True)
        thread.start()
        self._executors.append(executor)
        self._threads.append(thread)
        if node not in self._nodes:
            self._nodes.append(node)
        return node

    def start(self, make: Callable[..., Node], parameters: Mapping[str, Any] = {},
              namespace: str = '', **options: Any) -> Node:
        """Create a node of this test's namespace with parameters, and spin it."""
        return self.spin(make(
            context=self.context, namespace=f'{self.namespace}{namespace}',
            use_global_arguments=False, parameter_overrides=overrides(parameters), **options))

    def collect(self, message_type: type, topic: str, qos: QoSProfile = RELIABLE) -> Collector:
        """Subscribe to a topic, relative to the namespace unless it begins with a slash."""
        return Collector(self.client, message_type, topic, qos)

    def process(self, module: str, parameters: Mapping[str, Any] = {}, *,
                arguments: Sequence[str] = (), environment: Mapping[str, str] = {},
                ) -> Process:
        """Start `python -m module` in this domain and namespace; it is ended with the test."""
        process = Process(
            module, parameters, domain=self.domain, namespace=self.namespace,
            arguments=arguments, environment=environment)
        self._processes.append(process)
        return process

    def close(self) -> None:
        """End the processes, destroy the nodes and shut the context down."""
        for process in self._processes:
            process.kill()
        for executor in self._executors:
            executor.shutdown(5.0)
        for thread in self._threads:
            thread.join(5.0)
        for node in reversed(self._nodes):
            node.destroy_node()
        self.context.try_shutdown()


class Process:
    """A node in a process of its own; its output is kept for messages of failed tests."""

    def __init__(self, module: str, parameters: Mapping[str, Any] = {}, *, domain: int = DOMAIN,
                 namespace: str = '/', arguments: Sequence[str] = (),
                 environment: Mapping[str, str] = {}) -> None:
        command = [sys.executable, '-m', module, '--ros-args', '-r', f'__ns:={namespace}']
        for name, value in parameters.items():
            command += ['-p', f'{name}:={_yaml(value)}']
        path = [str(REPOSITORY), environment.get('PYTHONPATH', ''),
                os.environ.get('PYTHONPATH', '')]
        self._lines: list[str] = []
        self._process = subprocess.Popen(
            [*command, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env={**os.environ, 'ROS_DOMAIN_ID': str(domain), 'PYTHONUNBUFFERED': '1',
                 'RCUTILS_LOGGING_USE_STDOUT': '1', **environment,
                 'PYTHONPATH': os.pathsep.join(filter(None, path))},
            # A test run in the background ignores SIGINT, and its children would inherit that.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for line in self._process.stdout:
            self._lines.append(line)

    @property
    def pid(self) -> int:
        """Return the process id."""
        return self._process.pid

    @property
    def output(self) -> str:
        """Return what the process has printed so far."""
        return ''.join(self._lines)

    def running(self) -> bool:
        """Say whether the process lives."""
        return self._process.poll() is None

    def wait_for(self, text: str, timeout: float = TIMEOUT) -> None:
        """Wait until the process has printed a text."""
        wait_until(lambda: text in self.output, timeout, lambda: f'{text!r} in {self.output}')

    def end(self, number: int = signal.SIGINT, timeout: float = TIMEOUT) -> tuple[int, float]:
        """Send a signal; return the exit code and the seconds that the end took."""
        start = time.monotonic()
        self._process.send_signal(number)
        return self.wait(timeout), time.monotonic() - start

    def wait(self, timeout: float = TIMEOUT) -> int:
        """Wait for the process to end by itself and return its exit code."""
        code = self._process.wait(timeout)
        self._reader.join(5.0)
        return code

    def kill(self) -> None:
        """End the process at once if it still runs."""
        if self.running():
            self._process.send_signal(signal.SIGINT)
            try:
                self._process.wait(5.0)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(5.0)
        self._reader.join(5.0)
        self._process.stdout.close()


class ImagePublisher:
    """A camera in the hand of a test."""

    def __init__(self, node: Node, topic: str = 'image', qos: QoSProfile = BEST_EFFORT,
                 message_type: type = Image) -> None:
        self._node = node
        self.publisher = node.create_publisher(message_type, topic, qos)
        self.sent: list[tuple[int, int]] = []

    def matched(self) -> bool:
        """Say whether somebody subscribes."""
        return self.publisher.get_subscription_count() > 0

    def send(self, pixels: np.ndarray, frame_id: str = 'camera', stamp: Any = None) -> Any:
        """Publish RGB pixels, stamped now, and return the message."""
        message = array_to_image(pixels, 'rgb8')
        message.header.stamp = stamp or self._node.get_clock().now().to_msg()
        message.header.frame_id = frame_id
        return self.send_message(message)

    def send_message(self, message: Any) -> Any:
        """Publish a message as it is."""
        self.sent.append(stamp_of(message))
        self.publisher.publish(message)
        return message


class Repeater:
    """Sends at a rate from a thread until it is closed (a context manager)."""

    def __init__(self, send: Callable[[], Any], rate: float) -> None:
        self._send = send
        self._period = 1.0 / rate
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Repeater:
        """Start to send."""
        self._thread.start()
        return self

    def __exit__(self, *details: Any) -> None:
        """Stop sending."""
        self._done.set()
        self._thread.join(5.0)

    def _run(self) -> None:
        due = time.monotonic()
        while not self._done.wait(max(0.0, due - time.monotonic())):
            self._send()
            due += self._period


def overrides(parameters: Mapping[str, Any]) -> list[Parameter]:
    """Return parameters as the overrides of a node."""
    return [Parameter(name, value=value) for name, value in parameters.items()]


def stamp_of(message: Any) -> tuple[int, int]:
    """Return the stamp of a message as (sec, nanosec)."""
    return message.header.stamp.sec, message.header.stamp.nanosec


def shared_memory_of(pid: int) -> set[Path]:
    """Return the shared-memory files of Fast DDS that only this process has mapped."""
    lines = Path(f'/proc/{pid}/maps').read_text().splitlines()
    # All processes of a machine share the ports from 7000 on, whatever their domain: 7000, and the
    # next ones where a killed process has left that one unusable. Those of a domain begin at 7410.
    return {Path(line.split()[-1]) for line in lines
            if '/dev/shm/fastdds' in line and 'fastdds_port70' not in line}


def values_of(status: Any) -> dict[str, str]:
    """Return the key-value pairs of a diagnostic status."""
    return {pair.key: pair.value for pair in status.values}


def _spin(executor: SingleThreadedExecutor) -> None:
    try:
        executor.spin()
    except ExternalShutdownException:
        pass


def _yaml(value: Any) -> str:
    if isinstance(value, str):
        return f"'{value}'"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return f'[{", ".join(_yaml(item) for item in value)}]'
    return str(value)
