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
A model on disk: a folder with a network, its classes, its thresholds and its checksums.

A bundle is a folder with a ``manifest.yaml`` (``schemas/bundle.schema.json`` documents each key)
and the files that the manifest lists with their sha256.  ``load_bundle`` validates all of it
before anything is used; it reads YAML with a safe loader and never unpickles.
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass, field
import datetime
import difflib
import hashlib
from importlib import resources
import itertools
import json
import math
import os
from pathlib import Path, PurePosixPath
import shutil
import stat
import sys
import tempfile
from typing import Any, Iterable, Iterator, Mapping, NoReturn

import jsonschema
import numpy as np
from owseg_ros.errors import OwsegError
from owseg_ros.operating_point import (
    BEST_F1, CALIBRATED, OperatingCurve, OperatingPointError, parse_operating_point)
import yaml

MANIFEST = 'manifest.yaml'
SCHEMA = 'owseg_ros/bundle'
SCHEMA_VERSION = 1
DEFAULT_MODEL = 'camvid_small'

UNKNOWN_ID = 254
UNLABELLED_ID = 255
UNKNOWN_COLOR = (255, 0, 255)
UNLABELLED_COLOR = (0, 0, 0)

MAX_MANIFEST_BYTES = 4 << 20
_HASH_BLOCK = 1 << 20
_LARGEST_INTEGER = 1 << 63
_OUTPUTS = ('mask_logits', 'class_logits', 'region_embeddings', 'frozen_region_embeddings',
            'text_features', 'pixel_features')
_PICKLE_SUFFIXES = frozenset({'.pt', '.pth', '.pkl', '.pickle', '.ckpt', '.joblib', '.p'})
_FREE_FORM = frozenset({'provenance', 'figures'})
_EXPORT_HINT = 'write the bundle with owseg_ros.bundle.write_bundle (owseg-train export)'


class BundleError(OwsegError):
    """A bundle that must not be used; the message names the file or key and says what to do."""


@dataclass(frozen=True)
class ClassInfo:
    """One known class: id in the masks (0..253), name, RGB colour (0..255)."""

    id: int  # noqa: A003
    name: str
    color: tuple[int, int, int]


@dataclass(frozen=True)
class InputSpec:
    """
    Input of the network: float32 [batch, 3, height, width] in RGB order.

    The frame is stretched to width x height (pixels), then normalised as (pixel - mean) / std,
    with mean and std in 0..255 units and RGB order.
    """

    name: str
    width: int
    height: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


