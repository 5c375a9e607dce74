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
"""Bundles: what is accepted, what is refused and with which words."""

import copy
import hashlib
import json
import os
from pathlib import Path
import pickle
import re
import shutil
import sys

from hypothesis import given, settings
from hypothesis import strategies as st
import jsonschema
import numpy as np
import onnx
import owseg_ros
from owseg_ros.bundle import (
    Bundle, BundleError, ClassInfo, default_bundle_path, EnsembleInfo, load_bundle, MANIFEST,
    manifest_of, SameMeaning, sha256_of, write_bundle)
from owseg_ros.bundle import installed
from owseg_ros.bundle.files import external_locations
from owseg_ros.errors import OwsegError
import pytest
from support.counting_encoder import CountingEncoder
from support.tiny_bundle import (
    CLASS_NAMES, COLOR_NAMES, edit_manifest, flip_byte, KNOWN_SCORE, make_tiny_bundle, MEAN,
    METRIC_DIM, METRIC_THRESHOLD, paint, STD, tiny_manifest, tiny_network, truncate, UNKNOWN_SCORE)
import yaml

FILES = ('network.onnx', 'MODEL_CARD.md')


@pytest.fixture(scope='module')
def pristine(tmp_path_factory):
    """Return the folder of a tiny bundle that no test changes."""
    return make_tiny_bundle(tmp_path_factory.mktemp('pristine') / 'tiny').path


@pytest.fixture
def speaking(tmp_path):
    """Return the folder of a tiny bundle that answers queries, to damage."""
    return make_tiny_bundle(tmp_path / 'speaking', encoder=CountingEncoder(6)).path


@pytest.fixture
def teachable(tmp_path):
    """Return the folder of a tiny bundle with a metric head, to damage."""
    return make_tiny_bundle(tmp_path / 'teachable', novelty=True).path


@pytest.fixture
def folder(pristine, tmp_path):
    """Return the folder of a tiny bundle to damage."""
    return shutil.copytree(pristine, tmp_path / 'tiny')


@pytest.fixture(scope='module')
def scratch(pristine, tmp_path_factory):
    """Return the folder of a tiny bundle that each example of a property restores."""
    return shutil.copytree(pristine, tmp_path_factory.mktemp('scratch') / 'tiny')


def refused(path, *patterns):
    """Load a bundle that must be refused; return the one-line message."""
    with pytest.raises(BundleError) as caught:
        load_bundle(path)
    text = str(caught.value)
    assert isinstance(caught.value, OwsegError)
    assert '\n' not in text and str(path) in text, text
    for pattern in patterns:
        assert re.search(pattern, text), f'{pattern!r} is not in: {text}'
    return text


def set_key(keys, value):
    """Return a change of a manifest: set the value under a path of keys."""
    def change(manifest):
        *parents, last = keys
        for key in parents:
            manifest = manifest[key]
        manifest[last] = value
    return change


def drop_key(*keys):
    """Return a change of a manifest: remove the value under a path of keys."""
    def change(manifest):
        *parents, last = keys
        for key in parents:
            manifest = manifest[key]
        del manifest[last]
    return change


# What a good bundle is

def test_everything_is_read(folder):
    bundle = load_bundle(folder)
    assert isinstance(bundle, Bundle)
    assert bundle.path == folder and bundle.network == folder / 'network.onnx'
    assert (bundle.name, bundle.version, bundle.license) == ('tiny', '0.1.0', 'Apache-2.0')
    assert bundle.num_classes == 3 and bundle.class_names == CLASS_NAMES
    assert bundle.classes[1] == ClassInfo(1, 'green', (0, 255, 0))
    assert (bundle.input.name, bundle.input.width, bundle.input.height) == ('image', 96, 64)
    assert bundle.input.mean == MEAN and bundle.input.std == STD
    assert bundle.outputs == {'mask_logits': 'mask_logits', 'class_logits': 'class_logits',
                              'region_embeddings': None, 'frozen_region_embeddings': None,
                              'text_features': None, 'pixel_features': 'pixel_features'}
    assert bundle.language is None and bundle.novelty is None
    assert (bundle.anomaly.score, bundle.anomaly.threshold) == ('rba', 0.5)
    assert bundle.anomaly.min_area == 4 and bundle.anomaly.operating_point
    assert set(bundle.files) == set(FILES)
    for name, checksum in bundle.files.items():
        assert checksum == hashlib.sha256((folder / name).read_bytes()).hexdigest()
    assert bundle.network_sha256 == bundle.files['network.onnx']
    assert bundle.provenance == {'made_by': 'test/support/tiny_bundle.py'}
    assert bundle.figures['known_score'] == pytest.approx(KNOWN_SCORE)
    assert load_bundle(str(folder)) == bundle == load_bundle(folder / MANIFEST)
    with pytest.raises(AttributeError):
        bundle.name = 'other'


def test_optional_keys(folder):
    for key in ('description', 'provenance', 'figures'):
        edit_manifest(folder, drop_key(key))
    edit_manifest(folder, drop_key('network', 'outputs', 'pixel_features'))
    bundle = load_bundle(folder)
    assert (bundle.description, bundle.provenance, bundle.figures) == ('', {}, {})
    assert bundle.outputs['pixel_features'] is None
    edit_manifest(folder, set_key(['figures'], {'iou': float('nan')}))
    assert np.isnan(load_bundle(folder).figures['iou'])


