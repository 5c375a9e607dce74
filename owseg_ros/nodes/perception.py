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
The lifecycle node `perception`: camera images in, maps out.

The executor only moves messages into the newest-frame slots. One thread converts frames and runs
the network; what follows, the readout and the messages, is done by it too or, while it goes on
with the next frames, by a second one. Configuring loads and warms up the model, activating
subscribes; deactivating keeps the model. A model that cannot be used leaves the node
unconfigured, and it can be configured again when the parameter is right.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from dataclasses import replace
from pathlib import Path
import sys
import threading
import time
import traceback
from typing import Any, Callable, Iterator, Mapping

from diagnostic_msgs.msg import DiagnosticStatus
from owseg_ros.bundle import Bundle
from owseg_ros.bundle import BundleError
from owseg_ros.bundle import default_bundle_path
from owseg_ros.bundle import load_bundle
from owseg_ros.bundle import MANIFEST
from owseg_ros.engine import TensorrtOptions
from owseg_ros.engine import TorchOptions
from owseg_ros.errors import OwsegError
from owseg_ros.frame import Frame
from owseg_ros.frame import FrameError
from owseg_ros.language.cache import CachingTextEncoder
from owseg_ros.language.live import LanguageSetup
from owseg_ros.language.scores import PreparedQueries
from owseg_ros.language.vocabulary import load_vocabulary
from owseg_ros.nodes import transport
from owseg_ros.nodes.diagnostics import ERROR
from owseg_ros.nodes.diagnostics import FrameStatistics
from owseg_ros.nodes.diagnostics import judge_camera
from owseg_ros.nodes.diagnostics import judge_engine
from owseg_ros.nodes.diagnostics import NO_FRAMES
from owseg_ros.nodes.diagnostics import OK
from owseg_ros.nodes.diagnostics import Reporter
from owseg_ros.nodes.diagnostics import status
from owseg_ros.nodes.diagnostics import WARN
from owseg_ros.nodes.inputs import ImageInput
from owseg_ros.nodes.outputs import CameraOutputs
from owseg_ros.nodes.outputs import maps_of
from owseg_ros.nodes.outputs import Output
from owseg_ros.nodes.outputs import publish_outputs
from owseg_ros.nodes.outputs import QUERY_MASK
from owseg_ros.nodes.parameters import MODEL
from owseg_ros.nodes.parameters import ParameterTable
from owseg_ros.nodes.parameters import PERCEPTION
from owseg_ros.nodes.pipeline import Pipeline
from owseg_ros.nodes.process import run
from owseg_ros.nodes.queries import open_encoder as open_installed_encoder
from owseg_ros.nodes.queries import QueryTopics
from owseg_ros.nodes.slot import FrameSlots
from owseg_ros.nodes.slot import Pending
from owseg_ros.nodes.teaching import TeachingTopics
from owseg_ros.novelty.match import PreparedPrototypes
from owseg_ros.readout.maps import ReadoutSettings
from owseg_ros.readout.mask_history import MaskHistory
from owseg_ros.segmenter import NetworkPass
from owseg_ros.segmenter import readout_settings
from owseg_ros.segmenter import Segmenter
from owseg_ros.segmenter import TEACHABLE
from rclpy.clock import Clock
from rclpy.clock import ClockType
from rclpy.lifecycle import LifecycleNode
from rclpy.lifecycle import LifecycleState
from rclpy.lifecycle import TransitionCallbackReturn

SUCCESS = TransitionCallbackReturn.SUCCESS
FAILURE = TransitionCallbackReturn.FAILURE
FAILED = TransitionCallbackReturn.ERROR

_LABEL_PARAMETERS = frozenset({
    'anomaly_score', 'anomaly_objects', 'anomaly_threshold', 'anomaly_min_area', 'anomaly_region',
    'anomaly_hysteresis', 'anomaly_confirm_frames', 'anomaly_hold_frames', 'mark_unknown',
    'min_confidence'})
_READOUT_PARAMETERS = _LABEL_PARAMETERS | {'output_size'}


class Camera:
    """One camera of the node: its subscription, its publishers and its numbers."""

    def __init__(self, node: PerceptionNode, name: str, image_transport: str,
                 reliability: str, words: bool) -> None:
        self.name = name
        self.statistics = FrameStatistics()
        self.history = MaskHistory()
        self.road_lost = self.silent = False
        # The taught classes that its labels name.
        self.taught: PreparedPrototypes | None = None
        self.outputs = CameraOutputs(node, name, words)
        self.input = ImageInput(
            node, name, image_transport, reliability,
            lambda message: node.receive(self, message))


