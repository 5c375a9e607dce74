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

import _thread
import gc
import math
import os
import signal
import sys
import threading
import time
import traceback
from typing import Any, Callable, Sequence

from owseg_ros.nodes import transport
import rclpy
from rclpy.exceptions import InvalidParameterTypeException
from rclpy.exceptions import InvalidParameterValueException
from rclpy.executors import ExternalShutdownException
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node

THREAD_NAMES = frozenset({
    'camera', 'perception', 'readout', 'queries', 'teaching', 'diagnostics'})
"""Names of the threads of our nodes."""

SPIN_SECONDS = 0.2
"""Longest time after which the executor looks whether it shall end."""


def run(factories: Sequence[Callable[[transport.Transport], Node]],
        args: list[str] | None = None) -> int:
    """
    Spin nodes in one executor until SIGINT, SIGTERM or a shutdown of the context.

    :param factories: each gets the transport of the process and returns a node.
    :param args: command line, as for `rclpy.init`.
    :returns: the exit code: 0 after a clean end, 1 when a parameter given at start is invalid,
        or an argument or a file of parameters that ROS itself cannot read.
    """
    dds = transport.prepare()
    nodes: list[Node] = []
    starting, leaving, raised = True, False, -math.inf

    def interrupted(number: int, stack: Any) -> None:
        # While nodes spin, a signal shuts the context down, and that ends the spin. A
        # KeyboardInterrupt on top of it could strike in the middle of the clean end, above all
        # when Ctrl-C comes twice: from the terminal and from `ros2 launch`. While a node loads a
        # model nothing spins, for a minute where its inner loops are compiled, and launch kills
        # it after 20 s. Libraries swallow some interrupts, so that it is raised until it is heard.
        nonlocal raised
        loading = any(getattr(node, 'loading', False) for node in nodes)
        if leaving or not starting and not loading or time.monotonic() < raised + 0.5:
            return
        again = threading.Timer(1.0, _thread.interrupt_main)
        again.daemon = True
        again.start()
        raised = time.monotonic()
        raise KeyboardInterrupt

    _hide_swallowed_interrupts()
    # Before rclpy.init, which puts its own handlers in front of these.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupted)
    try:
        rclpy.init(args=args)
    except KeyboardInterrupt:
        leaving = True
        return 0
    except RuntimeError as error:
        # rclpy's RCLError.
        print(error, file=sys.stderr)
        return 1
    executor = SingleThreadedExecutor()
    code = 0
    try:
        for make in factories:
            nodes.append(make(dds))
            executor.add_node(nodes[-1])
        starting = False
        # Without a time limit, a signal that comes while the wait set is being built can leave
        # the executor waiting in a context that is shut down already.
        while rclpy.ok():
            try:
                executor.spin_once(timeout_sec=SPIN_SECONDS)
            except (ExternalShutdownException, RuntimeError):
                raise
            except Exception:
                # Such as a request of rclpy's own services that it cannot read: a parameter of a
                # type that there is not. It has no answer; the others have.
                nodes[0].get_logger().error(
                    f'a message or request was left out: {traceback.format_exc(limit=-1)}',
                    throttle_duration_sec=5.0)
    except (InvalidParameterTypeException, InvalidParameterValueException) as error:
        print(error, file=sys.stderr)
        code = 1
    except (KeyboardInterrupt, ExternalShutdownException):
        leaving = True
    except RuntimeError:
        # rclpy's RCLError, where a signal shuts the context down while the executor sets out to
        # wait in it: that is the end which was asked for.
        if rclpy.ok():
            raise
    finally:
        leaving = True
        for node in nodes:
            node.destroy_node()
        executor.shutdown(0.5)
        rclpy.try_shutdown()
    # What was interrupted leaves cycles that hold the nodes, and with them the shared memory.
    nodes.clear()
    del executor
    gc.collect()
    _leave_if_threads_linger(code)
    return code


def _hide_swallowed_interrupts() -> None:
    """Print nothing about an interrupt that struck where Python cannot raise (numba compiles)."""
    tell = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if unraisable.exc_type is not KeyboardInterrupt:
            tell(unraisable)
    sys.unraisablehook = hook


def _leave_if_threads_linger(code: int) -> None:
    """
    End the process at once where a thread of a node is still inside a library.

    Opening a source or a network pass may take longer than a signal should have to wait. The
    interpreter would stop such a thread by unwinding it, and C++ libraries abort on that. The
    nodes are destroyed already, so that DDS has nothing left to clean up.
    """
    if any(thread.name in THREAD_NAMES for thread in threading.enumerate()):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
