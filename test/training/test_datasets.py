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
import json
import struct
import zlib

import cv2
from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
from owseg_training.data.cutouts import decode_rle
from owseg_training.data.dataset import color_decoder, read_grey, read_label
from owseg_training.data.datasets import (
    CamVid, CocoCutouts, CutoutFolder, DATA_SETS, DataError, Item, open_cutouts, open_data_set,
    RoadAnomaly)
from owseg_training.data.label_sets import (
    class_map, ClassMapError, common_label_set, label_set, label_set_of, label_sets,
    load_class_map, map_by_names)
import pytest
from support.data import data_root

SIZE = (20, 12)


def put(root, path, array=None):
    """Write a picture (RGB or ids); a default one that differs from path to path."""
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    if array is None:
        seed = sum(map(ord, file.stem))
        array = np.random.default_rng(seed).integers(0, 255, (SIZE[1], SIZE[0], 3))
    array = np.asarray(array, np.uint8)
    assert cv2.imwrite(str(file), array[..., ::-1] if array.ndim == 3 else array)
    return file


def ids(*values):
    """Return a label of SIZE whose columns repeat the values."""
    return np.resize(np.array(values, np.uint8), (SIZE[1], SIZE[0]))


def decoded(data_set, index=0):
    """Read a sample; return the ids of the first row."""
    image, label = data_set.read(data_set.items[index])
    assert image.shape == (*label.shape, 3) and image.dtype == label.dtype == np.uint8
    return label[0].tolist()


def paint(names, label_set_name):
    """Return a label in colour, one column a name; None is a colour of no class."""
    color = {c.name: c.color for c in label_set(label_set_name)}
    row = [color.get(name, (1, 2, 3)) for name in names]
    return np.resize(np.array(row, np.uint8), (SIZE[1], SIZE[0], 3))


def test_cityscapes_reads_both_kinds_of_label(tmp_path):
    name = 'leftImg8bit/val/ulm/ulm_000001_000019'
    put(tmp_path, f'cityscapes/{name}_leftImg8bit.png')
    stem = f'cityscapes/{name}'.replace('leftImg8bit/', 'gtFine/')
    put(tmp_path, f'{stem}_gtFine_labelIds.png', ids(7, 8, 0, 33, 255, 26, 29))
    by_ids = open_data_set('cityscapes', 'val', tmp_path)
    assert decoded(by_ids)[:7] == [0, 1, 255, 18, 255, 13, 255]
    put(tmp_path, f'{stem}_gtFine_labelTrainIds.png', ids(0, 18, 255, 19))
    by_train_ids = open_data_set('cityscapes', 'val', tmp_path / 'cityscapes')
    assert decoded(by_train_ids)[:4] == [0, 18, 255, 255]
    assert by_train_ids.label_set == 'cityscapes_19' and len(by_train_ids.classes) == 19
    assert by_train_ids.classes[13].name == 'car' and by_train_ids.size == (2048, 1024)
    assert by_train_ids.key == 'cityscapes_val'
    with pytest.raises(DataError, match=r'gtFine/<split>/<city>/'):
        open_data_set('cityscapes', 'train', tmp_path)
    with pytest.raises(DataError, match='train, val'):
        open_data_set('cityscapes', 'test', tmp_path)


def test_camvid_in_the_layout_of_segnet(tmp_path):
    put(tmp_path, 'CamVid/test/a.png')
    put(tmp_path, 'CamVid/testannot/a.png', ids(0, 10, 11))
    camvid = CamVid('test', tmp_path)
    assert decoded(camvid)[:3] == [0, 10, 255]
    assert [c.name for c in camvid.classes][:4] == ['Sky', 'Building', 'Pole', 'Road']


@pytest.mark.parametrize('image, label, split', [
    ('701_StillsRaw_full/x.png', 'LabeledApproved_full/x_L.png', 'all'),
    ('val/x.png', 'val_labels/x_L.png', 'val')])
def test_camvid_32_decodes_colours(tmp_path, image, label, split):
    put(tmp_path, f'CamVid/{image}')
    put(tmp_path, f'CamVid/{label}',
        paint(['Animal', 'Wall', 'Void', 'Car', 'TrafficCone'], 'camvid_32'))
    full = open_data_set('camvid32', split, tmp_path)
    names = [c.name for c in full.classes]
    assert decoded(full)[:5] == [names.index('Animal'), names.index('Wall'), 255,
                                 names.index('Car'), names.index('TrafficCone')]
    small = full.mapped('camvid_11')
    assert decoded(small)[:5] == [255, 1, 255, 8, 255]
    assert small.label_set == 'camvid_11' and full.label_set == 'camvid_32'
    assert decoded(small.mapped('idd_lite_7'))[:5] == [255, 5, 255, 3, 255]


