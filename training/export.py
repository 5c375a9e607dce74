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
"""Export a network to a bundle: ONNX checked against torch, calibrated, with figures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
import json
import math
from pathlib import Path
import tempfile
from typing import Any

import numpy as np
import onnx
import onnxruntime
from owseg_ros.bundle import Bundle, load_bundle, write_bundle
from owseg_ros.errors import OwsegError
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
from owseg_training.history import stages_of
from owseg_training.language import choose_threshold, language_section
from owseg_training.network import MaskClassifier
from owseg_training.network.frozen_clip import FROZEN_CLIP
from owseg_training.network.metric_head import MetricHead
from owseg_training.onnx_operators import TRANSLATIONS
from owseg_training.onnx_traces import remove_traces
from owseg_training.parity import differences, differs, TOLERANCE
from owseg_training.program import export_program, PROGRAM, program_parity
from owseg_training.prototypes import KNOWN_PROTOTYPES
import torch
from torch import nn
from torch.nn import functional

OPSET = 18
OUTPUTS = ('mask_logits', 'class_logits', 'pixel_features')
LANGUAGE_OUTPUTS = ('region_embeddings', 'text_features')
FROZEN = 'frozen_region_embeddings'
# Labelled sets that give the figures of a network with their classes, the first one its threshold.
FIGURE_SETS = ('camvid', 'cityscapes', 'idd', 'comma10k')


class ExportError(OwsegError, RuntimeError):
    """A network that cannot be exported, or a graph that does not compute what it computes."""


class ExportedNetwork(nn.Module):
    """
    The network as the robot runs it: image to mask logits, class logits, pixel features.

    With a region head also to embeddings and text features. outputs: their names, in order.
    """

    def __init__(self, network: MaskClassifier) -> None:
        super().__init__()
        self.network = network.eval()
        self.outputs = OUTPUTS
        if network.region_head is not None:
            self.outputs += LANGUAGE_OUTPUTS
            if network.config.region_head == FROZEN_CLIP:
                self.outputs += (FROZEN,)
        self.eval()

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return what `outputs` names, see Prediction and RegionEmbeddings."""
        prediction = self.network(image)
        found = [prediction.mask_logits, prediction.class_logits, prediction.pixel_features]
        embeddings = prediction.embeddings
        if embeddings is not None:
            found += [embeddings.regions, embeddings.text_features]
        if FROZEN in self.outputs:
            found.append(embeddings.frozen)
        return tuple(found)


def export_onnx(network: MaskClassifier, path: str | Path, size: tuple[int, int],
                batch: int | None = None) -> None:
    """
    Write an ONNX file for a fixed (width, height), and any batch size or a fixed one.

    Raises ExportError when the size is no multiple of 32, onnx.checker.ValidationError when the
    graph is not valid.
    """
    width, height = size
    if any(side <= 0 or side % 32 for side in size):
        raise ExportError(f'width and height must be multiples of 32, not {width}x{height}')
    if batch is not None and batch < 1:
        raise ExportError(f'the batch size must be 1 or more, not {batch}')
    # A batch of two, because the exporter specialises a dimension whose example is one.
    example = torch.zeros(batch or 2, 3, height, width)
    shapes = None if batch else {'image': {0: torch.export.Dim('batch', min=1, max=64)}}
    exported = ExportedNetwork(network)
    torch.onnx.export(
        exported, (example,), str(path), input_names=['image'],
        output_names=list(exported.outputs), opset_version=OPSET, dynamo=True, external_data=False,
        dynamic_shapes=shapes, custom_translation_table=TRANSLATIONS, verbose=False)
    remove_traces(path)
    onnx.checker.check_model(str(path), full_check=True)


