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
"""The rules of ament_flake8, which setup.cfg repeats for plain flake8."""

import subprocess
import sys

import pytest

from support.tree import python_files, ROOT


@pytest.mark.flake8
@pytest.mark.linter
def test_flake8():
    files = [str(path) for path in python_files()]
    try:
        from ament_flake8.main import main_with_errors
    except ImportError:
        pytest.importorskip('flake8_import_order', reason='the extra `test` brings flake8')
        result = subprocess.run(
            [sys.executable, '-m', 'flake8', *files], cwd=ROOT, capture_output=True, text=True)
        assert result.returncode == 0, f'\n{result.stdout}{result.stderr}'
    else:
        code, errors = main_with_errors(argv=files)
        assert code == 0, '\n'.join(errors)