def test_camseq01_in_one_folder(tmp_path):
    put(tmp_path, 'CamSeq01/0016E5_07959.png')
    put(tmp_path, 'CamSeq01/0016E5_07959_L.png', paint(['Road', 'Sky'], 'camvid_32'))
    sequence = open_data_set('camseq01', root=tmp_path)
    assert [i.name for i in sequence.items] == ['0016E5_07959'] and sequence.key == 'camseq01'
    assert decoded(sequence.mapped('camvid_11'))[:2] == [3, 0]


@pytest.mark.parametrize('suffix', ['png', 'jpg'])
def test_idd_keeps_frames_of_equal_names_apart(tmp_path, suffix):
    for drive in ('1', '2'):
        put(tmp_path, f'idd/leftImg8bit/val/{drive}/f0_leftImg8bit.{suffix}')
        put(tmp_path, f'idd/gtFine/val/{drive}/f0_gtFine_labellevel3Ids.png', ids(0, 25, 26, 8))
    idd = open_data_set('idd', 'val', tmp_path)
    assert [i.name for i in idd.items] == ['1_f0_leftImg8bit', '2_f0_leftImg8bit']
    assert decoded(idd)[:4] == [0, 25, 255, 8]
    assert decoded(idd.mapped('cityscapes_19'))[:4] == [0, 10, 255, 255]
    assert decoded(idd.mapped('camvid_11'))[:4] == [3, 0, 255, 255]


def test_idd_lite_as_published(tmp_path):
    put(tmp_path, 'idd20k_lite/leftImg8bit/train/0/7_image.jpg')
    put(tmp_path, 'idd20k_lite/gtFine/train/0/7_label.png', ids(0, 6, 255))
    assert decoded(open_data_set('idd_lite', 'train', tmp_path))[:3] == [0, 6, 255]


@pytest.mark.parametrize('image, label', [
    ('images/10k/val/b.jpg', 'labels/sem_seg/masks/val/b.png'),
    ('seg/images/val/b.jpg', 'seg/labels/val/b_train_id.png')])
def test_bdd100k_in_both_layouts(tmp_path, image, label):
    put(tmp_path, f'bdd100k/{image}')
    put(tmp_path, f'bdd100k/{label}', ids(0, 18, 255))
    bdd = open_data_set('bdd100k', 'val', tmp_path)
    assert decoded(bdd)[:3] == [0, 18, 255] and bdd.label_set == 'cityscapes_19'


def test_comma10k_splits_by_the_last_digit(tmp_path):
    for name in ('0_1', '1_9', '2_29', '3_3'):
        put(tmp_path, f'comma10k/imgs/{name}.png')
        put(tmp_path, f'comma10k/masks/{name}.png', paint(['my_car', 'road'], 'comma10k_5'))
    names = {split: [i.name for i in open_data_set('comma10k', split, tmp_path).items]
             for split in ('train', 'val', 'all')}
    assert names['val'] == ['1_9', '2_29'] and names['train'] == ['0_1', '3_3']
    assert len(names['all']) == 4
    assert decoded(open_data_set('comma10k', 'val', tmp_path))[:2] == [4, 0]


def test_lost_and_found_keeps_hazards_and_free_space(tmp_path):
    base = 'LostAndFound/{}/test/02_Hanns/02_Hanns_000000_000010_{}.png'
    put(tmp_path, base.format('leftImg8bit', 'leftImg8bit'))
    train_ids = put(tmp_path, base.format('gtCoarse', 'gtCoarse_labelTrainIds'),
                    ids(255, 1, 2, 0))
    assert decoded(open_data_set('lost_and_found', 'test', tmp_path))[:4] == [255, 0, 1, 255]
    put(tmp_path, base.format('gtCoarse', 'gtCoarse_labelIds'), ids(0, 1, 2, 43, 36, 200))
    laf = open_data_set('lost_and_found', root=tmp_path)
    assert decoded(laf)[:6] == [255, 0, 1, 1, 255, 255]
    assert laf.kind == 'anomaly' and laf.track == 'obstacle' and train_ids.is_file()


