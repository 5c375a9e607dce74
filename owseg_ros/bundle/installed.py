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
"""Where the bundled model is."""

from __future__ import annotations

import os
from pathlib import Path
import sys
from typing import Iterator

from owseg_ros.bundle.problems import BundleError, MANIFEST

DEFAULT_MODEL = 'camvid_small'


def default_bundle_path() -> Path:
    """
    Return the folder of the model to use when none is named.

    ``OWSEG_MODEL`` where it is set; else the first that exists of the ROS share folder of
    owseg_ros, the share folder of the Python environment, and the source checkout.

    :raises BundleError: there is no such folder; the message lists the places that were tried.
    """
    named = os.environ.get('OWSEG_MODEL')
    if named:
        return Path(named).expanduser()
    tried = [parent / 'models' / DEFAULT_MODEL for parent in _share_folders()]
    for candidate in tried:
        if (candidate / MANIFEST).is_file():
            return candidate
    raise BundleError(
        f"The bundled model {DEFAULT_MODEL} is in none of {', '.join(map(str, tried))}; "
        'install owseg_ros with its models, or set OWSEG_MODEL to the folder of a bundle')


def _share_folders() -> Iterator[Path]:
    try:
        from ament_index_python.packages import get_package_prefix
        yield Path(get_package_prefix('owseg_ros')) / 'share' / 'owseg_ros'
    except (ImportError, LookupError, OSError, ValueError):
        # No ROS installation here, or owseg_ros is not in it: the other places follow.
        pass
    yield Path(sys.prefix) / 'share' / 'owseg_ros'
    yield Path(__file__).resolve().parents[2]
