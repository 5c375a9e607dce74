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
"""Asking a running node in words, as a process that only knows ROS."""

from __future__ import annotations

import json
import os
from typing import Any

from owseg_ros.errors import OwsegError
from owseg_ros.nodes import qos, transport
from owseg_ros.nodes.inspection import spin_until
from owseg_ros.nodes.queries import QUERY, STATUS
import rclpy
from rclpy.exceptions import InvalidNamespaceException
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from std_msgs.msg import String

_QUIET_SECONDS = 0.3


class NoAnswerError(OwsegError):
    """Nobody is there to ask, or nobody answered; the message says what to do."""


def exchange(message: dict[str, Any] | None, namespace: str = '',
             seconds: float = 10.0) -> dict[str, Any]:
    """
    Publish a message on `query` and return what `query/status` answers.

    message: with a message_id by which its answer is known; None asks nothing and returns the
    status of the moment. namespace: of the node that is asked. seconds: how long to look for it,
    and then how long to wait for its answer. Raises NoAnswerError.
    """
    transport.prepare()
    statuses: list[dict[str, Any]] = []

    def answer() -> dict[str, Any] | None:
        return next((status for status in statuses
                     if status['message_id'] == message['message_id']), None)

    with rclpy.init(args=[]):
        try:
            node = rclpy.create_node(f'owseg_query_{os.getpid()}', namespace=namespace)
        except InvalidNamespaceException as error:
            raise NoAnswerError(f'{namespace!r} is no namespace: {error}') from error
        executor = SingleThreadedExecutor()
        try:
            executor.add_node(node)
            node.create_subscription(
                String, STATUS, lambda status: statuses.append(json.loads(status.data)),
                qos.latched(qos.STATUS_DEPTH))
            publisher = node.create_publisher(String, QUERY, qos.newest_text())
            # The status of the moment tells that the node will hear, and that it will be heard.
            if not spin_until(executor, seconds,
                              lambda: bool(statuses) and publisher.get_subscription_count() > 0):
                raise NoAnswerError(_nobody(node, seconds))
            if message is None:
                # Older answers come first.
                count = -1
                while count != len(statuses):
                    count = len(statuses)
                    spin_until(executor, _QUIET_SECONDS, lambda: len(statuses) > count)
                return statuses[-1]
            publisher.publish(String(data=json.dumps(message)))
            if not spin_until(executor, seconds, lambda: answer() is not None):
                raise NoAnswerError(
                    f'no answer on {node.resolve_topic_name(STATUS)} within {seconds:g} s: '
                    'another message may have taken the place of this one, or the node is busy; '
                    'owseg query --list tells what it is asked for now')
            return answer()
        finally:
            executor.shutdown(1.0)
            node.destroy_node()


def _nobody(node: Node, seconds: float) -> str:
    wanted = node.resolve_topic_name(QUERY)
    others = sorted(
        name[:-len(QUERY) - 1] or '/' for name, _ in node.get_topic_names_and_types()
        if name.endswith(f'/{QUERY}') and name != wanted and node.count_subscribers(name))
    there = f'; --namespace may be {", ".join(others)}' if others else ''
    return (f'no node that takes queries subscribes to {wanted} within {seconds:g} s '
            f'(ROS_DOMAIN_ID is {os.environ.get("ROS_DOMAIN_ID", 0)}){there}; start one: '
            'ros2 launch owseg_ros perception.launch.py')
