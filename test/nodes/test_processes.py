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
"""The nodes in processes of their own, as a robot runs them."""

import json
import os
from pathlib import Path
import signal
import subprocess
import sys

from diagnostic_msgs.msg import DiagnosticArray
import pytest
from rcl_interfaces.msg import Parameter
from rcl_interfaces.msg import ParameterValue
from rcl_interfaces.srv import SetParameters
from sensor_msgs.msg import Image
from std_msgs.msg import String
from support.dds import BEST_EFFORT
from support.dds import DOMAIN
from support.dds import LATCHED
from support.dds import Process
from support.dds import shared_memory_of
from support.dds import values_of
from support.dds import wait_until

pytestmark = pytest.mark.timeout(90)

CAMERA = {'width': 320, 'height': 240, 'rate': 15.0}
# On an idle machine a node ends in 0.3 s; the bound is for one that is busy.
SECONDS_TO_END = 5.0


def test_camera_and_perception_in_two_processes(ros, tiny, vision_msgs, monkeypatch):
    monkeypatch.syspath_prepend(str(vision_msgs))
    from vision_msgs.msg import LabelInfo
    camera = ros.process('owseg_ros.nodes.camera', CAMERA)
    perception = ros.process(
        'owseg_ros.nodes.perception', {'model': str(tiny.path), 'autostart': True},
        environment={'PYTHONPATH': str(vision_msgs)})
    masks = ros.collect(Image, 'semantic/mask', BEST_EFFORT)
    scores = ros.collect(Image, 'anomaly/score', BEST_EFFORT)
    info = ros.collect(LabelInfo, 'label_info', LATCHED)
    labels = ros.collect(String, 'labels', LATCHED)
    diagnostics = ros.collect(DiagnosticArray, '/diagnostics')
    common = wait_until(
        lambda: len(set(masks.stamps()) & set(scores.stamps())) >= 5,
        what=lambda: camera.output + perception.output)
    assert common
    message = masks.messages[-1]
    assert message.header.frame_id == 'camera_optical_frame'
    assert (message.width, message.height) == (320, 240)
    by_id = {entry.class_id: entry.class_name for entry in info.first().class_map}
    assert by_id == {
        entry['id']: entry['name'] for entry in json.loads(labels.first().data)['classes']}
    assert set(message.data) <= by_id.keys()

    def running(array):
        return any(
            values_of(status).get('state') == 'running' and status.name.endswith('camera')
            for status in array.status)

    diagnostics.first(running)
    for process in (perception, camera):
        code, seconds = process.end()
        assert code == 0, process.output
        assert seconds < SECONDS_TO_END
        assert 'Traceback' not in process.output


def test_all_in_one_process(ros, tiny):
    masks = ros.collect(Image, 'semantic/mask', BEST_EFFORT)
    stack = ros.process('owseg_ros.nodes.stack', {'model': str(tiny.path), **CAMERA})
    wait_until(lambda: len(masks.messages) >= 5, what=lambda: stack.output)
    code, seconds = stack.end(signal.SIGTERM)
    assert code == 0, stack.output
    assert seconds < SECONDS_TO_END


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_node_and_leaves_nothing_behind(tiny, number):
    process = Process('owseg_ros.nodes.stack', {'model': str(tiny.path), **CAMERA})
    try:
        process.wait_for('model tiny')
        files = shared_memory_of(process.pid)
        code, seconds = process.end(number)
    finally:
        process.kill()
    assert files
    assert code == 0, process.output
    assert seconds < SECONDS_TO_END
    assert [path for path in files if path.exists()] == []


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_process_that_imports_its_libraries(number):
    process = Process('owseg_ros.nodes.stack')
    try:
        wait_until(lambda: '_multiarray_umath' in Path(f'/proc/{process.pid}/maps').read_text(),
                   what=lambda: process.output)
        code, seconds = process.end(number)
    finally:
        process.kill()
    assert code == 0 and seconds < SECONDS_TO_END
    assert process.output == ''


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_node_that_loads_its_model(tiny, tmp_path, number):
    """The first start compiles for up to a minute, and launch would kill it after 20 s."""
    process = Process('owseg_ros.nodes.perception', {'model': str(tiny.path), 'autostart': True},
                      environment={'NUMBA_CACHE_DIR': str(tmp_path)})
    try:
        # The first of many functions is compiled.
        wait_until(lambda: any(tmp_path.rglob('*.nbc')), what=lambda: process.output)
        files = shared_memory_of(process.pid)
        code, seconds = process.end(number, timeout=60.0)
    finally:
        process.kill()
    assert files
    assert code == 0, process.output
    assert seconds < SECONDS_TO_END
    assert 'Traceback' not in process.output and 'model tiny' not in process.output
    assert [path for path in files if path.exists()] == []