def test_relative_path(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    assert load_bundle('tiny').network == folder / 'network.onnx'


def test_classes_may_be_listed_in_any_order(folder):
    edit_manifest(folder, lambda manifest: manifest['classes'].reverse())
    assert load_bundle(folder).class_names == CLASS_NAMES


def test_palette(folder):
    palette = load_bundle(folder).palette()
    assert palette.dtype == np.uint8 and palette.shape == (256, 3)
    assert palette[:3].tolist() == [[255, 0, 0], [0, 255, 0], [0, 0, 255]]
    assert palette[254].tolist() == [255, 0, 255] and palette[255].tolist() == [0, 0, 0]
    taught = palette[3:254].astype(int)
    assert np.abs(np.diff(taught, axis=0)).sum(1).min() > 60
    palette[:] = 0
    assert load_bundle(folder).palette().any()


def test_class_id(folder):
    bundle = load_bundle(folder)
    assert [bundle.class_id(name) for name in CLASS_NAMES] == [0, 1, 2]
    with pytest.raises(BundleError, match="'gren'.*did you mean 'green'.*red, green, blue"):
        bundle.class_id('gren')


def test_254_classes_fit_and_255_do_not(folder):
    def classes(count):
        return [{'id': i, 'name': f'class {i}', 'color': [i % 256, 0, 0]} for i in range(count)]
    edit_manifest(folder, set_key(['classes'], classes(254)))
    assert load_bundle(folder).num_classes == 254
    edit_manifest(folder, set_key(['classes'], classes(255)))
    refused(folder, 'classes', 'at most 254')


@pytest.mark.parametrize('name', ['bundle', 'text_encoder', 'vocabulary'])
def test_schemas_are_read_by_the_jsonschema_of_ubuntu_22_04(name):
    """Its references begin at `$id`, which it takes for an address on the network."""
    path = Path(owseg_ros.__file__).parent / 'schemas' / f'{name}.schema.json'
    schema = json.loads(path.read_text('utf-8'))
    assert schema['$schema'] == 'http://json-schema.org/draft-07/schema#'
    assert '$id' not in schema


def test_schema_is_valid_and_documents_every_key():
    path = Path(owseg_ros.__file__).parent / 'schemas' / 'bundle.schema.json'
    schema = json.loads(path.read_text('utf-8'))
    jsonschema.Draft7Validator.check_schema(schema)
    undocumented = []

    def walk(node, where):
        if isinstance(node, dict):
            for name, child in node.get('properties', {}).items():
                if '$ref' not in child and not child.get('description'):
                    undocumented.append(f'{where}.{name}')
            for name, child in node.items():
                walk(child, f'{where}.{name}')
    walk(schema, '')
    assert not undocumented


# The tiny network

@pytest.mark.parametrize('work, encoder', [(0, None), (2, CountingEncoder(5))])
def test_tiny_network_is_predictable(tmp_path, work, encoder):
    onnxruntime = pytest.importorskip('onnxruntime')
    bundle = make_tiny_bundle(tmp_path / 'tiny', work=work, encoder=encoder)
    assert bundle.outputs['region_embeddings'] == ('region_embeddings' if encoder else None)
    session = onnxruntime.InferenceSession(
        str(bundle.network), providers=['CPUExecutionProvider'])
    frames = [paint(96, 64, (0, 255, 0), (128, 128, 128)), paint(96, 64, (0, 0, 255), (255, 0, 0)),
              paint(96, 64, (255, 0, 255), (255, 255, 255))]
    tensor = ((np.stack(frames) - np.array(MEAN)) / np.array(STD)).astype(np.float32)
    names = [name for name in bundle.outputs.values() if name]
    outputs = dict(zip(names, session.run(names, {
        bundle.input.name: np.ascontiguousarray(tensor.transpose(0, 3, 1, 2))})))
    masks = 1 / (1 + np.exp(-outputs['mask_logits'].astype(np.float64)))
    assert masks.shape == (3, 8, 16, 24)
    exponents = np.exp(outputs['class_logits'].astype(np.float64))
    classes = (exponents / exponents.sum(-1, keepdims=True))[..., :-1]
    scores = np.einsum('bnk,bnhw->bkhw', classes, masks)
    anomaly = 1 - np.tanh(scores).sum(1)
    left, right = np.s_[:, :11], np.s_[:, 13:]
    for index, half, name in [(0, left, 'green'), (1, left, 'blue'), (1, right, 'red')]:
        assert (scores[index].argmax(0)[half] == bundle.class_id(name)).all()
        np.testing.assert_allclose(anomaly[index][half], KNOWN_SCORE, atol=1e-3)
    for index, half in [(0, right), (2, left), (2, right)]:
        np.testing.assert_allclose(anomaly[index][half], UNKNOWN_SCORE, atol=1e-3)
    features = outputs['pixel_features']
    np.testing.assert_allclose(features[0, :, 8, 2], [0, 1, 0, 1 / 3], atol=1e-4)
    if encoder:
        embeddings, features = outputs['region_embeddings'], outputs['text_features']
        for index, query, word in [(0, 1, 'green'), (1, 2, 'blue'), (1, 0, 'red')]:
            np.testing.assert_allclose(embeddings[index, query], encoder.vector(word), atol=0.01)
        assert features.shape == (3, 5, 8, 12)
        np.testing.assert_allclose(features[2, :, 4, 1], encoder.vector('magenta'), atol=0.01)
        np.testing.assert_allclose(features[2, :, 4, 9], encoder.vector('white'), atol=0.01)


# What is refused: the folder and the manifest as text

def test_no_folder_and_no_manifest(tmp_path):
    refused(tmp_path / 'nowhere', 'no such folder')
    refused(tmp_path, f'has no {MANIFEST}', 'write_bundle')
    (tmp_path / MANIFEST).mkdir()
    refused(tmp_path, 'not a regular file')
    for name in ('weights.pth', 'weights.pkl', 'model.bin'):
        (tmp_path / name).write_bytes(pickle.dumps({'a': 1}))
        text = refused(tmp_path / name, 'is a file', 'folder')
        assert ('pickle' in text) == (name != 'model.bin')
    for path in ('a\x00b', 'x' * 5000):
        with pytest.raises(BundleError):
            load_bundle(path)


BAD_TEXTS = [
    ('', 'no mapping'),
    ('just words', 'no mapping.*str'),
    ('[1, 2]', 'no mapping.*list'),
    ('a: [1', 'not plain YAML'),
    ('a: 1\na: 2', 'twice'),
    ('x: {b: 1, b: 2}', 'twice'),
    ('a: &x [1]\nb: *x', r'alias \*x'),
    ('a: &x {b: *x}', 'alias'),
    ('a: !!python/object/apply:os.system ["touch owned"]', 'not plain YAML'),
    ('a: !!python/name:os.system', 'not plain YAML'),
    ('a: !!timestamp x', 'cannot read'),
    ('a: !!bool x', 'cannot read'),
    ('a: !!int ""', 'cannot read'),
    ('a: !!float x', 'cannot read'),
    ('a: 2001-99-99', 'cannot read'),
    ('a: ' + '[' * 5000, 'cannot read'),
    ('1: 2', 'key 1 is not a string'),
    ('null: 2', 'key None is not a string'),
    ('a: {[1, 2]: 3}', 'not plain YAML|not a string'),
    ('a: 99999999999999999999', '64 bits'),
    ('a: 0x' + 'f' * 6000, '64 bits'),
    ('a: .inf', 'a: inf is not a finite number'),
    ('{}', 'schema is None'),
    ('schema: other/thing', "schema is 'other/thing'.*no owseg_ros bundle"),
    ('schema: owseg_ros/bundle', 'schema_version is None'),
    ('schema: owseg_ros/bundle\nschema_version: "1"', "schema_version is '1'"),
    ('schema: owseg_ros/bundle\nschema_version: true', 'schema_version is True'),
    ('schema: owseg_ros/bundle\nschema_version: 2', 'schema_version 2.*update owseg_ros'),
    ('schema: owseg_ros/bundle\nschema_version: 0', 'schema_version 0.*export the model again'),
    ('schema: owseg_ros/bundle\nschema_version: 1', 'missing key.*name: short name'),
]


@pytest.mark.parametrize('text, pattern', BAD_TEXTS, ids=[text[:40] for text, _ in BAD_TEXTS])
def test_manifests_that_are_none(folder, monkeypatch, text, pattern):
    monkeypatch.chdir(folder)
    (folder / MANIFEST).write_text(text, 'utf-8')
    refused(folder, pattern, MANIFEST)
    assert not (folder / 'owned').exists()


@pytest.mark.parametrize('content', [
    b'\xff\xfe\x00a', pickle.dumps({'schema': 'owseg_ros/bundle'}), b'a: \x00', b'\x89PNG\r\n'])
def test_binary_manifests(folder, content):
    (folder / MANIFEST).write_bytes(content)
    refused(folder, 'not UTF-8|not plain YAML')


def test_huge_manifest(folder):
    with open(folder / MANIFEST, 'ab') as stream:
        stream.write(b'#' * (5 << 20))
    refused(folder, 'larger than')


# What is refused: the schema and what it means

@pytest.mark.parametrize('change, patterns', [
    (drop_key('license'), ["missing key 'license'", 'SPDX']),
    (drop_key('classes'), ["missing key 'classes'", 'ids 0..K-1']),
    (drop_key('network', 'input', 'mean'), [r'network\.input: ', "'mean'"]),
    (set_key(['treshold'], 1), ["unknown key 'treshold'"]),
    (set_key(['anomaly', 'treshold'], 1), ['anomaly: unknown', "mean 'threshold'"]),
    (set_key(['anomaly', 'threshold'], 'high'), [r"anomaly\.threshold: 'high'", 'finite number']),
    (set_key(['anomaly', 'threshold'], float('nan')), [r'anomaly\.threshold: nan', 'finite']),
    (set_key(['anomaly', 'threshold'], float('-inf')), [r'anomaly\.threshold: -inf', 'finite']),
    (set_key(['anomaly', 'threshold'], 10 ** 18), [r'anomaly\.threshold: 1000000']),
    (set_key(['anomaly', 'threshold'], True), [r'anomaly\.threshold: True']),
    (set_key(['anomaly', 'score'], 'odin'), [r"anomaly\.score: 'odin'", 'rba']),
    (set_key(['anomaly', 'min_area'], -1), [r'anomaly\.min_area: -1']),
    (set_key(['anomaly', 'min_area'], 2.5), [r'anomaly\.min_area: 2\.5']),
    (set_key(['version'], 1.0), ['version: 1.0', 'quoted']),
    (set_key(['name'], '../x'), ["name: '../x'"]),
    (set_key(['name'], 'tiny\n'), [r"name: 'tiny\\n'"]),
    (set_key(['classes'], []), ['classes', 'list of the known classes']),
    (set_key(['classes', 1, 'id'], 0), ['classes', r'0\.\.2, each once', 'renumber']),
    (set_key(['classes', 2, 'id'], 3), ['classes', r'0\.\.2, each once', r'\[0, 1, 3\]']),
    (set_key(['classes', 2, 'id'], 254), [r'classes\[2\]\.id: 254', r'0\.\.253']),
    (set_key(['classes', 2, 'id'], -1), [r'classes\[2\]\.id: -1']),
    (set_key(['classes', 2, 'id'], True), [r'classes\[2\]\.id: True']),
    (set_key(['classes', 1, 'name'], 'red'), ["'red' names both id 0 and id 1"]),
    (set_key(['classes', 1, 'name'], 'RED'), ["'RED' names both id 0 and id 1"]),
    (set_key(['classes', 1, 'name'], ' red'), ['blanks']),
    (set_key(['classes', 1, 'name'], 'a\nb'), ['control characters']),
    (set_key(['classes', 1, 'name'], ''), [r'classes\[1\]\.name']),
    (set_key(['classes', 1, 'name'], 7), [r'classes\[1\]\.name: 7']),
    (set_key(['classes', 1, 'color'], [0, 0]), [r'classes\[1\]\.color', 'three integers']),
    (set_key(['classes', 1, 'color'], [0, 0, 256]), [r'classes\[1\]\.color\[2\]: 256']),
    (set_key(['network', 'input', 'width'], 0), [r'network\.input\.width: 0', r'8\.\.8192']),
    (set_key(['network', 'input', 'height'], 10 ** 6), [r'network\.input\.height']),
    (set_key(['network', 'input', 'std'], [1, 0, 1]), [r'std\[1\]: 0', 'above zero']),
    (set_key(['network', 'input', 'std'], [1, -2, 1]), [r'std\[1\]: -2']),
    (set_key(['network', 'input', 'std'], [1, 1]), [r'std: \[1, 1\]']),
    (set_key(['network', 'input', 'mean'], [0, float('nan'), 0]), [r'mean\[1\]: nan']),
    (set_key(['network', 'outputs', 'mask_logits'], None), [r'outputs\.mask_logits: None']),
    (set_key(['network', 'outputs', 'masks'], 'x'), [r"unknown key 'masks'"]),
    (set_key(['network', 'outputs', 'class_logits'], 'mask_logits'), ['share one name']),
    (set_key(['network', 'file'], 'network.pth'), [r'network\.pth.*not an \.onnx']),
    (set_key(['network', 'file'], 'other.onnx'), [r'files: .*other\.onnx.*not listed']),
    (set_key(['provenance'], 'me'), ["provenance: 'me'", 'mapping']),
    (set_key(['files'], {}), ['files: {}']),
    (set_key(['figures'], {'a\nb': {1: 2}}), [r'figures\.a\\nb: the key 1']),
    (set_key(['files', 'network.onnx'], 'abc'), ["files.network.onnx: 'abc'", '64 lower-case']),
])
def test_wrong_values(folder, change, patterns):
    edit_manifest(folder, change)
    refused(folder, MANIFEST, *patterns)


@pytest.mark.parametrize('change, patterns', [
    (drop_key('language'), ['language: missing', 'region_embeddings needs this section']),
    (drop_key('network', 'outputs', 'region_embeddings'), ['text_features goes with']),
    (set_key(['network', 'outputs', 'frozen_region_embeddings'], 'text_features'),
     ['share one name']),
    (drop_key('language', 'background'), [r"language: missing key 'background'", 'compete']),
    (set_key(['language', 'background'], []), [r'language\.background: \[\]', '1 to 1000']),
    (set_key(['language', 'background'], [['a'], ['a']]), [r'language\.background', 'different']),
    (set_key(['language', 'background'], [['b', 'a\x07']]), [r'language\.background', 'control']),
    (set_key(['language', 'background'], ['a']), [r'language\.background', 'mean one thing']),
    (set_key(['language', 'temperature'], 0), [r'language\.temperature: 0', 'above zero']),
    (set_key(['language', 'dim'], 0), [r'language\.dim: 0']),
    (set_key(['language', 'threshold'], 1.1), [r'language\.threshold: 1\.1', r'0\.\.1']),
    (set_key(['language', 'same_meaning', 'scale'], 0), [r'same_meaning\.scale: 0']),
    (set_key(['language', 'same_meaning'], None), [r'language\.same_meaning: None', 'means a']),
    (set_key(['language', 'objectness'], -1), [r'language\.objectness: -1']),
    (set_key(['language', 'ensemble'], {'seen': 0.4, 'unseen': 0.8, 'seen_names': []}),
     [r'language\.ensemble goes with', 'write null']),
    (set_key(['language', 'ensemble'], {'seen': 0.4}), [r"missing key 'unseen'"]),
    (set_key(['language', 'ensemble'], {
        'seen': 0.4, 'unseen': 0.8, 'seen_names': [], 'temperature': 0}),
     [r'ensemble\.temperature: 0', 'above zero']),
    (set_key(['language', 'tau'], 1), [r"language: unknown key 'tau'"]),
])
def test_wrong_language(speaking, change, patterns):
    edit_manifest(speaking, change)
    refused(speaking, MANIFEST, *patterns)


def test_language_needs_region_embeddings(speaking):
    edit_manifest(speaking, drop_key('network', 'outputs', 'text_features'))
    assert load_bundle(speaking).outputs['text_features'] is None
    edit_manifest(speaking, set_key(['network', 'outputs', 'region_embeddings'], None))
    refused(speaking, 'language: goes with network.outputs.region_embeddings')


def test_language_is_read(speaking):
    language = load_bundle(speaking).language
    assert (language.space, language.dim, language.temperature) == ('counting', 6, 0.05)
    assert language.background == tuple((name,) for name in COLOR_NAMES)
    assert language.same_meaning == SameMeaning(cosine=0.9, scale=0.02, margin=0.1)
    assert (language.objectness, language.threshold, language.ensemble) == (1.0, 0.5, None)
    assert language.operating_point.startswith('between')
    edit_manifest(speaking, set_key(['network', 'outputs', 'frozen_region_embeddings'], 'frozen'))
    edit_manifest(speaking, set_key(
        ['language', 'ensemble'], {'seen': 0.4, 'unseen': 1, 'seen_names': ['red', 'sky']}))
    assert load_bundle(speaking).language.ensemble == EnsembleInfo(0.4, 1.0, ('red', 'sky'))
    edit_manifest(speaking, set_key(['language', 'ensemble', 'temperature'], 0.01))
    assert load_bundle(speaking).language.ensemble.temperature == 0.01


def test_novelty_is_read(teachable):
    novelty = load_bundle(teachable).novelty
    assert novelty.metric_head == teachable / 'metric_head.onnx'
    assert novelty.metric_head_sha256 == sha256_of(novelty.metric_head)
    assert novelty.known_prototypes == teachable / 'known_prototypes.npz'
    assert (novelty.dim, novelty.threshold) == (METRIC_DIM, METRIC_THRESHOLD)
    assert novelty.operating_point.startswith('between')


def test_a_program_is_read_and_checked(folder):
    assert load_bundle(folder).program is None
    (folder / 'network.pt2').write_bytes(b'program')
    edit_manifest(folder, lambda manifest: manifest['files'].update(
        {'network.pt2': sha256_of(folder / 'network.pt2')}))
    edit_manifest(folder, set_key(['network', 'program'], 'network.pt2'))
    assert load_bundle(folder).program == folder / 'network.pt2'
    (folder / 'network.pt2').write_bytes(b'another')
    refused(folder, r'network\.pt2 .*sha256')
    edit_manifest(folder, set_key(['network', 'program'], 'other.pt2'))
    refused(folder, r'files: .*other\.pt2.* not listed')
    edit_manifest(folder, set_key(['network', 'program'], 'network.onnx'))
    refused(folder, r'network\.program: .*not a \.pt2 file')


@pytest.mark.parametrize('change, patterns', [
    (drop_key('network', 'outputs', 'pixel_features'),
     [r'novelty: goes with network\.outputs\.pixel_features', 'remove the section']),
    (set_key(['novelty', 'metric_head'], 'network.onnx'), [r'novelty\.metric_head: is the netw']),
    (set_key(['novelty', 'metric_head'], 'metric_head.npz'),
     [r'novelty\.metric_head: .*not an \.onnx file']),
    (set_key(['novelty', 'metric_head'], 'other.onnx'), [r'files: .*other\.onnx.* not listed']),
    (set_key(['novelty', 'known_prototypes'], 'MODEL_CARD.md'),
     [r'novelty\.known_prototypes: .*not an \.npz file']),
    (set_key(['novelty', 'known_prototypes'], 'other.npz'), [r'files: .*other\.npz.* not listed']),
    (set_key(['novelty', 'dim'], 0), [r'novelty\.dim: 0']),
    (set_key(['novelty', 'threshold'], 1.1), [r'novelty\.threshold: 1\.1', 'cosine']),
    (drop_key('novelty', 'threshold'), [r"novelty: missing key 'threshold'", 'theta_novel']),
    (set_key(['novelty', 'theta'], 1), [r"novelty: unknown key 'theta'"]),
])
def test_wrong_novelty(teachable, change, patterns):
    edit_manifest(teachable, change)
    refused(teachable, MANIFEST, *patterns)


def test_weights_beside_the_metric_head_are_listed(teachable):
    """ONNX Runtime would read them, so that they must not change unnoticed."""
    (teachable / 'metric_head.onnx.data').write_bytes(b'weights')
    refused(teachable, r'metric_head\.onnx\.data lies beside')
    files = {name: (teachable / name).read_bytes()
             for name in ('network.onnx', 'metric_head.onnx', 'known_prototypes.npz')}
    before = (teachable / MANIFEST).read_bytes()
    with pytest.raises(BundleError, match=r'metric_head\.onnx\.data lies beside'):
        write_bundle(teachable, {**tiny_manifest(novelty=True), 'version': '9'}, files)
    assert (teachable / MANIFEST).read_bytes() == before


def test_the_first_of_several_problems_is_told_and_the_rest_counted(folder):
    edit_manifest(folder, set_key(['anomaly', 'threshold'], 'x'))
    edit_manifest(folder, set_key(['version'], 2))
    refused(folder, 'and 1 more')


def test_order_of_the_checks(folder):
    flip_byte(folder / 'network.onnx', 100)
    refused(folder, 'sha256')
    edit_manifest(folder, set_key(['files', 'gone.txt'], '0' * 64))
    refused(folder, 'gone.txt')
    edit_manifest(folder, set_key(['classes', 0, 'id'], 9))
    refused(folder, 'each once')
    edit_manifest(folder, set_key(['anomaly', 'threshold'], 'x'))
    refused(folder, 'anomaly.threshold')
    edit_manifest(folder, set_key(['schema_version'], 7))
    refused(folder, 'schema_version 7')
    (folder / MANIFEST).write_text('a: [')
    refused(folder, 'not plain YAML')
    (folder / MANIFEST).unlink()
    refused(folder, f'has no {MANIFEST}')


# What is refused: the files

@settings(max_examples=150, deadline=None)
@given(name=st.sampled_from(FILES), where=st.floats(0, 1, exclude_max=True),
       mask=st.integers(1, 255))
def test_any_flipped_byte_is_refused(scratch, name, where, mask):
    path = scratch / name
    offset = int(where * path.stat().st_size)
    flip_byte(path, offset, mask)
    try:
        refused(scratch, name, 'sha256', 'damaged')
    finally:
        flip_byte(path, offset, mask)
    load_bundle(scratch)


@settings(max_examples=60, deadline=None)
@given(name=st.sampled_from(FILES), where=st.floats(0, 1, exclude_max=True))
def test_any_truncation_is_refused(scratch, name, where):
    path = scratch / name
    content = path.read_bytes()
    truncate(path, int(where * len(content)))
    try:
        refused(scratch, name, 'sha256', 'truncated')
    finally:
        path.write_bytes(content)


def test_longer_missing_and_foreign_files(folder):
    with open(folder / 'MODEL_CARD.md', 'ab') as stream:
        stream.write(b'\n')
    refused(folder, 'MODEL_CARD.md', 'sha256')
    (folder / 'MODEL_CARD.md').unlink()
    refused(folder, 'MODEL_CARD.md is listed', 'not there')
    (folder / 'MODEL_CARD.md').mkdir()
    refused(folder, 'MODEL_CARD.md', 'not a regular file')
    (folder / 'MODEL_CARD.md').rmdir()
    os.mkfifo(folder / 'MODEL_CARD.md')
    refused(folder, 'MODEL_CARD.md', 'not a regular file')


def test_git_lfs_pointer(folder):
    (folder / 'network.onnx').write_text(
        'version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n')
    refused(folder, 'network.onnx', 'git lfs pull')


@pytest.mark.parametrize('content', [pickle.dumps([1, 2]), b'PK\x03\x04weights', b''])
def test_a_pickle_that_calls_itself_onnx(folder, content):
    (folder / 'network.onnx').write_bytes(content)
    edit_manifest(folder, lambda manifest: None, reseal=True)
    refused(folder, 'network.onnx', 'no ONNX network')


@pytest.mark.parametrize('name', ['extra.pt', 'extra.pth', 'extra.PKL', 'x/extra.ckpt'])
def test_no_pickles(folder, name):
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(b'x')
    edit_manifest(folder, set_key(['files', name], '0' * 64), reseal=True)
    refused(folder, re.escape(name), 'pickle', 'safetensors')


@pytest.mark.parametrize('name', [
    '../outside.txt', 'a/../../outside.txt', '/etc/hostname', './MODEL_CARD.md', 'a//b', '.', '',
    'a\\b', 'c:/x', MANIFEST, 'a\nb', '~/x/../..', 'x\x00y'])
def test_names_that_leave_the_bundle(folder, name):
    (folder.parent / 'outside.txt').write_text('secret')
    edit_manifest(folder, set_key(['files', name], '0' * 64))
    refused(folder, 'not a plain relative name|not plain YAML')


def test_links(folder, tmp_path):
    outside = tmp_path / 'outside.txt'
    outside.write_bytes((folder / 'MODEL_CARD.md').read_bytes())
    (folder / 'MODEL_CARD.md').rename(folder / 'card.txt')
    (folder / 'MODEL_CARD.md').symlink_to('card.txt')
    load_bundle(folder)
    (folder / 'MODEL_CARD.md').unlink()
    (folder / 'MODEL_CARD.md').symlink_to(outside)
    refused(folder, 'MODEL_CARD.md', 'leaves the bundle', 'copy the file')
    (folder / 'MODEL_CARD.md').unlink()
    (folder / 'MODEL_CARD.md').symlink_to('MODEL_CARD.md')
    refused(folder, 'MODEL_CARD.md')
    (folder / 'MODEL_CARD.md').unlink()
    (folder / 'MODEL_CARD.md').symlink_to(tmp_path / 'nowhere')
    refused(folder, 'MODEL_CARD.md', 'not there')


def test_links_of_a_symlink_install(folder, tmp_path):
    """A colcon build --symlink-install links each file, the manifest too, to the sources."""
    share = tmp_path / 'share'
    share.mkdir()
    for name in (*FILES, MANIFEST):
        (share / name).symlink_to(folder / name)
    assert load_bundle(share).network == share / 'network.onnx'
    whole = tmp_path / 'link'
    whole.symlink_to(folder)
    assert load_bundle(whole).name == 'tiny'


def test_external_weights_must_be_listed(folder):
    (folder / 'network.onnx.data').write_bytes(b'weights')
    refused(folder, 'network.onnx.data', 'not listed')
    edit_manifest(folder, set_key(['files', 'network.onnx.data'], '0' * 64), reseal=True)
    assert 'network.onnx.data' in load_bundle(folder).files
    (folder / 'notes.txt').write_text('files that are not used need no checksum')
    load_bundle(folder)


def test_an_empty_network_names_no_files(folder):
    (folder / 'network.onnx').write_bytes(b'')
    edit_manifest(folder, lambda manifest: None, reseal=True)
    assert external_locations(folder / 'network.onnx') == []
    refused(folder, 'no ONNX network but empty')


CURVE = {'score': 'rba', 'objects': False, 'data': 'val', 'fpr': [0.01, 0.1, 0.5],
         'threshold': [0.9, 0.4, 0.4], 'tpr': [0.2, 0.5, 0.9], 'anomaly_data': 'road'}
STATISTICS = {'mean': [0.9, 0.8, 0.7], 'std': [0.1, 0.1, 0.2]}


@pytest.mark.parametrize('key, value, pattern', [
    ('operating_curves', [{**CURVE, 'threshold': [0.9, 0.4]}], r'curves\.0 .rba.*equally long'),
    ('operating_curves', [CURVE, {**CURVE, 'tpr': [0.2, 0.5]}], r'curves\.1 .*equally long'),
    ('operating_curves', [{**CURVE, 'fpr': [0.01, 0.5, 0.1]}], 'fpr must rise'),
    ('operating_curves', [{**CURVE, 'fpr': [0.01, 0.1, 0.1]}], 'fpr must rise'),
    ('operating_curves', [{**CURVE, 'threshold': [0.9, 0.3, 0.4]}], 'threshold must not rise'),
    ('class_statistics', {**STATISTICS, 'mean': [0.9, 0.8]}, r'mean: 3 classes .* not 2'),
    ('class_statistics', {**STATISTICS, 'std': [0.1] * 4}, r'std: 3 classes .* not 4'),
    ('road_classes', [0, 3], '3 is no id of the 3 classes')])
def test_what_was_calibrated_must_make_sense(folder, key, value, pattern):
    def change(**entries):
        # Through JSON, because YAML writes a list that is there twice as an alias.
        edit_manifest(folder, lambda manifest: manifest['anomaly'].update(
            json.loads(json.dumps(entries))))

    change(operating_curves=[CURVE, {**CURVE, 'objects': True, 'tpr': []}],
           class_statistics=STATISTICS, road_classes=[0, 2])
    anomaly = load_bundle(folder).anomaly
    assert anomaly.curves[0].fpr == (0.01, 0.1, 0.5) and anomaly.curves[1].tpr == ()
    assert anomaly.statistics.std == (0.1, 0.1, 0.2) and anomaly.road_classes == (0, 2)
    change(**{key: value})
    refused(folder, rf'anomaly\.{key}', pattern)


@pytest.mark.parametrize('name', ['weights.bin', 'parts/w.bin', f'{"w" * 140}.bin'])
def test_files_that_a_network_names_for_its_weights_must_be_listed(folder, name):
    model = onnx.load(str(folder / 'network.onnx'))
    weights = onnx.TensorProto(name='spare', data_type=onnx.TensorProto.FLOAT, dims=[2],
                               data_location=onnx.TensorProto.EXTERNAL)
    weights.external_data.add(key='location', value=name)
    weights.external_data.add(key='length', value='8')
    model.graph.initializer.append(weights)
    onnx.save(model, str(folder / 'network.onnx'))
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(bytes(8))
    edit_manifest(folder, lambda manifest: None, reseal=True)
    assert external_locations(folder / 'network.onnx') == [name]
    refused(folder, 'keeps weights in', 'list it with its sha256')
    edit_manifest(folder, set_key(['files', name], '0' * 64), reseal=True)
    assert name in load_bundle(folder).files
    (folder / name).write_bytes(bytes(7) + b'1')
    refused(folder, 'has sha256')


# Anything at all

VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=10),
              st.dates(), st.binary(max_size=5),
              st.sampled_from(['network.onnx', '..', '0' * 64, 0, 1, 254, -1, 1e300])),
    lambda children: st.one_of(
        st.lists(children, max_size=4),
        st.dictionaries(st.one_of(st.text(max_size=6), st.integers()), children, max_size=4)),
    max_leaves=8)


