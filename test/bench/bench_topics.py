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
"""
Watch the masks of a running perception as a process that only knows ROS.

Starts camera and perception (`owseg_ros.nodes.stack`) as one process and listens as another, with
nothing but rclpy and messages: semantic/mask, semantic/confidence, anomaly/score, anomaly/mask,
labels and /diagnostics, against the frames that the camera announces on camera_info.  Prints one
JSON report: rates, ages from camera stamp to arrival, frames for which all four maps arrived.

    python test/bench/bench_topics.py --seconds 60 --rate 10 --size 640x480
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
import signal
import statistics
import subprocess
import sys
import time

from diagnostic_msgs.msg import DiagnosticArray
import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import String

ROOT = Path(__file__).resolve().parents[2]
MAPS = ('semantic/mask', 'semantic/confidence', 'anomaly/score', 'anomaly/mask')
BEST_EFFORT = QoSProfile(depth=5, reliability=ReliabilityPolicy.BEST_EFFORT)
LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)


class Listener:
    """Counts what arrives, by stamp."""

    def __init__(self, node):
        self.node = node
        self.camera: set[tuple[int, int]] = set()
        self.maps: dict[str, dict[tuple[int, int], float]] = {name: {} for name in MAPS}
        self.labels: dict = {}
        self.diagnostics = 0
        self.last: dict[str, str] = {}
        node.create_subscription(CameraInfo, 'camera_info', self._camera, BEST_EFFORT)
        node.create_subscription(String, 'labels', self._labels, LATCHED)
        node.create_subscription(DiagnosticArray, '/diagnostics', self._diagnostics, 10)
        for name in MAPS:
            node.create_subscription(
                Image, name, lambda message, name=name: self._map(name, message), BEST_EFFORT)

    def _camera(self, message):
        self.camera.add((message.header.stamp.sec, message.header.stamp.nanosec))

    def _map(self, name, message):
        stamp = message.header.stamp
        now = self.node.get_clock().now().nanoseconds
        self.maps[name][stamp.sec, stamp.nanosec] = (
            1e-6 * now - 1e3 * stamp.sec - 1e-6 * stamp.nanosec)

    def _labels(self, message):
        self.labels = json.loads(message.data)

    def _diagnostics(self, message):
        self.diagnostics += 1
        for status in message.status:
            values = {pair.key: pair.value for pair in status.values}
            if 'network_ms' in values:
                self.last = values

    def clear(self):
        """Forget the frames so far."""
        self.camera.clear()
        self.diagnostics = 0
        for found in self.maps.values():
            found.clear()


def spin(executor, seconds: float, until=lambda: False) -> bool:
    """Spin for a time, or until a condition holds; return the condition."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and not until():
        executor.spin_once(timeout_sec=0.05)
    return until()


def percentiles(values: list[float]) -> dict[str, float]:
    """Return p50, p95 and p99."""
    cuts = statistics.quantiles(values, n=100)
    return {name: round(cuts[index], 1) for name, index in (('p50', 49), ('p95', 94), ('p99', 98))}


def main() -> int:
    """Run the benchmark; exit code 1 when nothing arrived."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n\n')[0])
    parser.add_argument('--seconds', type=float, default=60.0)
    parser.add_argument('--rate', type=float, default=10.0)
    parser.add_argument('--size', default='640x480')
    parser.add_argument('--model', default='')
    parser.add_argument('--source', default='scene')
    options = parser.parse_args()
    width, height = (int(value) for value in options.size.split('x'))
    os.environ.setdefault('ROS_DOMAIN_ID', str(1 + os.getpid() % 100))
    command = [sys.executable, '-m', 'owseg_ros.nodes.stack', '--ros-args']
    for name, value in {
            'source': options.source, 'rate': options.rate, 'width': width, 'height': height,
            'model': options.model}.items():
        command += ['-p', f'{name}:={value!r}']
    environment = {**os.environ, 'PYTHONPATH': os.pathsep.join(
        [str(ROOT), os.environ.get('PYTHONPATH', '')])}
    stack = subprocess.Popen(command, env=environment)
    try:
        with rclpy.init():
            node = rclpy.create_node('bench_topics')
            listener = Listener(node)
            executor = SingleThreadedExecutor()
            executor.add_node(node)
            if not spin(executor, 60, lambda: stack.poll() is not None or all(
                    len(found) > 10 for found in listener.maps.values())):
                print('no masks within 60 s', file=sys.stderr)
                return 1
            if stack.poll() is not None:
                print(f'the nodes ended with {stack.returncode}', file=sys.stderr)
                return 1
            listener.clear()
            start = time.monotonic()
            spin(executor, options.seconds)
            elapsed = time.monotonic() - start
            stack.send_signal(signal.SIGINT)
            executor.shutdown(1.0)
            node.destroy_node()
    finally:
        stack.send_signal(signal.SIGINT)
        try:
            stack.wait(20)
        except subprocess.TimeoutExpired:
            stack.kill()
    complete = set.intersection(*(set(found) for found in listener.maps.values()))
    print(json.dumps({
        'seconds': round(elapsed, 1), 'size': options.size,
        'camera_frames': len(listener.camera),
        'camera_hz': round(len(listener.camera) / elapsed, 2),
        'maps': {name: {'hz': round(len(found) / elapsed, 2),
                        'age_ms': percentiles(list(found.values()))}
                 for name, found in listener.maps.items()},
        'frames_with_all_maps': len(complete),
        'label_names': [entry['name'] for entry in listener.labels.get('classes', [])],
        'diagnostics_hz': round(listener.diagnostics / elapsed, 2),
        'node': {key: listener.last.get(key) for key in (
            'rate_hz', 'age_ms_p50', 'network_ms', 'readout_ms', 'drops', 'bad_frames')},
    }, indent=2))
    return 0 if complete else 1


if __name__ == '__main__':
    sys.exit(main())
