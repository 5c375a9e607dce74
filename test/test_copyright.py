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
"""Every Python file begins with the Apache header; ament_copyright checks it too where it is."""

from pathlib import Path
import re

import pytest

from support.tree import python_files, ROOT

HEADER = re.compile(r"""(#!.*\n)?# Copyright \d{4}(-\d{4})? .+
#
# Licensed under the Apache License, Version 2.0 \(the "License"\);
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
""")


@pytest.mark.copyright
@pytest.mark.linter
def test_every_file_has_the_header():
    without = [
        str(path.relative_to(ROOT)) for path in python_files()
        if not HEADER.match(path.read_text(encoding='utf-8'))]
    assert not without, f'without the full Apache-2.0 header: {", ".join(without)}'


@pytest.mark.copyright
@pytest.mark.linter
def test_ament_copyright():
    ament_copyright = pytest.importorskip(
        'ament_copyright.main', reason='ament_copyright comes with a ROS installation')
    folders = [name for name in ('owseg_ros', 'training', 'launch', 'test', 'tools')
               if Path(ROOT, name).is_dir()]
    assert ament_copyright.main(
        argv=[str(ROOT / name) for name in folders] + [str(ROOT / 'setup.py')]) == 0