def places(value, keys=()):
    """Yield the path of keys of everything in a manifest."""
    yield keys
    children = value.items() if isinstance(value, dict) else (
        enumerate(value) if isinstance(value, list) else ())
    for key, child in children:
        yield from places(child, (*keys, key))


@settings(max_examples=250, deadline=None)
@given(data=st.data())
def test_any_change_of_the_manifest_gives_a_bundle_or_a_bundle_error(pristine, scratch, data):
    original = yaml.safe_load((pristine / MANIFEST).read_text('utf-8'))
    manifest = {'top': copy.deepcopy(original)}
    for _ in range(data.draw(st.integers(1, 3))):
        keys = data.draw(st.sampled_from(
            [('top',)] + [k for k in places(manifest) if len(k) > 1]))
        action = data.draw(st.sampled_from(['replace', 'drop', 'insert']))
        parent = manifest
        for key in keys[:-1]:
            parent = parent[key]
        if action == 'replace' or len(keys) == 1:
            parent[keys[-1]] = data.draw(VALUES)
        elif action == 'drop':
            del parent[keys[-1]]
        elif isinstance(parent, dict):
            parent[data.draw(st.text(max_size=8))] = data.draw(VALUES)
        else:
            parent.append(data.draw(VALUES))
    (scratch / MANIFEST).write_text(
        yaml.safe_dump(manifest['top'], allow_unicode=True), 'utf-8', errors='surrogatepass')
    try:
        load_or_refuse(scratch)
    finally:
        shutil.copy(pristine / MANIFEST, scratch / MANIFEST)


