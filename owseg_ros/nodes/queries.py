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
"""The words that a node is asked for: `query`, `query/status` and the service `clear_queries`."""

from __future__ import annotations

import json
from typing import Any, Callable

from diagnostic_msgs.msg import DiagnosticStatus
from owseg_ros.language.cache import CachingTextEncoder
from owseg_ros.language.contract import TextEncoderError
from owseg_ros.language.installed import default_text_encoder_path, open_text_encoder
from owseg_ros.language.live import (
    Answer, LanguageSetup, LanguageState, LiveQueries, NO_MODEL, OPENING, READY, UNAVAILABLE,
    UNCONFIGURED)
from owseg_ros.language.naming import RegionNamer
from owseg_ros.language.queries import parse_queries
from owseg_ros.language.scores import PreparedQueries
from owseg_ros.nodes import qos
from owseg_ros.nodes.diagnostics import OK, status, WARN
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.clock import Clock
from rclpy.clock import ClockType
from rclpy.node import Node
from std_msgs.msg import String
from std_srvs.srv import Trigger

QUERY, STATUS, CLEAR = 'query', 'query/status', 'clear_queries'

REST_SECONDS = 0.05
"""While messages come faster than they are answered, one is taken at most so often."""

_SHOWN_NAMES = 5


def open_encoder(setup: LanguageSetup) -> CachingTextEncoder:
    """
    Return the text encoder of a setup: in its folder, or the installed one of the model's space.

    :raises owseg_ros.language.contract.TextEncoderError: there is none, or it cannot be used.
    """
    return open_text_encoder(
        setup.text_encoder or default_text_encoder_path(setup.language.space))


class RestingGroup(MutuallyExclusiveCallbackGroup):
    """
    A callback group that can be put to rest for a while; it rests in its executor's own thread.

    What is not waited for costs the executor nothing: DDS keeps the newest messages of its
    subscriptions, and they are taken when the rest is over.

    :param node: whose executor wakes it.
    """

    def __init__(self, node: Node) -> None:
        super().__init__()
        self._resting = False
        # A steady clock: the clock of a bag that does not play yet stands still.
        self._timer = node.create_timer(
            REST_SECONDS, self._wake, MutuallyExclusiveCallbackGroup(),
            clock=Clock(clock_type=ClockType.STEADY_TIME))
        self._timer.cancel()

    def can_execute(self, entity: Any) -> bool:
        """Return whether an entity may be waited for."""
        return not self._resting and super().can_execute(entity)

    def rest(self) -> None:
        """Wait for nothing for REST_SECONDS; called in the executor."""
        self._resting = True
        self._timer.reset()

    def _wake(self) -> None:
        self._resting = False
        self._timer.cancel()