@pytest.mark.parametrize('labels', ['frames/a.labels', 'frames/a'])
def test_road_anomaly_as_published(tmp_path, labels):
    folder = 'RoadAnomaly/RoadAnomaly_jpg'
    put(tmp_path, f'{folder}/frames/a.jpg')
    grey = ids(0, 2, 255)
    put(tmp_path, f'{folder}/{labels}/labels_semantic.png', np.dstack([grey] * 3))
    road = open_data_set('road_anomaly', root=tmp_path)
    assert decoded(road)[:3] == [0, 1, 255] and road.key == 'road_anomaly'
    assert RoadAnomaly(tmp_path).items == road.items


@pytest.mark.parametrize('name, folder, suffix, track', [
    ('road_anomaly_21', 'dataset_AnomalyTrack', 'jpg', 'anomaly'),
    ('road_obstacle_21', 'SegmentMeIfYouCan/dataset_ObstacleTrack', 'webp', 'obstacle')])
def test_segment_me_if_you_can_leaves_test_pictures_out(tmp_path, name, folder, suffix, track):
    for stem in ('validation0000', 'test0001'):
        put(tmp_path, f'{folder}/images/{stem}.{suffix}')
    with pytest.raises(DataError, match='none of 2 pictures has a label'):
        open_data_set(name, root=tmp_path)
    put(tmp_path, f'{folder}/labels_masks/validation0000_labels_semantic.png', ids(0, 1, 255))
    data_set = open_data_set(name, root=tmp_path)
    assert [i.name for i in data_set.items] == ['validation0000']
    assert decoded(data_set)[:3] == [0, 1, 255] and data_set.track == track


def test_fishyscapes(tmp_path):
    place = '04_Maurener_Weg_8_000000_000030'
    put(tmp_path, f'Fishyscapes/laf_images/{place}_leftImg8bit.png')
    put(tmp_path, f'Fishyscapes/fishyscapes_lostandfound/0000_{place}_labels.png', ids(0, 1, 255))
    laf = open_data_set('fishyscapes_lost_and_found', root=tmp_path)
    assert decoded(laf)[:3] == [0, 1, 255] and laf.items[0].image.parent.name == 'laf_images'
    for version in ('v1', 'v2'):
        put(tmp_path, f'Fishyscapes/fs_val_{version}/0001_x_labels.png', ids(1, 0))
        with pytest.raises(DataError, match=f'fs_static_images_{version}/0001_x_rgb.png is miss'):
            open_data_set('fishyscapes_static', version, tmp_path)
        put(tmp_path, f'Fishyscapes/fs_static_images_{version}/0001_x_rgb.png')
        assert decoded(open_data_set('fishyscapes_static', version, tmp_path))[:2] == [1, 0]


def test_plain_folder(tmp_path):
    for name in 'abc':
        put(tmp_path, f'classes/images/{name}.jpg')
        put(tmp_path, f'classes/labels/{name}.png', ids(1, 0, 255))
        put(tmp_path, f'odd/images/{name}.png')
        put(tmp_path, f'odd/masks/{name}.png', ids(1, 0, 255))
    plain = open_data_set('folder', root=tmp_path / 'classes')
    assert plain.kind == 'classes' and plain.classes == () and len(plain.items) == 3
    spec = {'classes': [{'id': 1, 'name': 'b', 'colour': [1, 1, 1]},
                        {'id': 0, 'name': 'a', 'colour': [0, 0, 0]}]}
    (tmp_path / 'classes' / 'classes.json').write_text(json.dumps(spec))
    (tmp_path / 'classes' / 'few.txt').write_text('b.jpg\n')
    few = open_data_set('folder', 'few', tmp_path / 'classes')
    assert [c.name for c in few.classes] == ['a', 'b'] and [i.name for i in few.items] == ['b']
    assert few.label_set is None and few.key == 'folder_few'
    with pytest.raises(DataError, match='many.txt is missing'):
        open_data_set('folder', 'many', tmp_path / 'classes')
    for broken in ('{', '{"classes": [{"id": 0}]}', '[]'):
        (tmp_path / 'classes' / 'classes.json').write_text(broken)
        with pytest.raises(DataError, match='"colour"'):
            open_data_set('folder', root=tmp_path / 'classes')
    odd = open_data_set('folder', root=tmp_path / 'odd')
    assert odd.kind == 'anomaly' and decoded(odd)[:3] == [1, 0, 255]
    (tmp_path / 'odd' / 'masks' / 'b.png').unlink()
    with pytest.raises(DataError, match=r'1 of 3 pictures .* first b.png'):
        open_data_set('folder', root=tmp_path / 'odd')