def load_or_refuse(path):
    try:
        bundle = load_bundle(path)
    except BundleError as error:
        assert '\n' not in str(error) and str(path) in str(error)
        return
    assert [info.id for info in bundle.classes] == list(range(bundle.num_classes))
    assert np.isfinite([bundle.anomaly.threshold, *bundle.input.mean, *bundle.input.std]).all()
    assert all(value > 0 for value in bundle.input.std)
    assert bundle.network.is_file()


@settings(max_examples=150, deadline=None)
@given(changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)),
                        max_size=4), tail=st.binary(max_size=20))
def test_any_damage_of_the_manifest_gives_a_bundle_or_a_bundle_error(
        pristine, scratch, changes, tail):
    content = bytearray((pristine / MANIFEST).read_bytes())
    for where, value in changes:
        content[int(where * len(content))] = value
    (scratch / MANIFEST).write_bytes(content + tail)
    try:
        load_or_refuse(scratch)
    finally:
        shutil.copy(pristine / MANIFEST, scratch / MANIFEST)


# Writing

def everything_in(folder):
    return {str(path.relative_to(folder)): path.read_bytes()
            for path in sorted(folder.rglob('*')) if path.is_file()}


def test_write_makes_the_folder_and_leaves_nothing_else(tmp_path):
    bundle = make_tiny_bundle(tmp_path / 'a' / 'b')
    assert bundle == load_bundle(tmp_path / 'a' / 'b')
    assert sorted(everything_in(tmp_path)) == sorted(f'a/b/{name}' for name in (*FILES, MANIFEST))
    assert (bundle.path.stat().st_mode & 0o777, bundle.network.stat().st_mode & 0o777) \
        == (0o755, 0o644)
    text = (bundle.path / MANIFEST).read_text('utf-8')
    assert text.startswith('schema: owseg_ros/bundle\nschema_version: 1\nname: tiny\n')


