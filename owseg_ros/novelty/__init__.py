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
Classes that are taught by example: regions compared with a few shots (RAML, section 3.3).

``region_features`` pools the network's pixel features, a ``MetricHead`` embeds them, a
``PrototypeBook`` holds what was taught, ``prepare`` makes it ready for a model, and
``TaughtReadout`` writes it into the masks. ``LiveTeaching`` does all that while frames go on, from
messages that point at something in one of the ``RecentFrames``.
"""

from owseg_ros.novelty.arrays import NoveltyError
from owseg_ros.novelty.frames import RecentFrames, TeachableFrame
from owseg_ros.novelty.live import LiveTeaching, TeachingSetup
from owseg_ros.novelty.match import prepare, PreparedPrototypes
from owseg_ros.novelty.metric_head import MetricHead
from owseg_ros.novelty.prototypes import PrototypeBook, PrototypeSet, Shot, TaughtClass
from owseg_ros.novelty.readout import TaughtReadout, TaughtRegion

__all__ = [
    'LiveTeaching', 'MetricHead', 'NoveltyError', 'prepare', 'PreparedPrototypes',
    'PrototypeBook', 'PrototypeSet', 'RecentFrames', 'Shot', 'TaughtClass', 'TaughtReadout',
    'TaughtRegion', 'TeachableFrame', 'TeachingSetup']
