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
"""Hugging Face's Mask2Former with random weights, and our bundle of the same network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
import importlib.metadata
import logging
from pathlib import Path
import tempfile
from typing import Any
import warnings

import numpy as np
import onnxruntime
from owseg_ros.bench.peers import PeerPipeline
from owseg_ros.bundle import Bundle, BundleError, load_bundle, write_bundle
from owseg_ros.engine.preprocess import pack
from owseg_ros.engine.subgraph import subgraph
from owseg_ros.frame import Frame
from owseg_training.convert import from_hugging_face
from owseg_training.convert.run_folder import CITYSCAPES, MEAN, STD
from owseg_training.export import export_onnx
from owseg_training.torchvision_compat import make_torchvision_importable
import torch

_STAGES = ['stage1', 'stage2', 'stage3', 'stage4']
# Swin-T is that of facebook/mask2former-swin-tiny-cityscapes-semantic.
_KINDS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    'swin_t': ('Mask2Former Swin-T (100 queries, 9 decoder layers)', {
        'embed_dim': 96, 'depths': [2, 2, 6, 2], 'num_heads': [3, 6, 12, 24], 'window_size': 7},
        {}),
    'small': ('a small Mask2Former (Swin of width 32, 100 queries, 1 decoder layer)', {
        'embed_dim': 32, 'depths': [1, 1, 2, 1], 'num_heads': [1, 2, 4, 8], 'window_size': 7},
        {'feature_size': 64, 'hidden_dim': 64, 'mask_feature_size': 64, 'num_attention_heads': 4,
         'encoder_feedforward_dim': 128, 'dim_feedforward': 256, 'encoder_layers': 2,
         'decoder_layers': 2})}


def _make(kind: str) -> Any:
    """Return Mask2FormerForUniversalSegmentation with weights of seed 0."""
    make_torchvision_importable()
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig

    _, swin, options = _KINDS[kind]
    torch.manual_seed(0)
    return Mask2FormerForUniversalSegmentation(Mask2FormerConfig(
        backbone_config=SwinConfig(**swin, out_features=_STAGES), num_labels=len(CITYSCAPES),
        num_queries=100, **options)).eval()


def _export(kind: str, model: Any, size: tuple[int, int], folder: Path) -> None:
    """Write the bundle of a network for frames of size (width, height)."""
    # The exporter tells of every node that it does not fold.
    logging.getLogger('onnxscript').setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as scratch, warnings.catch_warnings():
        warnings.simplefilter('ignore', FutureWarning)
        model.save_pretrained(scratch)
        path = Path(scratch, 'network.onnx')
        export_onnx(from_hugging_face(scratch), path, size, batch=1)
        write_bundle(folder, {
            'name': f'hugging_face_{kind}', 'version': '0.1.0', 'license': 'Apache-2.0',
            'description': f'{_KINDS[kind][0]}, random weights: only to measure time.',
            'classes': [{'id': i, 'name': name, 'color': list(color)}
                        for i, (name, color) in enumerate(CITYSCAPES.items())],
            'network': {
                'file': 'network.onnx',
                'input': {'name': 'image', 'width': size[0], 'height': size[1],
                          'mean': list(MEAN), 'std': list(STD)},
                'outputs': {'mask_logits': 'mask_logits', 'class_logits': 'class_logits',
                            'pixel_features': 'pixel_features', 'region_embeddings': None}},
            'anomaly': {'score': 'rba', 'threshold': 0.5, 'operating_point': 'not calibrated',
                        'min_area': 64, 'objects': False},
            'provenance': {'stage': 'random weights'}, 'figures': {}}, {'network.onnx': path})


def _processor(size: tuple[int, int], num_labels: int, mean: Sequence[float] = MEAN,
               std: Sequence[float] = STD) -> Any:
    """Return Mask2FormerImageProcessor for a network of size (width, height); mean of 0..255."""
    make_torchvision_importable()
    from transformers import Mask2FormerImageProcessor

    return Mask2FormerImageProcessor(
        size={'width': size[0], 'height': size[1]}, ignore_index=255, do_reduce_labels=False,
        num_labels=num_labels, image_mean=[value / 255 for value in mean],
        image_std=[value / 255 for value in std])


def open_around(bundle: Bundle, threads: int) -> PeerPipeline:
    """
    Return Hugging Face's pipeline around the network of a bundle; see Peers.

    The network is run by ONNX Runtime on as many threads, without the outputs that the pipeline
    does not use.
    """
    wanted, inputs = bundle.outputs, bundle.input
    names = [wanted['mask_logits'], wanted['class_logits']]
    model, _ = subgraph(bundle.network.read_bytes(), names)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(model, options, providers=['CPUExecutionProvider'])
    make_torchvision_importable()
    from transformers.models.mask2former.modeling_mask2former import (
        Mask2FormerForUniversalSegmentationOutput)

    processor = _processor((inputs.width, inputs.height), bundle.num_classes, inputs.mean,
                           inputs.std)

    @torch.inference_mode()
    def forward(frame: np.ndarray) -> Any:
        torch.set_num_threads(threads)
        pixels = processor(images=[frame], return_tensors='np')['pixel_values']
        masks, classes = session.run(names, {inputs.name: pixels})
        return Mask2FormerForUniversalSegmentationOutput(
            masks_queries_logits=torch.from_numpy(masks),
            class_queries_logits=torch.from_numpy(classes))

    def segment(frame: np.ndarray) -> np.ndarray:
        return processor.post_process_semantic_segmentation(
            forward(frame), target_sizes=[frame.shape[:2]])[0].numpy()

    def outputs(frame: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        # Stretched as by our engine: only how the two resize frames differs.
        packed = pack([Frame(frame)], inputs)[0].transpose(1, 2, 0)
        pixels = np.rint(packed * inputs.std + inputs.mean).astype(np.uint8)
        found = forward(pixels)
        probabilities = found.class_queries_logits[0].softmax(dim=-1).numpy()
        return found.masks_queries_logits[0].numpy(), probabilities[:, :bundle.num_classes]

    return PeerPipeline(
        f'{bundle.name}, run by ONNX Runtime in both', bundle.path,
        {'Hugging Face, around it': segment}, outputs)


def open_pipeline(kind: str, size: tuple[int, int], threads: int, cache: Path, compiled: bool,
                  say: Callable[[str], None]) -> PeerPipeline:
    """
    Return the pipeline of Hugging Face and the bundle of the same weights; see Peers.

    The pipeline is the image processor, the network and `post_process_semantic_segmentation`, as
    its documentation shows. The exported network is kept in cache.
    """
    model = _make(kind)
    made_by = '_'.join(importlib.metadata.version(name) for name in ('torch', 'transformers'))
    folder = Path(cache) / f'{kind}_{size[0]}x{size[1]}_{made_by}'
    try:
        load_bundle(folder)
    except BundleError:
        say(f'exporting {_KINDS[kind][0]} to {folder}, once')
        _export(kind, model, size, folder)
    processor = _processor(size, len(CITYSCAPES))

    @torch.inference_mode()
    def forward(network: Callable[..., Any], frame: np.ndarray) -> Any:
        torch.set_num_threads(threads)
        return network(**processor(images=[frame], return_tensors='pt'))

    def pipeline(network: Callable[..., Any]) -> Callable[[np.ndarray], np.ndarray]:
        return lambda frame: processor.post_process_semantic_segmentation(
            forward(network, frame), target_sizes=[frame.shape[:2]])[0].numpy()

    def outputs(frame: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        found = forward(model, frame)
        return (found.masks_queries_logits[0].numpy(),
                found.class_queries_logits[0].softmax(dim=-1)[:, :-1].numpy())

    calls = {'Hugging Face, eager': pipeline(model)}
    if compiled:
        say(f'compiling {_KINDS[kind][0]}: takes minutes')
        calls['Hugging Face, torch.compile'] = pipeline(torch.compile(model))
    return PeerPipeline(_KINDS[kind][0], folder, calls, outputs)