@dataclass(frozen=True)
class ClassStatistics:
    """
    Mean and standard deviation of max_k L_k over known pixels of each predicted class, [K] each.

    For the standardised max-logit.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class AnomalySpec:
    """
    The anomaly score and its calibrated threshold.

    ``score`` names the score (readout.scores; 'rba': 1 - sum tanh(L_k)), higher is stranger.
    ``operating_point`` says how ``threshold`` was chosen, ``min_area`` is the smallest component
    kept, in pixels at network size, ``objects`` whether the score is grouped into objects
    (readout.objects). ``curves`` holds what calibration measured; ``statistics`` those of the
    classes, None where they were not measured; ``road_classes`` the ids of the surface that
    hazards lie on.
    """

    score: str
    threshold: float
    operating_point: str
    min_area: int
    objects: bool = False
    curves: tuple[OperatingCurve, ...] = ()
    statistics: ClassStatistics | None = None
    road_classes: tuple[int, ...] = ()

    def curve(self, score: str, objects: bool) -> OperatingCurve:
        """
        Return the operating curve of a score, plain or grouped into objects.

        :raises OperatingPointError: the model was not calibrated for it; says what to do.
        """
        for curve in self.curves:
            if (curve.score, curve.objects) == (score, objects):
                return curve
        raise OperatingPointError(
            f'this model has no operating curve of the score {score}'
            f'{" grouped into objects" if objects else ""}: run owseg-train calibrate on it, or '
            'give the threshold as a number')

    def threshold_for(self, point: object = CALIBRATED, score: str | None = None,
                      objects: bool | None = None) -> float:
        """
        Return the threshold of a score at an operating point.

        point: see operating_point.HOW_TO_ASK; score, objects: None for the bundle's.
        'calibrated' for others than the bundle's is the false-positive rate at which the bundle's
        own threshold lies.
        :raises OperatingPointError: the model was not measured there; says what to do.
        """
        score = self.score if score is None else score
        objects = self.objects if objects is None else objects
        kind, value = parse_operating_point(point)
        if kind == 'number':
            return value
        if kind == CALIBRATED and (score, objects) == (self.score, self.objects):
            return self.threshold
        curve = self.curve(score, objects)
        if kind == CALIBRATED:
            value = self.curve(self.score, self.objects).fpr_at(self.threshold)
        elif kind == BEST_F1 and curve.best_f1_threshold is None:
            raise OperatingPointError(
                'this model was calibrated without anomalies, so its best F1 is not known: '
                'run owseg-train calibrate with an anomaly set, or ask for fpr=...')
        return curve.best_f1_threshold if kind == BEST_F1 else curve.threshold_at(value)


@dataclass(frozen=True)
class SameMeaning:
    """
    When a query means a thing of the background, from the cosines of their texts.

    r(g, q) = sigmoid((c(g, q) - cosine) / scale) exp((c(g, q) - max_g' c(g', q)) / margin), c the
    largest cosine between their texts: ``cosine`` is where two texts are as likely to mean the
    same as not, ``scale`` (above zero) how fast that changes, ``margin`` (above zero) how soon a
    thing gives way to one that is nearer to the query.
    """

    cosine: float
    scale: float
    margin: float


@dataclass(frozen=True)
class EnsembleInfo:
    """
    How trained and frozen region embeddings are combined: exponent a of the frozen ones.

    ``seen`` for queries whose name or wording is among ``seen_names`` (those of training),
    ``unseen`` for the others; 0..1 each. ``temperature``: of the frozen ones, None for that of
    the trained ones.
    """

    seen: float
    unseen: float
    seen_names: tuple[str, ...]
    temperature: float | None = None


@dataclass(frozen=True)
class LanguageInfo:
    """
    How region embeddings answer texts; see language.scores.

    space: name of the text space that they live in; dim: D. temperature: tau, logits are cosines
    / tau. background: things that compete with a query, the texts for each. same_meaning: which
    of them a query means. objectness: exponent e of a region's weight (1 - p_no_object)^e.
    threshold: default threshold of a query's score, in 0..1; operating_point: how it was chosen.
    ensemble: None where there are no frozen region embeddings to combine with.
    """

    space: str
    dim: int
    temperature: float
    background: tuple[tuple[str, ...], ...]
    same_meaning: SameMeaning
    objectness: float
    threshold: float
    operating_point: str
    ensemble: EnsembleInfo | None = None


@dataclass(frozen=True)
class NoveltyInfo:
    """
    How regions are compared with taught classes; see owseg_ros.novelty.

    metric_head: ONNX file, float32 [R, C] mean pixel features of regions to float32 [R, D] of
    unit length; metric_head_sha256: its checksum. dim: D. known_prototypes: npz file of the known
    classes' prototypes. threshold: theta_novel, the least cosine of a match, -1..1;
    operating_point: how it was chosen.
    """

    metric_head: Path
    metric_head_sha256: str
    dim: int
    known_prototypes: Path
    threshold: float
    operating_point: str


@dataclass(frozen=True)
class Bundle:
    """
    A validated bundle, as ``load_bundle`` returns it.

    ``path`` is the folder, ``network`` the ONNX file, ``files`` maps each relative file name to
    its sha256, ``outputs`` maps mask_logits, class_logits, region_embeddings,
    frozen_region_embeddings, text_features and pixel_features to the names of the ONNX outputs
    (None where the network has no such output).
    ``outlier_class`` says whether class_logits has one more column, before that of no-object,
    for what the network was shown as outliers. ``language`` is None where the network has no
    region embeddings, ``novelty`` where it has no metric head. ``program`` is the torch.export
    program of the same network (engine torch), None without.
    """

    path: Path
    name: str
    version: str
    description: str
    license: str  # noqa: A003
    classes: tuple[ClassInfo, ...]
    input: InputSpec  # noqa: A003
    outputs: Mapping[str, str | None]
    anomaly: AnomalySpec
    network: Path
    network_sha256: str
    files: Mapping[str, str]
    outlier_class: bool = False
    language: LanguageInfo | None = None
    novelty: NoveltyInfo | None = None
    program: Path | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    figures: Mapping[str, Any] = field(default_factory=dict)

    @property
    def num_classes(self) -> int:
        """Return K, the number of known classes (no-object is not one of them)."""
        return len(self.classes)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Return the names of the classes, indexed by id."""
        return tuple(info.name for info in self.classes)

    def class_id(self, name: str) -> int:
        """
        Return the id of the class called ``name``.

        :raises BundleError: no class has this name; the message lists those there are.
        """
        for info in self.classes:
            if info.name == name:
                return info.id
        guess = _did_you_mean(name, self.class_names)
        _refuse(self.path, f'no class is called {name!r}{guess}; its classes are '
                           f"{', '.join(self.class_names)}")

    def palette(self) -> np.ndarray:
        """
        Return the colour of every id that a mask can hold, uint8 [256, 3] in RGB order.

        Ids 0..K-1 have the colours of the bundle, 254 (unknown) is magenta, 255 (unlabelled)
        black, and the ids between are spread over the hue circle for classes taught later.
        """
        palette = np.zeros((256, 3), np.uint8)
        for index in range(self.num_classes, UNKNOWN_ID):
            # Steps of the golden ratio keep neighbouring ids far apart on the hue circle.
            hue = (index * 0.6180339887498949) % 1.0
            palette[index] = [round(255 * c) for c in colorsys.hsv_to_rgb(hue, 0.65, 0.95)]
        for info in self.classes:
            palette[info.id] = info.color
        palette[UNKNOWN_ID] = UNKNOWN_COLOR
        palette[UNLABELLED_ID] = UNLABELLED_COLOR
        return palette