def test_write_takes_paths_subfolders_and_numpy_values(tmp_path):
    source = tmp_path / 'exported.onnx'
    source.write_bytes(tiny_network())
    shared = [1, 2]
    manifest = tiny_manifest()
    manifest['anomaly']['threshold'] = np.float32(0.25)
    manifest['network']['input']['mean'] = np.array([1.0, 2.0, 3.0])
    manifest['classes'] = tuple(manifest['classes'])
    manifest['figures'] = {'iou': np.float64(0.5), 'per_class': np.arange(3), 'a': shared,
                           'b': shared, 'path': Path('x/y'), 'none': None}
    manifest['description'] = 'Straße, größer: "quoted" # not a comment'
    before = copy.deepcopy(manifest)
    bundle = write_bundle(tmp_path / 'out', manifest,
                          {'network.onnx': str(source), 'docs/card.md': b'# card'})
    assert bundle.anomaly.threshold == 0.25 and bundle.input.mean == (1.0, 2.0, 3.0)
    assert bundle.figures == {'iou': 0.5, 'per_class': [0, 1, 2], 'a': [1, 2], 'b': [1, 2],
                              'path': 'x/y', 'none': None}
    assert bundle.description == manifest['description']
    assert (bundle.path / 'docs' / 'card.md').read_bytes() == b'# card'
    assert source.exists()
    assert str(before) == str(manifest), 'the manifest of the caller was changed'


