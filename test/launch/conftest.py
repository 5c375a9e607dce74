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
"""What the launch tests share: a private context, a launch in its domain, and a small model."""

import pytest


@pytest.fixture
def ros():
    """Yield a private context with a client node."""
    from owseg_ros.nodes import transport
    from support.dds import Ros
    # Fast DDS reads its profile once, with the first context of the process.
    transport.prepare()
    session = Ros()
    yield session
    session.close()


@pytest.fixture
def launch(ros):
    """Return a function that starts a launch file in the domain of the client."""
    from support.launching import Launch
    started = []

    def start(file: str, arguments: dict[str, str], **environment: str) -> Launch:
        started.append(Launch(file, arguments, ros.domain, **environment))
        return started[-1]

    yield start
    for process in started:
        process.close()
        print(process.output)


@pytest.fixture(scope='session')
def tiny(tmp_path_factory):
    """Return a bundle whose network takes no time."""
    from support.tiny_bundle import make_tiny_bundle
    return make_tiny_bundle(tmp_path_factory.mktemp('tiny') / 'tiny')
