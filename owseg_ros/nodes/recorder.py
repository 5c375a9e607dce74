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
"""A process that only knows ROS: it collects the results of a camera, frame by frame."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
import json
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray
import numpy as np
from owseg_ros.frame import image_to_array
from owseg_ros.nodes import qos
import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import Image
from std_msgs.msg import String

MAPS = ('semantic/mask', 'semantic/confidence', 'anomaly/score', 'anomaly/mask')
INPUT = 'image'
PENDING_FRAMES = 16
"""Frames that may wait for the rest of their messages."""

Stamp = tuple[int, int]


@dataclass
class RecordedFrame:
    """
    All messages of one camera frame.

    stamp: (seconds, nanoseconds); arrays: topic to array as sent, uint8 [H, W, 3] for the image,
    uint8 or float32 [H, W] for the maps; age_ms: topic to the time from the stamp to arrival.
    """

    stamp: Stamp
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    age_ms: dict[str, float] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """Return the stamp in seconds."""
        return self.stamp[0] + 1e-9 * self.stamp[1]


class Recorder(Node):
    """
    Subscribes to a camera and its results and hands out the frames that are complete.

    on_frame: called in the executor with each RecordedFrame; it must return quickly.
    options: passed to rclpy.node.Node.
    """

    def __init__(self, on_frame: Callable[[RecordedFrame], None], **options: Any) -> None:
        super().__init__(options.pop('node_name', 'recorder'), **options)
        self.labels: dict[str, Any] = {}
        self.statistics: dict[str, str] = {}
        self.engine: dict[str, str] = {}
        self.received = dict.fromkeys((INPUT, *MAPS), 0)
        self.incomplete = 0
        self._on_frame = on_frame
        self._pending: OrderedDict[Stamp, RecordedFrame] = OrderedDict()
        for topic in (INPUT, *MAPS):
            self.create_subscription(
                Image, topic, lambda message, topic=topic: self._image(topic, message),
                qos_profile_sensor_data)
        self.create_subscription(String, 'labels', self._labels, qos.latched())
        self.create_subscription(DiagnosticArray, '/diagnostics', self._diagnostics, 10)

    def _image(self, topic: str, message: Image) -> None:
        stamp = (message.header.stamp.sec, message.header.stamp.nanosec)
        now = self.get_clock().now().nanoseconds
        self.received[topic] += 1
        frame = self._pending.setdefault(stamp, RecordedFrame(stamp))
        frame.arrays[topic] = image_to_array(message, topic)
        frame.age_ms[topic] = 1e-6 * (now - 1_000_000_000 * stamp[0] - stamp[1])
        if len(frame.arrays) == 1 + len(MAPS):
            del self._pending[stamp]
            self._on_frame(frame)
        while len(self._pending) > PENDING_FRAMES:
            _, oldest = self._pending.popitem(last=False)
            # A frame with no map at all was dropped by the network, as it should be.
            self.incomplete += any(topic in oldest.arrays for topic in MAPS)

    def _labels(self, message: String) -> None:
        self.labels = json.loads(message.data)

    def _diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            values = {pair.key: pair.value for pair in status.values}
            if 'network_ms' in values:
                self.statistics = values
            elif 'engine' in values:
                self.engine = values


@contextmanager
def session(on_frame: Callable[[RecordedFrame], None],
            ) -> Iterator[tuple[Recorder, Callable[[float], None]]]:
    """
    Initialise rclpy and run a Recorder; yields it and a function that spins it for seconds.

    on_frame: as for Recorder.
    """
    with rclpy.init():
        recorder = Recorder(on_frame)
        executor = SingleThreadedExecutor()
        executor.add_node(recorder)
        try:
            yield recorder, lambda seconds: executor.spin_once(timeout_sec=seconds)
        finally:
            executor.shutdown(1.0)
            recorder.destroy_node()