def test_a_bundle_is_written_again_from_its_manifest(folder, tmp_path):
    bundle = load_bundle(folder)
    manifest = manifest_of(bundle)
    again = write_bundle(tmp_path / 'again', {**manifest, 'version': '3.1'},
                         {name: folder / name for name in bundle.files})
    assert manifest_of(again) == {**manifest, 'version': '3.1'}
    assert again.files == bundle.files and again.version == '3.1'
    (folder / MANIFEST).unlink()
    with pytest.raises(BundleError, match=f'has no {MANIFEST}'):
        manifest_of(bundle)


def test_write_over_a_bundle(folder):
    (folder / 'training.log').write_text('kept')
    manifest = tiny_manifest()
    manifest['version'] = '0.2.0'
    bundle = write_bundle(folder, manifest, {
        'network.onnx': folder / 'network.onnx', 'new.txt': b'new'})
    assert bundle.version == '0.2.0' and set(bundle.files) == {'network.onnx', 'new.txt'}
    assert sorted(everything_in(folder)) == [
        'MODEL_CARD.md', MANIFEST, 'network.onnx', 'new.txt', 'training.log']


@pytest.mark.parametrize('manifest_change, files, pattern', [
    (set_key(['anomaly', 'threshold'], 'x'), {}, r'anomaly\.threshold'),
    (set_key(['figures'], {'x': object()}), {}, 'cannot hold a object'),
    (set_key(['figures'], {'x': {1: 2}}), {}, 'not a string'),
    (set_key(['schema_version'], 1), {}, 'fills in'),
    (set_key(['classes', 1, 'name'], 'red'), {}, 'names both'),
    (set_key(['network', 'file'], 'other.onnx'), {}, 'not listed'),
    (set_key(['name'], 'tiny'), {'network.onnx': b'PK\x03\x04'}, 'no ONNX network'),
    (set_key(['name'], 'tiny'), {'missing.txt': Path('/nowhere/missing.txt')}, 'no file'),
    (set_key(['name'], 'tiny'), {'../escape.txt': b'x'}, 'not a plain relative'),
    (set_key(['name'], 'tiny'), {'/escape.txt': b'x'}, 'not a plain relative'),
    (set_key(['name'], 'tiny'), {MANIFEST: b'x'}, 'not a plain relative'),
    (set_key(['name'], 'tiny'), {'weights.pt': b'x'}, 'pickle'),
])
@pytest.mark.parametrize('exists', [False, True])
def test_a_refused_write_changes_nothing(
        folder, tmp_path, exists, manifest_change, files, pattern):
    manifest = tiny_manifest()
    manifest_change(manifest)
    target = folder if exists else tmp_path / 'new'
    before = everything_in(tmp_path)
    with pytest.raises(BundleError, match=pattern) as caught:
        write_bundle(target, manifest, {'network.onnx': tiny_network(), **files})
    assert '.owseg_bundle_' not in str(caught.value)
    assert everything_in(tmp_path) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ['tiny']


