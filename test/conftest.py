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
"""Put test/ on the path, so that ``support`` imports, and register the marks of the suite."""

import ctypes
import os
from pathlib import Path
import sys

sys.path.insert(0, str(Path(__file__).resolve().parent))

try:
    ctypes.CDLL('libcuda.so.1')
except OSError:
    # No driver of a GPU: Triton interprets kernels, which it has to know when it is imported.
    os.environ.setdefault('TRITON_INTERPRET', '1')


def pytest_configure(config):
    """Register the marks."""
    config.addinivalue_line('markers', 'gpu: needs a CUDA device')
    config.addinivalue_line('markers', 'slow: takes more than a few seconds')
