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
QUERY_MAPS = ('query/mask', 'query/score')
QUERY_LABELS = 'query/labels'
INPUT = 'image'
PENDING_FRAMES = 16
"""Frames that may wait for the rest of their messages."""

Stamp = tuple[int, int]


@dataclass
class RecordedFrame:
    """
    All messages of one camera frame.

    stamp: (seconds, nanoseconds); arrays: topic to array as sent, uint8 [H, W, 3] for the image,
    uint8 or float32 [H, W] for the maps; age_ms: topic to the time from the stamp to arrival;
    queries: names of the ids of query/mask, None where words are not recorded.
    """

    stamp: Stamp
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    age_ms: dict[str, float] = field(default_factory=dict)
    queries: tuple[str, ...] | None = None

    @property
    def seconds(self) -> float:
        """Return the stamp in seconds."""
        return self.stamp[0] + 1e-9 * self.stamp[1]


class Recorder(Node):
    """
    Subscribes to a camera and its results and hands out the frames that are complete.

    on_frame: called in the executor with each RecordedFrame; it must return quickly.
    words: whether the model knows words; then frames have the maps of queries too.
    on_answer: called with each message of query/status, where words are recorded.
    on_taught: called with each message of teach/status; None where nothing is to be taught.
    options: passed to rclpy.node.Node.
    """

    def __init__(self, on_frame: Callable[[RecordedFrame], None], words: bool = False,
                 on_answer: Callable[[dict[str, Any]], None] = lambda answer: None,
                 on_taught: Callable[[dict[str, Any]], None] | None = None,
                 **options: Any) -> None:
        super().__init__(options.pop('node_name', 'recorder'), **options)
        self.labels: dict[str, Any] = {}
        self.statistics: dict[str, str] = {}
        self.engine: dict[str, str] = {}
        self._topics = (INPUT, *MAPS, *(QUERY_MAPS if words else ()))
        self.received = dict.fromkeys(self._topics, 0)
        self.incomplete = 0
        self._on_frame = on_frame
        self._pending: OrderedDict[Stamp, RecordedFrame] = OrderedDict()
        for topic in self._topics:
            self.create_subscription(
                Image, topic, lambda message, topic=topic: self._image(topic, message),
                qos_profile_sensor_data)
        self.create_subscription(String, 'labels', self._labels, qos.latched())
        self.create_subscription(DiagnosticArray, '/diagnostics', self._diagnostics, 10)
        if on_taught is not None:
            self._teach = self.create_publisher(String, 'teach', qos.texts())
            self.create_subscription(
                String, 'teach/status', lambda message: on_taught(json.loads(message.data)),
                qos.latched(qos.STATUS_DEPTH))
        self._words = words
        if words:
            self._query = self.create_publisher(String, 'query', qos.newest_text())
            # Two sets may follow each other at once, and each frame needs its own.
            self.create_subscription(
                String, QUERY_LABELS, self._query_labels, qos.latched(qos.STATUS_DEPTH))
            self.create_subscription(
                String, 'query/status', lambda message: on_answer(json.loads(message.data)),
                qos.latched(qos.STATUS_DEPTH))

    def seconds(self) -> float:
        """Return the time of the node's clock."""
        return 1e-9 * self.get_clock().now().nanoseconds

    def ask(self, message: str) -> bool:
        """Publish a message on `query`; False where nobody listens yet."""
        if not self._query.get_subscription_count():
            return False
        self._query.publish(String(data=message))
        return True

    def teach(self, message: dict[str, Any]) -> bool:
        """Publish a message on `teach`; False where nobody listens yet."""
        if not self._teach.get_subscription_count():
            return False
        self._teach.publish(String(data=json.dumps(message)))
        return True

    def _image(self, topic: str, message: Image) -> None:
        stamp = (message.header.stamp.sec, message.header.stamp.nanosec)
        now = self.get_clock().now().nanoseconds
        self.received[topic] += 1
        frame = self._pending.setdefault(stamp, RecordedFrame(stamp))
        frame.arrays[topic] = image_to_array(message, topic)
        frame.age_ms[topic] = 1e-6 * (now - 1_000_000_000 * stamp[0] - stamp[1])
        self._hand_out(frame)

    def _query_labels(self, message: String) -> None:
        labels = json.loads(message.data)
        # Without a stamp it is the set that has become live, and no frame's.
        if labels['stamp'] is not None:
            stamp = (labels['stamp']['sec'], labels['stamp']['nanosec'])
            frame = self._pending.setdefault(stamp, RecordedFrame(stamp))
            frame.queries = tuple(entry['name'] for entry in labels['queries'])
            self._hand_out(frame)

    def _hand_out(self, frame: RecordedFrame) -> None:
        complete = len(frame.arrays) == len(self._topics)
        if complete and (frame.queries is not None or not self._words):
            del self._pending[frame.stamp]
            self._on_frame(frame)
        while len(self._pending) > PENDING_FRAMES:
            _, oldest = self._pending.popitem(last=False)
            # A frame with no map at all was dropped by the network, as it should be.
            self.incomplete += any(topic in oldest.arrays for topic in self._topics[1:])

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
def session(on_frame: Callable[[RecordedFrame], None], **options: Any,
            ) -> Iterator[tuple[Recorder, Callable[[float], None]]]:
    """
    Initialise rclpy and run a Recorder; yields it and a function that spins it for seconds.

    on_frame, options: as for Recorder.
    """
    with rclpy.init():
        recorder = Recorder(on_frame, **options)
        executor = SingleThreadedExecutor()
        executor.add_node(recorder)
        try:
            yield recorder, lambda seconds: executor.spin_once(timeout_sec=seconds)
        finally:
            executor.shutdown(1.0)
            recorder.destroy_node()
