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
"""The files of the source checkout."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

CODE = ('owseg_ros', 'training', 'launch', 'test', 'tools')
"""Folders that hold Python code; what else lies in a checkout is not ours."""


def python_files() -> list[Path]:
    """Return every Python file of the project, sorted."""
    files = [ROOT / 'setup.py']
    for folder in CODE:
        files += (
            path for path in (ROOT / folder).rglob('*.py') if '__pycache__' not in path.parts)
    return sorted(files)
