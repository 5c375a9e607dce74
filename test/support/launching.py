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
"""Launch files of this checkout, started as a person starts them."""

from __future__ import annotations

import os
from pathlib import Path
import shutil
import signal
import subprocess
import sys
import threading

from owseg_ros.nodes import transport
import pytest
from support.dds import wait_until
from support.tree import ROOT


def launch_environment() -> dict[str, str]:
    """
    Return the environment that finds owseg_ros as installed, without a chosen transport.

    Skips where it is not installed as an ament package.
    """
    env = {name: value for name, value in os.environ.items()
           if name not in transport.PROFILE_VARIABLES and 'DISPLAY' not in name}
    marker = 'share/ament_index/resource_index/packages/owseg_ros'
    prefixes = [path for path in env.get('AMENT_PREFIX_PATH', '').split(os.pathsep) if path]
    if Path(sys.prefix, marker).exists() and sys.prefix not in prefixes:
        prefixes.insert(0, sys.prefix)
    found = [Path(prefix) for prefix in prefixes if Path(prefix, marker).exists()]
    if not found:
        pytest.skip('owseg_ros is not installed as an ament package (make venv, colcon build)')
    for path in (ROOT / 'launch').glob('*.py'):
        installed = found[0] / 'share' / 'owseg_ros' / 'launch' / path.name
        assert installed.is_file() and installed.read_bytes() == path.read_bytes(), (
            f'{installed} is not the one of this checkout: install again')
    env['AMENT_PREFIX_PATH'] = os.pathsep.join(prefixes)
    env['PYTHONUNBUFFERED'] = '1'
    return env


class Launch:
    """`ros2 launch owseg_ros ...` in a process group of its own."""

    def __init__(self, file: str, arguments: dict[str, str], domain: int, **environment: str):
        ros2 = shutil.which('ros2')
        if ros2 is None:
            pytest.skip('ros2launch imports, but there is no ros2 command on the PATH')
        self._lines: list[str] = []
        self._process = subprocess.Popen(
            [sys.executable, ros2, 'launch', 'owseg_ros', file,
             *(f'{name}:={value}' for name, value in arguments.items())],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
            env={**launch_environment(), 'ROS_DOMAIN_ID': str(domain), **environment},
            # A test run in the background ignores SIGINT, and the launch would inherit that.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for line in self._process.stdout:
            self._lines.append(line)

    @property
    def output(self) -> str:
        """Return what launch and the nodes have printed so far."""
        return ''.join(self._lines)

    def node_processes(self) -> list[int]:
        """Return the ids of the processes that the launch has started."""
        children = Path(f'/proc/{self._process.pid}/task/{self._process.pid}/children')
        return [int(pid) for pid in children.read_text().split()]

    def node_environment(self) -> dict[str, str]:
        """Return the environment of the first node process."""
        # Until exec, a new process shows the environment of the launch.
        pid = wait_until(lambda: next((
            pid for pid in self.node_processes()
            if b'--ros-args' in Path(f'/proc/{pid}/cmdline').read_bytes()), None), 60.0,
            lambda: f'a node process: {self.output}')
        pairs = Path(f'/proc/{pid}/environ').read_bytes().decode().split('\0')
        return dict(pair.split('=', 1) for pair in pairs if '=' in pair)

    def interrupt(self) -> int:
        """Press Ctrl-C as a terminal does; return the exit code."""
        os.killpg(self._process.pid, signal.SIGINT)
        return self.wait()

    def wait(self) -> int:
        """Wait for the end and return the exit code."""
        code = self._process.wait(60.0)
        self._reader.join(5.0)
        return code

    def close(self) -> None:
        """End what is left; killed nodes would leave their shared memory behind."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGINT)
            try:
                self._process.wait(20.0)
            except subprocess.TimeoutExpired:
                pass
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self._process.wait(10.0)
        self._reader.join(5.0)
        self._process.stdout.close()
