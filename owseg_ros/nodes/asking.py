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
"""Talking to a running node, in words or by example, as a process that only knows ROS."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
import json
import os
from typing import Any

from owseg_ros.errors import OwsegError
from owseg_ros.nodes import qos, transport
from owseg_ros.nodes.inspection import spin_until
from owseg_ros.nodes.queries import QUERY, STATUS
from owseg_ros.nodes.teaching import STATUS as TEACH_STATUS
from owseg_ros.nodes.teaching import TEACH
import rclpy
from rclpy.exceptions import InvalidNamespaceException
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSProfile
from std_msgs.msg import String
from std_srvs.srv import Trigger

_CALLS = 4


class NoAnswerError(OwsegError):
    """Nobody is there to ask, or nobody answered; the message says what to do."""


@dataclass(frozen=True)
class Conversation:
    """
    Topics of a message and its answer.

    what: is taken by the node, for people; command: of owseg; qos: of the messages.
    """

    topic: str
    status: str
    what: str
    command: str
    qos: QoSProfile


QUERIES = Conversation(QUERY, STATUS, 'queries', 'owseg query', qos.newest_text())
TEACHING = Conversation(TEACH, TEACH_STATUS, 'examples', 'owseg teach', qos.texts())


def exchange(message: dict[str, Any] | None, namespace: str = '', seconds: float = 10.0,
             talk: Conversation = QUERIES) -> dict[str, Any]:
    """
    Publish a message on `query`, or `teach`, and return what the status answers.

    message: with a message_id by which its answer is known; None asks nothing and returns the
    status of the moment. namespace: of the node that is asked. seconds: how long to look for it,
    and then how long to wait for its answer. Raises NoAnswerError.
    """
    statuses: list[dict[str, Any]] = []

    def answer() -> dict[str, Any] | None:
        return next((status for status in statuses
                     if status['message_id'] == message['message_id']), None)

    with _session(namespace) as (node, executor):
        node.create_subscription(
            String, talk.status, lambda status: statuses.append(json.loads(status.data)),
            qos.latched(qos.STATUS_DEPTH))
        publisher = node.create_publisher(String, talk.topic, talk.qos)
        # The status of the moment tells that the node will hear, and that it will be heard.
        if not spin_until(executor, seconds,
                          lambda: bool(statuses) and publisher.get_subscription_count() > 0):
            raise NoAnswerError(_nobody(node, seconds, talk))
        if message is None:
            return statuses[-1]
        publisher.publish(String(data=json.dumps(message)))
        if not spin_until(executor, seconds, lambda: answer() is not None):
            raise NoAnswerError(
                f'no answer on {node.resolve_topic_name(talk.status)} within {seconds:g} s: '
                'another message may have taken the place of this one, or the node is busy; '
                f'{talk.command} --list tells what it holds now')
        return answer()


def call(service: str, namespace: str = '', seconds: float = 10.0) -> tuple[bool, str]:
    """
    Call a std_srvs/Trigger service that may be called again; return success and message.

    namespace, seconds: as for exchange. Raises NoAnswerError.
    """
    with _session(namespace) as (node, executor):
        client = node.create_client(Trigger, service)
        name = node.resolve_service_name(service)
        if not spin_until(executor, seconds, client.service_is_ready):
            raise NoAnswerError(f'nobody serves {name} within {seconds:g} s (ROS_DOMAIN_ID is '
                                f'{os.environ.get("ROS_DOMAIN_ID", 0)}); start a node: '
                                'ros2 launch owseg_ros perception.launch.py')
        for _ in range(_CALLS):
            # A server that has not met the client yet drops its answer; asking again does no harm.
            future = client.call_async(Trigger.Request())
            if spin_until(executor, seconds / _CALLS, future.done):
                return future.result().success, future.result().message
        raise NoAnswerError(f'no answer from {name} within {seconds:g} s: the node is busy, or '
                            'its disk is slow')


@contextmanager
def _session(namespace: str) -> Iterator[tuple[Node, SingleThreadedExecutor]]:
    transport.prepare()
    with rclpy.init(args=[]):
        try:
            node = rclpy.create_node(f'owseg_{os.getpid()}', namespace=namespace)
        except InvalidNamespaceException as error:
            raise NoAnswerError(f'{namespace!r} is no namespace: {error}') from error
        executor = SingleThreadedExecutor()
        try:
            executor.add_node(node)
            yield node, executor
        finally:
            executor.shutdown(1.0)
            node.destroy_node()


def _nobody(node: Node, seconds: float, talk: Conversation) -> str:
    wanted = node.resolve_topic_name(talk.topic)
    others = sorted(
        name[:-len(talk.topic) - 1] or '/' for name, _ in node.get_topic_names_and_types()
        if name.endswith(f'/{talk.topic}') and name != wanted and node.count_subscribers(name))
    there = f'; --namespace may be {", ".join(others)}' if others else ''
    return (f'no node that takes {talk.what} subscribes to {wanted} within {seconds:g} s '
            f'(ROS_DOMAIN_ID is {os.environ.get("ROS_DOMAIN_ID", 0)}){there}; start one: '
            'ros2 launch owseg_ros perception.launch.py')