def test_weights_left_over_beside_the_network_stop_a_write(folder):
    (folder / 'network.onnx.data').write_bytes(b'of an older network')
    before = everything_in(folder)
    with pytest.raises(BundleError, match='network.onnx.data lies beside'):
        make_tiny_bundle(folder, num_queries=9)
    assert everything_in(folder) == before


def test_write_where_nothing_can_be_written(tmp_path):
    (tmp_path / 'file').write_text('x')
    for path in (tmp_path / 'file', tmp_path / 'file' / 'below'):
        with pytest.raises(BundleError, match='is a file|cannot be written'):
            make_tiny_bundle(path)
    assert (tmp_path / 'file').read_text() == 'x'


def test_a_half_replaced_bundle_is_refused(folder):
    """Whoever reads between the replacement of a file and of the manifest gets an error."""
    (folder / 'network.onnx').write_bytes(tiny_network(num_queries=9))
    refused(folder, 'network.onnx', 'sha256')


def test_sha256_of_large_files(tmp_path):
    content = np.random.default_rng(0).bytes((5 << 20) + 17)
    (tmp_path / 'large').write_bytes(content)
    assert sha256_of(tmp_path / 'large') == hashlib.sha256(content).hexdigest()


# The default

def test_default_bundle_from_the_environment(folder, monkeypatch):
    monkeypatch.setenv('OWSEG_MODEL', str(folder))
    assert default_bundle_path() == folder
    monkeypatch.setenv('OWSEG_MODEL', '~/nowhere')
    monkeypatch.setenv('HOME', str(folder))
    assert default_bundle_path() == folder / 'nowhere'
    refused(folder / 'nowhere', 'no such folder')


