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
What the commands start with: nothing that takes time to import, so that Ctrl-C always ends them.

NumPy, OpenCV, ONNX Runtime and rclpy take seconds to import on a small machine. An interrupt in
the middle would end in a traceback, or in an error of a library that takes it for a failed import.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
from typing import Any

INTERRUPTED = 130
"""Exit code of a command that Ctrl-C ended, as of a shell."""


def run_command(name: str, module: str, extra: str = '') -> int:
    """
    Import a module and return what its main returns; Ctrl-C is one line and the code INTERRUPTED.

    A package that is not installed is one line, too, and the code 2.

    :param name: of the command, for that line.
    :param extra: of our package that installs what the command needs.
    """
    line = f'{name}: interrupted\n'
    heard = signal.getsignal(signal.SIGINT)
    try:
        if heard is not signal.SIG_IGN:
            _end_at_once(signal.SIGINT, INTERRUPTED, line)
        main = importlib.import_module(module).main
        signal.signal(signal.SIGINT, heard)
        return main()
    except KeyboardInterrupt:
        sys.stderr.write(line)
        return INTERRUPTED
    except ModuleNotFoundError as error:
        sys.stderr.write(f'{name}: {_missing(error, extra)}\n')
        return 2


def run_node(name: str) -> int:
    """
    Run a node of owseg_ros.nodes; SIGINT and SIGTERM are a clean end, code 0.

    The handlers stay until nodes.process.run sets its own. A package that is not installed is one
    line and the code 2.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        _end_at_once(number, 0)
    try:
        return importlib.import_module(f'owseg_ros.nodes.{name}').main()
    except ModuleNotFoundError as error:
        sys.stderr.write(f'{name}: {_missing(error)}\n')
        return 2


def _missing(error: ModuleNotFoundError, extra: str = '') -> str:
    """Return what is not installed, and how it would be; a module of our own is a defect."""
    package = (error.name or '').partition('.')[0]
    if package in ('', 'owseg_ros', 'owseg_training'):
        raise error
    if package == 'rclpy' or package.endswith(('_interfaces', '_msgs', '_srvs')):
        how = 'source a ROS 2 installation, or pip install "owseg_ros[ros]"'
    elif extra:
        how = f'pip install "owseg_ros[{extra}]"'
    else:
        how = 'rosdep install --from-paths src -yi in a workspace, or pip install owseg_ros'
    return f'{package} is not installed: {how}'


def _end_at_once(number: int, code: int, line: str = '') -> None:
    """Let a signal end the process without unwinding what it interrupts."""
    def end(number: int, stack: Any) -> None:
        os.write(2, line.encode())
        os._exit(code)

    signal.signal(number, end)


def owseg() -> int:
    """Run `owseg`."""
    return run_command('owseg', 'owseg_ros.cli')


def camera() -> int:
    """Run the node `camera`."""
    return run_node('camera')


def perception() -> int:
    """Run the node `perception`."""
    return run_node('perception')


def stack() -> int:
    """Run both nodes in one process."""
    return run_node('stack')