class QueryTopics:
    """
    Moves messages into the thread that answers them, and its answers out.

    The topics are there in every state of the node, so that a question is never left without an
    answer. What lasts, such as the set of a camera's masks, is asked for by `prepared`.

    :param node: the node that they belong to.
    :param open_encoder: see `owseg_ros.language.live.LiveQueries`.
    :param live: called in the thread of the queries when another set has become live.
    """

    def __init__(self, node: Node, open_encoder: Callable[[LanguageSetup], CachingTextEncoder],
                 live: Callable[[], None]) -> None:
        self._node = node
        self._setup: LanguageSetup | None = None
        self._queries = LiveQueries(open_encoder, self._answered, live, self._failed)
        self._status = node.create_publisher(String, STATUS, qos.latched())
        self._publish(Answer(self._queries.state))
        self._queries.start()
        self._group = RestingGroup(node)
        self._subscription = node.create_subscription(
            String, QUERY, self._received, qos.newest_text(), callback_group=self._group)
        self._service = node.create_service(Trigger, CLEAR, self._clear)

    @property
    def prepared(self) -> PreparedQueries | None:
        """Return what masks are compared with now, None where there can be no queries."""
        return self._queries.prepared

    @property
    def namer(self) -> RegionNamer | None:
        """Return what names regions now, None where nothing does."""
        return self._queries.namer

    def configure(self, setup: LanguageSetup, message: str) -> None:
        """Ask with another model; `message` names the first queries, as the topic does."""
        self._setup = setup
        self._queries.configure(setup, message)

    def release(self) -> None:
        """Forget the model and the queries."""
        self._setup = None
        self._queries.release()

    def problem(self, message: str) -> str:
        """Return why a message would not be answered whole now, or an empty string."""
        parsed = parse_queries(message)
        refused = [f'{rejection.entry!r}: {rejection.reason}' for rejection in parsed.rejected]
        state = self._queries.state
        if parsed.queries and state.state == UNAVAILABLE:
            refused.append(state.error)
        return '; '.join(refused)

    def ask(self, message: str) -> None:
        """Ask as the topic does; never waits."""
        self._queries.ask(message)

    def adjust(self, **changes: Any) -> None:
        """Change `threshold`, `vocabulary` or `names` of the setup, where there is one."""
        self._queries.adjust(**changes)

    def stop(self, timeout: float) -> None:
        """End the thread; nothing is published afterwards."""
        self._queries.stop(timeout)

    def diagnose(self, name: str) -> DiagnosticStatus:
        """Return the status `language` of the node with this name."""
        state, setup = self._queries.state, self._setup
        level, message = judge_language(state, setup)
        values = {
            'state': state.state, 'space': state.space, 'active': len(state.active),
            'version': state.version, 'encoder': _encoder_folder(setup),
            'last_error': state.error, 'messages': state.messages,
            'superseded': state.superseded, 'answered': state.answered,
            'text_passes': state.text_passes, 'text_ms': f'{state.text_ms:.2f}',
            'names': state.names}
        return status(f'{name}: language', level, message, values)

    def _clear(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        state = self._queries.state
        response.success = state.state in (OPENING, READY)
        if response.success:
            self._queries.ask('')
            response.message = f'clears {_names(state.active)}; {STATUS} says when'
        else:
            response.message = state.error or NO_MODEL
        return response

    def _received(self, message: String) -> None:
        if self._queries.ask(message.data):
            self._group.rest()

    # Called in the thread of the queries

    def _answered(self, answer: Answer) -> None:
        self._publish(answer)
        if answer.accepted or answer.rejected:
            refused = ''.join(
                f'; not {rejection.entry!r}: {rejection.reason}' for rejection in answer.rejected)
            self._node.get_logger().info(
                f'asked for {_names(answer.accepted)}{refused}', throttle_duration_sec=1.0)

    def _failed(self, text: str) -> None:
        # A signal may shut the context down at any moment; all else must be seen.
        if self._node.context.ok():
            self._node.get_logger().error(f'query not answered: {text}')

    def _publish(self, answer: Answer) -> None:
        self._status.publish(String(data=json.dumps(answer.to_dict())))


def judge_language(state: LanguageState, setup: LanguageSetup | None) -> tuple[bytes, str]:
    """Return level and message of the status `language`."""
    if state.state == UNCONFIGURED:
        return OK, state.state
    if state.state == OPENING:
        return OK, 'opening the text encoder'
    if state.state == READY:
        if state.error:
            return WARN, f'the last query was not taken: {state.error}'
        if state.names_error:
            return WARN, f'regions have no names: {state.names_error}'
        return OK, f'{_names(state.active)} in {state.space}'
    # A model that was never meant to be asked is no reason to warn before somebody asks it.
    wordless = setup is not None and setup.language is None and not state.messages
    return OK if wordless else WARN, f'no queries: {state.error}'


def _names(names: tuple[str, ...]) -> str:
    shown = ', '.join(names[:_SHOWN_NAMES]) + (', ...' if len(names) > _SHOWN_NAMES else '')
    count = f'{len(names)} {"query" if len(names) == 1 else "queries"}'
    return f'{count} ({shown})' if names else count


def _encoder_folder(setup: LanguageSetup | None) -> str:
    if setup is None or setup.language is None:
        return ''
    try:
        return str(setup.text_encoder or default_text_encoder_path(setup.language.space))
    except TextEncoderError as error:
        return str(error)