@dataclass(frozen=True, eq=False)
class Request:
    """A frame of a camera, and the outputs that somebody wants of it."""

    camera: Camera
    pending: Pending
    outputs: list[tuple[Output, Any]]
    frame: Frame


@dataclass(frozen=True, eq=False)
class Work:
    """Frames that the network has seen together, in the order of its batch."""

    requests: list[Request]
    seen: NetworkPass


class PerceptionNode(LifecycleNode):
    """
    Segments the images of one or more cameras with one network.

    :param autostart: default of the parameter `autostart`.
    :param dds: the transport of this process, as `transport.prepare` returned it.
    :param open_encoder: returns the text encoder of queries.
    :param options: passed to `rclpy.lifecycle.LifecycleNode` (context, namespace, ...).
    :raises rclpy.exceptions.ParameterException: a parameter given at start is invalid.
    """

    def __init__(self, *, autostart: bool = False, dds: transport.Transport | None = None,
                 open_encoder: Callable[[LanguageSetup], CachingTextEncoder] = (
                     open_installed_encoder),
                 **options: Any) -> None:
        super().__init__(options.pop('node_name', 'perception'), **options)
        self._phase = 'unconfigured'
        self._failure = ''
        self._dds = dds or transport.check()
        self._segmenter: Segmenter | None = None
        self._warm_up_ms = 0.0
        self._cameras: dict[str, Camera] = {}
        self._slots = FrameSlots([])
        self._pipeline: Pipeline | None = None
        self._queries = QueryTopics(self, open_encoder, self._queries_are_live)
        self._labelling = threading.Lock()
        self._teaching = TeachingTopics(self, self._classes_are_live)
        self._reporter = Reporter(
            self, self._statuses, lambda: self._table['diagnostics_period'])
        specs = [
            replace(spec, default=autostart) if spec.name == 'autostart' else spec
            for spec in PERCEPTION]
        self._table = ParameterTable(
            self, specs, self._apply, lambda: self._segmenter is not None, self._problem)
        self._reporter.start()
        self.get_logger().info(f'DDS: {self._dds}')
        if self._table['autostart']:
            # A steady clock: the clock of a bag that does not play yet stands still.
            self._start_timer = self.create_timer(
                0.0, self._autostart, clock=Clock(clock_type=ClockType.STEADY_TIME))

    @property
    def phase(self) -> str:
        """Return unconfigured, building, warming, inactive, active, deactivating or finalized."""
        return self._phase

    @property
    def loading(self) -> bool:
        """Return whether a model is being loaded, while the executor does nothing else."""
        return self._phase in ('building', 'warming')

    # Transitions

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Load the model and create the publishers; FAILURE when the model cannot be used."""
        return self._transition('configure', self._configure, state)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Subscribe, start the threads and publish the labels."""
        return self._transition('activate', self._activate, state)

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Unsubscribe and stop the threads; the model stays loaded."""
        return self._transition('deactivate', self._deactivate, state)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Release the model and the publishers."""
        return self._transition('clean up', self._cleanup, state)

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Release everything, from whatever state."""
        return self._transition('shut down', self._shutdown, state)

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Release everything after a failed transition, so that the node can start again."""
        self._release()
        self._enter('unconfigured')
        return SUCCESS

    def destroy_node(self) -> None:
        """Stop the threads and destroy the node."""
        # The end of the process does not wait for a long network pass.
        self._queries.stop(timeout=0.5)
        self._teaching.stop(timeout=0.5)
        self._release(timeout=0.5)
        self._reporter.stop()
        super().destroy_node()
        # rclpy's lifecycle state machine holds the node, and so the shared memory of DDS, until
        # it is collected, which does not happen while a frame is still in work.
        self.__dict__.pop('_state_machine', None)

    # Frames

    def receive(self, camera: Camera, message: Any) -> None:
        """Put a camera message into the slot of its camera (called in the executor)."""
        stamp = message.header.stamp.sec + 1e-9 * message.header.stamp.nanosec
        fresh = self._slots.put(camera.name, message, stamp)
        camera.statistics.frame_in(not fresh, stamp)

    def _begin(self, batch: list[Pending]) -> Work | None:
        """Run the network on what somebody wants to see; None where that is nothing."""
        unfinished = list(batch)
        with self._watch(unfinished):
            requests = []
            for pending in batch:
                camera = self._cameras[pending.camera]
                outputs = camera.outputs.wanted(self._has_regions)
                frame = self._frame(camera, pending.message, outputs) if outputs else None
                if not outputs:
                    camera.statistics.skip()
                if frame is None:
                    unfinished.remove(pending)
                else:
                    requests.append(Request(camera, pending, outputs, frame))
            if requests:
                maps = frozenset().union(*(maps_of(request.outputs) for request in requests))
                if self._teaching.keeps_frames:
                    maps |= {TEACHABLE}
                return Work(requests, self._segmenter.run_network(
                    [request.frame for request in requests], maps,
                    lambda: self._queries.prepared, self._queries.namer,
                    lambda: self._teaching.taught))
        return None

    def _finish(self, work: Work) -> None:
        """Read frames out and publish what is wanted, one after the other."""
        requests = work.requests
        unfinished = [request.pending for request in requests]
        with self._watch(unfinished):
            results = self._segmenter.each_read_out(
                work.seen, [request.camera.history for request in requests],
                [request.pending.stamp for request in requests])
            alpha = self._table['overlay_alpha']
            for request, result in zip(requests, results):
                camera, pending = request.camera, request.pending
                header = pending.message.header
                if any(output is QUERY_MASK for output, _ in request.outputs):
                    self._publish_queries(camera, result.queries, header.stamp)
                if result.taught is not None and result.taught is not camera.taught:
                    # Nobody gets an id before its name.
                    self._publish_labels()
                if result.teachable is not None:
                    self._teaching.remember(camera.name, header.stamp, result.teachable)
                publish_outputs(request.outputs, result, request.frame, header, alpha,
                                camera.outputs.messages)
                camera.road_lost = result.road_lost
                now = 1e-9 * self.get_clock().now().nanoseconds
                camera.statistics.frame_out(
                    now - pending.stamp, time.monotonic() - pending.received,
                    result.network_ms, result.readout_ms, len(requests) > 1,
                    (request.frame.width, request.frame.height))
                unfinished.remove(pending)

    @contextmanager
    def _watch(self, unfinished: list[Pending]) -> Iterator[None]:
        """Report an error, for all frames that are unfinished then; the next may be better."""
        try:
            yield
        except Exception as error:
            if not self.context.ok():
                return
            for pending in unfinished:
                camera = self._cameras.get(pending.camera)
                if camera is not None:
                    camera.statistics.bad_frame(f'{type(error).__name__}: {error}')
            self.get_logger().error(
                f'frame not processed: {traceback.format_exc()}', throttle_duration_sec=5.0)

    def _overlaps(self) -> bool:
        mode, segmenter = self._table['pipeline'], self._segmenter
        return mode == 'always' or (
            mode == 'auto' and segmenter is not None and segmenter.engine.on_gpu)

    def _publish_queries(self, camera: Camera, queries: PreparedQueries | None,
                         stamp: Any) -> None:
        camera.outputs.publish_queries(queries, stamp)
        if self._queries.prepared is not queries:
            # The last word of the latched topic is the live set, also when no frame follows.
            camera.outputs.publish_queries(self._queries.prepared)

    def _queries_are_live(self) -> None:
        # In the thread of the queries.
        if self._phase == 'active':
            queries = self._queries.prepared
            for camera in list(self._cameras.values()):
                camera.outputs.publish_queries(queries)
        self._reporter.hasten()

    def _classes_are_live(self) -> None:
        # In the thread of teaching, or in the executor.
        if self._phase == 'active':
            self._publish_labels()
        self._reporter.hasten()

    @property
    def _has_regions(self) -> bool:
        """Return whether anomaly/regions is published: to be named, or to be taught."""
        return self._table['name_unknown'] or self._teaching.keeps_frames

    def _frame(self, camera: Camera, message: Any,
               outputs: list[tuple[Output, Any]]) -> Frame | None:
        whole = any(output.shows_frame for output, _ in outputs)
        try:
            frame = camera.input.convert(
                message, None if whole else self._segmenter.network_size)
            camera.statistics.frame_read(frame.width, frame.height)
            return frame
        except FrameError as error:
            camera.statistics.bad_frame(str(error))
            self.get_logger().warning(f'bad frame: {error}', throttle_duration_sec=5.0)
            self._reporter.hasten()
            return None

    # What the transitions do

    def _configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._failure = ''
        segmenter = None
        try:
            self._enter('building')
            bundle = load_bundle(_model_folder(self._table['model']))
            segmenter = Segmenter(
                bundle, engine=self._table['engine'],
                providers=tuple(self._table['providers']),
                threads=self._table['threads'], tensorrt=self._tensorrt(), torch=self._torch(),
                readout=self._table['readout'])
            segmenter.settings = self._settings(bundle)
            self._enter('warming')
            self._warm_up_ms = segmenter.warm_up()
        except OwsegError as error:
            if segmenter is not None:
                segmenter.close()
            self._failure = f'cannot configure: {error}'
            self.get_logger().error(self._failure)
            self._enter('unconfigured')
            return FAILURE
        except BaseException:
            # Also a signal while the model is loaded.
            if segmenter is not None:
                segmenter.close()
            raise
        self._segmenter = segmenter
        self._cameras = {
            name: Camera(self, name, self._table['image_transport'],
                         self._table['image_reliability'], bundle.language is not None)
            for name in self._table['cameras']}
        self._queries.configure(
            LanguageSetup(bundle.name, bundle.language, self._table['text_encoder'],
                          self._table['vocabulary'],
                          threshold=_threshold(self._table['query_threshold']),
                          names=self._table['name_unknown'] and _can_name(bundle)),
            self._table['queries'])
        self._teaching.configure(
            segmenter, self._table['prototypes'], _threshold(self._table['prototype_threshold']),
            self._table['prototype_all_masks'], self._table['teach_memory'])
        self._enter('inactive')
        self.get_logger().info(
            f'model {bundle.name} {bundle.version} on {segmenter.engine.description}, '
            f'{self._warm_up_ms:.0f} ms a frame')
        return super().on_configure(state)

    def _activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        result = super().on_activate(state)
        if result != SUCCESS:
            return result
        self._slots = FrameSlots(
            list(self._cameras), self._table['max_skew'], self._table['batch_wait'],
            self._table['max_batch'], self._table['prefer_fresh'])
        self._pipeline = Pipeline(self._slots, self._begin, self._finish, self._overlaps)
        self._publish_labels()
        for camera in self._cameras.values():
            camera.statistics.reset()
            camera.history.reset()
            camera.road_lost = camera.silent = False
            camera.input.open()
            self.get_logger().info(f'camera {camera.input.topic}')
        self._pipeline.start()
        self._enter('active')
        self._queries_are_live()
        return SUCCESS

    def _deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._stop_work()
        self._enter('inactive')
        return super().on_deactivate(state)

    def _cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        result = super().on_cleanup(state)
        self._release()
        self._enter('unconfigured')
        return result

    def _shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        result = super().on_shutdown(state)
        self._release()
        self._enter('finalized')
        return result

    def _transition(self, name: str, act: Any, state: LifecycleState) -> TransitionCallbackReturn:
        try:
            return act(state)
        except Exception:
            # rclpy turns an exception into the error state without a word about it.
            self._failure = f'cannot {name}: {traceback.format_exc(limit=-1).strip()}'
            self.get_logger().error(f'cannot {name}: {traceback.format_exc()}')
            return FAILED

    def _stop_work(self, timeout: float = 10.0) -> None:
        if self._phase == 'active':
            # A frame may take its time; no camera is missed meanwhile.
            self._enter('deactivating')
        for camera in self._cameras.values():
            camera.input.close()
        if self._pipeline is not None and not self._pipeline.stop(timeout):
            self.get_logger().warning(f'a frame was still in work after {timeout} s')
        self._pipeline = None

    def _release(self, timeout: float = 10.0) -> None:
        self._stop_work(timeout)
        self._queries.release()
        self._teaching.release()
        cameras, self._cameras = self._cameras, {}
        for camera in cameras.values():
            camera.outputs.destroy()
        segmenter, self._segmenter = self._segmenter, None
        if segmenter is not None:
            segmenter.close()

    def _autostart(self) -> None:
        self.destroy_timer(self._start_timer)
        if self._phase == 'unconfigured' and self.trigger_configure() == SUCCESS:
            self.trigger_activate()

    # Parameters

    def _tensorrt(self) -> TensorrtOptions:
        return TensorrtOptions(
            precision=self._table['tensorrt_precision'],
            calibration=self._table['tensorrt_calibration'] or None,
            cache=self._table['tensorrt_cache'] or None,
            max_batch=self._table['max_batch'] or len(self._table['cameras']))

    def _torch(self) -> TorchOptions:
        return TorchOptions(
            device=self._table['torch_device'], precision=self._table['torch_precision'],
            compiled=self._table['torch_compile'],
            max_batch=self._table['max_batch'] or len(self._table['cameras']))

    def _settings(self, bundle: Bundle, changed: Mapping[str, Any] = {}) -> ReadoutSettings:
        values = {
            name: changed.get(name, self._table[name]) for name in _READOUT_PARAMETERS}
        score, min_area = values['anomaly_score'], values['anomaly_min_area']
        return readout_settings(
            bundle, score=None if score == MODEL else score,
            threshold=values['anomaly_threshold'], min_area=None if min_area < 0 else min_area,
            objects={MODEL: None, 'on': True, 'off': False}[values['anomaly_objects']],
            on_road=values['anomaly_region'] == 'road', hysteresis=values['anomaly_hysteresis'],
            confirm_frames=values['anomaly_confirm_frames'],
            hold_frames=values['anomaly_hold_frames'], mark_unknown=values['mark_unknown'],
            min_confidence=values['min_confidence'],
            output_size=values['output_size'])

    def _problem(self, changed: Mapping[str, Any]) -> str:
        """Return why changed parameters cannot be followed, or ''."""
        if changed.get('vocabulary'):
            try:
                load_vocabulary(changed['vocabulary'])
            except OwsegError as error:
                return str(error)
        refused = self._queries.problem(changed['queries']) if 'queries' in changed else ''
        if refused:
            return f'queries: {refused}'
        refused = self._teaching.problem(changed['prototypes']) if 'prototypes' in changed else ''
        if refused:
            return f'prototypes: {refused}'
        segmenter = self._segmenter
        if segmenter is None or not _READOUT_PARAMETERS & changed.keys():
            return ''
        try:
            self._settings(segmenter.bundle, changed)
        except OwsegError as error:
            return f'{", ".join(sorted(_READOUT_PARAMETERS & changed.keys()))}: {error}'
        return ''

    def _apply(self, changed: Mapping[str, Any]) -> None:
        if self._segmenter is not None and _READOUT_PARAMETERS & changed.keys():
            self._segmenter.settings = self._settings(self._segmenter.bundle, changed)
            if _LABEL_PARAMETERS & changed.keys() and self._phase == 'active':
                self._publish_labels()
        if 'queries' in changed and self._segmenter is not None:
            self._queries.ask(changed['queries'])
        if 'query_threshold' in changed:
            self._queries.adjust(threshold=_threshold(changed['query_threshold']))
        if 'name_unknown' in changed and self._segmenter is not None:
            self._queries.adjust(
                names=changed['name_unknown'] and _can_name(self._segmenter.bundle))
        if 'vocabulary' in changed:
            self._queries.adjust(vocabulary=changed['vocabulary'])
        if 'prototypes' in changed:
            self._teaching.use(changed['prototypes'])
        if 'prototype_threshold' in changed:
            self._teaching.adjust(threshold=_threshold(changed['prototype_threshold']))
        if 'prototype_all_masks' in changed:
            self._teaching.adjust(all_masks=changed['prototype_all_masks'])
        if 'teach_memory' in changed:
            self._teaching.limit(changed['teach_memory'])
        self._reporter.hasten()

    def _publish_labels(self) -> None:
        segmenter = self._segmenter
        if segmenter is None:
            return
        # Whoever comes last publishes what is live last.
        with self._labelling:
            taught = self._teaching.taught
            for camera in list(self._cameras.values()):
                camera.outputs.publish_labels(segmenter.bundle, segmenter.settings, taught)
                camera.taught = taught

    # Diagnostics

    def _enter(self, phase: str) -> None:
        self._phase = phase
        self._reporter.report()

    def _statuses(self) -> list[DiagnosticStatus]:
        name = self.get_fully_qualified_name()
        segmenter, phase = self._segmenter, self._phase
        found = [self._engine_status(name, segmenter, phase), status(
            f'{name}: transport', OK if self._dds.ok else WARN, str(self._dds),
            {'profile': self._dds.profile or '', 'segment_bytes': self._dds.segment_bytes})]
        found += [self._queries.diagnose(name), self._teaching.diagnose(name)]
        if phase == 'active':
            found += [
                self._camera_status(name, camera) for camera in list(self._cameras.values())]
        return found

    def _engine_status(self, name: str, segmenter: Segmenter | None,
                       phase: str) -> DiagnosticStatus:
        values = {'state': phase, 'dds': self._dds.description}
        if segmenter is not None:
            bundle = segmenter.bundle
            values.update(
                model=bundle.name, model_version=bundle.version, model_path=bundle.path,
                model_sha256=bundle.network_sha256, engine=segmenter.engine.description,
                warm_up_ms=f'{self._warm_up_ms:.2f}',
                network_size=f'{bundle.input.width}x{bundle.input.height}',
                anomaly_score=segmenter.settings.score.name,
                anomaly_threshold=segmenter.settings.anomaly_threshold)
        if self._failure:
            return status(f'{name}: engine', ERROR, self._failure, values)
        if segmenter is None:
            return status(f'{name}: engine', OK, phase, values)
        level, message, details = judge_engine(segmenter.engine.status, segmenter.readout)
        if self._has_namesake():
            level = WARN
            message += (f'; another node is called {name} too, so that parameters and results '
                        'mix: give one of the two a namespace')
        return status(
            f'{name}: engine', level,
            f'{phase}: {segmenter.bundle.name} on {segmenter.engine.description}{message}',
            {**values, **details})

    def _has_namesake(self) -> bool:
        nodes = self.get_node_names_and_namespaces()
        return nodes.count((self.get_name(), self.get_namespace())) > 1

    def _camera_status(self, name: str, camera: Camera) -> DiagnosticStatus:
        numbers = camera.statistics.snapshot()
        idle = not camera.outputs.wanted(self._has_regions)
        level, state, message = judge_camera(
            numbers, topic=camera.input.topic, publishers=camera.input.publishers(),
            timeout=self._table['no_frames_timeout'], idle=idle,
            incompatible=camera.input.incompatible,
            smaller=('set output_size to network' if self._table['output_size'] == 'camera'
                     else ''),
            elsewhere=lambda: camera.input.elsewhere(
                [other.input.topic for other in list(self._cameras.values())]), transport=(
                f'{self._dds}. The process of the publisher needs shared memory for large '
                f'images too: export {transport.profile_variable()}={transport.profile_path()}'))
        if (state == NO_FRAMES) != camera.silent:
            # Once, for whoever looks at the terminal and not at diagnostics.
            camera.silent = not camera.silent
            logger = self.get_logger()
            if camera.silent:
                logger.warning(message)
            else:
                logger.info(f'frames come on {camera.input.topic}')
        if camera.road_lost and level == OK:
            level = WARN
            message += '; no road is seen, so anomalies are reported everywhere'
        values = {'state': state, 'topic': camera.input.topic,
                  'reliability': 'reliable' if camera.input.reliable else 'best effort',
                  **numbers.values()}
        return status(
            f'{name}: camera {camera.name}'.rstrip(), level, f'{state}: {message}', values)


def _threshold(parameter: float) -> float | None:
    """Return a threshold; None where the parameter asks for that of the model."""
    return None if parameter < 0 else parameter


def _can_name(bundle: Bundle) -> bool:
    """Return whether regions of any shape can be compared with texts."""
    return bool(bundle.outputs['text_features'])


def _model_folder(model: str) -> Path:
    """Return the folder of a model given by path, by the name of an installed one, or by ''."""
    if not model:
        return default_bundle_path()
    named = Path(model).expanduser()
    if named.exists() or len(named.parts) > 1:
        return named
    installed = default_bundle_path().parent
    if (installed / model / MANIFEST).is_file():
        return installed / model
    names = sorted(path.parent.name for path in installed.glob(f'*/{MANIFEST}'))
    raise BundleError(
        f'There is no model "{model}" here, nor in {installed}, which has {", ".join(names)}; '
        'set the parameter model to the folder of a bundle or to one of these names')


def main(args: list[str] | None = None) -> int:
    """Run the node in a process of its own."""
    return run([lambda dds: PerceptionNode(dds=dds)], args)


if __name__ == '__main__':
    sys.exit(main())