def load_bundle(path: str | os.PathLike) -> Bundle:
    """
    Load and check the bundle in the folder ``path`` (or the one of a given manifest.yaml).

    Checked in this order: the manifest is there, is plain YAML, has a schema version that this
    release reads, follows the schema, makes sense (ids 0..K-1, unique names, finite numbers),
    lists files that exist inside the folder, and each file has the sha256 that is listed.

    :raises BundleError: any of it fails; one line that names the key or file and what to do.
    """
    folder = _folder_of(Path(path))
    manifest = _read_manifest(folder)
    _check_identity(folder, manifest)
    _check_schema(folder, manifest)
    classes = _check_semantics(folder, manifest)
    _check_files(folder, manifest)
    network, anomaly = manifest['network'], manifest['anomaly']
    tensor = network['input']
    return Bundle(
        path=folder,
        name=manifest['name'],
        version=manifest['version'],
        description=manifest.get('description', ''),
        license=manifest['license'],
        classes=classes,
        input=InputSpec(
            name=tensor['name'],
            width=int(tensor['width']),
            height=int(tensor['height']),
            mean=tuple(float(value) for value in tensor['mean']),
            std=tuple(float(value) for value in tensor['std'])),
        outputs={key: network['outputs'].get(key) for key in _OUTPUTS},
        anomaly=_anomaly_spec(anomaly),
        network=folder / network['file'],
        network_sha256=manifest['files'][network['file']],
        files=dict(manifest['files']),
        outlier_class=network.get('outlier_class', False),
        language=_language_info(manifest['language']) if 'language' in manifest else None,
        novelty=_novelty_info(folder, manifest) if 'novelty' in manifest else None,
        program=folder / network['program'] if 'program' in network else None,
        provenance=manifest.get('provenance', {}),
        figures=manifest.get('figures', {}))


def _anomaly_spec(anomaly: Mapping[str, Any]) -> AnomalySpec:
    def numbers(values: Iterable[Any]) -> tuple[float, ...]:
        return tuple(float(value) for value in values)

    statistics = anomaly.get('class_statistics')
    return AnomalySpec(
        score=anomaly['score'],
        threshold=float(anomaly['threshold']),
        operating_point=anomaly['operating_point'],
        min_area=int(anomaly['min_area']),
        objects=anomaly.get('objects', False),
        curves=tuple(OperatingCurve(
            score=curve['score'], objects=curve['objects'], data=curve['data'],
            fpr=numbers(curve['fpr']), threshold=numbers(curve['threshold']),
            tpr=numbers(curve.get('tpr', ())), anomaly_data=curve.get('anomaly_data', ''),
            best_f1_threshold=curve.get('best_f1_threshold'), best_f1=curve.get('best_f1'))
            for curve in anomaly.get('operating_curves', ())),
        statistics=statistics and ClassStatistics(
            numbers(statistics['mean']), numbers(statistics['std'])),
        road_classes=tuple(anomaly.get('road_classes', ())))


def _language_info(language: Mapping[str, Any]) -> LanguageInfo:
    same, ensemble = language['same_meaning'], language.get('ensemble')
    return LanguageInfo(
        space=language['space'],
        dim=int(language['dim']),
        temperature=float(language['temperature']),
        background=tuple(map(tuple, language['background'])),
        same_meaning=SameMeaning(*(float(same[key]) for key in ('cosine', 'scale', 'margin'))),
        objectness=float(language['objectness']),
        threshold=float(language['threshold']),
        operating_point=language['operating_point'],
        ensemble=ensemble and EnsembleInfo(
            float(ensemble['seen']), float(ensemble['unseen']), tuple(ensemble['seen_names']),
            ensemble.get('temperature') and float(ensemble['temperature'])))


