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
import json
import os
import subprocess
import sys

from owseg_ros.bundle import BundleError
from owseg_ros.doctor import check_text_encoder, examine, OK, ros_processes, WARN
from owseg_ros.language.onnx_encoder import OnnxTextEncoder
import pytest
from support import dds
from support.tiny_bundle import make_tiny_bundle
from support.tiny_text_encoder import make_tiny_text_encoder

pytest.importorskip('rclpy', reason='the doctor looks at ROS')

IDLE = """
import rclpy, sys
with rclpy.init():
    node = rclpy.create_node('idle')
    print('ready', flush=True)
    sys.stdin.read()
"""


def start_idle(environment):
    """Start a ROS process that is none of ours."""
    process = subprocess.Popen([sys.executable, '-c', IDLE], stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE, env=environment, text=True)
    assert process.stdout.readline().strip() == 'ready'
    return process


@pytest.mark.timeout(90)
def test_processes_without_the_profile_are_named():
    base = {key: value for key, value in os.environ.items() if 'PROFILES_FILE' not in key}
    base['ROS_DOMAIN_ID'] = str(dds.DOMAIN)
    from owseg_ros.nodes import transport
    with_profile = {**base, transport.profile_variable(): str(transport.profile_path())}
    plain, prepared = start_idle(base), start_idle(with_profile)
    try:
        states = {pid: transport.check(environment)
                  for pid, _, environment in ros_processes()}
        assert not states[plain.pid].ok and '512 KiB' in states[plain.pid].description
        assert states[prepared.pid].ok or '/dev/shm' in states[prepared.pid].advice
    finally:
        for process in (plain, prepared):
            process.stdin.close()
            process.wait(20)


@pytest.mark.timeout(120)
def test_running_camera_and_node_are_found(tmp_path):
    bundle = make_tiny_bundle(tmp_path / 'model')
    environment = {**os.environ, 'ROS_DOMAIN_ID': str(dds.DOMAIN)}
    nodes = subprocess.Popen(
        [sys.executable, '-m', 'owseg_ros.nodes.stack', '--ros-args', '-p', 'source:=scene',
         '-p', 'width:=160', '-p', 'height:=120', '-p', f'model:={bundle.path}', '-p',
         'rate:=10.0'], env=environment)
    try:
        def looks_well():
            # A process of its own, because the domain is read when rclpy starts.
            found = subprocess.run(
                [sys.executable, '-m', 'owseg_ros.cli', 'doctor', '--json', '--seconds', '2',
                 '--model', str(bundle.path)], env=environment, capture_output=True, text=True,
                timeout=60)
            checks = {check['name']: check for check in json.loads(found.stdout)}
            ready = {'camera /image', '/perception: engine'} <= checks.keys()
            return ready and checks['camera /image']['level'] == OK and (found, checks)

        found, checks = dds.wait_until(looks_well, 60, 'the camera to be seen')
        assert found.returncode == 0
        assert 'Hz received' in checks['camera /image']['found']
        assert checks['/perception: engine']['level'] == OK
        assert f'DDS of owseg_ros.nodes.stack ({nodes.pid})' in checks
        assert not any('/semantic/' in name for name in checks)
    finally:
        nodes.terminate()
        assert nodes.wait(20) == 0


def test_silence_is_reported_with_advice(monkeypatch):
    monkeypatch.setenv('ROS_DOMAIN_ID', str(dds.DOMAIN + 40))
    checks = {check.name: check for check in examine(topic='front/image', seconds=0.2)}
    assert checks['camera'].level == WARN and 'front/image' in checks['camera'].found
    assert 'ros2 run owseg_ros camera' in checks['camera'].advice
    assert checks['perception'].level == WARN
    assert 'text encoder' in checks


def test_the_text_encoder_is_there_missing_damaged_or_another(tmp_path, monkeypatch):
    monkeypatch.setenv('OWSEG_TEXT_ENCODER', str(tmp_path / 'tiny'))
    plain = make_tiny_bundle(tmp_path / 'plain')
    for bundle in (plain, BundleError('refused')):
        missing = check_text_encoder(bundle)
        assert (missing.level, missing.advice) == (WARN, 'run: owseg text-encoder')
    encoder = make_tiny_text_encoder(tmp_path / 'tiny')
    asked = make_tiny_bundle(tmp_path / 'asked', encoder=OnnxTextEncoder(encoder.path))
    for bundle in (plain, asked):
        found = check_text_encoder(bundle)
        assert found.level == OK and 'space tiny, 16 numbers' in found.found
    make_tiny_text_encoder(tmp_path / 'tiny', space='other')
    assert check_text_encoder(plain).level == OK
    another = check_text_encoder(asked)
    assert another.level == WARN and 'the model is asked in tiny' in another.found
    assert 'of an encoder of tiny' in another.advice
    (tmp_path / 'tiny' / 'text.onnx').write_bytes(b'damaged')
    damaged = check_text_encoder(plain)
    assert damaged.level == WARN and 'sha256' in damaged.found
    assert damaged.advice == 'run: owseg text-encoder'
