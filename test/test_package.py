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
"""package.xml, setup.py, the configuration and the code say the same thing."""

from __future__ import annotations

import ast
import importlib
import json
import os
from pathlib import Path
import signal
import subprocess
import sys
from xml.etree import ElementTree

import owseg_ros
from owseg_ros.entry import owseg
import pytest
from support.tree import python_files, ROOT
import yaml

# Import name -> what package.xml and setup.py call it, where that differs.
ROSDEP_KEYS = {
    'cv2': 'python3-opencv', 'google': 'python3-protobuf', 'jsonschema': 'python3-jsonschema',
    'numba': 'python3-numba', 'numpy': 'python3-numpy', 'onnxruntime': 'python3-onnxruntime-pip',
    'rich': 'python3-rich', 'tokenizers': 'python3-transformers-pip', 'yaml': 'python3-yaml'}
DISTRIBUTIONS = {'cv2': 'opencv-python-headless', 'google': 'protobuf', 'yaml': 'PyYAML'}
# Not on PyPI: used where a ROS installation has them.
ROS_ONLY = {'cv_bridge', 'launch', 'launch_ros', 'message_filters', 'vision_msgs'}
# Comes with each of the wheels.
WITH_WHEELS = {'ament_index_python', 'builtin_interfaces', 'rcl_interfaces'}
INSTALLED_BY_EXTRA = {'tensorrt', 'torch', 'triton'}
# Besides engine/, what may import them: the readout on the GPU.
GPU_KERNEL = ROOT / 'owseg_ros' / 'readout' / 'gpu_kernel.py'
# What set-up needs and the robot does not, who may import it, and the extra that installs it.
SET_UP = {'onnx', 'safetensors'}
SET_UP_FILES = {ROOT / 'owseg_ros' / 'language' / 'bert_onnx.py': 'language',
                ROOT / 'owseg_ros' / 'engine' / 'precision.py': 'gpu'}

READ_SETUP = """
import json, os, sys
sys.argv = ['setup.py']
import setuptools
captured = {}
setuptools.setup = captured.update
exec(compile(open('setup.py').read(), 'setup.py', 'exec'), {
    '__file__': os.path.abspath('setup.py'), '__name__': '__main__'})
print(json.dumps({
    name: captured[name] for name in (
        'name', 'version', 'license', 'packages', 'package_dir', 'package_data', 'data_files',
        'install_requires', 'extras_require', 'entry_points', 'python_requires')}))
"""