def _novelty_info(folder: Path, manifest: Mapping[str, Any]) -> NoveltyInfo:
    novelty = manifest['novelty']
    return NoveltyInfo(
        metric_head=folder / novelty['metric_head'],
        metric_head_sha256=manifest['files'][novelty['metric_head']],
        dim=int(novelty['dim']),
        known_prototypes=folder / novelty['known_prototypes'],
        threshold=float(novelty['threshold']),
        operating_point=novelty['operating_point'])


def write_bundle(
    path: str | os.PathLike,
    manifest: Mapping[str, Any],
    files: Mapping[str, str | os.PathLike | bytes],
) -> Bundle:
    """
    Write a bundle to the folder ``path`` and return it as ``load_bundle`` reads it back.

    ``manifest`` holds the keys of the schema but ``schema``, ``schema_version`` and ``files``,
    which are filled in here; NumPy numbers and arrays, tuples and paths become plain YAML.
    ``files`` maps each relative name to a source path or to its bytes.  The whole bundle is
    written and checked beside its destination first; a new one then appears by one rename, an
    existing one has its files replaced, the manifest last, so that whoever reads meanwhile
    gets a valid bundle or a BundleError.  Files that the new manifest does not list stay.

    :raises BundleError: the bundle would not be valid, or cannot be written; ``path`` is then
        as it was before.
    """
    folder = Path(os.path.abspath(path))
    if folder.exists() and not folder.is_dir():
        _refuse(folder, 'is a file, not a folder; give the folder to write the bundle to')
    staging_parent = folder if folder.is_dir() else folder.parent
    try:
        staging_parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix='.owseg_bundle_', dir=staging_parent))
    except OSError as error:
        raise _error(folder, f'cannot be written: {error}') from error
    try:
        _stage(staging, folder, manifest, files)
        try:
            staged = load_bundle(staging)
        except BundleError as error:
            raise BundleError(str(error).replace(str(staging), str(folder))) from error
        if folder.is_dir():
            for network in _networks(staged):
                _check_external_weights(folder, network.relative_to(staging).as_posix(), files)
            for name in (*files, MANIFEST):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                os.replace(staging / name, folder / name)
        else:
            staging.chmod(0o755)
            os.rename(staging, folder)
    except OSError as error:
        raise _error(folder, f'cannot be written: {error}') from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return load_bundle(folder)


def _networks(bundle: Bundle) -> Iterator[Path]:
    """Yield the ONNX files that are run."""
    yield bundle.network
    if bundle.novelty is not None:
        yield bundle.novelty.metric_head


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


def sha256_of(path: str | os.PathLike) -> str:
    """Return the sha256 of a file as lower-case hex, reading it in blocks."""
    digest = hashlib.sha256()
    block = bytearray(_HASH_BLOCK)
    view = memoryview(block)
    with open(path, 'rb', buffering=0) as stream:
        while True:
            size = stream.readinto(block)
            if not size:
                return digest.hexdigest()
            digest.update(view[:size])


def _error(folder: Path | str, problem: str) -> BundleError:
    text = f'Bundle {folder}: {problem}'
    return BundleError(''.join(c if c.isprintable() else repr(c)[1:-1] for c in text))


def _refuse(folder: Path | str, problem: str) -> NoReturn:
    raise _error(folder, problem)


def _did_you_mean(name: Any, known: Any) -> str:
    close = difflib.get_close_matches(str(name), [str(entry) for entry in known], n=1)
    return f' (did you mean {close[0]!r}?)' if close else ''


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + '...'


def _folder_of(path: Path) -> Path:
    try:
        path = path.expanduser()
        if path.name == MANIFEST and path.is_file():
            path = path.parent
        folder = Path(os.path.abspath(path))
        if folder.is_dir():
            return folder
        exists = folder.exists()
    except (OSError, ValueError, RuntimeError) as error:
        raise _error(str(path), f'cannot be opened: {error}') from error
    if not exists:
        _refuse(folder, f'there is no such folder; give the folder that holds {MANIFEST}')
    hint = _EXPORT_HINT
    if folder.suffix in _PICKLE_SUFFIXES:
        hint = f'pickled weights are never loaded here; {hint}'
    _refuse(folder, f'is a file, and a bundle is a folder that holds {MANIFEST}; {hint}')


