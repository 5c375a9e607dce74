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
"""`owseg doctor`: what is installed, what would run, and what the ROS graph looks like."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
import importlib.metadata
import importlib.util
import os
from pathlib import Path
import platform
import shutil
import sys

from owseg_ros import __version__
from owseg_ros.bundle import Bundle, default_bundle_path, load_bundle
from owseg_ros.errors import OwsegError
from owseg_ros.language.encoder_folder import load_text_encoder_folder
from owseg_ros.language.installed import advice, default_text_encoder_path, SENTENCE_SPACE

OK, WARN, FAIL = 'ok', 'warn', 'fail'

_PYTHON = (3, 10)
_REQUIRED = (('numpy', 'numpy'), ('cv2', 'OpenCV'), ('onnxruntime', 'ONNX Runtime'),
             ('yaml', 'PyYAML'), ('jsonschema', 'jsonschema'), ('rich', 'rich'),
             ('tokenizers', 'tokenizers'), ('numba', 'numba'))
_MESSAGES = ('sensor_msgs', 'std_msgs', 'diagnostic_msgs', 'lifecycle_msgs')
# Without these something is done another way, or not offered.
_OPTIONAL = (
    ('vision_msgs', 'label_info is not published (labels, as JSON, is); install '
                    'ros-$ROS_DISTRO-vision-msgs'),
    ('cv_bridge', 'rare image encodings are refused; install ros-$ROS_DISTRO-cv-bridge'),
    ('message_filters', 'needed only by consumers that synchronise topics'),
    ('launch_ros', 'ros2 launch is not available; run owseg_ros nodes by ros2 run or python -m'))


@dataclass(frozen=True)
class Check:
    """One finding: level is ok, warn or fail; advice says what to do and is empty when ok."""

    name: str
    level: str
    found: str
    advice: str = ''

    def to_dict(self) -> dict[str, str]:
        """Return plain strings."""
        return asdict(self)


def examine(model: Path | None = None, topic: str | None = None, seconds: float = 4.0,
            ) -> list[Check]:
    """
    Run every check.

    model: folder of a bundle, None for the default; topic: image topic to look for, None for
    all; seconds: how long to listen on the ROS graph.
    """
    bundle = _bundle(model)
    checks = [_python(), *_packages(), _engine(), _model(bundle), check_text_encoder(bundle)]
    if importlib.util.find_spec('rclpy') is None:
        return [*checks, Check('ROS 2', FAIL, 'rclpy is not installed',
                               'source a ROS 2 installation, or pip install "owseg_ros[ros]"')]
    checks += _ros()
    checks += _transport()
    checks += _graph(topic, seconds)
    return checks


def _version(module: str) -> str:
    for name in (module, module.replace('_', '-'), {
            'cv2': 'opencv-python-headless', 'yaml': 'PyYAML'}.get(module, module)):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return str(getattr(importlib.import_module(module), '__version__', 'installed'))


def _python() -> Check:
    found = f'owseg_ros {__version__}, Python {platform.python_version()} at {sys.executable}'
    if sys.version_info < _PYTHON:
        return Check('python', FAIL, found, 'owseg_ros needs Python 3.10 or newer')
    return Check('python', OK, found)


def _packages() -> list[Check]:
    checks = []
    for module, name in _REQUIRED:
        if importlib.util.find_spec(module) is None:
            checks.append(Check(name, FAIL, 'not installed', 'pip install owseg_ros'))
        else:
            checks.append(Check(name, OK, _version(module)))
    return checks


def _engine() -> Check:
    if importlib.util.find_spec('onnxruntime') is None:
        return Check('engine', FAIL, 'none: ONNX Runtime is missing', 'pip install onnxruntime')
    from owseg_ros.engine.onnx import available_providers

    providers = ', '.join(available_providers())
    tensorrt = 'TensorRT installed' if importlib.util.find_spec('tensorrt') else 'no TensorRT'
    return Check('engine', OK, f'onnx with the providers {providers}; {tensorrt}')


def _bundle(model: Path | None) -> Bundle | OwsegError:
    try:
        return load_bundle(model or default_bundle_path())
    except OwsegError as error:
        return error


def _model(bundle: Bundle | OwsegError) -> Check:
    if isinstance(bundle, OwsegError):
        return Check('model', FAIL, str(bundle), 'name a bundle, or install owseg_ros again')
    asked = f'asked in {bundle.language.space}' if bundle.language else 'takes no queries'
    return Check('model', OK, f'{bundle.name} {bundle.version} in {bundle.path}, checksums right, '
                              f'{bundle.num_classes} classes, input {bundle.input.width}x'
                              f'{bundle.input.height}, {asked}')


def check_text_encoder(bundle: Bundle | OwsegError) -> Check:
    """Say whether this machine has the text encoder of a bundle, or of one that was refused."""
    name = 'text encoder'
    language = None if isinstance(bundle, OwsegError) else bundle.language
    space = language.space if language else SENTENCE_SPACE
    try:
        folder = default_text_encoder_path(space)
    except OwsegError as error:
        return Check(name, WARN, str(error), 'set OWSEG_TEXT_ENCODER to its folder')
    remedy = advice(folder) if space == SENTENCE_SPACE else (
        f'set OWSEG_TEXT_ENCODER to the folder of an encoder of {space} (owseg-train '
        'text-encoder writes those of open_clip)')
    if not folder.exists():
        return Check(name, WARN, f'none in {folder}: queries in words cannot be answered', remedy)
    try:
        found = load_text_encoder_folder(folder)
    except OwsegError as error:
        return Check(name, WARN, str(error), remedy)
    text = (f'{found.name} in {found.path}, checksums right, space {found.space}, {found.dim} '
            'numbers a text')
    if language and found.space != space:
        return Check(name, WARN, f'{text}; the model is asked in {space}', remedy)
    return Check(name, OK, text)


def _ros() -> list[Check]:
    missing = [name for name in _MESSAGES if importlib.util.find_spec(name) is None]
    distro = os.environ.get('ROS_DISTRO', 'no ROS_DISTRO set (wheels)')
    found = (f'rclpy {_version("rclpy")}, {distro}, '
             f'{os.environ.get("RMW_IMPLEMENTATION", "rmw_fastrtps_cpp (default)")}, '
             f'domain {os.environ.get("ROS_DOMAIN_ID", "0")}')
    if missing:
        checks = [Check('ROS 2', FAIL, f'{found}; missing: {", ".join(missing)}',
                        'pip install "owseg_ros[ros]", or rosdep install --from-paths src -yi')]
    else:
        checks = [Check('ROS 2', OK, found)]
    for name, consequence in _OPTIONAL:
        if importlib.util.find_spec(name) is None:
            checks.append(Check(name, WARN, 'not installed', consequence))
        else:
            checks.append(Check(name, OK, 'installed'))
    return checks


def _transport() -> list[Check]:
    from owseg_ros.nodes import transport

    own = transport.check()
    checks = [Check('DDS of this shell', OK if own.ok else WARN, own.description, own.advice)]
    for pid, name, environment in ros_processes():
        state = transport.check(environment)
        checks.append(Check(f'DDS of {name} ({pid})', OK if state.ok else WARN,
                            state.description, state.advice))
    shared = Path('/dev/shm')
    if shared.is_dir():
        free = shutil.disk_usage(shared).free >> 20
        files = sum(1 for _ in shared.glob('fastdds_*'))
        text = f'{free} MiB free, {files} files of Fast DDS'
        if free < transport.SEGMENT_BYTES >> 20:
            checks.append(Check('/dev/shm', WARN, text, 'enlarge it (docker run --shm-size 1g) or '
                                'remove what killed processes left: fastdds shm clean'))
        else:
            checks.append(Check('/dev/shm', OK, text))
    return checks


def ros_processes() -> list[tuple[int, str, Mapping[str, str]]]:
    """
    Return (pid, name, environment) of the running processes that have loaded a DDS library.

    Only those that this user may look into; the environment is the one a process was started
    with, completed by what owseg_ros sets for itself in its own nodes.
    """
    found = []
    for folder in Path('/proc').glob('[0-9]*'):
        pid = int(folder.name)
        if pid == os.getpid():
            continue
        try:
            if 'libfastdds' not in (maps := (folder / 'maps').read_text()) \
                    and 'libfastrtps' not in maps:
                continue
            arguments = (folder / 'cmdline').read_bytes().split(b'\0')
            pairs = (folder / 'environ').read_bytes().split(b'\0')
        except OSError:
            # The process has ended meanwhile, or belongs to somebody else.
            continue
        text = [argument.decode(errors='replace') for argument in arguments if argument]
        environment = dict(
            pair.decode(errors='replace').split('=', 1) for pair in pairs if b'=' in pair)
        name = next((Path(a).name for a in text[1:] if not a.startswith('-')), text[0])
        if any(a.startswith('owseg_ros.nodes.') for a in text):
            name = next(a for a in text if a.startswith('owseg_ros.nodes.'))
        if _prepares_itself(text):
            from owseg_ros.nodes import transport
            environment = dict(environment)
            transport.prepare(environment)
        found.append((pid, name, environment))
    return sorted(found)


def _prepares_itself(arguments: list[str]) -> bool:
    """Return whether this is a process of owseg_ros, which sets its own profile."""
    for argument in arguments[:3]:
        path = Path(argument)
        if argument.startswith('owseg_ros.nodes.') or path.name == 'owseg':
            return True
        if path.name in ('perception', 'camera', 'stack') and path.parent.name in (
                'owseg_ros', 'bin'):
            return True
    return False


def _graph(topic: str | None, seconds: float) -> list[Check]:
    from owseg_ros.nodes.inspection import inspect_graph

    graph = inspect_graph(topic, seconds)
    checks = []
    for image in graph.images:
        found = (f'{image.publishers} publisher(s), {image.type}, {image.reliability}, '
                 f'{image.rate_hz:.1f} Hz received')
        if image.rate_hz > 0:
            checks.append(Check(f'camera {image.topic}', OK, found))
        else:
            checks.append(Check(
                f'camera {image.topic}', WARN, found,
                'a publisher is there but nothing arrived: is it paused, or does its process '
                'lack the shared-memory profile?'))
    if not graph.images:
        wanted = topic or 'any image topic'
        checks.append(Check(
            'camera', WARN, f'nobody publishes {wanted} in domain '
            f'{os.environ.get("ROS_DOMAIN_ID", "0")}',
            'start the camera driver, or: ros2 run owseg_ros camera'))
    for state in graph.statuses:
        level = {0: OK, 1: WARN}.get(state.level, FAIL)
        checks.append(Check(state.name, level, state.message,
                            '' if level == OK else 'see the message'))
    if not graph.statuses:
        checks.append(Check('perception', WARN, 'no owseg_ros node reports on /diagnostics',
                            'ros2 launch owseg_ros perception.launch.py'))
    return checks
