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

from collections.abc import Callable, Iterator, Sequence
import contextlib
import hashlib
import importlib.metadata
import logging
from pathlib import Path
import tempfile
from typing import Any
import warnings

import numpy as np
from owseg_ros.bench.peers import CPU, Frames, PeerCall, PeerPipeline, PeerRun
from owseg_ros.bundle import Bundle, BundleError, load_bundle, write_bundle
from owseg_ros.engine import Engine
from owseg_ros.engine.preprocess import pack
from owseg_ros.engine.torch_network import DTYPES
from owseg_ros.frame import Frame
import owseg_training
from owseg_training.convert import from_hugging_face
from owseg_training.convert.run_folder import CITYSCAPES, MEAN, STD
from owseg_training.export import export_onnx, ExportedNetwork
from owseg_training.program import export_program, PROGRAM
from owseg_training.torchvision_compat import make_torchvision_importable
import torch

_STAGES = ['stage1', 'stage2', 'stage3', 'stage4']
# Those of facebook/mask2former-swin-tiny-cityscapes-semantic and
# facebook/mask2former-swin-base-IN21k-cityscapes-semantic.
_KINDS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    'swin_b': ('Mask2Former Swin-B (100 queries, 9 decoder layers)', {
        'embed_dim': 128, 'depths': [2, 2, 18, 2], 'num_heads': [4, 8, 16, 32],
        'window_size': 12}, {}),
    'swin_t': ('Mask2Former Swin-T (100 queries, 9 decoder layers)', {
        'embed_dim': 96, 'depths': [2, 2, 6, 2], 'num_heads': [3, 6, 12, 24], 'window_size': 7},
        {}),
    'small': ('a small Mask2Former (Swin of width 32, 100 queries, 1 decoder layer)', {
        'embed_dim': 32, 'depths': [1, 1, 2, 1], 'num_heads': [1, 2, 4, 8], 'window_size': 7},
        {'feature_size': 64, 'hidden_dim': 64, 'mask_feature_size': 64, 'num_attention_heads': 4,
         'encoder_feedforward_dim': 128, 'dim_feedforward': 256, 'encoder_layers': 2,
         'decoder_layers': 2})}
# One for each network, size, batch and precision, where torch gives up at 8 without a word.
_COMPILED = 64
_OUTPUTS = ('mask_logits', 'class_logits')


def _make(kind: str) -> Any:
    """Return Mask2FormerForUniversalSegmentation with weights of seed 0."""
    make_torchvision_importable()
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig

    _, swin, options = _KINDS[kind]
    torch.manual_seed(0)
    return Mask2FormerForUniversalSegmentation(Mask2FormerConfig(
        backbone_config=SwinConfig(**swin, out_features=_STAGES), num_labels=len(CITYSCAPES),
        num_queries=100, **options)).eval()


def _graph_writer() -> str:
    """Return a digest of the code that the exported graph is written by."""
    package = Path(owseg_training.__path__[0])
    digest = hashlib.sha256()
    for path in (*sorted(package.glob('network/*.py')), package / 'export.py',
                 package / 'program.py',
                 *sorted(package.glob('onnx_*.py'))):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:8]


def _is_there(folder: Path, program: bool) -> bool:
    try:
        return load_bundle(folder).program is not None or not program
    except BundleError:
        return False


def exported(kind: str, size: tuple[int, int], batch: int | None, cache: Path, program: bool,
             say: Callable[[str], None]) -> Path:
    """
    Return the folder of the bundle of a network in the cache; see Peers.

    It is made where it is not there, or has no program where one is wanted.
    """
    # What the weights of a seed and the graph depend on.
    made_by = '_'.join((*(importlib.metadata.version(name).partition('+')[0]
                          for name in ('torch', 'transformers')), _graph_writer()))
    folder = Path(cache) / f'{kind}_{size[0]}x{size[1]}_batch_{batch or "any"}_{made_by}'
    if not _is_there(folder, program):
        say(f'exporting {_KINDS[kind][0]} to {folder}, once')
        _export(kind, _make(kind), size, batch, folder, program)
    return folder


def _export(kind: str, model: Any, size: tuple[int, int], batch: int | None, folder: Path,
            program: bool) -> None:
    """Write the bundle of a network for frames of size (width, height), so many at a time."""
    # The exporter tells of every node that it does not fold.
    logging.getLogger('onnxscript').setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as scratch, warnings.catch_warnings():
        warnings.simplefilter('ignore', FutureWarning)
        model.save_pretrained(scratch)
        network = from_hugging_face(scratch)
        files = {'network.onnx': Path(scratch, 'network.onnx')}
        export_onnx(network, files['network.onnx'], size, batch)
        if program:
            files[PROGRAM] = Path(scratch, PROGRAM)
            exported = ExportedNetwork(network)
            export_program(exported, exported.outputs, files[PROGRAM], size, batch)
        write_bundle(folder, {
            'name': f'hugging_face_{kind}', 'version': '0.1.0', 'license': 'Apache-2.0',
            'description': f'{_KINDS[kind][0]}, random weights: only to measure time.',
            'classes': [{'id': i, 'name': name, 'color': list(color)}
                        for i, (name, color) in enumerate(CITYSCAPES.items())],
            'network': {
                'file': 'network.onnx', **({'program': PROGRAM} if program else {}),
                'input': {'name': 'image', 'width': size[0], 'height': size[1],
                          'mean': list(MEAN), 'std': list(STD)},
                'outputs': {'mask_logits': 'mask_logits', 'class_logits': 'class_logits',
                            'pixel_features': 'pixel_features', 'region_embeddings': None}},
            'anomaly': {'score': 'rba', 'threshold': 0.5, 'operating_point': 'not calibrated',
                        'min_area': 64, 'objects': False},
            'provenance': {'stage': 'random weights'}, 'figures': {}}, files)


