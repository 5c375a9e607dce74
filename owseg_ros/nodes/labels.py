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
"""The names behind the ids: LabelInfo where vision_msgs is installed, and JSON everywhere."""

from __future__ import annotations

import json
from typing import Any, Sequence

from owseg_ros.bundle import Bundle
from owseg_ros.bundle import UNKNOWN_COLOR
from owseg_ros.bundle import UNKNOWN_ID
from owseg_ros.bundle import UNLABELLED_COLOR
from owseg_ros.bundle import UNLABELLED_ID
from owseg_ros.language.naming import NamedRegion
from owseg_ros.language.scores import PreparedQueries
from owseg_ros.novelty.live import class_table
from owseg_ros.novelty.match import PreparedPrototypes
from owseg_ros.operating_point import CALIBRATED
from owseg_ros.operating_point import OperatingPointError
from owseg_ros.readout.maps import ReadoutSettings
from owseg_ros.readout.scores import available_scores
from owseg_ros.render import distinct_colors

UNKNOWN_NAME, UNLABELLED_NAME = 'unknown object', 'unlabelled'


def label_table(bundle: Bundle,
                taught: PreparedPrototypes | None = None) -> list[dict[str, Any]]:
    """
    Return id, name, kind and RGB colour of every value that `semantic/mask` may hold.

    The kind is `known` for a class of the model, `taught` for one that was taught by example,
    `unknown` for an object that is none of them, and `unlabelled`.

    :param taught: the live set; None where nothing is taught.
    """
    known = [
        {'id': info.id, 'name': info.name, 'kind': 'known', 'color': list(info.color)}
        for info in bundle.classes]
    known += [
        {'id': entry['id'], 'name': entry['name'], 'kind': 'taught', 'color': entry['color'],
         'shots': entry['shots'], 'threshold': entry['threshold']}
        for entry in class_table(taught)]
    return known + [
        {'id': UNKNOWN_ID, 'name': UNKNOWN_NAME, 'kind': 'unknown',
         'color': list(UNKNOWN_COLOR)},
        {'id': UNLABELLED_ID, 'name': UNLABELLED_NAME, 'kind': 'unlabelled',
         'color': list(UNLABELLED_COLOR)}]


def label_json(bundle: Bundle, settings: ReadoutSettings,
               taught: PreparedPrototypes | None = None) -> str:
    """
    Return the text of the topic `labels`: classes, thresholds and the model they are of.

    :param taught: the live set; None where nothing is taught.
    """
    score, anomaly = settings.score, bundle.anomaly
    try:
        calibrated = anomaly.threshold_for(CALIBRATED, score.name, settings.objects is not None)
    except OperatingPointError:
        # The threshold was then given as a number.
        calibrated = None
    low, high = score.range(bundle.num_classes)
    return json.dumps({
        'model': {'name': bundle.name, 'version': bundle.version,
                  'sha256': bundle.network_sha256},
        'classes': label_table(bundle, taught),
        'taught_version': 0 if taught is None else taught.version,
        'anomaly': {
            'score': score.name,
            'scores': list(available_scores(anomaly.statistics, bundle.outlier_class)),
            'known': low,
            'unknown': high,
            'threshold': settings.anomaly_threshold,
            'objects': settings.objects is not None,
            'min_area': settings.min_area,
            'region': 'everywhere' if settings.road is None else 'road',
            'hysteresis': settings.hysteresis,
            'confirm_frames': settings.confirm_frames,
            'hold_frames': settings.hold_frames,
            'calibrated': settings.anomaly_threshold == calibrated,
            'calibrated_threshold': calibrated,
            'operating_point': anomaly.operating_point},
        'mark_unknown': settings.mark_unknown,
        'min_confidence': settings.min_confidence})


def label_info_type() -> type | None:
    """Return vision_msgs/LabelInfo, or None where vision_msgs is not installed."""
    try:
        from vision_msgs.msg import LabelInfo
    except ImportError:
        return None
    return LabelInfo


def label_info(bundle: Bundle, settings: ReadoutSettings, stamp: Any, frame_id: str = '',
               taught: PreparedPrototypes | None = None) -> Any:
    """
    Return the names as vision_msgs/LabelInfo.

    :param stamp: builtin_interfaces/Time of the message.
    :param taught: the live set; None where nothing is taught.
    :raises ImportError: vision_msgs is not installed.
    """
    return _label_info(label_table(bundle, taught), settings.min_confidence, stamp, frame_id)


def query_table(prepared: PreparedQueries | None) -> list[dict[str, Any]]:
    """
    Return id, name, threshold and RGB colour of every query that `query/mask` may hold.

    :param prepared: the live set; None where there can be none.
    """
    if prepared is None:
        return []
    return [
        {'id': index, 'name': name, 'threshold': round(float(threshold), 6), 'color': list(color)}
        for index, (name, threshold, color) in enumerate(zip(
            prepared.names, prepared.thresholds, distinct_colors(len(prepared.names))))]


def query_json(prepared: PreparedQueries | None, stamp: Any = None) -> str:
    """
    Return the text of the topic `query/labels`: the set that masks answer.

    :param stamp: builtin_interfaces/Time of the mask; None for a set that has just become live.
    """
    return json.dumps({
        'stamp': stamp and {'sec': stamp.sec, 'nanosec': stamp.nanosec},
        'version': 0 if prepared is None else prepared.version,
        'queries': query_table(prepared)})


def regions_json(regions: Sequence[NamedRegion], header: Any, shape: tuple[int, int]) -> str:
    """
    Return the text of the topic `anomaly/regions`: the anomalous regions of a frame, named.

    :param header: std_msgs/Header of the frame.
    :param shape: height and width of the maps that boxes and areas are in pixels of.
    """
    return json.dumps({
        'stamp': {'sec': header.stamp.sec, 'nanosec': header.stamp.nanosec},
        'frame_id': header.frame_id, 'width': shape[1], 'height': shape[0],
        'regions': [{
            'id': region.id, 'box': list(region.box), 'area': region.area,
            'score': round(region.anomaly_score, 6), 'name': region.name,
            'name_score': round(region.name_score, 6)} for region in regions]})


def query_info(prepared: PreparedQueries | None, stamp: Any) -> Any:
    """
    Return the names of the queries as vision_msgs/LabelInfo; its threshold is the lowest of them.

    :param stamp: builtin_interfaces/Time of the message.
    :raises ImportError: vision_msgs is not installed.
    """
    table = query_table(prepared)
    return _label_info(table, min((entry['threshold'] for entry in table), default=0.0), stamp)


def _label_info(table: list[dict[str, Any]], threshold: float, stamp: Any,
                frame_id: str = '') -> Any:
    from vision_msgs.msg import LabelInfo, VisionClass
    message = LabelInfo()
    message.header.stamp = stamp
    message.header.frame_id = frame_id
    message.class_map = [
        VisionClass(class_id=entry['id'], class_name=entry['name']) for entry in table]
    message.threshold = float(threshold)
    return message
