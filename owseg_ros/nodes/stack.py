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
"""Camera and perception in one process, with one executor; perception starts by itself."""

from __future__ import annotations

import sys

from owseg_ros.entry import run_node


def main(args: list[str] | None = None) -> int:
    """Run both nodes; the camera makes its frames in a thread of its own."""
    # Here, so that run_node is there before what takes time to import.
    from owseg_ros.nodes.camera import CameraNode
    from owseg_ros.nodes.perception import PerceptionNode
    from owseg_ros.nodes.process import run
    return run([
        lambda dds: PerceptionNode(dds=dds, autostart=True),
        lambda dds: CameraNode(dds=dds)], args)


if __name__ == '__main__':
    sys.exit(run_node('stack'))