class _ManifestLoader(yaml.SafeLoader):
    """Safe YAML without aliases (they can blow up) and without repeated keys (the last wins)."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Compose a node, refusing aliases."""
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise yaml.composer.ComposerError(
                None, None, f'alias *{event.anchor}: write the value out', event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict:
        """Construct a mapping, refusing repeated keys."""
        mapping = super().construct_mapping(node, deep)
        if len(mapping) != len(node.value):
            raise yaml.constructor.ConstructorError(
                None, None, 'a key is there twice', node.start_mark)
        return mapping


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    try:
        if not path.exists():
            _refuse(folder, f'has no {MANIFEST}; give the folder of a bundle, or {_EXPORT_HINT}')
        if not path.is_file():
            _refuse(folder, f'{MANIFEST} is not a regular file; {_EXPORT_HINT}')
        if path.stat().st_size > MAX_MANIFEST_BYTES:
            _refuse(folder, f'{MANIFEST} is larger than {MAX_MANIFEST_BYTES} bytes and cannot be '
                            f'a manifest; {_EXPORT_HINT}')
        text = path.read_bytes().decode('utf-8')
    except OSError as error:
        raise _error(folder, f'{MANIFEST} cannot be read: {error}') from error
    except UnicodeDecodeError as error:
        raise _error(folder, f'{MANIFEST} is not UTF-8 text ({error.reason} at byte '
                             f'{error.start}); it is damaged or no manifest: '
                             'fetch the bundle again') from error
    try:
        manifest = yaml.load(text, Loader=_ManifestLoader)  # noqa: S506
    except yaml.YAMLError as error:
        problem = ' '.join(str(error).split())
        raise _error(folder, f'{MANIFEST} is not plain YAML: {problem}; '
                             'correct it or fetch the bundle again') from error
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError,
            RecursionError) as error:
        # PyYAML lets these out for scalars such as "!!timestamp x" and for absurd nesting.
        raise _error(folder, f'{MANIFEST} holds a value that YAML cannot read '
                             f'({type(error).__name__}: {_short(str(error))}); '
                             'correct it') from error
    if not isinstance(manifest, dict):
        _refuse(folder, f'{MANIFEST} is no mapping of keys to values but a '
                        f'{type(manifest).__name__}; {_EXPORT_HINT}')
    try:
        for keys, problem in _oddities(manifest, ()):
            _refuse(folder, f'{MANIFEST}: {_dotted(keys)}: {problem}')
    except RecursionError as error:
        raise _error(folder, f'{MANIFEST} is nested too deep; flatten it') from error
    return manifest


def _oddities(value: Any, keys: tuple) -> Iterator[tuple[tuple, str]]:
    """Yield what no manifest may hold anywhere, as (path of keys, problem)."""
    if isinstance(value, dict):
        for key, child in value.items():
            if not isinstance(key, str):
                yield keys, f'the key {_short(key)} is not a string; put it in quotes'
                return
            yield from _oddities(child, (*keys, key))
    elif isinstance(value, (list, tuple, set)):
        for index, child in enumerate(value):
            yield from _oddities(child, (*keys, index))
    elif isinstance(value, float):
        if not math.isfinite(value) and keys[0] not in _FREE_FORM:
            yield keys, f'{value} is not a finite number; write one'
    elif isinstance(value, int) and abs(value) >= _LARGEST_INTEGER:
        yield keys, 'the integer does not fit 64 bits; write a smaller one'


def _dotted(keys: Any) -> str:
    text = ''
    for key in keys:
        text += f'[{key}]' if isinstance(key, int) else f'.{key}' if text else str(key)
    return text or 'top level'


def _check_identity(folder: Path, manifest: dict[str, Any]) -> None:
    if manifest.get('schema') != SCHEMA:
        _refuse(folder, f"{MANIFEST}: schema is {_short(manifest.get('schema'))}, expected "
                        f'{SCHEMA!r}: this is no owseg_ros bundle; {_EXPORT_HINT}')
    version = manifest.get('schema_version')
    if type(version) is not int:
        _refuse(folder, f'{MANIFEST}: schema_version is {_short(version)}, expected the integer '
                        f'{SCHEMA_VERSION}; {_EXPORT_HINT}')
    if version != SCHEMA_VERSION:
        what = ('update owseg_ros to read it' if version > SCHEMA_VERSION
                else 'export the model again with this release')
        _refuse(folder, f'{MANIFEST}: schema_version {version} is not known to this release, '
                        f'which reads {SCHEMA_VERSION}; {what}')


def _validator() -> jsonschema.Draft7Validator:
    text = resources.files('owseg_ros').joinpath('schemas/bundle.schema.json').read_text('utf-8')
    return jsonschema.Draft7Validator(json.loads(text))


