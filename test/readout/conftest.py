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
"""The readouts that share their tests."""

from unittest.mock import patch

from owseg_ros.readout import CpuReadout, gpu, GpuReadout
from owseg_ros.readout.cpu import TOLERANCE
import pytest

# The interpreter takes about as long for a program whatever its size.
LARGE_TILES = {'TILE_ROWS': 128, 'TILE_COLUMNS': 128, 'REGISTERS': 1 << 22,
               'WINDOW_FLOATS': 1 << 18, 'MAX_WINDOW_ROWS': 128}


@pytest.fixture(scope='session')
def gpu_readouts():
    """Run GpuReadout on the GPU, or without one in the interpreter; skip where neither does."""
    pytest.importorskip('torch', reason='torch is not installed')
    pytest.importorskip('triton', reason='triton is not installed')
    try:
        gpu.require_gpu_readout()
    except gpu.GpuReadoutError as error:
        pytest.skip(str(error))
    if not gpu.interpreted():
        yield
        return
    with patch.multiple(gpu, **LARGE_TILES):
        yield


@pytest.fixture(scope='module', params=['cpu', pytest.param('gpu', marks=pytest.mark.gpu)])
def make(request):
    """Return what makes a readout, called with a tolerance and a number of threads."""
    if request.param == 'cpu':
        return CpuReadout
    request.getfixturevalue('gpu_readouts')
    return lambda tolerance=TOLERANCE, threads=1: GpuReadout(tolerance)
