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
"""The launch files with the real launch: arguments, nodes, masks, and the end by Ctrl-C."""
# flake8: noqa: E402, I100

from __future__ import annotations

import json
import os
from pathlib import Path
import shutil
import signal
import subprocess
import sys

import pytest

for package in ('rclpy', 'launch_ros', 'ros2launch'):
    pytest.importorskip(package, reason=f'{package} comes with a ROS installation')

from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument
from launch.launch_description_sources import PythonLaunchDescriptionSource
from lifecycle_msgs.srv import GetState
import numpy as np
from owseg_ros.nodes import transport
from owseg_ros.nodes.inputs import camera_topic
from rcl_interfaces.srv import GetParameters
from sensor_msgs.msg import Image
from std_msgs.msg import String
from support.dds import (
    BEST_EFFORT, ImagePublisher, LATCHED, Repeater, shared_memory_of, stamp_of, wait_until)
from support.launching import launch_environment
from support.tiny_bundle import paint
from support.tree import ROOT

# The launch and its nodes import much, which takes its time on a busy machine.
START = 60.0

ARGUMENTS = {
    'perception.launch.py': {
        'namespace', 'model', 'image', 'image_transport', 'params_file', 'engine', 'camera',
        'queries', 'prototypes', 'autostart', 'respawn', 'use_sim_time', 'rviz', 'log_level'},
    'demo.launch.py': {'camera', 'model', 'queries', 'namespace', 'rviz', 'log_level'}}


def call(ros, service_type, name, request):
    """Call a service and return the response."""
    client = ros.client.create_client(service_type, name)
    assert client.wait_for_service(START), f'no service {name}'
    future = client.call_async(request)
    wait_until(future.done, what=name)
    return future.result()


def parameters(ros, node, names):
    """Return values of a running node: bool, integer, double or string."""
    response = call(
        ros, GetParameters, f'{node}/get_parameters', GetParameters.Request(names=names))
    fields = {1: 'bool_value', 2: 'integer_value', 3: 'double_value', 4: 'string_value'}
    return {name: getattr(value, fields[value.type])
            for name, value in zip(names, response.values)}


@pytest.mark.parametrize('file', sorted(ARGUMENTS))
def test_description_declares_the_arguments(file):
    source = PythonLaunchDescriptionSource(str(ROOT / 'launch' / file))
    description = source.get_launch_description(LaunchContext())
    assert isinstance(description, LaunchDescription)
    declared = [entity for entity in description.entities
                if isinstance(entity, DeclareLaunchArgument)]
    assert {argument.name for argument in declared} == ARGUMENTS[file]
    assert all(argument.description for argument in declared)


@pytest.mark.parametrize('file', sorted(ARGUMENTS))
def test_show_args(file):
    ros2 = shutil.which('ros2') or pytest.skip('there is no ros2 command on the PATH')
    shown = subprocess.run(
        [sys.executable, ros2, 'launch', 'owseg_ros', file, '--show-args'],
        env=launch_environment(), capture_output=True, text=True, timeout=60)
    assert shown.returncode == 0, shown.stderr
    for name in ARGUMENTS[file]:
        assert f"'{name}':" in shown.stdout


def test_demo_gives_masks_and_ends_by_ctrl_c(ros, launch, tiny):
    namespace = f'{ros.namespace}/front'
    images = {
        topic: ros.collect(Image, f'{namespace}/{topic}', BEST_EFFORT)
        for topic in ('image', 'semantic/mask', 'semantic/confidence', 'anomaly/score',
                      'anomaly/mask')}
    labels = ros.collect(String, f'{namespace}/labels', LATCHED)
    process = launch('demo.launch.py', {
        'namespace': namespace, 'model': str(tiny.path), 'rviz': 'true'})
    names = [entry['name'] for entry in json.loads(labels.first(timeout=START).data)['classes']]
    assert names[:3] == ['red', 'green', 'blue']
    mask = images['semantic/mask'].first()
    same_frame = [
        collector.first(lambda message: stamp_of(message) >= stamp_of(mask))
        for collector in images.values()]
    assert len({message.header.frame_id for message in same_frame}) == 1
    assert len({(message.height, message.width) for message in same_frame}) == 1
    assert images['anomaly/score'].messages[0].encoding == '32FC1'
    common = set(images['semantic/mask'].stamps()) & set(images['image'].stamps())
    assert common, 'no mask carries the stamp of an image'
    assert 'there is no display' in process.output
    nodes = process.node_processes()
    assert process.interrupt() == 0, process.output
    assert not any(Path(f'/proc/{pid}').exists() for pid in nodes)
    assert 'Traceback' not in process.output


