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
"""Street scenes with class labels: Cityscapes, CamVid, IDD, BDD100K, comma10k."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from owseg_training.data.dataset import (
    beside, color_decoder, DataSet, Layout, swapped, table_decoder)
from owseg_training.data.errors import DataError
from owseg_training.data.label_sets import label_set

# labelIds of Cityscapes in the order of its 19 trainIds.
CITYSCAPES_LABEL_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)


class Cityscapes(DataSet):
    """Cityscapes fine annotations, 19 classes; labelTrainIds where they are, else labelIds."""

    name, title = 'cityscapes', 'Cityscapes'
    folders = ('cityscapes', 'Cityscapes')
    needs = ('leftImg8bit/<split>/<city>/<name>_leftImg8bit.png and gtFine/<split>/<city>/'
             '<name>_gtFine_labelTrainIds.png (or _gtFine_labelIds.png)')
    label_set_name = 'cityscapes_19'
    size = (2048, 1024)
    layouts = tuple(
        Layout('leftImg8bit/{split}/*/*_leftImg8bit.png',
               swapped(('leftImg8bit/', 'gtFine/'), ('_leftImg8bit.png', f'_gtFine_{kind}.png')),
               decode)
        for kind, decode in (
            ('labelTrainIds', table_decoder({i: i for i in range(19)})),
            ('labelIds', table_decoder({k: i for i, k in enumerate(CITYSCAPES_LABEL_IDS)}))))


class CamVid(DataSet):
    """
    CamVid with 11 classes, 480x360, in the SegNet split.

    Folder: camvid/{classes.json, train.txt, val.txt, images/<name>.jpg, labels/<name>.png}, or
    as SegNet published it: <split>/<name>.png, <split>annot/<name>.png, where id 11 is void.
    """

    name, title = 'camvid', 'CamVid'
    splits = ('train', 'val', 'test')
    folders = ('camvid', 'CamVid')
    needs = ('classes.json, train.txt, val.txt, images/<name>.jpg and labels/<name>.png; or '
             '<split>/<name>.png and <split>annot/<name>.png')
    label_set_name = 'camvid_11'
    size = (480, 360)
    layouts = (
        Layout('images/{name}.jpg', beside('labels/{stem}.png'), listing='{split}.txt'),
        Layout('{split}/*.png', beside('{parent}annot/{stem}.png'),
               table_decoder({i: i for i in range(11)})))


class CamVid32(DataSet):
    """CamVid at native size with all its classes (31 and void), labels in colour."""

    name, title = 'camvid32', 'CamVid (32 classes)'
    splits = ('train', 'val', 'test', 'all')
    folders = ('camvid32', 'CamVid', 'camvid')
    needs = ('701_StillsRaw_full/<name>.png and LabeledApproved_full/<name>_L.png (split all), '
             'or <split>/<name>.png and <split>_labels/<name>_L.png')
    label_set_name = 'camvid_32'
    size = (960, 720)
    _colors = color_decoder(label_set('camvid_32'))
    layouts = (
        Layout('701_StillsRaw_full/*.png', beside('LabeledApproved_full/{stem}_L.png'), _colors,
               keep=lambda stem, split: split == 'all'),
        Layout('{split}/*.png', beside('{parent}_labels/{stem}_L.png'), _colors))


class CamSeq01(DataSet):
    """
    CamSeq01: one CamVid sequence at 15 Hz, 32 classes.

    Its 100 frames are inside CamVid val: never train on them when you report val.
    """

    name, title = 'camseq01', 'CamSeq01'
    splits = ('all',)
    default_split = 'all'
    folders = ('camseq01', 'CamSeq01')
    needs = ('all.txt, images/<name>.jpg and labels/<name>.png; or <name>.png and <name>_L.png '
             'in one folder')
    label_set_name = 'camvid_32'
    size = (960, 720)
    layouts = (
        Layout('images/{name}.jpg', beside('labels/{stem}.png'), listing='{split}.txt'),
        Layout('0016E5_*.png', beside('{stem}_L.png'), color_decoder(label_set('camvid_32')),
               keep=lambda stem, split: not stem.endswith('_L')))


class Idd(DataSet):
    """IDD (Indian Driving Dataset, segmentation parts I and II), 26 classes of level 3."""

    name, title = 'idd', 'IDD'
    folders = ('idd', 'IDD_Segmentation', 'idd20kII', 'IDD')
    needs = ('leftImg8bit/<split>/<drive>/<name>_leftImg8bit.{png,jpg} and gtFine/<split>/'
             '<drive>/<name>_gtFine_labellevel3Ids.png (made by createLabels.py of the AutoNUE '
             'code with --id-type level3Id)')
    label_set_name = 'idd_26'
    size = (1920, 1080)
    layouts = tuple(
        Layout(f'leftImg8bit/{{split}}/*/*_leftImg8bit.{suffix}',
               swapped(('leftImg8bit/', 'gtFine/'),
                       (f'_leftImg8bit.{suffix}', '_gtFine_labellevel3Ids.png')),
               table_decoder({i: i for i in range(26)}))
        for suffix in ('png', 'jpg'))


class IddLite(DataSet):
    """IDD-lite, 7 classes, 320x227.  Research only: never for weights that ship."""

    name, title = 'idd_lite', 'IDD-lite'
    folders = ('idd_lite', 'idd20k_lite')
    needs = ('train.txt, val.txt, images/<name>.jpg and labels/<name>.png; or leftImg8bit/'
             '<split>/<drive>/<name>_image.jpg and gtFine/<split>/<drive>/<name>_label.png')
    label_set_name = 'idd_lite_7'
    size = (320, 227)
    layouts = (
        Layout('images/{name}.jpg', beside('labels/{stem}.png'), listing='{split}.txt'),
        Layout('leftImg8bit/{split}/*/*_image.jpg',
               swapped(('leftImg8bit/', 'gtFine/'), ('_image.jpg', '_label.png')),
               table_decoder({i: i for i in range(7)})))


class Bdd100k(DataSet):
    """BDD100K semantic segmentation (10k pictures), the 19 classes of Cityscapes."""

    name, title = 'bdd100k', 'BDD100K'
    folders = ('bdd100k', 'BDD100K')
    needs = ('images/10k/<split>/<name>.jpg and labels/sem_seg/masks/<split>/<name>.png; or '
             'seg/images/<split>/<name>.jpg and seg/labels/<split>/<name>_train_id.png')
    label_set_name = 'cityscapes_19'
    size = (1280, 720)
    _ids = table_decoder({i: i for i in range(19)})
    layouts = (
        Layout('images/10k/{split}/*.jpg',
               swapped(('images/10k/', 'labels/sem_seg/masks/'), ('.jpg', '.png')), _ids),
        Layout('seg/images/{split}/*.jpg',
               swapped(('seg/images/', 'seg/labels/'), ('.jpg', '_train_id.png')), _ids))


def _comma_split(stem: str, split: str) -> bool:
    # The convention of the comma10k repository: names that end in 9 are for validation.
    return split == 'all' or (split == 'val') == stem.endswith('9')


class Comma10k(DataSet):
    """comma10k dash-cam pictures, 5 classes; names that end in 9 are the split val."""

    name, title = 'comma10k', 'comma10k'
    splits = ('train', 'val', 'all')
    folders = ('comma10k', 'comma10k_sample')
    needs = ('imgs/<name>.png and masks/<name>.png (colours), or images/<name>.jpg and '
             'labels/<name>.png (ids)')
    label_set_name = 'comma10k_5'
    size = (1164, 874)
    layouts = (
        Layout('imgs/*.png', beside('masks/{stem}.png'), color_decoder(label_set('comma10k_5')),
               keep=_comma_split),
        Layout('images/*.jpg', beside('labels/{stem}.png'), keep=_comma_split))


class ImageFolder(DataSet):
    """
    A plain folder of images and labels (or masks), found by its own path.

    images/<name>.{png,jpg,...} with labels/<name>.png (ids of classes.json, or of the model) or
    masks/<name>.png (0 known, 1 anomaly, 255 void); with <split>.txt for splits by name.
    """

    name, title = 'folder', 'a plain folder'
    default_split = 'all'
    needs = ('images/<name>.* with labels/<name>.png (class ids; names and colours in '
             'classes.json) or masks/<name>.png (0 known, 1 anomaly, 255 void)')
    layouts = (
        Layout('images/*', beside('labels/{stem}.png')),
        Layout('images/*', beside('masks/{stem}.png')))

    def __init__(self, split: str | None = None, root: str | Path | None = None) -> None:
        self.splits = ('all',) if split in (None, 'all') else (split, 'all')
        super().__init__(split, root)
        if self.split != 'all':
            self._restrict()
        if PurePosixPath(self.items[0].label.parent).name == 'masks':
            self.kind = 'anomaly'

    def _restrict(self) -> None:
        listing = self.folder / f'{self.split}.txt'
        if not listing.is_file():
            raise DataError(f'{listing} is missing; it names the pictures of the split')
        wanted = {PurePosixPath(line).stem for line in listing.read_text().split()}
        self.items = tuple(item for item in self.items if item.image.stem in wanted)
        if not self.items:
            raise DataError(f'{listing} names no picture of {self.folder}')
