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
"""Parameters as a table: type, description, range and when a change is possible."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
import math
import re
from typing import Any, Callable, Collection, Mapping, Sequence

from owseg_ros.engine.tensorrt import AUTO
from owseg_ros.engine.tensorrt import PRECISIONS
from owseg_ros.engine.torch import DEVICES as TORCH_DEVICES
from owseg_ros.engine.torch import PRECISIONS as TORCH_PRECISIONS
from owseg_ros.errors import shown
from owseg_ros.nodes.qos import RELIABILITIES
from owseg_ros.operating_point import CALIBRATED
from owseg_ros.operating_point import HOW_TO_ASK
from owseg_ros.operating_point import OperatingPointError
from owseg_ros.operating_point import parse_operating_point
from owseg_ros.readout.choice import READOUTS
from owseg_ros.readout.mask_history import MAX_FRAMES
from owseg_ros.readout.scores import SCORES
from rcl_interfaces.msg import FloatingPointRange
from rcl_interfaces.msg import IntegerRange
from rcl_interfaces.msg import ParameterDescriptor
from rcl_interfaces.msg import SetParametersResult
from rclpy.node import Node
from rclpy.parameter import Parameter

ANY_TIME, UNCONFIGURED, AT_START = 'any time', 'unconfigured', 'at start'
MODEL = 'model'

_NAMESPACE = re.compile(r'/?[A-Za-z][A-Za-z0-9_]*(/[A-Za-z][A-Za-z0-9_]*)*')


@dataclass(frozen=True)
class Spec:
    """
    One parameter.

    `when` says in which states it may change: at any time, only while the node is
    unconfigured, or never (read-only, given at start). `limits` is an inclusive range for
    numbers, `choices` the allowed strings; `check` returns what is wrong with a value, or ''.
    A parameter with `dynamic` typing may hold values of several types.
    """

    name: str
    default: Any
    description: str
    when: str = ANY_TIME
    limits: tuple[float, float] | None = None
    choices: tuple[str, ...] = ()
    check: Callable[[Any], str] | None = None
    dynamic: bool = False

    def descriptor(self) -> ParameterDescriptor:
        """Return the description that `ros2 param describe` shows."""
        text = self.description
        if self.when == UNCONFIGURED:
            text += ' Changes while the node is unconfigured; read when it is configured.'
        descriptor = ParameterDescriptor(
            description=text, read_only=self.when == AT_START, dynamic_typing=self.dynamic,
            additional_constraints=f'one of: {", ".join(self.choices)}' if self.choices else '')
        if self.limits and isinstance(self.default, float):
            descriptor.floating_point_range = [FloatingPointRange(
                from_value=float(self.limits[0]), to_value=float(self.limits[1]))]
        elif self.limits:
            descriptor.integer_range = [IntegerRange(
                from_value=int(self.limits[0]), to_value=int(self.limits[1]))]
        return descriptor

    def problem(self, value: Any) -> str:
        """Return what is wrong with a value of this parameter, or an empty string."""
        if value is None:
            # What rcl makes of [] and of a name with nothing behind it in a YAML file.
            return (f'{self.name} has no value: give one, such as {self.default!r}, or leave it '
                    'out of the file')
        if isinstance(value, float) and not math.isfinite(value):
            return f'{self.name} must be finite, not {value}'
        if self.choices and value not in self.choices:
            return f'{self.name} must be one of {", ".join(self.choices)}, not "{shown(value)}"'
        problem = self.check(value) if self.check else ''
        return f'{self.name} {problem}' if problem else ''


class ParameterTable:
    """
    The declared parameters of a node, with one way to validate and one to apply a change.

    :param node: the node; the parameters are declared on it at once.
    :param specs: the table.
    :param apply: called after each successful change with the names and new values.
    :param configured: says whether parameters that need the unconfigured state are frozen.
    :param check: returns what is wrong with changes (names and new values) that are each valid
        by themselves, or an empty string; called before a change is accepted.
    :raises rclpy.exceptions.InvalidParameterValueException: a value given at start is invalid.
    :raises rclpy.exceptions.InvalidParameterTypeException: it is of the wrong type.
    """

    def __init__(self, node: Node, specs: Sequence[Spec],
                 apply: Callable[[Mapping[str, Any]], None],
                 configured: Callable[[], bool] = lambda: False,
                 check: Callable[[Mapping[str, Any]], str] = lambda changed: '') -> None:
        self._node = node
        self._check = check
        self._specs = {spec.name: spec for spec in specs}
        self._apply = apply
        self._configured = configured
        self._declared = False
        # Humble has no post-set callback: there a change is applied where it is validated.
        self._has_post_set = hasattr(node, 'add_post_set_parameters_callback')
        node.add_on_set_parameters_callback(self._validate)
        for spec in specs:
            node.declare_parameter(spec.name, spec.default, spec.descriptor())
        self._declared = True
        unknown = unknown_parameters(self._given(), self._specs)
        if unknown:
            node.get_logger().warning(unknown)
        if self._has_post_set:
            node.add_post_set_parameters_callback(self._changed)

    def __getitem__(self, name: str) -> Any:
        """Return the current value of a parameter."""
        return self._node.get_parameter(name).value

    def _given(self) -> list[str]:
        """Return the names that were given at start and that nobody has declared."""
        # rclpy drops what is not declared without a word, and has no public name for it.
        return [name for name in getattr(self._node, '_parameter_overrides', ())
                if not self._node.has_parameter(name)]

    def _validate(self, parameters: list[Parameter]) -> SetParametersResult:
        for parameter in parameters:
            spec = self._specs.get(parameter.name)
            if spec is None:
                continue
            # The same value again is no change: `ros2 param load` sets all that a file holds.
            if self._declared and spec.when == UNCONFIGURED and self._configured() and (
                    parameter.value != self[parameter.name]):
                return SetParametersResult(successful=False, reason=(
                    f'{spec.name} is read when the node is configured: deactivate and clean up '
                    'the node, set it, and configure again'))
            problem = spec.problem(parameter.value)
            if problem:
                return SetParametersResult(successful=False, reason=problem)
        problem = self._check(self._known(parameters)) if self._declared else ''
        if problem:
            return SetParametersResult(successful=False, reason=problem)
        if self._declared and not self._has_post_set:
            self._changed(parameters)
        return SetParametersResult(successful=True)

    def _changed(self, parameters: list[Parameter]) -> None:
        values = self._known(parameters)
        if values:
            self._apply(values)

    def _known(self, parameters: list[Parameter]) -> dict[str, Any]:
        return {parameter.name: parameter.value for parameter in parameters
                if parameter.name in self._specs}


def unknown_parameters(given: Sequence[str], known: Collection[str]) -> str:
    """
    Return a warning about names that no node of this package has as parameters, or ''.

    :param given: names that were given and not declared.
    :param known: the parameters of the node.
    """
    all_known = {*known, *(spec.name for spec in (*PERCEPTION, *CAMERA))}
    told = []
    for name in sorted(set(given) - all_known):
        if name.startswith(('qos_overrides.', 'start_type_description_service')):
            continue
        close = get_close_matches(name, sorted(known), 1, 0.7)
        told.append(f'{name} (did you mean {close[0]}?)' if close else name)
    if not told:
        return ''
    return (f'ignored, since there are no such parameters: {", ".join(told)}; "ros2 param list" '
            'shows those that there are')


def _camera_names(names: Sequence[str]) -> str:
    wrong = [name for name in names if name and not _NAMESPACE.fullmatch(name)]
    if wrong:
        return f'has "{shown(wrong[0])}", which is no namespace (letters, digits, _ and /)'
    if not names:
        return 'is empty: list camera namespaces, or [""] for the namespace of the node'
    if len(set(names)) != len(names):
        return 'names a camera twice'
    return ''


def _provider_names(names: Sequence[str]) -> str:
    if not names or not all(names):
        return 'must name at least one provider, such as cpu'
    return 'names a provider twice' if len(set(names)) != len(names) else ''


def _threshold(value: Any) -> str:
    try:
        parse_operating_point(value)
    except OperatingPointError as error:
        return str(error)
    return ''


def _threshold_or_model(value: float) -> str:
    return '' if value >= 0.0 or value == -1.0 else 'must be 0..1, or -1 for that of the model'


PERCEPTION = (
    Spec('autostart', False,
         'Configure and activate without a lifecycle manager.', AT_START),
    Spec('model', '',
         'Folder of the model bundle, or the name of an installed one; empty: the default.',
         UNCONFIGURED),
    Spec('engine', 'onnx',
         'What runs the network: onnx, or tensorrt or torch, which onnx stands in for while they '
         'are made ready.', UNCONFIGURED),
    Spec('tensorrt_precision', AUTO,
         'Precision of the engine tensorrt; auto: fp16, or that of the model.',
         UNCONFIGURED, choices=PRECISIONS),
    Spec('tensorrt_calibration', '',
         'Folder of images for int8 of a model that is not quantised.', UNCONFIGURED),
    Spec('tensorrt_cache', '',
         'Folder of built engines; empty: owseg_ros/engines of the cache of the user.',
         UNCONFIGURED),
    Spec('torch_device', TORCH_DEVICES[0],
         'Where the engine torch runs.', UNCONFIGURED, choices=TORCH_DEVICES),
    Spec('torch_precision', AUTO,
         'Precision of the engine torch; auto: fp16 on a GPU, else fp32.',
         UNCONFIGURED, choices=TORCH_PRECISIONS),
    Spec('torch_compile', False,
         'Let torch.compile make kernels for the engine torch before it serves.', UNCONFIGURED),
    Spec('readout', READOUTS[0],
         'Where maps are made of masks: on the cpu, on the gpu, or auto: where the masks are.',
         UNCONFIGURED, choices=READOUTS),
    Spec('providers', ['cpu'],
         'Where the engine onnx runs, in order of preference: cpu, cuda, tensorrt.',
         UNCONFIGURED, check=_provider_names),
    Spec('threads', 0,
         'Threads of the engine on the CPU; 0: as many as it likes.', UNCONFIGURED, (0, 256)),
    Spec('cameras', [''],
         'Namespaces of the cameras; topics are relative to them. "": the one of the node.',
         UNCONFIGURED, check=_camera_names),
    Spec('image_transport', 'raw',
         'raw: subscribe to image; compressed: to image/compressed.',
         UNCONFIGURED, choices=('raw', 'compressed')),
    Spec('image_reliability', 'best_available',
         'Reliability of the image subscription; best_available follows the publisher.',
         UNCONFIGURED, choices=RELIABILITIES),
    Spec('max_skew', 0.005,
         'Frames of several cameras whose stamps differ by no more (seconds) share a pass of the '
         'network; others take turns.', UNCONFIGURED, (0.0, 1.0)),
    Spec('batch_wait', 0.01,
         'Longest wait for the frame of a camera that has been in step with another (seconds).',
         UNCONFIGURED, (0.0, 1.0)),
    Spec('max_batch', 0,
         'Most frames in one pass of the network; 0: one of each camera.', UNCONFIGURED,
         (0, 64)),
    Spec('prefer_fresh', True,
         'Where a frame has waited for more than half the period of its camera, wait for the '
         'next one instead: maps are younger, and at most so much fewer.', UNCONFIGURED),
    Spec('pipeline', 'auto',
         'Read one frame out while the next is in the network: always, never, or auto (where a '
         'GPU runs the network).', choices=('auto', 'always', 'never')),
    Spec('output_size', 'camera',
         'Size of the published maps: that of the camera image or that of the network.',
         choices=('camera', 'network')),
    Spec('anomaly_score', MODEL,
         'What anomaly/score holds; "model": the score that the model was calibrated with.',
         choices=(MODEL, *SCORES)),
    Spec('anomaly_objects', MODEL,
         'Group the score into objects by the masks of the network: on, off, or "model" as the '
         'model was calibrated.', choices=(MODEL, 'on', 'off')),
    Spec('anomaly_threshold', CALIBRATED,
         f'Scores from here on are anomalous: {HOW_TO_ASK}.',
         check=_threshold, dynamic=True),
    Spec('anomaly_min_area', -1,
         'Smallest anomalous region, in pixels at network size; -1: that of the model.',
         limits=(-1, 1 << 20)),
    Spec('anomaly_region', 'everywhere',
         'Where anomaly/mask reports: everywhere, or road for what stands on the road.',
         choices=('everywhere', 'road')),
    Spec('anomaly_hysteresis', 0.0,
         'What was reported stays so while it scores at least the threshold less this.',
         limits=(0.0, 1000.0)),
    Spec('anomaly_confirm_frames', 1,
         'Consecutive frames in which a region must be seen before it is reported.',
         limits=(1, MAX_FRAMES)),
    Spec('anomaly_hold_frames', 0,
         'Frames for which a reported region stays after it was lost.', limits=(0, MAX_FRAMES)),
    Spec('mark_unknown', True,
         'Write 254 into semantic/mask where anomaly/mask is set.'),
    Spec('min_confidence', 0.0,
         'Write 255 (unlabelled) into semantic/mask where the confidence is lower.',
         limits=(0.0, 1.0)),
    Spec('text_encoder', '',
         'Folder of the text encoder of queries; empty: the one that owseg text-encoder put '
         'into place.', UNCONFIGURED),
    Spec('queries', '',
         'What to ask for, as on the topic query: a comma list or JSON. Set in a running node it '
         'is one more way to ask; it is taken whole, or refused with the reason.'),
    Spec('query_threshold', -1.0,
         'Scores from here on are what a query asks for, unless it has a threshold of its own; '
         '-1: as the model was calibrated.', limits=(-1.0, 1.0), check=_threshold_or_model),
    Spec('vocabulary', '',
         'YAML file with other wordings of what is asked for; empty: the built-in one. It is '
         'read again when it changes.'),
    Spec('name_unknown', False,
         'Publish anomaly/regions: where something is that the model does not know, with the '
         'best name of the vocabulary.'),
    Spec('prototypes', '',
         'File of taught classes: loaded when the node is configured and whenever this is set, '
         'and saved to by save_prototypes; empty: none at the start, and saved to a file of the '
         'user. A file that cannot be used is refused with the reason.'),
    Spec('prototype_threshold', -1.0,
         'Least cosine of a region with the prototype of its class, for classes that have none '
         'of their own; -1: as the model was calibrated.', limits=(-1.0, 1.0),
         check=_threshold_or_model),
    Spec('prototype_all_masks', False,
         'Compare all masks of the network with the taught classes, and not only what is '
         'anomalous.'),
    Spec('teach_memory', 128,
         'Memory for the newest frames, which can be taught from, in MiB; 0: none.',
         limits=(0, 1 << 16)),
    Spec('overlay_alpha', 0.5,
         'Weight of the colours in overlay.', limits=(0.0, 1.0)),
    Spec('no_frames_timeout', 2.0,
         'Seconds without a frame after which diagnostics warn.', limits=(0.1, 3600.0)),
    Spec('diagnostics_period', 1.0,
         'Seconds between two messages on /diagnostics.', limits=(0.05, 60.0)),
)

CAMERA = (
    Spec('source', 'scene',
         'What the camera shows: scene (a procedural street), a video file, a folder of images, '
         'an image, or webcam:0.'),
    Spec('rate', 0.0,
         'Frames per second; 0: the rate of the source.', limits=(0.0, 240.0)),
    Spec('loop', True,
         'Start again when the source ends.'),
    Spec('shutdown_at_end', False,
         'End the process when the source ends.'),
    Spec('wait_for_subscriber', False,
         'Hold the first frame until somebody subscribes and for 3.5 s nobody else does, so '
         'that a short clip is seen whole.'),
    Spec('width', 0,
         'Width of the image in pixels; 0: that of the source, or as the height asks.',
         limits=(0, 16384)),
    Spec('height', 0,
         'Height of the image in pixels; 0: that of the source, or as the width asks.',
         limits=(0, 16384)),
    Spec('frame_id', 'camera_optical_frame',
         'Frame of the images: z forward, x right, y down (REP 103).'),
    Spec('encoding', 'rgb8',
         'Encoding of image.', choices=('rgb8', 'bgr8')),
    Spec('publish_compressed', False,
         'Publish image/compressed (JPEG) too.'),
    Spec('jpeg_quality', 90,
         'Quality of image/compressed.', limits=(1, 100)),
    Spec('hfov_deg', 60.0,
         'Horizontal field of view in degrees, for camera_info of a source without calibration.',
         limits=(1.0, 179.0)),
    Spec('diagnostics_period', 1.0,
         'Seconds between two messages on /diagnostics.', limits=(0.05, 60.0)),
)
