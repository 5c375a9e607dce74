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
"""Named quality-of-service profiles; the whole package uses these and no others."""

from __future__ import annotations

from rclpy.qos import DurabilityPolicy
from rclpy.qos import HistoryPolicy
from rclpy.qos import QoSProfile
from rclpy.qos import ReliabilityPolicy

RELIABILITIES = ('best_available', 'best_effort', 'reliable')
"""Values of the parameter `image_reliability`."""


STATUS_DEPTH = 8
"""Answers that a reader of a status holds, where several who ask are answered at once."""


def latched(depth: int = 1) -> QoSProfile:
    """
    Return the profile of facts that a late subscriber still wants (labels, statuses).

    Publishers have depth 1: each message is the whole state, and with a deeper history a late
    subscriber would read the oldest one first. Who must see each answer of a status reads with
    a depth of its own; a reliable publisher writes to all who are there before it goes on.
    """
    return QoSProfile(
        history=HistoryPolicy.KEEP_LAST, depth=depth, reliability=ReliabilityPolicy.RELIABLE,
        durability=DurabilityPolicy.TRANSIENT_LOCAL)


def newest_text() -> QoSProfile:
    """Return the profile of messages of which each replaces the one before (queries)."""
    return QoSProfile(
        history=HistoryPolicy.KEEP_LAST, depth=1, reliability=ReliabilityPolicy.RELIABLE,
        durability=DurabilityPolicy.VOLATILE)


def texts(depth: int = 32) -> QoSProfile:
    """Return the profile of messages of which each counts (teaching)."""
    return QoSProfile(
        history=HistoryPolicy.KEEP_LAST, depth=depth, reliability=ReliabilityPolicy.RELIABLE,
        durability=DurabilityPolicy.VOLATILE)


def image_output() -> QoSProfile:
    """
    Return the profile of published images.

    Reliable, because a reliable publisher matches both kinds of subscriber (REP-2003), and of
    depth 1, because the queue is latency. With keep-last the next image replaces the one that
    a slow reader has not acknowledged: the publisher does not wait for it.
    """
    return QoSProfile(
        history=HistoryPolicy.KEEP_LAST, depth=1, reliability=ReliabilityPolicy.RELIABLE,
        durability=DurabilityPolicy.VOLATILE)


def image_input(node, topic: str, reliability: str) -> QoSProfile:
    """
    Return the profile for subscribing to camera images: volatile, the newest only.

    :param node: whose graph is asked for the publishers that are there.
    :param topic: the topic, as the node would subscribe to it (relative names allowed).
    :param reliability: one of RELIABILITIES. `best_available` is reliable when each publisher
        found is, and best effort when one is not. It is resolved here and now: a best-effort
        publisher that appears later is incompatible with a reliable subscription, which has
        to be made again then.
    """
    if reliability == 'best_available':
        offered = [
            info.qos_profile.reliability
            for info in node.get_publishers_info_by_topic(node.resolve_topic_name(topic))]
        reliable = all(policy == ReliabilityPolicy.RELIABLE for policy in offered)
    else:
        reliable = reliability == 'reliable'
    return QoSProfile(
        history=HistoryPolicy.KEEP_LAST, depth=1,
        reliability=ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT,
        durability=DurabilityPolicy.VOLATILE)