@pytest.mark.parametrize('name', list(DATA_SETS))
def test_what_is_missing_is_said(tmp_path, name):
    with pytest.raises(DataError, match=r'needs .*<name>'):
        open_data_set(name, root=tmp_path)
    with pytest.raises(DataError, match='OWSEG_DATA'):
        open_data_set(name, root=tmp_path / 'nowhere')
    with pytest.raises(DataError, match='known: cityscapes, camvid'):
        open_data_set(f'{name}_x', root=tmp_path)


def write_palette(path, ids, bits, palette):
    """Write a PNG with a palette, as libpng would; ids: uint8 [H, W]."""
    def chunk(kind, content):
        crc = zlib.crc32(kind + content).to_bytes(4, 'big')
        return len(content).to_bytes(4, 'big') + kind + content + crc

    height, width = ids.shape
    rows = np.unpackbits(ids[..., None], axis=2)[..., 8 - bits:].reshape(height, -1)
    lines = b''.join(b'\x00' + np.packbits(row).tobytes() for row in rows)
    path.write_bytes(b'\x89PNG\r\n\x1a\n' + chunk(
        b'IHDR', struct.pack('>IIBBBBB', width, height, bits, 3, 0, 0, 0)) + chunk(
        b'PLTE', palette.tobytes()) + chunk(b'tRNS', b'\x00') + chunk(
        b'IDAT', zlib.compress(lines)) + chunk(b'IEND', b''))


@pytest.mark.parametrize('bits', [1, 2, 4, 8])
@pytest.mark.parametrize('read', [read_label, read_grey])
def test_ids_of_a_palette_are_its_indices_and_greys(tmp_path, bits, read):
    random = np.random.default_rng(bits)
    ids = random.integers(0, 2 ** bits, (13, 21), np.uint8)
    palette = random.integers(0, 256, (2 ** bits, 3), np.uint8)
    # A grey among colours is a colour, as in the palette of PASCAL VOC.
    palette[0] = 128
    write_palette(tmp_path / 'a.png', ids, bits, palette)
    assert np.array_equal(read(tmp_path / 'a.png'), ids)
    greys = random.permutation(256)[:2 ** bits].astype(np.uint8)
    write_palette(tmp_path / 'b.png', ids, bits, greys[:, None].repeat(3, axis=1))
    assert np.array_equal(read(tmp_path / 'b.png'), greys[ids])
    (tmp_path / 'a.png').write_bytes((tmp_path / 'a.png').read_bytes()[:40])
    with pytest.raises(DataError, match='palette'):
        read(tmp_path / 'a.png')


def test_labels_of_the_wrong_kind_are_refused(tmp_path):
    put(tmp_path, 'images/a.png')
    label = put(tmp_path, 'labels/a.png')
    plain = open_data_set('folder', root=tmp_path)
    with pytest.raises(DataError, match='single channel'):
        plain.read(plain.items[0])
    label.write_bytes(b'nothing')
    with pytest.raises(DataError, match='single channel'):
        plain.read(plain.items[0])
    with pytest.raises(DataError, match='cannot read the image'):
        plain.read(Item('a', label, label))


def test_cutout_folder(tmp_path):
    picture = np.zeros((5, 4, 4), np.uint8)
    picture[1:3, :, 3] = 255
    picture[..., 0] = 200  # blue, as OpenCV stores it
    for name in ('coco_000000000030_7045770_potted-plant', 'davis_goat_00010', 'x_1'):
        cv2.imwrite(str(tmp_path / f'{name}.png'), picture)
    (tmp_path / 'index.csv').write_text('file,category\nopen/x_1.png,traffic cone\n')
    objects = CutoutFolder(tmp_path)
    assert objects.categories == ('goat', 'potted plant', 'traffic cone') and len(objects) == 3
    rgba = objects.read(objects.items[0])
    assert rgba.shape == (5, 4, 4) and rgba[1, 0].tolist() == [0, 0, 200, 255]
    assert CutoutFolder(tmp_path, categories=['goat']).categories == ('goat',)
    assert CutoutFolder(tmp_path, exclude=['goat', 'potted plant']).categories == (
        'traffic cone',)
    with pytest.raises(DataError, match='goat, potted plant, traffic cone'):
        CutoutFolder(tmp_path, categories=['cow'])
    cv2.imwrite(str(tmp_path / 'bad_cow.png'), picture[..., :3])
    objects = CutoutFolder(tmp_path, categories=['cow'])
    with pytest.raises(DataError, match='8-bit RGBA'):
        objects.read(objects.items[0])
    (tmp_path / 'empty').mkdir()
    with pytest.raises(DataError, match='RGBA pictures'):
        CutoutFolder(tmp_path / 'empty')


