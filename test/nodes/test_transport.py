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
"""The shared-memory profile, and that with it large best-effort images arrive."""

from pathlib import Path
import xml.etree.ElementTree

import cv2
import numpy as np
from owseg_ros.nodes import transport
import pytest
from sensor_msgs.msg import Image

from support.dds import BEST_EFFORT
from support.dds import stamp_of
from support.dds import wait_until


def test_prepare_points_fast_dds_to_the_shipped_profile():
    environment = {}
    found = transport.prepare(environment)
    assert found.ok, found
    assert found.profile.is_file()
    assert environment == {transport.profile_variable(): str(found.profile)}
    assert transport.prepare(environment) == found


def test_the_profile_has_shared_memory_and_udp():
    tree = xml.etree.ElementTree.parse(transport.profile_path())
    space = '{http://www.eprosima.com}'
    kinds = {
        element.find(f'{space}type').text
        for element in tree.iter(f'{space}transport_descriptor')}
    assert kinds == {'SHM', 'UDPv4'}
    sizes = [int(element.text) for element in tree.iter(f'{space}segment_size')]
    assert sizes == [transport.SEGMENT_BYTES]


@pytest.mark.parametrize('chosen', [
    {'FASTDDS_DEFAULT_PROFILES_FILE': '/my/profile.xml'},
    {'FASTRTPS_DEFAULT_PROFILES_FILE': '/my/profile.xml'},
    {'FASTDDS_BUILTIN_TRANSPORTS': 'LARGE_DATA'},
    {'RMW_IMPLEMENTATION': 'rmw_cyclonedds_cpp'},
])
def test_the_choice_of_the_user_stands(chosen):
    environment = dict(chosen)
    transport.prepare(environment)
    assert environment == chosen


def test_a_process_without_a_profile_is_noticed():
    found = transport.check({})
    assert not found.ok
    assert f'export {transport.profile_variable()}=' in str(found)
    assert not transport.check({'FASTDDS_BUILTIN_TRANSPORTS': 'SHM'}).ok
    assert transport.check({'FASTDDS_BUILTIN_TRANSPORTS': 'LARGE_DATA'}).ok
    assert transport.check({'RMW_IMPLEMENTATION': 'rmw_zenoh_cpp'}).ok


def test_a_profile_that_is_missing_or_small_is_noticed(tmp_path):
    path = tmp_path / 'profile.xml'
    variable = transport.PROFILE_VARIABLES[0]
    assert 'cannot be read' in str(transport.check({variable: str(path)}))
    path.write_text('<profiles/>')
    assert '512 KiB' in str(transport.check({variable: str(path)}))
    path.write_text(transport.profile_path().read_text().replace('67108864', '4194304'))
    found = transport.check({variable: str(path)})
    assert not found.ok and found.segment_bytes == 4 << 20


@pytest.mark.parametrize('free_mib, segment_mib', [(64, 16), (100, 16), (200, 32), (4096, 64)])
def test_a_small_shared_memory_gets_a_smaller_profile(
        monkeypatch, tmp_path, free_mib, segment_mib):
    monkeypatch.setattr(transport, '_free_shared_memory', lambda: free_mib << 20)
    environment = {'ROS_HOME': str(tmp_path)}
    found = transport.prepare(environment)
    assert found.ok, found
    assert found.segment_bytes == segment_mib << 20
    text = Path(environment[transport.profile_variable()]).read_text()
    xml.etree.ElementTree.fromstring(text)


def test_shared_memory_that_is_used_up_is_noticed(monkeypatch):
    environment = {transport.PROFILE_VARIABLES[0]: str(transport.profile_path())}
    monkeypatch.setattr(transport, '_free_shared_memory', lambda: 1 << 20)
    found = transport.check(environment)
    assert not found.ok and '/dev/shm' in found.advice


@pytest.mark.timeout(60)
def test_best_effort_1080p_arrives_from_another_process(ros, tmp_path):
    if not transport.check().ok:
        pytest.skip(f'this test run has its own transport: {transport.check()}')
    ages = []

    def received(message):
        now = ros.client.get_clock().now().nanoseconds
        sec, nanosec = stamp_of(message)
        ages.append(1e-6 * now - (1e3 * sec + 1e-6 * nanosec))

    ros.client.create_subscription(Image, 'image', received, BEST_EFFORT)
    picture = tmp_path / 'picture.png'
    cv2.imwrite(str(picture), np.zeros((1080, 1920, 3), np.uint8))
    camera = ros.process('owseg_ros.nodes.camera', {'source': str(picture), 'rate': 10.0})
    wait_until(lambda: len(ages) >= 20, what=lambda: f'{len(ages)} images; {camera.output}')
    # A few milliseconds on an idle machine; the bound is for one that is busy.
    assert sorted(ages)[len(ages) // 2] < 100.0