def test_default_bundle_places_and_their_order(pristine, tmp_path, monkeypatch):
    pytest.importorskip('ament_index_python', reason='needs ament_index_python (extra ros)')
    monkeypatch.delenv('OWSEG_MODEL', raising=False)
    ament, environment, checkout = (tmp_path / name for name in ('ament', 'prefix', 'checkout'))
    index = ament / 'share' / 'ament_index' / 'resource_index' / 'packages'
    index.mkdir(parents=True)
    (index / 'owseg_ros').touch()
    monkeypatch.setenv('AMENT_PREFIX_PATH', str(ament))
    monkeypatch.setattr(sys, 'prefix', str(environment))
    monkeypatch.setattr(
        installed, '__file__', str(checkout / 'owseg_ros' / 'bundle' / 'installed.py'))
    with pytest.raises(BundleError) as caught:
        default_bundle_path()
    for place in (ament, environment, checkout, 'OWSEG_MODEL'):
        assert str(place) in str(caught.value)
    for place in (checkout, environment / 'share' / 'owseg_ros', ament / 'share' / 'owseg_ros'):
        model = place / 'models' / 'camvid_small'
        shutil.copytree(pristine, model)
        assert default_bundle_path() == model
    monkeypatch.delenv('AMENT_PREFIX_PATH')
    assert default_bundle_path() == environment / 'share/owseg_ros/models/camvid_small'


def test_the_bundled_model_loads():
    try:
        path = default_bundle_path()
    except BundleError as error:
        pytest.skip(str(error))
    bundle = load_bundle(path)
    assert bundle.num_classes >= 2 and bundle.provenance and bundle.figures
    size = sum((bundle.path / name).stat().st_size for name in bundle.files)
    assert size <= 20 << 20, 'the bundled model may take at most 20 MiB of the repository'
