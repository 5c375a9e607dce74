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
"""
Inner loops that numba compiles, once on a machine.

Numba keeps the code beside the source, or in the user's cache where it cannot write there
(NUMBA_CACHE_DIR chooses another folder). Compiled functions run without the interpreter's lock.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import Any, Callable

import numba
from numba import types

_LOG = logging.getLogger(__name__)

OPTIONS: dict[str, Any] = {'nogil': True, 'error_model': 'numpy'}

# Seconds that reading compiled code from disk does not take.
_LONG = 3.0

_SIGNATURES: dict[Callable, Any] = {}
_LOCK = threading.Lock()


def array_types(kind: Any, readonly: bool) -> tuple[Any, Any, Any]:
    """
    Return the types of contiguous arrays of 1, 2 and 3 dimensions, for `compiled`.

    readonly: whether the function only reads; then it takes arrays that nobody may write, too.
    """
    return tuple(types.Array(kind, ndim, 'C', readonly=readonly) for ndim in (1, 2, 3))


def compiled(signature: Any, **options: Any) -> Callable[[Callable], Callable]:
    """Make a function one that `compile_all` compiles, for this signature only."""
    def register(function: Callable) -> Callable:
        try:
            dispatcher = numba.njit(cache=True, **OPTIONS, **options)(function)
        except RuntimeError as error:
            # Numba raises this where it may write to none of its folders.
            _LOG.warning('%s is compiled at every start: %s; set NUMBA_CACHE_DIR to a folder '
                         'that can be written', function.__name__, error)
            dispatcher = numba.njit(**OPTIONS, **options)(function)
        _SIGNATURES[dispatcher] = signature
        return dispatcher
    return register


def compile_all() -> None:
    """
    Compile the functions that are imported and not compiled yet, or read them from disk.

    Afterwards they refuse arrays of other types with a TypeError, instead of compiling while
    frames come. With NUMBA_DISABLE_JIT=1 they stay Python, to be debugged: thousands of times
    slower.
    """
    if numba.config.DISABLE_JIT:
        return
    with _LOCK:
        begun = time.monotonic()
        for dispatcher in list(_SIGNATURES):
            dispatcher.compile(_SIGNATURES[dispatcher])
            dispatcher.disable_compile()
            del _SIGNATURES[dispatcher]
        if time.monotonic() - begun > _LONG:
            _LOG.info('compiled the inner loops in %.0f s; the next start takes them from disk',
                      time.monotonic() - begun)