def _check_schema(folder: Path, manifest: dict[str, Any]) -> None:
    errors = sorted(_validator().iter_errors(manifest), key=lambda error: _dotted(error.path))
    if not errors:
        return
    error, more = errors[0], len(errors) - 1
    expected = error.schema.get('description')
    if error.validator == 'additionalProperties':
        known = error.schema.get('properties', {})
        unknown = sorted(set(error.instance) - set(known))
        problem = (f"unknown key {', '.join(map(_short, unknown))}"
                   f'{_did_you_mean(unknown[0], known)}; known keys: {", ".join(known)}')
        expected = None
    elif error.validator == 'required':
        missing = [key for key in error.validator_value if key not in error.instance]
        problem = f"missing key {', '.join(map(repr, missing))}"
        expected = '; '.join(
            f"{key}: {_described(error.schema['properties'][key])}" for key in missing)
    else:
        problem = f'{_short(error.instance)} is not valid'
    text = f'{MANIFEST}: {_dotted(error.path)}: {problem}'
    if expected:
        text += f'; expected {expected}'
    if more:
        text += f' (and {more} more)'
    _refuse(folder, text)


def _described(schema: Mapping[str, Any]) -> str:
    if '$ref' in schema:
        name = schema['$ref'].rsplit('/', 1)[1]
        schema = _validator().schema['definitions'][name]
    return schema['description']


def _check_semantics(folder: Path, manifest: dict[str, Any]) -> tuple[ClassInfo, ...]:
    classes = sorted((
        ClassInfo(int(entry['id']), entry['name'], tuple(int(c) for c in entry['color']))
        for entry in manifest['classes']), key=lambda info: info.id)
    ids = [info.id for info in classes]
    if ids != list(range(len(classes))):
        _refuse(folder, f'{MANIFEST}: classes: ids must be 0..{len(classes) - 1}, each once, '
                        f'and are {_short(ids)}; renumber them in the order of the network')
    seen: dict[str, int] = {}
    for info in classes:
        if info.name != info.name.strip() or not info.name.isprintable():
            _refuse(folder, f'{MANIFEST}: classes: the name {_short(info.name)} of id {info.id} '
                            'has blanks around it or control characters; remove them')
        other = seen.setdefault(info.name.casefold(), info.id)
        if other != info.id:
            _refuse(folder, f'{MANIFEST}: classes: {_short(info.name)} names both id {other} and '
                            f'id {info.id}; give each class a name of its own')
    outputs = [name for name in manifest['network']['outputs'].values() if name is not None]
    if len(set(outputs)) != len(outputs):
        _refuse(folder, f'{MANIFEST}: network.outputs: two outputs share one name; name each '
                        'output of the ONNX file once, null for those it does not have')
    network = manifest['network']['file']
    if not network.endswith('.onnx'):
        _refuse(folder, f'{MANIFEST}: network.file: {_short(network)} is not an .onnx file; '
                        'export the network to ONNX (owseg-train export)')
    if network not in manifest['files']:
        _refuse(folder, f'{MANIFEST}: files: the network {_short(network)} is not listed; '
                        'list it with its sha256')
    program = manifest['network'].get('program')
    if program is not None and not program.endswith('.pt2'):
        _refuse(folder, f'{MANIFEST}: network.program: {_short(program)} is not a .pt2 file; '
                        'export the network again (owseg-train export --torch)')
    if program is not None and program not in manifest['files']:
        _refuse(folder, f'{MANIFEST}: files: the program {_short(program)} is not listed; '
                        'list it with its sha256')
    _check_anomaly(folder, manifest['anomaly'], len(classes))
    _check_language(folder, manifest)
    _check_novelty(folder, manifest)
    return tuple(classes)


def _check_anomaly(folder: Path, anomaly: dict[str, Any], num_classes: int) -> None:
    """Check that curves rise and that what is listed by class is as long as the classes."""
    again = 'run owseg-train calibrate again'
    for index, curve in enumerate(anomaly.get('operating_curves', ())):
        where = f'{MANIFEST}: anomaly.operating_curves.{index} ({curve["score"]})'
        fpr, threshold, tpr = curve['fpr'], curve['threshold'], curve.get('tpr', [])
        if len(threshold) != len(fpr) or len(tpr) not in (0, len(fpr)):
            _refuse(folder, f'{where}: fpr, threshold and tpr must be equally long; {again}')
        if any(a >= b for a, b in zip(fpr, fpr[1:])):
            _refuse(folder, f'{where}: fpr must rise from entry to entry; {again}')
        if any(a < b for a, b in zip(threshold, threshold[1:])):
            _refuse(folder, f'{where}: threshold must not rise from entry to entry; {again}')
    for key, values in anomaly.get('class_statistics', {}).items():
        if len(values) != num_classes:
            _refuse(folder, f'{MANIFEST}: anomaly.class_statistics.{key}: {num_classes} classes '
                            f'need {num_classes} values, not {len(values)}; {again}')
    unknown = [number for number in anomaly.get('road_classes', []) if number >= num_classes]
    if unknown:
        _refuse(folder, f'{MANIFEST}: anomaly.road_classes: {unknown[0]} is no id of the '
                        f'{num_classes} classes; list ids of the drivable surface')