def parity(network: MaskClassifier, path: str | Path, images: Sequence[torch.Tensor],
           batch: int | None = None) -> dict[str, float]:
    """
    Largest difference |a - b| / max(1, |a|) between torch a and ONNX Runtime b, per output.

    images: normalised float32 [3, H, W] of the exported size, run one by one and as one batch, or
    in batches of the fixed size.
    """
    session = onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider'])
    exported = ExportedNetwork(network)
    if batch:
        padded = [images[i % len(images)] for i in range(-(-len(images) // batch) * batch)]
        batches = [torch.stack(padded[i:i + batch]) for i in range(0, len(padded), batch)]
    else:
        batches = [image[None] for image in images]
        if len(images) > 1:
            batches.append(torch.stack(list(images)))

    def outputs() -> Iterator[tuple[list[np.ndarray], list[np.ndarray]]]:
        for inputs in batches:
            with torch.inference_mode():
                expected = [output.numpy() for output in exported(inputs)]
            yield expected, session.run(list(exported.outputs), {'image': inputs.numpy()})

    return differences(exported.outputs, outputs())


def tolerance(size: tuple[int, int], trained: tuple[int, int]) -> float:
    """
    Return by how much `parity` may be off at a size, for a network of a trained size.

    1e-4, and more for more pixels, as the square root of their number: sums over the frame, which
    normalisation and attention take, round so much more (1.0e-4 was seen at 2048x1024, of a
    network of 480x352).
    """
    return TOLERANCE * max(1.0, math.sqrt(math.prod(size) / math.prod(trained)))


def resized(image: np.ndarray, size: tuple[int, int]) -> torch.Tensor:
    """Return a picture uint8 [h, w, 3], normalised float32 [3, height, width]."""
    width, height = size
    return functional.interpolate(normalize(image)[None], size=(height, width),
                                  mode='bilinear', align_corners=False)[0]


def _spread(items: Sequence[Any], count: int) -> list[Any]:
    """Pick count of the items, evenly."""
    return list(items[::max(1, len(items) // count)][:count])


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
        if self.pictures is None:
            return [image for image, _ in street_frames(count)], 'the procedural street'
        picked = _spread(self.pictures.items, count)
        return [read_image(item.image) for item in picked], _title(self.pictures)

    def calibration_frames(self, count: int) -> tuple[list[np.ndarray], str]:
        """Return pictures for the ranges of activations, and where they are from."""
        if self.calibration is None:
            return [image for image, _ in street_frames(count)], 'the procedural street'
        picked = _spread(self.calibration.items, count)
        return [read_image(item.image) for item in picked], _title(self.calibration)


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


def export_bundle(run: str | Path, out: str | Path, *, data: str | None = None,
                  frames: int = 4, before: str | Path | None = None,
                  size: tuple[int, int] | None = None, batch: int | None = None,
                  precision: str = 'fp32', calibration_frames: int = 32,
                  int8_runtime: str = 'onnxruntime', text_encoder: str = '',
                  torch_program: bool = False) -> Bundle:
    """
    Make a bundle of a trained or converted run: export, check, calibrate, measure, model card.

    run: folder of a training or of owseg-train convert; out: folder of the bundle; data: folder
    of the data sets, those that are missing are left out of the figures; frames: number of
    pictures on which ONNX Runtime must equal torch within `tolerance`; before: bundle of the same
    model before outlier supervision, whose figures go beside the new ones.
    size: (width, height), by default that of the run; batch: a fixed batch size, None for any.
    precision: fp32, fp16 or int8 (see quantize); calibration_frames: pictures for the ranges of
    int8, int8_runtime: onnxruntime or tensorrt.  A bundle of less precision also states the
    figures of fp32 and how far it is from it.
    A network with a metric head can be taught classes: its bundle has the section novelty, with
    the prototypes of the run and a threshold that is chosen on known classes.
    text_encoder: folder of the encoder that a network with region embeddings learned from, '' for
    the installed one. torch_program: also write the network as a torch.export program, in fp32,
    which the engine torch runs; ONNX Runtime must equal it too.
    Raises ExportError when ONNX differs from torch or the size does not fit, or the encoder is
    not of the network's text space; DataError when the classes are not known; TextEncoderError
    when there is no encoder.
    """
    run, out = Path(run), Path(out)
    if precision not in quantize.PRECISIONS:
        raise ExportError(f'no precision {precision!r}; known: {", ".join(quantize.PRECISIONS)}')
    if frames < 1 or calibration_frames < 1:
        raise ExportError('the check and the calibration need one frame at least')
    network, config = load_network(run)
    size = tuple(size or config.data.size)
    classes = read_classes(run, network.num_classes, data)
    there = find_data([c.name for c in classes], data)
    encoder = None
    if network.region_head is not None:
        encoder = _open_encoder(run, text_encoder)
    with tempfile.TemporaryDirectory() as folder:
        onnx_path = Path(folder) / 'fp32.onnx'
        export_onnx(network, onnx_path, size, batch)
        pictures, source = there.frames(frames)
        images = [resized(image, size) for image in pictures]
        difference = parity(network, onnx_path, images, batch)
        allowed = tolerance(size, config.data.size)
        if differs(difference, allowed):
            raise ExportError(f'ONNX Runtime differs from torch by {difference}, more than '
                              f'{allowed:.1e}')
        stages = [model_card.Stage(*stage) for stage in stages_of(run)]
        manifest = _manifest(network, config, classes, size, stages)
        if encoder is not None:
            manifest |= {'language': _language(network, encoder, classes)}
        if network.metric_head is not None:
            manifest |= {'novelty': novelty.novelty_section(network.config.metric_dim)}
        provenance, figures = manifest['provenance'], manifest['figures']
        figures |= {'onnx_parity': difference, 'onnx_parity_frames': f'{len(images)} of {source}'}
        card = Path(folder) / 'MODEL_CARD.md'
        card.write_text('The figures are being measured.\n')
        files = {'network.onnx': onnx_path, 'MODEL_CARD.md': card}
        if network.metric_head is not None:
            files |= novelty_files(network.metric_head, run, Path(folder))
        if torch_program:
            files[PROGRAM] = Path(folder) / PROGRAM
            manifest['network']['program'] = PROGRAM
            figures['program_parity'] = checked_program(
                network, files[PROGRAM], onnx_path, size, images, batch, allowed)
        if precision != 'fp32':
            whole = Segmenter(write_bundle(Path(folder) / 'whole', manifest, files))
            files['network.onnx'] = Path(folder) / f'{precision}.onnx'
            provenance['quantisation'] = _quantise(
                precision, onnx_path, files['network.onnx'], there, size, batch,
                calibration_frames, int8_runtime)
            figures['difference_to_fp32'] = quantize.difference(
                onnx_path, files['network.onnx'], [image.numpy() for image in images], batch or 1)
            figures['fp32'] = measure(whole, there, rates=False)
            manifest['name'] += f'_{precision}' + (
                '_tensorrt' if (precision, int8_runtime) == ('int8', 'tensorrt') else '')
        provenance['precision'] = precision
        provenance['tensorrt'] = tensorrt_support.check(files['network.onnx']).summary()
        measured = Path(folder) / 'bundle'
        segmenter = Segmenter(write_bundle(measured, manifest, files))
        measured_points = calibrate(
            segmenter, there.closed[0] if there.closed else None, there.anomaly,
            there.calibration)
        manifest['anomaly'] |= measured_points.manifest() | measured_points.operating_point(
            manifest['anomaly']['score'], manifest['anomaly']['objects'], DEFAULT_POINT)
        segmenter = Segmenter(write_bundle(measured, manifest, files))
        if encoder is not None and there.closed:
            language = manifest['language']
            language['threshold'], language['operating_point'] = choose_threshold(
                LanguageReader(segmenter, encoder), there.closed[0])
            segmenter = Segmenter(write_bundle(measured, manifest, files))
        if network.metric_head is not None and there.closed:
            manifest['novelty'] |= novelty_threshold(segmenter, there.closed[0])
            segmenter = Segmenter(write_bundle(measured, manifest, files))
        figures |= measure(segmenter, there)
        if before is not None:
            earlier = load_bundle(before).figures
            figures['before_outliers'] = {
                name: earlier[name] for name in figures if name in earlier and name in (
                    'road_anomaly', 'road_anomaly_plain', *(
                        found.key for found in there.closed))}
        card.write_text(model_card.render(
            manifest, stages, [(found.key, _title(found)) for found in there.closed]))
        write_bundle(out, manifest, files)
    return load_bundle(out)


def checked_program(network: MaskClassifier, path: Path, onnx_path: Path, size: tuple[int, int],
                    images: Sequence[torch.Tensor], batch: int | None,
                    allowed: float = TOLERANCE) -> dict[str, float]:
    """
    Write the torch program of a network; return how far from its ONNX it is, by output.

    As export_program and program_parity; raises ExportError beyond what is allowed.
    """
    exported = ExportedNetwork(network)
    export_program(exported, exported.outputs, path, size, batch)
    difference = program_parity(path, onnx_path, images, batch)
    if differs(difference, allowed):
        raise ExportError(f'ONNX Runtime differs from the torch program by {difference}, more '
                          f'than {allowed:.1e}')
    return difference


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


def _quantise(precision: str, source: Path, target: Path, data: Data, size: tuple[int, int],
              batch: int | None, count: int, runtime: str) -> str:
    """Write the variant; return in words how it was made."""
    if precision == 'fp16':
        quantize.to_fp16(source, target)
        return 'float16 weights and activations; inputs and outputs float32'
    pictures, where = data.calibration_frames(count)
    convolutions = quantize.to_int8(
        source, target, (resized(image, size).numpy() for image in pictures), batch or 1,
        runtime)
    kind = ('the convolutions, all symmetric, for TensorRT' if runtime == 'tensorrt' else
            'all but the transformer decoder, activations asymmetric, for ONNX Runtime')
    return (f'static INT8 (QDQ, {convolutions} convolutions, weights per channel; {kind}), ranges '
            f'from {len(pictures)} frames of {where}')


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