def encode_rle(mask):
    """Encode a mask as COCO does: runs down the columns; (list, compressed string)."""
    flat = mask.T.ravel().astype(int)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flat]))) if flat.size else []
    counts = np.diff([0, *edges, flat.size]).tolist()
    text = ''
    for i, count in enumerate(counts):
        value = count - (counts[i - 2] if i > 2 else 0)
        more = True
        while more:
            digit, value = value & 31, value >> 5
            more = value != (-1 if digit & 16 else 0)
            text += chr(48 + digit + (32 if more else 0))
    return counts, text


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 2 ** 32 - 1), st.integers(1, 70), st.integers(1, 70), st.floats(0, 1))
def test_run_lengths_decode_to_what_was_encoded(seed, height, width, share):
    rng = np.random.default_rng(seed)
    mask = np.repeat(rng.random((height, -(-width // 4))) < share, 4, 1)[:, :width]
    counts, text = encode_rle(mask)
    for form in (counts, text, text.encode()):
        assert np.array_equal(decode_rle(form, (height, width)), mask)
    with pytest.raises(DataError, match='does not fill'):
        decode_rle(counts, (height + 1, width))


def test_coco_cutouts(tmp_path):
    image = np.zeros((30, 40, 3), np.uint8)
    image[5:25, 10:30] = 200, 100, 50
    put(tmp_path, 'coco/val2017/000000000007.png', image)
    mask = np.zeros((30, 40), bool)
    mask[5:25, 10:30] = True
    counts, text = encode_rle(mask)
    box = {'bbox': [10, 5, 20, 20], 'area': 400, 'image_id': 7, 'iscrowd': 0}
    square = [10, 5, 30, 5, 30, 25, 10, 25]
    annotations = [
        {'id': 1, 'category_id': 18, 'segmentation': [square], **box},
        {'id': 2, 'category_id': 18, 'segmentation': {'counts': text, 'size': [30, 40]}, **box},
        {'id': 3, 'category_id': 52, 'segmentation': {'counts': counts, 'size': [30, 40]}, **box},
        {'id': 4, 'category_id': 3, 'segmentation': [square], **box},
        {'id': 5, 'category_id': 52, 'segmentation': [square], **{**box, 'iscrowd': 1}},
        {'id': 6, 'category_id': 52, 'segmentation': [square], **{**box, 'area': 20}}]
    spec = {'images': [{'id': 7, 'file_name': '000000000007.png'}], 'annotations': annotations,
            'categories': [{'id': 18, 'name': 'dog'}, {'id': 52, 'name': 'banana'},
                           {'id': 3, 'name': 'car'}]}
    listing = tmp_path / 'coco' / 'annotations' / 'instances_val2017.json'
    listing.parent.mkdir()
    listing.write_text(json.dumps(spec))
    objects = CocoCutouts('val2017', tmp_path, min_area=100)
    assert [i.name for i in objects.items] == [f'000000000007_{k}' for k in (1, 2, 3)]
    assert objects.categories == ('banana', 'dog')
    for item in objects.items:
        rgba = objects.read(item)
        assert rgba.shape == (20, 20, 4)
        assert (rgba == (200, 100, 50, 255)).all(), item.name
    cars = CocoCutouts('val2017', tmp_path, categories=['car'], exclude=(), min_area=0)
    assert [i.category for i in cars.items] == ['car']
    with pytest.raises(DataError, match='instances_train2017.json'):
        open_cutouts('coco', 'train2017', tmp_path)
    with pytest.raises(DataError, match='coco, cutouts'):
        open_cutouts('lvis', root=tmp_path)


def test_every_map_is_between_known_classes():
    for source in label_sets():
        names = [c.name for c in label_set(source)]
        assert label_set_of(names) == source
        assert len({c.color for c in label_set(source)}) == len(names)
        for target in label_sets():
            try:
                found = class_map(source, target)
            except ClassMapError:
                continue
            everything = found(np.arange(256, dtype=np.uint8))
            assert everything[255] == 255 and everything[254] == 254
            known = everything[:len(names)]
            assert ((known < len(label_set(target))) | (known == 255)).all()
            assert (everything[len(names):254] == 255).all()
            if source == target:
                assert known.tolist() == list(range(len(names)))


def test_composed_maps():
    names = [c.name for c in label_set('camvid_32')]
    found = class_map('camvid_32', 'idd_lite_7')
    assert found(np.array([names.index('Truck_Bus'), names.index('Child')], np.uint8)).tolist() \
        == [3, 255]
    with pytest.raises(ClassMapError, match='there is one to camvid_11'):
        class_map('cityscapes_19', 'camvid_32')
    with pytest.raises(ClassMapError, match='no label set'):
        class_map('cityscapes_19', 'camvid_12')
    assert common_label_set('cityscapes_19', 'camvid_11') == 'camvid_11'
    assert common_label_set('idd_lite_7', 'camvid_11') == 'idd_lite_7'
    assert common_label_set('comma10k_5', 'camvid_11') == 'drivable_3'
    with pytest.raises(ClassMapError, match='nothing maps both'):
        common_label_set('comma10k_5', 'idd_lite_7')


def test_maps_of_ones_own(tmp_path):
    path = tmp_path / 'map.yaml'
    path.write_text('road: Road\ncar: null\n')
    cityscapes = [c.name for c in label_set('cityscapes_19')]
    found = load_class_map(path, cityscapes, label_set('camvid_11'))
    assert found(np.array([0, 13, 1], np.uint8)).tolist() == [3, 255, 255]
    with pytest.raises(ClassMapError, match="'rode'"):
        map_by_names(cityscapes, label_set('camvid_11'), {'rode': 'Road'})
    with pytest.raises(ClassMapError, match='do not meet'):
        found.then(class_map('idd_26', 'cityscapes_19'))
    path.write_text('a: [')
    with pytest.raises(ClassMapError, match='no YAML'):
        load_class_map(path, cityscapes, label_set('camvid_11'))
    path.write_text('- road')
    with pytest.raises(ClassMapError, match='mapping'):
        load_class_map(path, cityscapes, label_set('camvid_11'))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2 ** 32 - 1))
def test_colours_decode_to_their_class(tmp_path_factory, seed):
    rng = np.random.default_rng(seed)
    classes = label_set('camvid_32')
    wanted = rng.choice([*range(len(classes)), 255], (6, 8)).astype(np.uint8)
    palette = np.zeros((256, 3), np.uint8)
    palette[:len(classes)] = [c.color for c in classes]
    palette[255] = 9, 9, 9
    path = tmp_path_factory.getbasetemp() / f'color_{seed}.png'
    cv2.imwrite(str(path), palette[wanted][..., ::-1])
    assert np.array_equal(color_decoder(classes)(path), wanted)


@pytest.mark.parametrize('name, split, frames', [
    ('camvid', 'train', 367), ('camvid', 'val', 101), ('camseq01', 'all', 100),
    ('idd_lite', 'train', 1403), ('idd_lite', 'val', 204), ('comma10k', 'all', 11),
    ('road_anomaly', None, 36)])
def test_real_sets(name, split, frames):
    data_set = open_data_set(name, split, data_root())
    assert len(data_set.items) == frames
    image, label = data_set.read(data_set.items[0])
    assert image.shape == (*label.shape, 3)
    assert (image.shape[1], image.shape[0]) == data_set.size
    count = len(data_set.classes) or 2
    assert set(np.unique(label)) <= {*range(count), 255}
    if data_set.kind == 'classes':
        assert data_set.label_set is not None


def test_real_camseq01_maps_to_the_labels_of_camvid():
    sequence = open_data_set('camseq01', root=data_root()).mapped('camvid_11')
    camvid = {item.name: item for item in CamVid('val', data_root()).items}
    both = [item for item in sequence.items if item.name in camvid][:3]
    assert both
    for item in both:
        ours = cv2.resize(sequence.read_label(item), (480, 360),
                          interpolation=cv2.INTER_NEAREST)
        theirs = CamVid('val', data_root()).read_label(camvid[item.name])
        known = (ours != 255) & (theirs != 255)
        assert (ours == theirs)[known].mean() > 0.97 and known.mean() > 0.9


def test_real_cutouts():
    objects = open_cutouts('cutouts', root=data_root())
    assert len(objects) == 96 and 'goat' in objects.categories
    assert objects.read(objects.items[0]).shape[2] == 4
