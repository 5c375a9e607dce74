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
The data sets by name.

open_data_set('camvid', 'val') finds a set at OWSEG_DATA, at ../shared/data, or at a path; its
items, classes and labels look the same whatever the set.  Importable from here:

DataSet, Item, ClassSpec, DataError, data_root, read_image, read_label, and the sets.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from owseg_training.data.anomaly_sets import (
    FishyscapesLostAndFound, FishyscapesStatic, LostAndFound, RoadAnomaly, RoadAnomaly21,
    RoadObstacle21)
from owseg_training.data.cutouts import (
    COCO_ROAD_CATEGORIES, CocoCutouts, Cutout, CutoutFolder, CutoutSet)
from owseg_training.data.dataset import data_root, DataSet, Item, read_image, read_label, VOID
from owseg_training.data.errors import ClassMapError, DataError
from owseg_training.data.label_sets import class_map, ClassMap, ClassSpec, label_set
from owseg_training.data.street_scenes import (
    Bdd100k, CamSeq01, CamVid, CamVid32, Cityscapes, Comma10k, Idd, IddLite, ImageFolder)

__all__ = [
    'Bdd100k', 'CamSeq01', 'CamVid', 'CamVid32', 'Cityscapes', 'class_map', 'ClassMap',
    'ClassMapError', 'ClassSpec', 'CocoCutouts', 'Comma10k', 'Cutout', 'CUTOUT_SETS',
    'CutoutFolder', 'CutoutSet', 'data_root', 'DATA_SETS', 'DataError', 'DataSet',
    'FishyscapesLostAndFound', 'FishyscapesStatic', 'Idd', 'IddLite', 'ImageFolder', 'Item',
    'label_set', 'LostAndFound', 'open_cutouts', 'open_data_set', 'read_image', 'read_label',
    'RoadAnomaly', 'RoadAnomaly21', 'RoadObstacle21', 'VOID']

DATA_SETS: dict[str, type[DataSet]] = {
    cls.name: cls for cls in (
        Cityscapes, CamVid, CamVid32, CamSeq01, Idd, IddLite, Bdd100k, Comma10k, LostAndFound,
        RoadAnomaly, RoadAnomaly21, RoadObstacle21, FishyscapesLostAndFound, FishyscapesStatic,
        ImageFolder)}

CUTOUT_SETS = ('coco', 'cutouts')


def open_data_set(name: str, split: str | None = None,
                  root: str | Path | None = None) -> DataSet:
    """
    Open a labelled set by name.

    split: None for its default; root: see DataSet.  Raises DataError where the name is unknown
    or something is missing.
    """
    if name not in DATA_SETS:
        raise DataError(f'no data set {name!r}; known: {", ".join(DATA_SETS)}')
    return DATA_SETS[name](split=split, root=root)


def open_cutouts(name: str, split: str | None = None, root: str | Path | None = None, *,
                 categories: Sequence[str] | None = None,
                 exclude: Sequence[str] = COCO_ROAD_CATEGORIES) -> CutoutSet:
    """
    Open objects for pasting: 'coco' (cut out on the fly), 'cutouts' (RGBA files), or a folder.

    name: 'cutouts' are those of the data folder; the path of a folder is any other one of RGBA
    PNG, see CutoutFolder; split: of coco, None for val2017; root: see DataSet; categories: None
    for all; exclude: by default what street scenes know.  Raises DataError.
    """
    if name == 'coco':
        return CocoCutouts(split or 'val2017', root, categories, exclude)
    if name == 'cutouts':
        return CutoutFolder(root, categories, exclude)
    if Path(name).is_dir():
        return CutoutFolder(name, categories, exclude)
    raise DataError(f'no cut-outs {name!r}; known: {", ".join(CUTOUT_SETS)}, or a folder')
