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
"""Where the real road data lies, or a skip that says how to get it."""

import os
from pathlib import Path

import pytest


def data_root() -> Path:
    """Return the folder of real data; skip the calling test where there is none."""
    named = os.environ.get('OWSEG_DATA')
    checkout = Path(__file__).resolve().parents[2]
    root = Path(named) if named else checkout.parent / 'shared' / 'data'
    if not root.is_dir():
        pytest.skip(f'real road data is not at {root}; set OWSEG_DATA to its folder')
    return root


def data_path(*parts: str) -> Path:
    """Return a file or folder of the real data; skip the calling test where it is absent."""
    path = data_root().joinpath(*parts)
    if not path.exists():
        pytest.skip(f'real road data has no {path}; set OWSEG_DATA to a folder that has')
    return path
