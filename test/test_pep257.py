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
"""The rules of ament_pep257, which setup.cfg repeats for plain pydocstyle."""

import subprocess
import sys

import pytest

from support.tree import python_files, ROOT


@pytest.mark.pep257
@pytest.mark.linter
def test_pep257():
    files = [str(path) for path in python_files()]
    try:
        from ament_pep257.main import main
    except ImportError:
        pytest.importorskip('pydocstyle', reason='the extra `test` brings pydocstyle')
        result = subprocess.run(
            [sys.executable, '-m', 'pydocstyle', *files], cwd=ROOT, capture_output=True,
            text=True)
        assert result.returncode == 0, f'\n{result.stdout}{result.stderr}'
    else:
        assert main(argv=files) == 0, 'the errors are in the captured output'
