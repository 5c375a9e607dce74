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
"""Export a run to a bundle: checked against torch, calibrated, with figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
import json
from pathlib import Path
import tempfile
from typing import Any

import numpy as np
from owseg_ros.bundle import Bundle, load_bundle, write_bundle
from owseg_ros.language import TextEncoder
from owseg_ros.language.installed import open_text_encoder
from owseg_ros.readout.scores import SCORES
from owseg_ros.segmenter import Segmenter
from owseg_training import model_card, novelty, quantize, tensorrt_support
from owseg_training.bundle_regions import embed_labels
from owseg_training.calibrate import calibrate, DEFAULT_POINT, street_frames
from owseg_training.class_texts import class_wordings, TEXT_SPACE
from owseg_training.closed_set import load_network
from owseg_training.config import Config
from owseg_training.data.datasets import (
    ClassSpec, DataError, DataSet, label_set, open_data_set, read_image, RoadAnomaly)
from owseg_training.data.stream import MEAN, normalize, STD
from owseg_training.evaluate.baseline_scores import score_of
from owseg_training.evaluate.bundle_figures import (
    anomaly_pixels, evaluate_anomaly, evaluate_closed_set)
from owseg_training.evaluate.language import LanguageReader
from owseg_training.export import (
    checked_program, export_onnx, ExportedNetwork, ExportError, OPSET, parity, tolerance)
from owseg_training.history import stages_of
from owseg_training.language import choose_threshold, language_section
from owseg_training.network import MaskClassifier
from owseg_training.network.frozen_clip import FROZEN_CLIP
from owseg_training.network.metric_head import MetricHead
from owseg_training.parity import differs, TOLERANCE
from owseg_training.program import PROGRAM
from owseg_training.prototypes import KNOWN_PROTOTYPES
import torch
from torch.nn import functional

# Labelled sets that give the figures of a network with their classes, the first one its threshold.
FIGURE_SETS = ('camvid', 'cityscapes', 'idd', 'comma10k')


def resized(image: np.ndarray, size: tuple[int, int]) -> torch.Tensor:
    """Return a picture uint8 [h, w, 3], normalised float32 [3, height, width]."""
    width, height = size
    return functional.interpolate(normalize(image)[None], size=(height, width),
                                  mode='bilinear', align_corners=False)[0]


@dataclass(frozen=True)
class Data:
    """
    The data that are at hand for a network with certain classes.

    closed: labelled sets with exactly these classes; calibration: pictures of such a set's
    training split; anomaly: RoadAnomaly; pictures: what there is to compare ONNX and torch on.
    None and empty where they are missing.
    """

    closed: tuple[DataSet, ...]
    calibration: DataSet | None
    anomaly: RoadAnomaly | None
    pictures: DataSet | None

    def frames(self, count: int) -> tuple[list[np.ndarray], str]:
        """Return pictures for the comparison with torch, and where they are from."""
        return _frames(self.pictures, count)

    def calibration_frames(self, count: int) -> tuple[list[np.ndarray], str]:
        """Return pictures for the ranges of activations, and where they are from."""
        return _frames(self.calibration, count)


def _frames(data_set: DataSet | None, count: int) -> tuple[list[np.ndarray], str]:
    """Return pictures, evenly of a set or of the street without one, and where they are from."""
    if data_set is None:
        return [image for image, _ in street_frames(count)], 'the procedural street'
    picked = data_set.items[::max(1, len(data_set.items) // count)][:count]
    return [read_image(item.image) for item in picked], _title(data_set)


def _title(data_set: DataSet) -> str:
    return (data_set.title if len(data_set.splits) == 1
            else f'{data_set.title} {data_set.split}')


def _open(name: str, split: str | None, root: str | None) -> DataSet | None:
    try:
        return open_data_set(name, split, root)
    except DataError:
        return None


def find_data(names: Sequence[str], root: str | None = None) -> Data:
    """Find the data sets that are there and fit the classes of a network."""
    there = [found for found in (_open(name, 'val', root) for name in FIGURE_SETS) if found]
    closed = tuple(found for found in there if [c.name for c in found.classes] == list(names))
    calibration = _open(closed[0].name, 'train', root) if closed else None
    anomaly = _open('road_anomaly', None, root)
    pictures = next(iter((*closed, *there)), anomaly)
    return Data(closed, calibration, anomaly, pictures)


def read_classes(run: str | Path, count: int, root: str | None = None) -> tuple[ClassSpec, ...]:
    """
    Return names and colours of a run's classes: of its classes.json, else those of CamVid.

    Raises DataError when there are not as many as the network has.
    """
    listing = Path(run) / 'classes.json'
    if listing.is_file():
        try:
            entries = sorted(json.loads(listing.read_text())['classes'], key=lambda c: c['id'])
            classes = tuple(ClassSpec(c['name'], tuple(c['colour'])) for c in entries)
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f'{listing} must be {{"classes": [{{"id": 0, "name": "...", '
                            f'"colour": [r, g, b]}}, ...]}}: {error!r}') from error
        where = str(listing)
    else:
        found = _open('camvid', 'val', root)
        classes = found.classes if found else label_set('camvid_11')
        where = 'CamVid'
    if len(classes) != count:
        raise DataError(f'the run has {count} classes, {where} has {len(classes)}; name them in '
                        f'{listing}')
    return classes


# Pavement too: small networks call unfamiliar roads so.
ROAD_NAMES = frozenset({'road', 'pavement', 'sidewalk', 'parking', 'drivable', 'drivable area',
                        'lane marking', 'lane markings'})


def road_classes(classes: Sequence[ClassSpec]) -> list[int]:
    """Return the ids of the classes that hazards lie on, by their names."""
    return [i for i, c in enumerate(classes) if c.name.casefold() in ROAD_NAMES]


def _rates(segmenter: Segmenter, road: DataSet) -> dict[str, float]:
    scores, labels = anomaly_pixels(segmenter, road)
    flagged = scores >= segmenter.bundle.anomaly.threshold
    return {'true_positive_rate': float(flagged[labels == 1].mean()),
            'false_positive_rate': float(flagged[labels == 0].mean())}


def measure(segmenter: Segmenter, data: Data, *, rates: bool = True) -> dict[str, Any]:
    """
    Return the figures of a bundle on the data that are there; empty where none are.

    road_anomaly is of the score as it is published; where that is grouped into objects,
    road_anomaly_plain is of the score by itself.
    """
    figures: dict[str, Any] = {
        found.key: evaluate_closed_set(segmenter, found) for found in data.closed}
    if data.anomaly is not None:
        figures['road_anomaly'] = evaluate_anomaly(segmenter, data.anomaly)
        if rates:
            figures['road_anomaly']['at_threshold'] = _rates(segmenter, data.anomaly)
        if segmenter.settings.objects is not None:
            settings = segmenter.settings
            segmenter.settings = replace(settings, objects=None)
            figures['road_anomaly_plain'] = evaluate_anomaly(segmenter, data.anomaly)
            segmenter.settings = settings
    return figures


@dataclass(frozen=True)
class ExportOptions:
    """
    What bundle is made of a run.

    data: folder of the data sets, those that are missing are left out of the figures; frames:
    number of pictures on which ONNX Runtime must equal torch within `tolerance`; before: bundle of
    the same model before outlier supervision, whose figures go beside the new ones.
    size: (width, height), by default that of the run; batch: a fixed batch size, None for any.
    precision: fp32, fp16 or int8 (see quantize); calibration_frames: pictures for the ranges of
    int8, int8_runtime: onnxruntime or tensorrt.  A bundle of less precision also states the
    figures of fp32 and how far it is from it.
    text_encoder: folder of the encoder that a network with region embeddings learned from, '' for
    the installed one. torch_program: also write the network as a torch.export program, in fp32,
    which the engine torch runs; ONNX Runtime must equal it too.
    Raises ExportError for a precision that there is not, and where there is no frame.
    """

    data: str | None = None
    frames: int = 4
    before: str | Path | None = None
    size: tuple[int, int] | None = None
    batch: int | None = None
    precision: str = 'fp32'
    calibration_frames: int = 32
    int8_runtime: str = 'onnxruntime'
    text_encoder: str = ''
    torch_program: bool = False

    def __post_init__(self) -> None:
        if self.precision not in quantize.PRECISIONS:
            raise ExportError(f'no precision {self.precision!r}; known: '
                              f'{", ".join(quantize.PRECISIONS)}')
        if self.frames < 1 or self.calibration_frames < 1:
            raise ExportError('the check and the calibration need one frame at least')


def export_bundle(run: str | Path, out: str | Path,
                  options: ExportOptions = ExportOptions()) -> Bundle:
    """
    Make a bundle of a trained or converted run: export, check, calibrate, measure, model card.

    run: folder of a training or of owseg-train convert; out: folder of the bundle.
    A network with a metric head can be taught classes: its bundle has the section novelty, with
    the prototypes of the run and a threshold that is chosen on known classes.
    Raises ExportError when ONNX differs from torch or the size does not fit, or the encoder is
    not of the network's text space; ConfigError when the folder holds no run; DataError when the
    classes are not known; TextEncoderError when there is no encoder.
    """
    with tempfile.TemporaryDirectory() as folder:
        draft = _Draft(Path(run), Path(folder), options)
        draft.add_network()
        draft.add_heads()
        if options.torch_program:
            draft.add_program()
        if options.precision != 'fp32':
            draft.reduce_precision()
        segmenter = draft.calibrate()
        draft.add_figures(segmenter)
        draft.write(out)
    return load_bundle(out)


class _Draft:
    """
    A bundle in the making: its files, and a manifest that comes to say what is found of them.

    run: the folder that it is made of; folder: for what is written meanwhile.
    """

    def __init__(self, run: Path, folder: Path, options: ExportOptions) -> None:
        self.run, self.folder, self.options = run, folder, options
        self.network, self.config = load_network(run)
        self.size = tuple(options.size or self.config.data.size)
        self.allowed = tolerance(self.size, self.config.data.size)
        self.classes = read_classes(run, self.network.num_classes, options.data)
        self.data = find_data([c.name for c in self.classes], options.data)
        self.encoder: TextEncoder | None = None
        if self.network.region_head is not None:
            self.encoder = _open_encoder(run, options.text_encoder)
        self.stages = [model_card.Stage(*stage) for stage in stages_of(run)]
        self.manifest = _manifest(self.network, self.config, self.classes, self.size, self.stages)
        self.whole, self.card = folder / 'fp32.onnx', folder / 'MODEL_CARD.md'
        self.files = {'network.onnx': self.whole, 'MODEL_CARD.md': self.card}
        self.images: list[torch.Tensor] = []

    def add_network(self) -> None:
        """Write the network in fp32; raise ExportError where ONNX Runtime differs from torch."""
        batch = self.options.batch
        export_onnx(self.network, self.whole, self.size, batch)
        pictures, where = self.data.frames(self.options.frames)
        self.images = [resized(image, self.size) for image in pictures]
        difference = parity(self.network, self.whole, self.images, batch)
        if differs(difference, self.allowed):
            raise ExportError(f'ONNX Runtime differs from torch by {difference}, more than '
                              f'{self.allowed:.1e}')
        self.manifest['figures'] |= {
            'onnx_parity': difference, 'onnx_parity_frames': f'{len(self.images)} of {where}'}
        self.card.write_text('The figures are being measured.\n')

    def add_heads(self) -> None:
        """Add what words and taught classes need, where the network has the heads for it."""
        if self.encoder is not None:
            self.manifest['language'] = _language(self.network, self.encoder, self.classes)
        if self.network.metric_head is not None:
            self.manifest['novelty'] = novelty.novelty_section(self.network.config.metric_dim)
            self.files |= novelty_files(self.network.metric_head, self.run, self.folder)

    def add_program(self) -> None:
        """Add the torch program; raise ExportError where it differs from ONNX Runtime."""
        self.files[PROGRAM] = self.folder / PROGRAM
        self.manifest['network']['program'] = PROGRAM
        self.manifest['figures']['program_parity'] = checked_program(
            self.network, self.files[PROGRAM], self.whole, self.size, self.images,
            self.options.batch, self.allowed)

    def reduce_precision(self) -> None:
        """Put the network of less precision in the place of fp32, and say how far it is off."""
        options, figures = self.options, self.manifest['figures']
        whole = self._open('whole')
        self.files['network.onnx'] = self.folder / f'{options.precision}.onnx'
        self.manifest['provenance']['quantisation'] = self._quantise(self.files['network.onnx'])
        figures['difference_to_fp32'] = quantize.difference(
            self.whole, self.files['network.onnx'], [image.numpy() for image in self.images],
            options.batch or 1)
        figures['fp32'] = measure(whole, self.data, rates=False)
        self.manifest['name'] += f'_{options.precision}' + (
            '_tensorrt' if (options.precision, options.int8_runtime) == ('int8', 'tensorrt')
            else '')

    def _quantise(self, target: Path) -> str:
        """Write the variant; return in words how it was made."""
        options = self.options
        if options.precision == 'fp16':
            quantize.to_fp16(self.whole, target)
            return 'float16 weights and activations; inputs and outputs float32'
        pictures, where = self.data.calibration_frames(options.calibration_frames)
        convolutions = quantize.to_int8(
            self.whole, target, (resized(image, self.size).numpy() for image in pictures),
            options.batch or 1, options.int8_runtime)
        kind = ('the convolutions, all symmetric, for TensorRT'
                if options.int8_runtime == 'tensorrt' else
                'all but the transformer decoder, activations asymmetric, for ONNX Runtime')
        return (f'static INT8 (QDQ, {convolutions} convolutions, weights per channel; {kind}), '
                f'ranges from {len(pictures)} frames of {where}')

    def calibrate(self) -> Segmenter:
        """Choose the thresholds, each measured with those before it; return what has them all."""
        manifest, data = self.manifest, self.data
        manifest['provenance']['precision'] = self.options.precision
        manifest['provenance']['tensorrt'] = tensorrt_support.check(
            self.files['network.onnx']).summary()
        points = calibrate(self._open(), data.closed[0] if data.closed else None, data.anomaly,
                           data.calibration)
        manifest['anomaly'] |= points.manifest() | points.operating_point(
            manifest['anomaly']['score'], manifest['anomaly']['objects'], DEFAULT_POINT)
        segmenter = self._open()
        if self.encoder is not None and data.closed:
            language = manifest['language']
            language['threshold'], language['operating_point'] = choose_threshold(
                LanguageReader(segmenter, self.encoder), data.closed[0])
            segmenter = self._open()
        if self.network.metric_head is not None and data.closed:
            manifest['novelty'] |= novelty_threshold(segmenter, data.closed[0])
            segmenter = self._open()
        return segmenter

    def _open(self, name: str = 'bundle') -> Segmenter:
        """Write the bundle as far as it has come, and open it."""
        return Segmenter(write_bundle(self.folder / name, self.manifest, self.files))

    def add_figures(self, segmenter: Segmenter) -> None:
        """Measure the bundle on the data that are there; put those before outliers beside it."""
        figures = self.manifest['figures']
        figures |= measure(segmenter, self.data)
        if self.options.before is not None:
            earlier = load_bundle(self.options.before).figures
            compared = ('road_anomaly', 'road_anomaly_plain',
                        *(found.key for found in self.data.closed))
            figures['before_outliers'] = {
                name: earlier[name] for name in figures if name in earlier and name in compared}

    def write(self, out: str | Path) -> None:
        """Write the model card and the finished bundle."""
        titles = [(found.key, _title(found)) for found in self.data.closed]
        self.card.write_text(model_card.render(self.manifest, self.stages, titles))
        write_bundle(out, self.manifest, self.files)


def novelty_threshold(segmenter: Segmenter, data_set: DataSet) -> dict[str, Any]:
    """Return threshold and operating_point of the section novelty, {} where none can be chosen."""
    count = min(novelty.FRAMES, len(data_set.items))
    chosen = novelty.choose_threshold(
        embed_labels(segmenter, data_set, frames=count), f'{count} frames of {_title(data_set)}')
    return {} if chosen is None else dict(zip(('threshold', 'operating_point'), chosen))


def novelty_files(head: MetricHead, run: Path, folder: Path) -> dict[str, Path]:
    """
    Write the metric head of a run to a folder; return it and the run's prototypes by their names.

    Raises ExportError where the run did not come to its end, or ONNX differs from torch.
    """
    known, path = run / KNOWN_PROTOTYPES, folder / novelty.METRIC_HEAD
    if not known.is_file():
        raise ExportError(f'{known} is missing: the run did not come to its end; start the same '
                          'owseg-train metric again')
    novelty.export_metric_head(head, path, OPSET)
    means = np.random.default_rng(0).normal(
        0, 3, (7, head.layers[0].in_features)).astype(np.float32)
    difference = novelty.head_parity(head, path, means)
    # Not a number fails the comparison.
    if not difference <= TOLERANCE:
        raise ExportError(f'the metric head in ONNX Runtime differs from torch by {difference}, '
                          f'more than {TOLERANCE}')
    return {novelty.METRIC_HEAD: path, KNOWN_PROTOTYPES: known}


def _open_encoder(run: Path, folder: str) -> TextEncoder:
    encoder = open_text_encoder(folder)
    space = (run / TEXT_SPACE).read_text().strip()
    if encoder.space != space:
        raise ExportError(f'{run} embeds its regions in the text space {space}, and the text '
                          f'encoder is of {encoder.space}; give the encoder of that space')
    return encoder


def _language(network: MaskClassifier, encoder: TextEncoder,
              classes: Sequence[ClassSpec]) -> dict[str, Any]:
    """Return the manifest's section language, its threshold not chosen yet."""
    head = network.region_head
    section = language_section(encoder, [c.name for c in classes], 1 / head.scale.item())
    if network.config.region_head == FROZEN_CLIP:
        section['ensemble'] = {
            'seen': head.seen_share, 'unseen': head.unseen_share,
            'temperature': round(1 / network.backbone.scale.item(), 5),
            'seen_names': sorted({text for group in class_wordings([c.name for c in classes])
                                  for text in group})}
    return section


