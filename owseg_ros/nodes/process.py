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
"""Running nodes as a process: transport before rclpy, one executor, a clean end on a signal."""

from __future__ import annotations

import sys
from typing import Callable, Sequence

from owseg_ros.nodes import transport
import rclpy
from rclpy.exceptions import InvalidParameterTypeException
from rclpy.exceptions import InvalidParameterValueException
from rclpy.executors import ExternalShutdownException
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node


def run(make_nodes: Callable[[transport.Transport], Sequence[Node]],
        args: list[str] | None = None) -> int:
    """
    Spin nodes in one executor until SIGINT, SIGTERM or a shutdown of the context.

    :param make_nodes: gets the transport of the process and returns the nodes.
    :param args: command line, as for `rclpy.init`.
    :returns: the exit code: 0 after a clean end, 1 when a parameter given at start is invalid.
    """
    dds = transport.prepare()
    rclpy.init(args=args)
    nodes: list[Node] = []
    executor = SingleThreadedExecutor()
    try:
        nodes.extend(make_nodes(dds))
        for node in nodes:
            executor.add_node(node)
        executor.spin()
    except (InvalidParameterTypeException, InvalidParameterValueException) as error:
        print(error, file=sys.stderr)
        return 1
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    finally:
        for node in nodes:
            node.destroy_node()
        executor.shutdown(0.5)
        rclpy.try_shutdown()
    return 0
