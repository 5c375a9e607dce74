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
"""Bundles read from a folder and written to one."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath
import shutil
import tempfile
from typing import Any, Iterable, Iterator, Mapping

from owseg_ros.bundle.checks import check_semantics
from owseg_ros.bundle.files import check_external_weights, check_files, sha256_of
from owseg_ros.bundle.manifest import (
    check_identity, check_schema, ManifestDumper, plain, read_manifest, SCHEMA, SCHEMA_VERSION)
from owseg_ros.bundle.model import (
    AnomalySpec, Bundle, ClassStatistics, EnsembleInfo, InputSpec, LanguageInfo, NoveltyInfo,
    OUTPUTS, SameMeaning)
from owseg_ros.bundle.problems import (
    BundleError, error_of, EXPORT_HINT, MANIFEST, PICKLE_SUFFIXES, refuse, short)
from owseg_ros.operating_point import OperatingCurve
import yaml

# Keys of a manifest that write_bundle fills in.
_FILLED_IN = ('schema', 'schema_version', 'files')


def load_bundle(path: str | os.PathLike) -> Bundle:
    """
    Load and check the bundle in the folder ``path`` (or the one of a given manifest.yaml).

    Checked in this order: the manifest is there, is plain YAML, has a schema version that this
    release reads, follows the schema, makes sense (ids 0..K-1, unique names, finite numbers),
    lists files that exist inside the folder, and each file has the sha256 that is listed.

    :raises BundleError: any of it fails; one line that names the key or file and what to do.
    """
    folder = _folder_of(Path(path))
    manifest = read_manifest(folder)
    check_identity(folder, manifest)
    check_schema(folder, manifest)
    classes = check_semantics(folder, manifest)
    check_files(folder, manifest)
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
        outputs={key: network['outputs'].get(key) for key in OUTPUTS},
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


def manifest_of(bundle: Bundle) -> dict[str, Any]:
    """
    Return the manifest of a bundle as write_bundle takes it, to change and to write it again.

    :raises BundleError: it is not there any more, or is no plain YAML now.
    """
    manifest = read_manifest(bundle.path)
    return {key: value for key, value in manifest.items() if key not in _FILLED_IN}


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
        raise error_of(str(path), f'cannot be opened: {error}') from error
    if not exists:
        refuse(folder, f'there is no such folder; give the folder that holds {MANIFEST}')
    hint = EXPORT_HINT
    if folder.suffix in PICKLE_SUFFIXES:
        hint = f'pickled weights are never loaded here; {hint}'
    refuse(folder, f'is a file, and a bundle is a folder that holds {MANIFEST}; {hint}')


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
        refuse(folder, 'is a file, not a folder; give the folder to write the bundle to')
    staging_parent = folder if folder.is_dir() else folder.parent
    try:
        staging_parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix='.owseg_bundle_', dir=staging_parent))
    except OSError as error:
        raise error_of(folder, f'cannot be written: {error}') from error
    try:
        _stage(staging, folder, manifest, files)
        try:
            staged = load_bundle(staging)
        except BundleError as error:
            raise BundleError(str(error).replace(str(staging), str(folder))) from error
        if folder.is_dir():
            for network in _networks(staged):
                check_external_weights(folder, network.relative_to(staging).as_posix(), files)
            for name in (*files, MANIFEST):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                os.replace(staging / name, folder / name)
        else:
            staging.chmod(0o755)
            os.rename(staging, folder)
    except OSError as error:
        raise error_of(folder, f'cannot be written: {error}') from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return load_bundle(folder)


def _networks(bundle: Bundle) -> Iterator[Path]:
    """Yield the ONNX files that are run."""
    yield bundle.network
    if bundle.novelty is not None:
        yield bundle.novelty.metric_head


def _stage(
    staging: Path,
    folder: Path,
    manifest: Mapping[str, Any],
    files: Mapping[str, str | os.PathLike | bytes],
) -> None:
    given = sorted({*_FILLED_IN} & set(manifest))
    if given:
        refuse(folder, f"the manifest to write holds {', '.join(given)}, which write_bundle "
               'fills in; leave it out')
    checksums = {}
    for name, source in files.items():
        pure = PurePosixPath(str(name))
        if pure.is_absolute() or '..' in pure.parts or str(pure) in ('.', MANIFEST):
            refuse(folder, f'{short(name)} is not a plain relative file name; '
                   'write it such as network.onnx')
        target = staging / pure
        target.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(source, (bytes, bytearray, memoryview)):
            target.write_bytes(source)
        else:
            if not Path(source).is_file():
                refuse(folder, f'{name}: there is no file {source} to copy; make it first')
            shutil.copyfile(source, target)
        target.chmod(0o644)
        checksums[str(pure)] = sha256_of(target)
    whole = {'schema': SCHEMA, 'schema_version': SCHEMA_VERSION, **plain(manifest)}
    whole['files'] = checksums
    for key in ('provenance', 'figures'):
        if key in whole:
            whole[key] = whole.pop(key)
    text = yaml.dump(whole, Dumper=ManifestDumper, sort_keys=False, allow_unicode=True,
                     default_flow_style=None, width=99)
    with open(staging / MANIFEST, 'w', encoding='utf-8') as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
