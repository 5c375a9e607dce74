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
"""Whether a manifest that follows the schema makes sense."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

from owseg_ros.bundle.model import ClassInfo
from owseg_ros.bundle.problems import MANIFEST, refuse, short


def check_semantics(folder: Path, manifest: dict[str, Any]) -> tuple[ClassInfo, ...]:
    """Return the classes by id; raise BundleError where parts contradict each other."""
    classes = sorted((
        ClassInfo(int(entry['id']), entry['name'], tuple(int(c) for c in entry['color']))
        for entry in manifest['classes']), key=lambda info: info.id)
    ids = [info.id for info in classes]
    if ids != list(range(len(classes))):
        refuse(folder, f'{MANIFEST}: classes: ids must be 0..{len(classes) - 1}, each once, '
               f'and are {short(ids)}; renumber them in the order of the network')
    seen: dict[str, int] = {}
    for info in classes:
        if info.name != info.name.strip() or not info.name.isprintable():
            refuse(folder, f'{MANIFEST}: classes: the name {short(info.name)} of id {info.id} '
                   'has blanks around it or control characters; remove them')
        other = seen.setdefault(info.name.casefold(), info.id)
        if other != info.id:
            refuse(folder, f'{MANIFEST}: classes: {short(info.name)} names both id {other} and '
                   f'id {info.id}; give each class a name of its own')
    outputs = [name for name in manifest['network']['outputs'].values() if name is not None]
    if len(set(outputs)) != len(outputs):
        refuse(folder, f'{MANIFEST}: network.outputs: two outputs share one name; name each '
               'output of the ONNX file once, null for those it does not have')
    network = manifest['network']['file']
    if not network.endswith('.onnx'):
        refuse(folder, f'{MANIFEST}: network.file: {short(network)} is not an .onnx file; '
               'export the network to ONNX (owseg-train export)')
    if network not in manifest['files']:
        refuse(folder, f'{MANIFEST}: files: the network {short(network)} is not listed; '
               'list it with its sha256')
    program = manifest['network'].get('program')
    if program is not None and not program.endswith('.pt2'):
        refuse(folder, f'{MANIFEST}: network.program: {short(program)} is not a .pt2 file; '
               'export the network again (owseg-train export --torch)')
    if program is not None and program not in manifest['files']:
        refuse(folder, f'{MANIFEST}: files: the program {short(program)} is not listed; '
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
            refuse(folder, f'{where}: fpr, threshold and tpr must be equally long; {again}')
        if any(a >= b for a, b in zip(fpr, fpr[1:])):
            refuse(folder, f'{where}: fpr must rise from entry to entry; {again}')
        if any(a < b for a, b in zip(threshold, threshold[1:])):
            refuse(folder, f'{where}: threshold must not rise from entry to entry; {again}')
    for key, values in anomaly.get('class_statistics', {}).items():
        if len(values) != num_classes:
            refuse(folder, f'{MANIFEST}: anomaly.class_statistics.{key}: {num_classes} classes '
                   f'need {num_classes} values, not {len(values)}; {again}')
    unknown = [number for number in anomaly.get('road_classes', []) if number >= num_classes]
    if unknown:
        refuse(folder, f'{MANIFEST}: anomaly.road_classes: {unknown[0]} is no id of the '
               f'{num_classes} classes; list ids of the drivable surface')


def _check_language(folder: Path, manifest: dict[str, Any]) -> None:
    """Check that the section language is there where region embeddings are, and fits them."""
    outputs, language = manifest['network']['outputs'], manifest.get('language')
    again = 'export the bundle again (owseg-train export)'
    for key in ('frozen_region_embeddings', 'text_features'):
        if outputs.get(key) and not outputs.get('region_embeddings'):
            refuse(folder, f'{MANIFEST}: network.outputs.{key} goes with region_embeddings, '
                   f'which the network does not have; {again}')
    if outputs.get('region_embeddings') and language is None:
        refuse(folder, f'{MANIFEST}: language: missing; network.outputs.region_embeddings needs '
               f'this section, which says how they answer texts; {again}')
    if language is None:
        return
    if not outputs.get('region_embeddings'):
        refuse(folder, f'{MANIFEST}: language: goes with network.outputs.region_embeddings, '
               'which is not named; name the output, or remove the section')
    if language.get('ensemble') and not outputs.get('frozen_region_embeddings'):
        refuse(folder, f'{MANIFEST}: language.ensemble goes with '
               'network.outputs.frozen_region_embeddings, which is not named; write null')
    for text in itertools.chain.from_iterable(language['background']):
        if text != text.strip() or not text.isprintable():
            refuse(folder, f'{MANIFEST}: language.background: {short(text)} has blanks around '
                   'it or control characters; remove them')


def _check_novelty(folder: Path, manifest: dict[str, Any]) -> None:
    """Check that the section novelty names files of the bundle and has features to embed."""
    novelty = manifest.get('novelty')
    if novelty is None:
        return
    if not manifest['network']['outputs'].get('pixel_features'):
        refuse(folder, f'{MANIFEST}: novelty: goes with network.outputs.pixel_features, which is '
               'not named; name the output, or remove the section')
    for key, suffix in (('metric_head', '.onnx'), ('known_prototypes', '.npz')):
        name = novelty[key]
        if not name.endswith(suffix):
            refuse(folder, f'{MANIFEST}: novelty.{key}: {short(name)} is not an {suffix} file; '
                   'export the bundle again (owseg-train export)')
        if name not in manifest['files']:
            refuse(folder, f'{MANIFEST}: files: {short(name)} of novelty.{key} is not listed; '
                   'list it with its sha256')
    if novelty['metric_head'] == manifest['network']['file']:
        refuse(folder, f'{MANIFEST}: novelty.metric_head: is the network itself; '
               'name the file of the metric head')