def _check_language(folder: Path, manifest: dict[str, Any]) -> None:
    """Check that the section language is there where region embeddings are, and fits them."""
    outputs, language = manifest['network']['outputs'], manifest.get('language')
    again = 'export the bundle again (owseg-train export)'
    for key in ('frozen_region_embeddings', 'text_features'):
        if outputs.get(key) and not outputs.get('region_embeddings'):
            _refuse(folder, f'{MANIFEST}: network.outputs.{key} goes with region_embeddings, '
                            f'which the network does not have; {again}')
    if outputs.get('region_embeddings') and language is None:
        _refuse(folder, f'{MANIFEST}: language: missing; network.outputs.region_embeddings needs '
                        f'this section, which says how they answer texts; {again}')
    if language is None:
        return
    if not outputs.get('region_embeddings'):
        _refuse(folder, f'{MANIFEST}: language: goes with network.outputs.region_embeddings, '
                        'which is not named; name the output, or remove the section')
    if language.get('ensemble') and not outputs.get('frozen_region_embeddings'):
        _refuse(folder, f'{MANIFEST}: language.ensemble goes with '
                        'network.outputs.frozen_region_embeddings, which is not named; write null')
    for text in itertools.chain.from_iterable(language['background']):
        if text != text.strip() or not text.isprintable():
            _refuse(folder, f'{MANIFEST}: language.background: {_short(text)} has blanks around '
                            'it or control characters; remove them')


def _check_novelty(folder: Path, manifest: dict[str, Any]) -> None:
    """Check that the section novelty names files of the bundle and has features to embed."""
    novelty = manifest.get('novelty')
    if novelty is None:
        return
    if not manifest['network']['outputs'].get('pixel_features'):
        _refuse(folder, f'{MANIFEST}: novelty: goes with network.outputs.pixel_features, which is '
                        'not named; name the output, or remove the section')
    for key, suffix in (('metric_head', '.onnx'), ('known_prototypes', '.npz')):
        name = novelty[key]
        if not name.endswith(suffix):
            _refuse(folder, f'{MANIFEST}: novelty.{key}: {_short(name)} is not an {suffix} file; '
                            'export the bundle again (owseg-train export)')
        if name not in manifest['files']:
            _refuse(folder, f'{MANIFEST}: files: {_short(name)} of novelty.{key} is not listed; '
                            'list it with its sha256')
    if novelty['metric_head'] == manifest['network']['file']:
        _refuse(folder, f'{MANIFEST}: novelty.metric_head: is the network itself; '
                        'name the file of the metric head')


def _check_files(folder: Path, manifest: dict[str, Any]) -> None:
    paths = {name: _safe_path(folder, name) for name in manifest['files']}
    _check_external_weights(folder, manifest['network']['file'], paths)
    if 'novelty' in manifest:
        _check_external_weights(folder, manifest['novelty']['metric_head'], paths)
    for name, path in paths.items():
        _check_file(folder, name, path, manifest['files'][name])


def _check_external_weights(folder: Path, network: str, listed: Iterable[str]) -> None:
    """Check that the weights which ONNX Runtime reads from beside the network are listed."""
    pure = PurePosixPath(network)
    parent = folder / pure.parent
    try:
        siblings = sorted(entry.name for entry in parent.iterdir()) if parent.is_dir() else []
    except OSError as error:
        raise _error(folder, f'cannot be listed: {error}') from error
    for sibling in siblings:
        if sibling.startswith(pure.name) and str(pure.parent / sibling) not in listed:
            _refuse(folder, f'{sibling} lies beside the network but is not listed under files; '
                            'list it with its sha256, or remove it')


