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
"""Masks times scores: from the network's output to the maps of a frame."""

from owseg_ros.readout.choice import ChosenReadout, host_array, READOUTS
from owseg_ros.readout.components import clean_mask
from owseg_ros.readout.cpu import anomaly_scores, CpuReadout, read_out
from owseg_ros.readout.gpu import GpuReadout, GpuReadoutError
from owseg_ros.readout.hazard_mask import RoadSettings
from owseg_ros.readout.maps import (
    ALL_MAPS, check_maps, Maps, NO_QUERY, QUERY_MAPS, ReadoutSettings, UNKNOWN_ID, UNLABELLED_ID)
from owseg_ros.readout.mask_history import MaskHistory
from owseg_ros.readout.objects import ObjectSettings, refine
from owseg_ros.readout.scores import (
    AnomalyScore, available_scores, check_score, make_score, ScoreError, SCORES)

__all__ = [
    'ALL_MAPS', 'anomaly_scores', 'AnomalyScore', 'available_scores', 'check_maps', 'check_score',
    'ChosenReadout', 'clean_mask', 'CpuReadout', 'GpuReadout', 'GpuReadoutError', 'host_array',
    'make_score', 'Maps', 'MaskHistory', 'NO_QUERY', 'ObjectSettings', 'QUERY_MAPS', 'read_out',
    'ReadoutSettings', 'READOUTS', 'refine', 'RoadSettings', 'ScoreError', 'SCORES', 'UNKNOWN_ID',
    'UNLABELLED_ID']
