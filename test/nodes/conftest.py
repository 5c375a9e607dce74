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
"""What the node tests share: a private ROS context for each, and a small real model."""

import pytest

pytest.importorskip('rclpy', reason='rclpy is not installed (pip install owseg_ros[ros])')

from owseg_ros.nodes import transport  # noqa: E402, I100
from owseg_ros.segmenter import Segmenter  # noqa: E402

from support import interfaces  # noqa: E402
from support.dds import Ros  # noqa: E402
from support.tiny_bundle import make_tiny_bundle  # noqa: E402

# Fast DDS reads its profile once, with the first context of the process.
transport.prepare()


@pytest.fixture(scope='session', autouse=True)
def compiled(tiny):
    """Compile the inner loops first: on the first run after a change it takes up to a minute."""
    Segmenter(tiny, threads=1).warm_up()


@pytest.fixture
def ros():
    """Yield a private context with a client node; all that it started ends with the test."""
    session = Ros()
    yield session
    session.close()


@pytest.fixture(scope='session')
def tiny(tmp_path_factory):
    """Return a bundle whose network takes no time."""
    return make_tiny_bundle(tmp_path_factory.mktemp('tiny') / 'tiny')


@pytest.fixture(scope='session')
def slow(tmp_path_factory):
    """Return a bundle whose network is slower than a camera at 30 Hz."""
    return make_tiny_bundle(
        tmp_path_factory.mktemp('slow') / 'slow', width=320, height=240, work=6)


@pytest.fixture(scope='session')
def vision_msgs(request):
    """Return the folder that makes vision_msgs importable; skip where it cannot be built."""
    try:
        return interfaces.build('vision_msgs', request.config.cache.mkdir('interfaces'))
    except interfaces.CannotBuild as reason:
        pytest.skip(f'vision_msgs cannot be generated: {reason}')
