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
What `owseg bench` measures the runtime against; see owseg_ros.bench.peers.Peers.

The module is opened by its name: the runtime does not depend on it.
"""

from owseg_training.bench.curves import draw_growth
from owseg_training.bench.hugging_face import hugging_face
from owseg_training.bench.official import official_order

__all__ = ['draw_growth', 'hugging_face', 'official_order', 'packages']


def packages() -> tuple[str, ...]:
    """Return the packages whose versions belong in the report."""
    return 'torch', 'transformers'