def test_a_signal_that_a_library_swallows_is_raised_again_and_not_told():
    script = """
import ctypes, os, signal, sys, time
from owseg_ros.nodes.process import run

@ctypes.CFUNCTYPE(None)
def called_by_c():
    os.kill(os.getpid(), signal.SIGINT)

def make(dds):
    called_by_c()
    print('swallowed', flush=True)
    end = time.monotonic() + 30.0
    while time.monotonic() < end:
        time.sleep(0.01)

sys.exit(run([make]))
"""
    done = subprocess.run(
        [sys.executable, '-c', script], env={**os.environ, 'ROS_DOMAIN_ID': str(DOMAIN)},
        capture_output=True, text=True, timeout=60)
    assert done.stdout == 'swallowed\n', done.stderr
    assert (done.returncode, done.stderr) == (0, '')


def test_an_invalid_parameter_at_start_ends_the_process_with_a_reason(ros):
    process = ros.process('owseg_ros.nodes.perception', {'image_transport': 'theora'})
    assert process.wait() == 1
    assert 'image_transport must be one of raw, compressed' in process.output
    assert 'Traceback' not in process.output


@pytest.mark.parametrize('arguments, reason', [
    (['-r', 'image:=my camera'], "Couldn't parse remap rule: '-r image:=my camera'"),
    (['--params-file', '{file}'], "Couldn't parse params file: '--params-file {file}'")])
def test_what_ros_cannot_read_ends_the_process_with_a_reason(ros, tmp_path, arguments, reason):
    file = tmp_path / 'wrong.yaml'
    file.write_text('perception:\n  ros__parameters\n    threads: 1\n', encoding='utf-8')
    process = ros.process('owseg_ros.nodes.perception', arguments=[
        argument.format(file=file) for argument in arguments])
    assert process.wait() == 1
    assert reason.format(file=file) in process.output
    assert 'Traceback' not in process.output


def test_a_model_that_is_missing_leaves_the_process_alive(ros):
    process = ros.process(
        'owseg_ros.nodes.perception', {'model': '/no/such/model', 'autostart': True})
    process.wait_for('cannot configure')
    assert process.running()
    assert '/no/such/model' in process.output
    assert process.end()[0] == 0


def test_a_request_that_rclpy_cannot_read_ends_nothing(ros):
    perception = ros.process('owseg_ros.nodes.perception')
    client = ros.client.create_client(SetParameters, 'perception/set_parameters')
    assert client.wait_for_service(20.0), perception.output
    client.call_async(SetParameters.Request(parameters=[
        Parameter(name='model', value=ParameterValue(type=99))]))
    perception.wait_for('a message or request was left out')
    assert '99 is not a valid Parameter.Type' in perception.output
    answer = client.call_async(SetParameters.Request(parameters=[
        Parameter(name='model', value=ParameterValue(type=4, string_value='/a/model'))]))
    wait_until(answer.done, what=lambda: perception.output)
    assert [result.successful for result in answer.result().results] == [True]
    assert perception.end()[0] == 0, perception.output