def _processor(size: tuple[int, int], num_labels: int, mean: Sequence[float] = MEAN,
               std: Sequence[float] = STD) -> Any:
    """Return Mask2FormerImageProcessor for a network of size (width, height); mean of 0..255."""
    make_torchvision_importable()
    from transformers import Mask2FormerImageProcessor

    return Mask2FormerImageProcessor(
        size={'width': size[0], 'height': size[1]}, ignore_index=255, do_reduce_labels=False,
        num_labels=num_labels, image_mean=[value / 255 for value in mean],
        image_std=[value / 255 for value in std])


@contextlib.contextmanager
def _precision(run: PeerRun, precision: str) -> Iterator[None]:
    """Compute in a precision as our engine does on the same device."""
    half = precision != 'fp32'
    with contextlib.ExitStack() as stack:
        if run.device != CPU:
            stack.enter_context(torch.backends.cudnn.flags(
                enabled=True, benchmark=True, allow_tf32=False))
        stack.enter_context(torch.autocast(
            run.device, DTYPES[precision] if half else None, enabled=half))
        yield


def _segment(processor: Any, forward: Callable[[Frames], Any],
             frames: Frames) -> list[np.ndarray]:
    """Return the class ids of frames on the host, as bytes, which are soonest there."""
    found = forward(frames)
    with torch.inference_mode():
        maps = processor.post_process_semantic_segmentation(
            found, target_sizes=[frame.shape[:2] for frame in frames])
        return [ids.to(torch.uint8).cpu().numpy() for ids in maps]


def _outputs(found: Any, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return mask logits and class probabilities of the first frame; count: of classes."""
    with torch.inference_mode():
        probabilities = found.class_queries_logits[0].float().softmax(dim=-1)
        return (found.masks_queries_logits[0].float().cpu().numpy(),
                probabilities[:, :count].cpu().numpy())


def _where(run: PeerRun) -> str:
    return f'the CPU, threads: {run.threads}' if run.device == CPU \
        else torch.cuda.get_device_name()


def open_around(bundle: Bundle, engine: Engine, run: PeerRun) -> PeerPipeline:
    """
    Return Hugging Face's pipeline around the network of a bundle; see Peers.

    The network is run by our engine, in the engine's precision, without the outputs that the
    pipeline does not use; its post-processing runs on the device of the run.
    """
    inputs = bundle.input
    make_torchvision_importable()
    from transformers.models.mask2former.modeling_mask2former import (
        Mask2FormerForUniversalSegmentationOutput)

    processor = _processor((inputs.width, inputs.height), bundle.num_classes, inputs.mean,
                           inputs.std)

    def forward(frames: Frames) -> Any:
        torch.set_num_threads(run.threads)
        pixels = processor(images=list(frames), return_tensors='np')['pixel_values']
        masks, classes = map(torch.as_tensor, engine.run_batch(pixels, _OUTPUTS))
        return Mask2FormerForUniversalSegmentationOutput(
            masks_queries_logits=masks.to(run.device),
            class_queries_logits=classes.to(run.device, masks.dtype))

    def outputs(frame: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        # Stretched as by our engine: only how the two resize frames differs.
        packed = pack([Frame(frame)], inputs)[0].transpose(1, 2, 0)
        pixels = np.rint(packed * inputs.std + inputs.mean).astype(np.uint8)
        return _outputs(forward([pixels]), bundle.num_classes)

    return PeerPipeline(
        f'{bundle.name}, run by {engine.description} in both', bundle.path, _where(run),
        {'Hugging Face, around it': PeerCall(
            lambda frames: _segment(processor, forward, frames), run.precisions[-1])}, outputs)


def open_pipeline(kind: str, size: tuple[int, int], batch: int | None, run: PeerRun, cache: Path,
                  program: bool, say: Callable[[str], None]) -> PeerPipeline:
    """
    Return the pipeline of Hugging Face and the bundle of the same weights; see Peers.

    The pipeline is the image processor, the network and `post_process_semantic_segmentation`, as
    its documentation shows, all of it on the device of the run. The exported network is kept in
    cache.
    """
    title, folder = _KINDS[kind][0], exported(kind, size, batch, cache, program, say)
    model = _make(kind).to(run.device)
    processor = _processor(size, len(CITYSCAPES))

    @torch.inference_mode()
    def forward(network: Callable[..., Any], precision: str, frames: Frames) -> Any:
        torch.set_num_threads(run.threads)
        inputs = processor(images=list(frames), return_tensors='pt', device=run.device)
        with _precision(run, precision):
            return network(**inputs)

    def call(network: Callable[..., Any], precision: str) -> PeerCall:
        return PeerCall(lambda frames: _segment(
            processor, lambda given: forward(network, precision, given), frames), precision)

    calls = {f'Hugging Face, eager, {name}': call(model, name) for name in run.precisions}
    if run.compiled:
        say(f'torch.compile of {title} takes minutes, once for each batch and precision')
        torch._dynamo.config.recompile_limit = _COMPILED
        compiled = torch.compile(model, dynamic=False)
        calls |= {f'Hugging Face, torch.compile, {name}': call(compiled, name)
                  for name in run.precisions}
    return PeerPipeline(
        title, folder, _where(run), calls,
        lambda frame: _outputs(forward(model, 'fp32', [frame]), len(CITYSCAPES)))
