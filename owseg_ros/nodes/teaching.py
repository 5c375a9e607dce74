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
"""What a node is taught by example: `teach`, `teach/status`, `save_prototypes` and its load."""

from __future__ import annotations

import json
from typing import Any, Callable

from diagnostic_msgs.msg import DiagnosticStatus
from owseg_ros.bundle import Bundle
from owseg_ros.nodes import qos
from owseg_ros.nodes.diagnostics import OK, status, WARN
from owseg_ros.novelty.frames import TeachableFrame
from owseg_ros.novelty.live import (
    LiveTeaching, TeachingAnswer, TeachingSetup, TeachingState, UNAVAILABLE, UNCONFIGURED)
from owseg_ros.novelty.match import PreparedPrototypes
from owseg_ros.segmenter import Segmenter
from rclpy.node import Node
from rclpy.task import Future
from std_msgs.msg import String
from std_srvs.srv import Trigger

TEACH, STATUS, SAVE, LOAD = 'teach', 'teach/status', 'save_prototypes', 'load_prototypes'

MIB = 1 << 20


class TeachingTopics:
    """
    Moves messages into the thread that takes them, and its answers out.

    The topics are there in every state of the node, so that a message is never left without an
    answer.

    :param node: the node that they belong to.
    :param live: called when another set has become live, in the thread that made it so.
    """

    def __init__(self, node: Node, live: Callable[[], None]) -> None:
        self._node = node
        self._setup: TeachingSetup | None = None
        self._teaching = LiveTeaching(self._answered, live, self._failed)
        self._status = node.create_publisher(String, STATUS, qos.latched())
        self._publish(TeachingAnswer(self._teaching.state))
        self._teaching.start()
        self._subscription = node.create_subscription(
            String, TEACH, lambda message: self._teaching.say(message.data), qos.texts())
        self._services = [
            node.create_service(Trigger, name, self._service(act))
            for name, act in ((SAVE, self._teaching.save), (LOAD, self._teaching.reload))]

    @property
    def taught(self) -> PreparedPrototypes | None:
        """Return what regions are compared with now, None where nothing is taught."""
        prepared = self._teaching.prepared
        return prepared if prepared is not None and len(prepared) else None

    @property
    def keeps_frames(self) -> bool:
        """Return whether frames are to be remembered."""
        return self._teaching.prepared is not None and self._teaching.frames.wanted

    def remember(self, camera: str, stamp: Any, frame: TeachableFrame) -> None:
        """
        Keep a frame, so that something in it can be pointed at.

        :param stamp: builtin_interfaces/Time of the image.
        """
        self._teaching.frames.add(camera, 10 ** 9 * stamp.sec + stamp.nanosec, frame)

    def configure(self, segmenter: Segmenter, path: str, threshold: float | None,
                  all_masks: bool, memory: int) -> None:
        """
        Begin with a model.

        :param path, threshold, all_masks: see `owseg_ros.novelty.live.TeachingSetup`.
        :param memory: MiB for recent frames.
        """
        bundle: Bundle = segmenter.bundle
        head = None if bundle.novelty is None else segmenter.metric_head
        self._teaching.frames.limit(MIB * memory)
        self._setup = TeachingSetup(bundle, head, path, threshold, all_masks)
        self._teaching.configure(self._setup)
        state = self._teaching.state
        if state.file_error or path and state.error:
            self._node.get_logger().warning(state.file_error or f'prototypes: {state.error}')
        elif state.classes:
            self._node.get_logger().info(f'taught: {_names(state)}, from {state.path}')

    def release(self) -> None:
        """Forget the model, the classes and the frames."""
        self._setup = None
        self._teaching.release()

    def problem(self, path: str) -> str:
        """Return why a file cannot be loaded now, or ''."""
        return self._teaching.problem(path)

    def use(self, path: str) -> None:
        """Load a file, and save to it from now on."""
        self._teaching.use(path)

    def adjust(self, **changes: Any) -> None:
        """Change `threshold` or `all_masks` of the setup, where there is one."""
        self._teaching.adjust(**changes)

    def limit(self, memory: int) -> None:
        """Keep as many frames as fit into other memory (MiB)."""
        self._teaching.frames.limit(MIB * memory)

    def stop(self, timeout: float) -> None:
        """End the thread; nothing is published afterwards."""
        self._teaching.stop(timeout)

    def diagnose(self, name: str) -> DiagnosticStatus:
        """Return the status `teaching` of the node with this name."""
        state, setup = self._teaching.state, self._setup
        level, message = judge_teaching(state, setup)
        frames = self._teaching.frames.stamps()
        values = {
            'state': state.state, 'classes': len(state.classes), 'shots': state.shots,
            'version': state.version, 'file': state.path, 'unsaved': state.unsaved,
            'last_error': state.error or state.file_error, 'messages': state.messages,
            'dropped': state.dropped, 'answered': state.answered,
            'frames': sum(count for count, _, _ in frames.values()),
            'frames_mib': f'{self._teaching.frames.nbytes / MIB:.1f}',
            'frames_seconds': f'{max(_seconds(frames.values()), default=0.0):.1f}'}
        return status(f'{name}: teaching', level, message, values)

    def _service(self, act: Callable[..., None]) -> Callable[..., Any]:
        """Return a service that waits for the thread, in which the executor waits for nothing."""
        async def serve(request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
            outcome: Future = Future()

            def done(success: bool, text: str) -> None:
                outcome.set_result((success, text))
                executor = self._node.executor
                if executor is not None:
                    # It waits for messages and does not look at futures.
                    executor.wake()

            act(done)
            response.success, response.message = await outcome
            return response
        return serve

    # Called in the thread of teaching, or in that of whoever changed something

    def _answered(self, answer: TeachingAnswer) -> None:
        self._publish(answer)
        logger = self._node.get_logger()
        for rejection in answer.rejected:
            logger.warning(f'not taught: {rejection.entry!r}: {rejection.reason}',
                           throttle_duration_sec=1.0)
        if answer.accepted:
            warning = answer.shot.warning if answer.shot else ''
            logger.info(f'taught {", ".join(answer.accepted)}{warning and f": {warning}"}',
                        throttle_duration_sec=1.0)

    def _failed(self, text: str) -> None:
        # A signal may shut the context down at any moment; all else must be seen.
        if self._node.context.ok():
            self._node.get_logger().error(f'message not taken: {text}')

    def _publish(self, answer: TeachingAnswer) -> None:
        try:
            self._status.publish(String(data=json.dumps(answer.to_dict())))
        except RuntimeError:
            # rclpy's RCLError, where a signal has just shut the context down.
            if self._node.context.ok():
                raise


def judge_teaching(state: TeachingState, setup: TeachingSetup | None) -> tuple[bytes, str]:
    """Return level and message of the status `teaching`."""
    if state.state == UNCONFIGURED:
        return OK, state.state
    if state.state == UNAVAILABLE:
        # A model that was never meant to be taught is no reason to warn before somebody tries.
        asked = state.messages or setup is not None and setup.path
        return WARN if asked else OK, f'nothing can be taught: {state.error}'
    if state.file_error:
        return WARN, state.file_error
    if state.error:
        return WARN, f'the last message was not taken: {state.error}'
    return OK, _names(state) + (', not saved yet' if state.unsaved else '')


def _names(state: TeachingState) -> str:
    count = len(state.classes)
    shown = ', '.join(state.classes[:5]) + (', ...' if count > 5 else '')
    return f'{count} {"class" if count == 1 else "classes"}{f" ({shown})" if count else ""}'


def _seconds(frames: Any) -> list[float]:
    """Return how far back the frames of each camera go."""
    return [1e-9 * (newest - oldest) for _, oldest, newest in frames]