@pytest.fixture(scope='module')
def setup() -> dict:
    """Return the arguments that setup.py gives to setuptools."""
    pytest.importorskip('setuptools', reason='the extra `test` brings setuptools')
    result = subprocess.run(
        [sys.executable, '-c', READ_SETUP], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.fixture(scope='module')
def manifest() -> ElementTree.Element:
    """Return package.xml."""
    return ElementTree.parse(ROOT / 'package.xml').getroot()


def console_scripts(setup: dict) -> dict[str, str]:
    """Return name -> module:function of the console scripts."""
    return dict(entry.split(' = ') for entry in setup['entry_points']['console_scripts'])


def imports(path: Path) -> set[str]:
    """Return the top-level names of the modules that a file imports, wherever it does."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(node, ast.Import):
            names.update(alias.name.split('.')[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(node.module.split('.')[0])
    return names


def requirement_names(requirements: list[str]) -> set[str]:
    """Return requirements without versions, lower case, with dashes."""
    names = set()
    for requirement in requirements:
        for sign in '<>=!~;[ ':
            requirement = requirement.split(sign)[0]
        names.add(requirement.lower().replace('_', '-'))
    return names


def test_name_version_and_license_agree(setup, manifest):
    assert setup['name'] == manifest.findtext('name') == 'owseg_ros'
    assert setup['version'] == manifest.findtext('version') == owseg_ros.__version__
    assert setup['license'] == manifest.findtext('license')
    assert manifest.find('license').get('file') == 'LICENSE'
    assert manifest.findtext('export/build_type') == 'ament_python'
    assert (ROOT / 'resource' / setup['name']).read_bytes() == b''


def test_every_package_and_its_data_are_installed(setup):
    folders = {'owseg_ros': 'owseg_ros', **setup['package_dir']}
    expected = set()
    missing = []
    for package, folder in folders.items():
        for init in (ROOT / folder).rglob('__init__.py'):
            inside = init.parent.relative_to(ROOT / folder).parts
            expected.add('.'.join((package, *inside)))
        patterns = setup['package_data'].get(package, [])
        included = {path for pattern in patterns for path in (ROOT / folder).glob(pattern)}
        missing += [
            str(path.relative_to(ROOT)) for path in (ROOT / folder).rglob('*')
            if path.is_file() and path.suffix != '.py' and '__pycache__' not in path.parts
            and path not in included]
    assert set(setup['packages']) == expected
    assert not missing, f'package_data leaves out {", ".join(missing)}'


def test_data_files_are_complete(setup):
    installed = {
        f'{folder}/{Path(name).name}': name for folder, names in setup['data_files']
        for name in names}
    for target, source in installed.items():
        assert (ROOT / source).is_file(), f'{target} comes from {source}, which is missing'
    assert 'share/ament_index/resource_index/packages/owseg_ros' in installed
    assert 'share/owseg_ros/package.xml' in installed
    for folder in ('launch', 'config', 'models'):
        for path in (ROOT / folder).rglob('*'):
            if path.is_file() and '__pycache__' not in path.parts:
                assert f'share/owseg_ros/{path.relative_to(ROOT).as_posix()}' in installed


def test_console_scripts_import(setup):
    for name, target in console_scripts(setup).items():
        module, function = target.split(':')
        if module.startswith('owseg_ros.nodes'):
            pytest.importorskip('rclpy', reason='neither ROS nor the extra `ros` is installed')
        if module.startswith('owseg_training'):
            pytest.importorskip('torch', reason='the extra `training` is not installed')
        assert callable(getattr(importlib.import_module(module), function)), name


@pytest.mark.parametrize('name, code', [
    ('owseg', 130), ('owseg-train', 130), ('camera', 0), ('perception', 0), ('stack', 0)])
def test_ctrl_c_while_a_command_imports_ends_it_without_a_traceback(
        setup, tmp_path, name, code):
    """Some libraries take an interrupt for a failed import."""
    (tmp_path / 'numpy.py').write_text(
        'import time\nprint("importing", flush=True)\ntry:\n    time.sleep(60)\n'
        'except BaseException as error:\n    raise ImportError("numpy") from error\n')
    module, function = console_scripts(setup)[name].split(':')
    process = subprocess.Popen(
        [sys.executable, '-c',
         f'import sys; from {module} import {function}; sys.exit({function}())'],
        env={**os.environ, 'PYTHONPATH': os.pathsep.join(
            [str(tmp_path), str(ROOT), *filter(None, [os.environ.get('PYTHONPATH')])])},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        # A test run in the background ignores SIGINT, and its children would inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    try:
        assert process.stdout.readline() == 'importing\n', process.stdout.read()
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == code
        assert process.stdout.read() == (f'{name}: interrupted\n' if code else '')
    finally:
        process.kill()
        process.stdout.close()


@pytest.mark.parametrize('arguments, missing, extra', [
    (['perception'], 'sensor_msgs', 'ros'), (['owseg', 'query', 'cone'], 'rclpy', 'ros'),
    (['owseg-train', 'closed-set', '--config', 'camvid_small'], 'torch', 'training')])
def test_a_package_that_is_not_installed_is_one_line(setup, arguments, missing, extra):
    module, function = console_scripts(setup)[arguments[0]].split(':')
    result = subprocess.run(
        [sys.executable, '-c', f'import sys; sys.modules["{missing}"] = None; '
         f'from {module} import {function}; sys.exit({function}())', *arguments[1:]],
        cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr.startswith(f'{arguments[0]}: {missing} is not installed: ')
    assert result.stderr.endswith(f'pip install "owseg_ros[{extra}]"\n')
    assert result.stderr.count('\n') == 1


def test_ctrl_c_later_is_one_line_too(monkeypatch, capsys):
    def interrupted() -> int:
        raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr('owseg_ros.cli.main', interrupted)
    assert owseg() == 130
    assert capsys.readouterr().err == 'owseg: interrupted\n'
    assert signal.getsignal(signal.SIGINT) is before


def test_what_the_vehicle_imports_is_declared(setup, manifest):
    run = {element.text for name in ('depend', 'exec_depend') for element in manifest.iter(name)}
    base = requirement_names(setup['install_requires'])
    wheels = requirement_names(setup['extras_require']['ros'])
    files = [*(ROOT / 'owseg_ros').rglob('*.py'), *(ROOT / 'launch').glob('*.py')]
    for path in files:
        for name in imports(path) - set(sys.stdlib_module_names) - {'owseg_ros'}:
            where = f'{path.relative_to(ROOT)} imports {name}'
            if name in INSTALLED_BY_EXTRA:
                assert 'engine' in path.parts or path == GPU_KERNEL, f'{where}: only engine/ may'
                continue
            if name in SET_UP:
                assert path in SET_UP_FILES, f'{where}: only set-up may'
                extra = setup['extras_require'][SET_UP_FILES[path]]
                assert name in requirement_names(extra), where
                continue
            assert ROSDEP_KEYS.get(name, name) in run, f'{where}: not in package.xml'
            if name in ROSDEP_KEYS:
                distribution = DISTRIBUTIONS.get(name, name).lower()
                assert distribution in base, f'{where}: not in install_requires'
            elif name not in ROS_ONLY | WITH_WHEELS:
                wheel = f'ros-kilted-{name.replace("_", "-")}'
                assert wheel in wheels, f'{where}: {wheel} is not in the extra ros'


def test_the_tests_install_what_sets_the_text_encoder_up(setup):
    extras = setup['extras_require']
    assert SET_UP == requirement_names(extras['language']) <= requirement_names(extras['test'])


def test_base_install_needs_neither_torch_nor_ros(setup):
    base = requirement_names(setup['install_requires'])
    assert not base & {'torch', 'timm', 'onnx', 'safetensors', 'scipy'}
    assert not any(name.startswith('ros-') for name in base)
    assert not any(name.startswith('ros-') for name in
                   requirement_names(setup['extras_require']['training'])
                   | requirement_names(setup['extras_require']['test']))


def test_layers_do_not_import_upwards():
    for path in (ROOT / 'owseg_ros').rglob('*.py'):
        found = imports(path)
        assert 'owseg_training' not in found, path
        if 'engine' not in path.parts:
            assert 'torch' not in found, path
        if 'nodes' not in path.parts:
            assert 'rclpy' not in found, path


def test_code_is_python_3_10(setup):
    assert setup['python_requires'] == '>=3.10'
    for path in python_files():
        ast.parse(path.read_text(encoding='utf-8'), str(path), feature_version=(3, 10))


def test_parameter_file_has_every_parameter_with_its_default():
    pytest.importorskip('rclpy', reason='neither ROS nor the extra `ros` is installed')
    from owseg_ros.nodes.parameters import CAMERA, PERCEPTION
    written = yaml.safe_load((ROOT / 'config' / 'perception.yaml').read_text())
    assert set(written) == {'/**/perception', '/**/camera'}
    for node, specs in (('perception', PERCEPTION), ('camera', CAMERA)):
        expected = {spec.name: spec.default for spec in specs}
        found = written[f'/**/{node}']['ros__parameters']
        assert found == expected
        assert {name: type(value) for name, value in found.items()} == {
            name: type(value) for name, value in expected.items()}


def test_rviz_layout_shows_the_published_topics():
    pytest.importorskip('rclpy', reason='neither ROS nor the extra `ros` is installed')
    from owseg_ros.nodes import outputs
    layout = yaml.safe_load((ROOT / 'config' / 'owseg.rviz').read_text())
    displays = layout['Visualization Manager']['Displays']
    topics = {
        display['Topic']['Value'].lstrip('/'): display['Class']
        for display in displays if 'Topic' in display}
    published = {output.topic for output in outputs.IMAGES}
    images = {topic for topic, kind in topics.items() if kind == 'rviz_default_plugins/Image'}
    assert topics.keys() <= published | {'image'}
    assert {'image', 'semantic/color', 'anomaly/score', 'overlay'} <= images
    assert len({display['Name'] for display in displays}) == len(displays)
