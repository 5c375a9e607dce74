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
"""package.xml is valid; ament_xmllint needs network for the schema, catkin_pkg does not."""

import pytest

from support.tree import ROOT


@pytest.mark.linter
@pytest.mark.xmllint
def test_package_xml():
    package = pytest.importorskip('catkin_pkg.package', reason='the extra `test` brings it')
    warnings = []
    manifest = package.parse_package(str(ROOT / 'package.xml'), warnings=warnings)
    manifest.validate()
    assert warnings == []
    assert manifest.package_format == 3