def _safe_path(folder: Path, name: str) -> Path:
    """Return the path of a listed file, which must exist and lie inside the bundle."""
    pure = PurePosixPath(name)
    if (not name.isprintable() or '\\' in name or ':' in name or pure.is_absolute()
            or '..' in pure.parts or str(pure) != name or name in ('.', MANIFEST)):
        _refuse(folder, f'{MANIFEST}: files: {_short(name)} is not a plain relative name inside '
                        'the bundle; write it such as network.onnx, and put the file there')
    if pure.suffix.lower() in _PICKLE_SUFFIXES:
        _refuse(folder, f'{MANIFEST}: files: {_short(name)} is a pickle by its name, and bundles '
                        'hold none; export weights to ONNX or safetensors')
    path = folder / name
    try:
        real = path.resolve(strict=True)
        # A manifest that is itself a link (colcon build --symlink-install) brings its folder.
        roots = {folder.resolve(), (folder / MANIFEST).resolve().parent}
        regular = stat.S_ISREG(real.stat().st_mode)
    except FileNotFoundError as error:
        raise _error(folder, f'{name} is listed in {MANIFEST} but is not there; '
                             'fetch the bundle again') from error
    except (OSError, RuntimeError, ValueError) as error:
        raise _error(folder, f'{name} cannot be opened: {error}') from error
    if not any(root in real.parents for root in roots):
        _refuse(folder, f'{name} is a link that leaves the bundle (to {real}); '
                        'copy the file into the folder')
    if not regular:
        _refuse(folder, f'{name} is not a regular file; fetch the bundle again')
    return path


def _check_file(folder: Path, name: str, path: Path, expected: str) -> None:
    try:
        actual = sha256_of(path)
        with open(path, 'rb') as stream:
            head = stream.read(64)
        size = path.stat().st_size
    except OSError as error:
        raise _error(folder, f'{name} cannot be read: {error}') from error
    if actual != expected:
        if head.startswith(b'version https://git-lfs'):
            _refuse(folder, f'{name} is a Git LFS pointer, not the file; run git lfs pull')
        _refuse(folder, f'{name} ({size} bytes) has sha256 {actual[:12]}..., but {MANIFEST} '
                        f'lists {expected[:12]}...: it is damaged, truncated or another file; '
                        'fetch the bundle again, or export it again if you changed it')
    if name.endswith('.onnx') and (not head or head.startswith((b'PK\x03\x04', b'\x80'))):
        _refuse(folder, f'{name} is no ONNX network but '
                        f"{'a pickle or an archive' if head else 'empty'}; "
                        'export the network to ONNX (owseg-train export)')


def _plain(value: Any) -> Any:
    """Turn NumPy values, tuples, mappings and paths into what YAML writes plainly."""
    if isinstance(value, Mapping):
        return {_plain(key): _plain(child) for key, child in value.items()}
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(child) for child in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, (str, int, float, datetime.date)) or value is None:
        return value
    raise BundleError(f'a manifest cannot hold a {type(value).__name__} ({_short(value)}); '
                      'give it as text, a number, a list or a mapping')


class _ManifestDumper(yaml.SafeDumper):
    """Safe YAML that writes repeated values out instead of as aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        """Return True: no value is ever written as an alias."""
        return True


def _stage(
    staging: Path,
    folder: Path,
    manifest: Mapping[str, Any],
    files: Mapping[str, str | os.PathLike | bytes],
) -> None:
    given = sorted({'schema', 'schema_version', 'files'} & set(manifest))
    if given:
        _refuse(folder, f"the manifest to write holds {', '.join(given)}, which write_bundle "
                        'fills in; leave it out')
    checksums = {}
    for name, source in files.items():
        pure = PurePosixPath(str(name))
        if pure.is_absolute() or '..' in pure.parts or str(pure) in ('.', MANIFEST):
            _refuse(folder, f'{_short(name)} is not a plain relative file name; '
                            'write it such as network.onnx')
        target = staging / pure
        target.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(source, (bytes, bytearray, memoryview)):
            target.write_bytes(source)
        else:
            if not Path(source).is_file():
                _refuse(folder, f'{name}: there is no file {source} to copy; make it first')
            shutil.copyfile(source, target)
        target.chmod(0o644)
        checksums[str(pure)] = sha256_of(target)
    whole = {'schema': SCHEMA, 'schema_version': SCHEMA_VERSION, **_plain(manifest)}
    whole['files'] = checksums
    for key in ('provenance', 'figures'):
        if key in whole:
            whole[key] = whole.pop(key)
    text = yaml.dump(whole, Dumper=_ManifestDumper, sort_keys=False, allow_unicode=True,
                     default_flow_style=None, width=99)
    with open(staging / MANIFEST, 'w', encoding='utf-8') as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())


def _share_folders() -> Iterator[Path]:
    try:
        from ament_index_python.packages import get_package_prefix
        yield Path(get_package_prefix('owseg_ros')) / 'share' / 'owseg_ros'
    except (ImportError, LookupError, OSError, ValueError):
        # No ROS installation here, or owseg_ros is not in it: the other places follow.
        pass
    yield Path(sys.prefix) / 'share' / 'owseg_ros'
    yield Path(__file__).resolve().parent.parent
