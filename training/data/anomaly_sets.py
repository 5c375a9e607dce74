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
"""Anomaly benchmarks: labels are 0 known, 1 anomaly, 255 void."""

from __future__ import annotations

from pathlib import Path

from owseg_training.data.dataset import beside, DataSet, Layout, read_grey, swapped, table_decoder

# laf_table.pdf of the Lost and Found data: flat things that a car may drive over.
LOST_AND_FOUND_NON_HAZARDS = frozenset({31, 33, 34, 36, 37, 38, 39})


class RoadAnomaly(DataSet):
    """
    RoadAnomaly (EPFL, Lis et al. ICCV 2019): road pictures with unusual objects.

    Folder: road_anomaly/{images/<name>.jpg, masks/<name>.png}, or the official one:
    RoadAnomaly_jpg/frames/{<name>.jpg, <name>.labels/labels_semantic.png}, where 2 is anomaly.
    """

    name, title = 'road_anomaly', 'RoadAnomaly'
    kind = 'anomaly'
    splits = ('all',)
    default_split = 'all'
    folders = ('road_anomaly', 'RoadAnomaly/RoadAnomaly_jpg', 'RoadAnomaly_jpg', 'RoadAnomaly')
    needs = ('images/<name>.jpg and masks/<name>.png; or frames/<name>.jpg and '
             'frames/<name>.labels/labels_semantic.png')
    size = (1280, 720)
    _semantic = table_decoder({0: 0, 1: 1, 2: 1})
    layouts = (
        Layout('images/*', beside('masks/{stem}.png')),
        Layout('frames/*.jpg', beside('frames/{stem}.labels/labels_semantic.png'), _semantic),
        Layout('frames/*.jpg', beside('frames/{stem}/labels_semantic.png'), _semantic))

    def __init__(self, root: str | Path | None = None, split: str | None = None) -> None:
        super().__init__(split, root)


class RoadAnomaly21(DataSet):
    """SegmentMeIfYouCan RoadAnomaly21 (AnomalyTrack); only its validation part has labels."""

    name, title = 'road_anomaly_21', 'SegmentMeIfYouCan RoadAnomaly21'
    kind = 'anomaly'
    splits = ('val',)
    folders = ('SegmentMeIfYouCan/dataset_AnomalyTrack', 'dataset_AnomalyTrack',
               'road_anomaly_21')
    needs = ('images/<name>.{jpg,png,webp} and labels_masks/<name>_labels_semantic.png '
             '(dataset_AnomalyTrack.zip)')
    layouts = (Layout('images/*', beside('labels_masks/{stem}_labels_semantic.png'), read_grey,
                      partial=True),)


class RoadObstacle21(DataSet):
    """SegmentMeIfYouCan RoadObstacle21 (ObstacleTrack); only its validation part has labels."""

    name, title = 'road_obstacle_21', 'SegmentMeIfYouCan RoadObstacle21'
    kind = 'anomaly'
    track = 'obstacle'
    splits = ('val',)
    folders = ('SegmentMeIfYouCan/dataset_ObstacleTrack', 'dataset_ObstacleTrack',
               'road_obstacle_21')
    needs = ('images/<name>.{webp,png,jpg} and labels_masks/<name>_labels_semantic.png '
             '(dataset_ObstacleTrack.zip)')
    size = (1920, 1080)
    layouts = RoadAnomaly21.layouts


class LostAndFound(DataSet):
    """
    Lost and Found (Pinggera et al. IROS 2016): small obstacles on free space.

    Known is free space, anomaly are hazards; everything else, non-hazards too, is void.
    """

    name, title = 'lost_and_found', 'Lost and Found'
    kind = 'anomaly'
    track = 'obstacle'
    splits = ('train', 'test')
    default_split = 'test'
    folders = ('LostAndFound', 'lost_and_found')
    needs = ('leftImg8bit/<split>/<place>/<name>_leftImg8bit.png and gtCoarse/<split>/<place>/'
             '<name>_gtCoarse_labelIds.png (or _gtCoarse_labelTrainIds.png)')
    size = (2048, 1024)
    layouts = tuple(
        Layout('leftImg8bit/{split}/*/*_leftImg8bit.png',
               swapped(('leftImg8bit/', 'gtCoarse/'),
                       ('_leftImg8bit.png', f'_gtCoarse_{kind}.png')), decode)
        for kind, decode in (
            ('labelIds', table_decoder({1: 0, **{
                k: 1 for k in range(2, 44) if k not in LOST_AND_FOUND_NON_HAZARDS}})),
            ('labelTrainIds', table_decoder({1: 0, 2: 1}))))


class FishyscapesLostAndFound(DataSet):
    """Fishyscapes Lost & Found validation (Blum et al. IJCV 2021)."""

    name, title = 'fishyscapes_lost_and_found', 'Fishyscapes Lost & Found'
    kind = 'anomaly'
    track = 'obstacle'
    splits = ('val',)
    folders = ('Fishyscapes', 'fishyscapes')
    needs = ('fishyscapes_lostandfound/<number>_<name>_labels.png and '
             'laf_images/<name>_leftImg8bit.png (copied from Lost and Found)')
    size = (2048, 1024)
    layouts = (Layout(
        'fishyscapes_lostandfound/*_labels.png',
        lambda label: f'laf_images/{label.split("/")[-1][5:-10]}leftImg8bit.png', read_grey,
        by_label=True),)


class FishyscapesStatic(DataSet):
    """Fishyscapes Static validation, versions 1 and 2 of its overlays on Cityscapes."""

    name, title = 'fishyscapes_static', 'Fishyscapes Static'
    kind = 'anomaly'
    splits = ('v1', 'v2')
    default_split = 'v1'
    folders = ('Fishyscapes', 'fishyscapes')
    needs = ('fs_val_<split>/<name>_labels.png and fs_static_images_<split>/<name>_rgb.png '
             '(Cityscapes pictures with the overlays added)')
    size = (2048, 1024)
    layouts = (Layout(
        'fs_val_{split}/*_labels.png',
        swapped(('fs_val_', 'fs_static_images_'), ('_labels.png', '_rgb.png')), read_grey,
        by_label=True),)
