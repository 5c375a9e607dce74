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
"""Nodes that a command starts as a process of their own, in a ROS domain of their own."""

from __future__ import annotations

import os
import signal
import subprocess


def private_domain(domain: int | None) -> None:
    """Choose the ROS domain of this process and its children, None for one nobody else has."""
    # Domains above 101 collide with the ports that Linux hands out to programs.
    os.environ['ROS_DOMAIN_ID'] = str(1 + os.getpid() % 100 if domain is None else domain)
    os.environ.setdefault('ROS_AUTOMATIC_DISCOVERY_RANGE', 'LOCALHOST')
    os.environ.setdefault('ROS_LOCALHOST_ONLY', '1')


def end_process(process: subprocess.Popen) -> None:
    """End a process: politely, then firmly."""
    for number, seconds in ((signal.SIGINT, 10), (signal.SIGTERM, 5), (signal.SIGKILL, 5)):
        if process.poll() is not None:
            return
        process.send_signal(number)
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            continue