def test_perception_follows_its_arguments(ros, launch, tiny, tmp_path):
    file = tmp_path / 'mine.yaml'
    file.write_text(
        '/**:\n  ros__parameters:\n    output_size: network\n    model: /nowhere\n')
    topic = f'{ros.namespace}/cam/image_raw'
    process = launch('perception.launch.py', {
        'namespace': ros.namespace, 'model': str(tiny.path), 'image': topic,
        'params_file': str(file), 'image_transport': 'raw', 'engine': 'onnx',
        'queries': '["cone"]', 'log_level': 'debug'})
    camera = ImagePublisher(ros.client, topic)
    masks = ros.collect(Image, camera_topic('', 'semantic/mask'), BEST_EFFORT)
    pixels = paint(320, 240)
    wait_until(camera.matched, START, lambda: process.output)
    with Repeater(lambda: camera.send(pixels, frame_id='cam_optical_frame'), 10.0):
        mask = masks.first()
    assert (mask.width, mask.height) == (tiny.input.width, tiny.input.height)
    assert mask.header.frame_id == 'cam_optical_frame'
    assert stamp_of(mask) in camera.sent
    ids = np.frombuffer(mask.data, np.uint8).reshape(mask.height, mask.step)
    assert ids[mask.height // 2, mask.width // 4] == 0
    assert parameters(
        ros, f'{ros.namespace}/perception',
        ['model', 'queries', 'use_sim_time', 'autostart']) == {
            'model': str(tiny.path), 'queries': '["cone"]', 'use_sim_time': False,
            'autostart': True}
    assert process.interrupt() == 0, process.output


def test_a_killed_node_comes_back_where_that_is_asked(ros, launch, tiny):
    masks = ros.collect(Image, 'semantic/mask', BEST_EFFORT)
    process = launch('perception.launch.py', {
        'namespace': ros.namespace, 'model': str(tiny.path), 'camera': 'scene',
        'respawn': 'true'})
    masks.first(timeout=START)
    killed, = process.node_processes()
    left = shared_memory_of(killed)
    os.kill(killed, signal.SIGKILL)
    wait_until(lambda: not Path(f'/proc/{killed}').exists(), what='the end of the node')
    last = max(masks.stamps())
    try:
        masks.first(lambda message: stamp_of(message) > last, START)
        assert process.node_processes() != [killed]
        assert process.interrupt() == 0, process.output
    finally:
        for path in left:
            path.unlink(missing_ok=True)


def test_without_autostart_perception_waits_for_a_manager(ros, launch, tiny):
    process = launch('perception.launch.py', {
        'namespace': ros.namespace, 'model': str(tiny.path), 'autostart': 'false',
        'use_sim_time': 'true'})
    node = f'{ros.namespace}/perception'
    assert parameters(ros, node, ['use_sim_time', 'autostart']) == {
        'use_sim_time': True, 'autostart': False}
    state = call(ros, GetState, f'{node}/get_state', GetState.Request()).current_state
    assert state.label == 'unconfigured'
    assert process.interrupt() == 0, process.output


def test_nodes_get_the_shared_memory_profile_unless_one_is_chosen(ros, launch, tmp_path):
    name = transport.profile_variable()
    mine = tmp_path / 'mine.xml'
    mine.write_bytes(transport.profile_path().read_bytes())
    for chosen in ({}, {name: str(mine)}):
        process = launch(
            'perception.launch.py', {'namespace': ros.namespace, 'autostart': 'false'}, **chosen)
        profile = process.node_environment()[name]
        # A node that is interrupted while it starts leaves shared memory behind.
        call(ros, GetState, f'{ros.namespace}/perception/get_state', GetState.Request())
        assert process.interrupt() == 0, process.output
        assert profile == chosen.get(name, profile)
        given = transport.check({name: profile})
        assert given.segment_bytes >= transport.SMALLEST_SEGMENT_BYTES, given


def test_a_wrong_choice_is_refused(launch):
    process = launch('perception.launch.py', {'image_transport': 'theora'})
    assert process.wait() != 0
    assert "['', 'raw', 'compressed']" in process.output


def test_a_file_of_parameters_that_is_missing_is_refused(launch):
    process = launch('perception.launch.py', {'params_file': '/no/such/file.yaml'})
    assert process.wait() != 0
    assert 'params_file: there is no file /no/such/file.yaml' in process.output
    assert 'process started' not in process.output