_TRAINED_ON = ('CamVid train (367 frames, SegNet split) and the procedural street of '
               'owseg_ros.scene')
_STARTED_FROM = ('MobileNetV2 1.0 trained on ImageNet, ONNX Model Zoo mobilenetv2-1.0 '
                 '(Apache-2.0)')
_CONVERTED = 'a checkpoint from outside (owseg-train convert); see its own source'


def _score(config: Config, stages: Sequence[model_card.Stage]) -> str:
    """Name the score that the network is read with: its loss's, where the readout has it."""
    configs = [config, *(stage.config for stage in stages)]
    outliers = next((found.outliers for found in configs if found.stage == 'outliers'), None)
    wanted = score_of(outliers.loss) if outliers else 'rba'
    return wanted if wanted in SCORES else 'rba'


def _manifest(network: MaskClassifier, config: Config, classes: Sequence[ClassSpec],
              size: tuple[int, int], stages: Sequence[model_card.Stage]) -> dict[str, Any]:
    width, height = size
    parameters = sum(p.numel() for name, p in network.named_parameters()
                     if not name.startswith(('pixel_classifier', 'metric_head', 'meta_head')))
    shape = config.network
    ours = bool(stages)
    outliers = ('; outliers: cut-outs from COCO (CC BY, CC BY-SA) and DAVIS'
                if model_card.outlier_stage(stages) else '')
    backbone, origin, license_name = shape.backbone, _STARTED_FROM, 'Apache-2.0'
    if shape.region_head == FROZEN_CLIP and ours:
        backbone = f'open_clip {shape.backbone_options["model"]}'
        origin = f'the image tower of {backbone}, frozen; ' + (
            'language.space names its weights by their sha256'
            if stages[0].config.network.pretrained else 'random weights')
        license_name += f'; that of the weights of {backbone} is their own'
    elif shape.region_head != 'none' and ours:
        outliers += '; words for their classes and objects (training/data/words.yaml)'
    return {
        'name': config.name,
        'version': '0.1.0',
        'description': f'Mask classifier with {len(classes)} classes; {backbone}, '
                       f'{shape.pixel_decoder} pixel decoder, {shape.decoder_layers} decoder '
                       f'layer(s), {shape.queries} queries.',
        'license': license_name if ours else 'that of the checkpoint it was converted from',
        'classes': [{'id': i, 'name': c.name, 'color': list(c.color)}
                    for i, c in enumerate(classes)],
        'network': {
            'file': 'network.onnx',
            **({'outlier_class': True} if shape.outlier_class else {}),
            'input': {'name': 'image', 'width': width, 'height': height, 'mean': list(MEAN),
                      'std': list(STD)},
            'outputs': {**{name: name for name in ExportedNetwork(network).outputs},
                        **({} if network.region_head else {'region_embeddings': None})},
        },
        'anomaly': {'score': _score(config, stages), 'threshold': 0.5,
                    'operating_point': 'not calibrated yet', 'min_area': 64,
                    # Published scores are read as they were published.
                    'objects': ours,
                    'road_classes': road_classes(classes)},
        'provenance': {
            'training_data': _TRAINED_ON + outliers if ours else _CONVERTED,
            'stage': config.stage if ours else 'converted',
            'initialisation': origin if ours else _CONVERTED,
            'parameters': parameters,
            'config': config.to_dict() | {'data': {
                k: list(v) if isinstance(v, tuple) else v
                for k, v in config.to_dict()['data'].items() if k != 'root'}},
        },
        'figures': {},
    }
