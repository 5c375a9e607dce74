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
Make or update the project's virtual environment; quick when there is nothing to do.

Uses only the standard library. With a ROS installation sourced, the environment sees its packages
and none of the ROS wheels is installed; without one, the extra `ros` brings rclpy and Fast DDS.
"""

from __future__ import annotations

import argparse
import configparser
import hashlib
import importlib.util
import json
import os
from pathlib import Path
import shutil
import subprocess
import sys
import time

ROOT = Path(__file__).resolve().parent.parent
EXTRAS = ('ros', 'language', 'gpu', 'training', 'test')
STATE = 'owseg_ros.json'
LOG = 'pip.log'
# What an installed environment is made of; sources are not, because it is installed editable.
INPUTS = ('setup.py', 'setup.cfg', 'pyproject.toml', 'constraints.txt', 'owseg_ros/__init__.py',
          'tools/make_venv.py')


class Failure(Exception):
    """Something the person at the keyboard has to do; the message says what."""


def say(text: str) -> None:
    """Print one line of progress at once."""
    print(f'[venv] {text}', flush=True)


def environment() -> dict[str, str]:
    """
    Return the environment for the new interpreter.

    The ROS wheels of another environment mark its children; with the mark, the wheels of this
    one would not set up their library path.
    """
    env = dict(os.environ)
    if env.pop('_ROS_WHEELS_BOOTSTRAP_COMPLETE', None):
        env.pop('LD_LIBRARY_PATH', None)
    # A --user, --target or --prefix setting of the caller's shell does not fit an environment.
    for name in ('PIP_USER', 'PIP_TARGET', 'PIP_PREFIX', 'PYTHONHOME', '__PYVENV_LAUNCHER__'):
        env.pop(name, None)
    env['PIP_DISABLE_PIP_VERSION_CHECK'] = '1'
    return env


def sourced_ros() -> str:
    """Return the name of the sourced ROS distribution, '' without one."""
    distribution = os.environ.get('ROS_DISTRO', '')
    if not distribution:
        return ''
    if importlib.util.find_spec('rclpy') is None:
        raise Failure(
            f'ROS {distribution} is sourced, but {sys.executable} (Python '
            f'{sys.version_info.major}.{sys.version_info.minor}) does not find its rclpy. Name '
            'the Python that ROS was built for, for example `make demo PYTHON=/usr/bin/python3`, '
            'or use a shell without ROS.')
    return distribution


def check_python() -> None:
    """Refuse an interpreter that cannot make the environment."""
    if sys.version_info < (3, 10):
        raise Failure(
            f'{sys.executable} is Python {sys.version.split()[0]}; owseg_ros needs 3.10 or newer. '
            'Name another one, for example `make demo PYTHON=python3.12`.')
    missing = [name for name in ('venv', 'ensurepip') if importlib.util.find_spec(name) is None]
    if missing:
        raise Failure(
            f'{sys.executable} has no {" and no ".join(missing)}. On Debian and Ubuntu: `apt '
            f'install python3-venv` (python{sys.version_info.major}.{sys.version_info.minor}-venv '
            'for a Python that is not the default one).')


def fingerprint(ros: str) -> str:
    """Return a digest of everything that decides what is installed."""
    digest = hashlib.sha256(f'{sys.version} {sys.executable} {ros}'.encode())
    for name in INPUTS:
        digest.update((ROOT / name).read_bytes())
    return digest.hexdigest()


def read_state(venv: Path) -> dict:
    """Return what this program noted in the environment, {} if it did not make it."""
    try:
        return json.loads((venv / STATE).read_text())
    except (OSError, ValueError):
        return {}


def pip_install(python: Path, arguments: list[str], env: dict[str, str], log: Path) -> None:
    """
    Install with pip: one line of progress a package, everything in the log.

    Raises
    ------
    Failure
        With the end of what pip said.

    """
    command = [str(python), '-m', 'pip', 'install', '--progress-bar', 'off', *arguments]
    in_place = sys.stdout.isatty()
    collected = 0
    with log.open('w') as record, subprocess.Popen(
            command, env=env, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True) as pip:
        for line in pip.stdout:
            record.write(line)
            words = line.split()
            if words[:1] == ['Collecting']:
                collected += 1
                step = f'[venv] {collected:3d} {words[1]}'
            elif words[:2] == ['Installing', 'collected']:
                step = f'[venv] installing {line.count(",") + 1} packages'
            else:
                continue
            print(f'\r\033[K{step[:78]}' if in_place else step, end='' if in_place else '\n',
                  flush=True)
    if in_place:
        print('\r\033[K', end='', flush=True)
    if pip.returncode:
        end = ''.join(log.read_text().splitlines(keepends=True)[-20:])
        raise Failure(
            f'pip failed and said at its end:\n\n{end}\nAll of it is in {log}. Without network, '
            'pip needs a folder of wheels (PIP_FIND_LINKS) or a mirror (PIP_INDEX_URL). rclpy '
            'comes as wheels for Linux on x86-64 only: elsewhere source a ROS 2 installation.')


def link_package(venv: Path) -> None:
    """
    Make the environment an ament prefix of the checkout, for `ros2 run` and `ros2 launch`.

    The links are those that `colcon build --symlink-install` makes; pip leaves data files out of
    an editable installation. Files are linked and not folders, because `ros2 launch` does not
    look into links to folders.
    """
    share = venv / 'share' / 'owseg_ros'
    if share.exists():
        shutil.rmtree(share)
    targets = {
        'share/ament_index/resource_index/packages/owseg_ros': ROOT / 'resource' / 'owseg_ros',
        'share/owseg_ros/config/fastdds.xml': ROOT / 'owseg_ros' / 'nodes' / 'fastdds.xml'}
    files = [ROOT / 'package.xml']
    for folder in ('launch', 'config', 'models'):
        files += (path for path in (ROOT / folder).rglob('*')
                  if path.is_file() and '__pycache__' not in path.parts)
    for path in files:
        targets[f'share/owseg_ros/{path.relative_to(ROOT)}'] = path
    entry_points = configparser.ConfigParser()
    entry_points.read(
        venv.glob('lib/python*/site-packages/owseg_ros-*.dist-info/entry_points.txt'))
    for name in entry_points['console_scripts'] if 'console_scripts' in entry_points else ():
        targets[f'lib/owseg_ros/{name}'] = venv / 'bin' / name
    for name, target in targets.items():
        link = venv / name
        link.parent.mkdir(parents=True, exist_ok=True)
        if link.is_symlink():
            link.unlink()
        link.symlink_to(target)


def numpy_constraint(python: Path, env: dict[str, str]) -> list[str]:
    """
    Return what keeps NumPy at the major version that the sourced ROS was compiled against.

    Message packages are C extensions: those of Humble and Jazzy do not load with NumPy 2.
    """
    found = subprocess.run(
        [str(python), '-c', 'import numpy; print(numpy.__version__)'], env=env, cwd=ROOT,
        capture_output=True, text=True)
    if found.returncode:
        return []
    major = int(found.stdout.split('.')[0])
    return [f'numpy>={major},<{major + 1}']


def compile_loops(python: Path, env: dict[str, str]) -> None:
    """Compile the inner loops of the runtime, which else the first node does, while one waits."""
    command = [str(python), '-c', 'import owseg_ros.segmenter; '
               'from owseg_ros.compiled import compile_all; compile_all()']
    if subprocess.run(command, env=env, cwd=ROOT).returncode:
        raise Failure(f'`{" ".join(command)}` failed; the message above says why.')


def make(venv: Path, extras: set[str]) -> None:
    """Bring the environment to a state that has the extras."""
    check_python()
    ros = sourced_ros()
    if ros:
        extras = extras - {'ros'}
    state = read_state(venv)
    key = fingerprint(ros)
    python = venv / 'bin' / 'python'
    usable = python.exists() and state.get('base') == [sys.executable, sys.version, ros]
    if usable and state.get('key') == key and extras <= set(state.get('extras', [])):
        link_package(venv)
        compile_loops(python, environment())
        say(f'{venv.name} is up to date')
        return
    began = time.monotonic()
    env = environment()
    if venv.exists() and not usable:
        if not state and any(venv.iterdir()):
            raise Failure(
                f'{venv} exists and was not made by this program. Remove it, or name another '
                'folder: `make demo VENV=.venv-owseg`.')
        say(f'{venv.name} belongs to another Python or ROS environment: making it anew')
        shutil.rmtree(venv)
    if usable:
        extras = extras | set(state.get('extras', []))
    else:
        say(f'making {venv.name} with Python {sys.version.split()[0]}'
            + (f' on top of ROS {ros}' if ros else ''))
        venv.mkdir(parents=True, exist_ok=True)
        # The mark comes first, so that an interrupted run is resumed and not refused.
        (venv / STATE).write_text(json.dumps({'base': None, 'extras': [], 'key': ''}))
        command = [sys.executable, '-m', 'venv', str(venv)]
        if ros:
            command.append('--system-site-packages')
        if subprocess.run(command, env=env, cwd=ROOT).returncode:
            raise Failure(f'`{" ".join(command)}` failed; the message above says why.')
        # colcon must not look for packages in here.
        (venv / 'COLCON_IGNORE').touch()
    constraints = ['-c', 'constraints.txt']
    if ros:
        pins = numpy_constraint(python, env)
        (venv / 'constraints-ros.txt').write_text('\n'.join(pins) + '\n')
        constraints += ['-c', str(venv / 'constraints-ros.txt')]
    wanted = f'.[{",".join(sorted(extras))}]' if extras else '.'
    say(f'installing owseg_ros{wanted[1:]} and what it needs (the first time: minutes)')
    pip_install(python, [*constraints, '-e', wanted], env, venv / LOG)
    link_package(venv)
    say('compiling inner loops (half a minute)')
    compile_loops(python, env)
    (venv / STATE).write_text(json.dumps({
        'base': [sys.executable, sys.version, ros], 'extras': sorted(extras), 'key': key}))
    say(f'{venv.name} is ready after {time.monotonic() - began:.0f} s')


def main() -> int:
    """Make the environment that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument('extras', nargs='*', choices=EXTRAS, metavar='extra',
                        help=f'what to install beside the base: {", ".join(EXTRAS)}')
    parser.add_argument('--venv', type=Path, default=ROOT / '.venv', help='its folder')
    arguments = parser.parse_args()
    try:
        make(arguments.venv.absolute(), set(arguments.extras))
    except Failure as failure:
        print(f'[venv] {failure}', file=sys.stderr, flush=True)
        return 1
    return 0


if __name__ == '__main__':
    sys.exit(main())
