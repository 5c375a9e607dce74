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
"""Looking at the ROS graph: which image topics there are, how fast, and what nodes report."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
import time

from diagnostic_msgs.msg import DiagnosticArray
from owseg_ros.nodes import transport
import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.qos import qos_profile_sensor_data, ReliabilityPolicy
from sensor_msgs.msg import CompressedImage, Image

TYPES = {'sensor_msgs/msg/Image': Image, 'sensor_msgs/msg/CompressedImage': CompressedImage}
_OWN_TOPICS = ('/semantic/', '/anomaly/', '/query/', '/overlay')
_DISCOVERY_SECONDS = 3.5


@dataclass
class ImageTopic:
    """An image topic: its publishers, what they offer, and the rate that was received here."""

    topic: str
    type: str  # noqa: A003
    publishers: int
    reliability: str
    received: list[float] = field(default_factory=list)
    rate_hz: float = 0.0


@dataclass(frozen=True)
class NodeStatus:
    """The last diagnostic status of a part of a node; level 0 ok, 1 warn, above: error."""

    name: str
    level: int
    message: str


@dataclass(frozen=True)
class Graph:
    """What was found."""

    images: tuple[ImageTopic, ...]
    statuses: tuple[NodeStatus, ...]


def inspect_graph(topic: str | None, seconds: float) -> Graph:
    """
    Listen for a while.

    topic: the image topic to look for, None for all but the results of owseg_ros itself;
    seconds: how long to receive, after the nodes of the domain have been discovered.
    """
    transport.prepare()
    statuses: dict[str, NodeStatus] = {}

    def diagnose(message: DiagnosticArray) -> None:
        for status in message.status:
            # One byte in the message; Python delivers it as bytes.
            level = int.from_bytes(status.level, 'little')
            if 'dds' in {pair.key for pair in status.values} or ': camera' in status.name \
                    or status.name.endswith((': transport', ': language')):
                statuses[status.name] = NodeStatus(status.name, level, status.message)

    with rclpy.init():
        node = rclpy.create_node('owseg_doctor')
        executor = SingleThreadedExecutor()
        executor.add_node(node)
        node.create_subscription(DiagnosticArray, '/diagnostics', diagnose, 10)
        wanted = node.resolve_topic_name(topic) if topic else None
        images: dict[str, ImageTopic] = {}
        spin_until(executor, _DISCOVERY_SECONDS,
                   lambda: bool(_found(node, wanted)) and bool(statuses))
        for name, kind in _found(node, wanted):
            infos = node.get_publishers_info_by_topic(name)
            best_effort = any(info.qos_profile.reliability == ReliabilityPolicy.BEST_EFFORT
                              for info in infos)
            image = images[name] = ImageTopic(
                name, kind, len(infos), 'best effort' if best_effort else 'reliable')
            node.create_subscription(
                TYPES[kind], name, lambda _, image=image: image.received.append(time.monotonic()),
                qos_profile_sensor_data)
        spin_until(executor, seconds, lambda: False)
        executor.shutdown(1.0)
        node.destroy_node()
    for image in images.values():
        if len(image.received) > 1:
            image.rate_hz = (len(image.received) - 1) / (image.received[-1] - image.received[0])
        elif image.received:
            image.rate_hz = 1 / seconds
    return Graph(tuple(images.values()), tuple(statuses[name] for name in sorted(statuses)))


def _found(node, wanted: str | None) -> list[tuple[str, str]]:
    return [(name, kind) for name, kinds in sorted(node.get_topic_names_and_types())
            for kind in kinds
            if kind in TYPES and node.count_publishers(name)
            and (name == wanted if wanted else not any(own in name for own in _OWN_TOPICS))]


def spin_until(executor: SingleThreadedExecutor, seconds: float,
               until: Callable[[], bool]) -> bool:
    """Spin for a time, or until a condition holds; return the condition."""
    end = time.monotonic() + seconds
    while not (reached := until()) and time.monotonic() < end:
        executor.spin_once(timeout_sec=0.05)
    return reached
