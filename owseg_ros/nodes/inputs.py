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
"""The image subscription of a camera."""

from __future__ import annotations

import threading
from typing import Any, Callable, Collection

from owseg_ros.frame import compressed_to_frame
from owseg_ros.frame import Frame
from owseg_ros.frame import image_to_frame
from owseg_ros.nodes import qos
from rclpy.node import Node
from rclpy.qos import QoSPolicyKind
from rclpy.qos import ReliabilityPolicy
from rclpy.subscription import Subscription
from sensor_msgs.msg import CompressedImage
from sensor_msgs.msg import Image

try:
    from rclpy.event_handler import SubscriptionEventCallbacks
except ImportError:  # Humble
    from rclpy.qos_event import SubscriptionEventCallbacks

TRANSPORTS = {
    'raw': ('image', Image), 'compressed': ('image/compressed', CompressedImage)}
"""Topic and type of each value of the parameter `image_transport`."""


_TYPES = {f'sensor_msgs/msg/{kind.__name__}' for _, kind in TRANSPORTS.values()}
_SOME = 3


def camera_topic(camera: str, topic: str) -> str:
    """Return the relative name of a topic of a camera; '' is the camera of the node itself."""
    return f'{camera}/{topic}' if camera else topic


def images_elsewhere(topic: str, transport: str, published: Collection[str]) -> str:
    """
    Return what to do where a camera has no publisher but others have, or ''.

    :param topic: the full name of the topic that nobody publishes.
    :param transport: a key of TRANSPORTS.
    :param published: full names of topics of images.
    """
    raw = topic[:-len('/compressed')] if transport == 'compressed' else topic
    other, counterpart = ('raw', raw) if transport == 'compressed' else (
        'compressed', f'{raw}/compressed')
    if counterpart in published:
        return f'{counterpart} is published: set image_transport to {other}'
    if not published:
        return ''
    some = sorted(published)
    named = ', '.join(some[:_SOME]) + (
        f' and {len(some) - _SOME} more' if len(some) > _SOME else '')
    return (f'images are published on {named}: remap the topic (image:= of the launch file), or '
            'set cameras and image_transport')


class ImageInput:
    """
    Subscribes to the images of one camera, whatever reliability their publisher offers.

    :param node: the node that subscribes.
    :param camera: namespace of the camera, relative to that of the node.
    :param transport: a key of TRANSPORTS.
    :param reliability: one of `qos.RELIABILITIES`.
    :param received: called in the executor with each message.
    """

    def __init__(self, node: Node, camera: str, transport: str, reliability: str,
                 received: Callable[[Any], None]) -> None:
        self._node = node
        topic, self._type = TRANSPORTS[transport]
        self._transport = transport
        self._relative_topic = camera_topic(camera, topic)
        self._reliability = reliability
        self._received = received
        # Diagnostics ask from their own thread while the executor may subscribe again.
        self._lock = threading.RLock()
        self._subscription = None
        self._incompatible = ''

    @property
    def topic(self) -> str:
        """Return the full name of the topic, remappings applied."""
        return self._node.resolve_topic_name(self._relative_topic)

    @property
    def incompatible(self) -> str:
        """Return why a publisher that is there does not match; '' when none is in the way."""
        if not self._incompatible:
            return ''
        there = self._node.count_publishers(self.topic)
        # Humble does not tell how many of them match.
        matched = self.publishers() if hasattr(Subscription, 'get_publisher_count') else 0
        return self._incompatible if there > matched else ''

    @property
    def reliable(self) -> bool:
        """Say whether the subscription that is open asks for reliable delivery."""
        with self._lock:
            return self._subscription is not None and (
                self._subscription.qos_profile.reliability == ReliabilityPolicy.RELIABLE)

    def open(self) -> None:  # noqa: A003
        """Subscribe."""
        self._incompatible = ''
        self._subscribe(self._reliability)

    def close(self) -> None:
        """Unsubscribe."""
        with self._lock:
            if self._subscription is not None:
                self._node.destroy_subscription(self._subscription)
                self._subscription = None

    def publishers(self) -> int:
        """Return the number of publishers of the topic that match."""
        with self._lock:
            if self._subscription is None:
                return 0
            if hasattr(Subscription, 'get_publisher_count'):
                return self._subscription.get_publisher_count()
            return self._node.count_publishers(self.topic)

    def elsewhere(self, taken: Collection[str] = ()) -> str:
        """
        Return where other nodes publish images, and what to do to get them, or ''.

        :param taken: full names of topics that the node has already.
        """
        own = self._node.get_name(), self._node.get_namespace()
        published = [
            name for name, types in self._node.get_topic_names_and_types()
            if _TYPES.intersection(types) and name not in taken and any(
                (info.node_name, info.node_namespace) != own
                for info in self._node.get_publishers_info_by_topic(name))]
        return images_elsewhere(self.topic, self._transport, published)

    def convert(self, message: Any, at_least: tuple[int, int] | None = None) -> Frame:
        """
        Return the message as a frame.

        :param at_least: (height, width) of the pixels that are needed; None for all of them.
        :raises owseg_ros.frame.FrameError: the message is malformed.
        """
        if self._type is CompressedImage:
            return compressed_to_frame(message, self.topic, at_least)
        return image_to_frame(message, self.topic)

    def _subscribe(self, reliability: str) -> None:
        profile = qos.image_input(self._node, self._relative_topic, reliability)
        with self._lock:
            self._subscription = self._node.create_subscription(
                self._type, self._relative_topic, self._received, profile,
                event_callbacks=SubscriptionEventCallbacks(
                    incompatible_qos=self._publisher_does_not_match))

    def _publisher_does_not_match(self, event: Any) -> None:
        if self._subscription is None:
            return
        by_reliability = int(event.last_policy_kind) == int(QoSPolicyKind.RELIABILITY)
        if by_reliability and self._reliability == 'best_available' and self.reliable:
            self._node.get_logger().info(
                f'{self.topic} is published best effort: subscribing again as best effort')
            self.close()
            self._subscribe('best_effort')
        elif by_reliability:
            self._incompatible = (
                f'{self.topic} is published best effort and image_reliability is '
                f'{self._reliability}: set it to best_available')
            self._node.get_logger().warning(self._incompatible)
        else:
            policy = QoSPolicyKind(int(event.last_policy_kind)).name.lower()
            self._incompatible = f'a publisher of {self.topic} does not match by its {policy}'
            self._node.get_logger().warning(self._incompatible)
