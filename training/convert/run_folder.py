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
"""Converted networks as folders of a run, which export, evaluate and recipes read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
import dataclasses
import json
import numbers
from pathlib import Path
import re
from typing import Any

from owseg_training.config import Config
from owseg_training.convert.detectron2 import from_detectron2, read_detectron2_config
from owseg_training.convert.hugging_face import (
    from_hugging_face, read_processor, read_settings)
from owseg_training.convert.settings import ConvertError, Settings
from owseg_training.data.label_sets import unnamed
from owseg_training.network import MaskClassifier
from owseg_training.network.backbone import build_backbone
from owseg_training.weights import read_file
from safetensors.torch import save_file
from torch import nn
import yaml

MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)
CITYSCAPES = {
    'road': (128, 64, 128), 'sidewalk': (244, 35, 232), 'building': (70, 70, 70),
    'wall': (102, 102, 156), 'fence': (190, 153, 153), 'pole': (153, 153, 153),
    'traffic light': (250, 170, 30), 'traffic sign': (220, 220, 0),
    'vegetation': (107, 142, 35), 'terrain': (152, 251, 152), 'sky': (70, 130, 180),
    'person': (220, 20, 60), 'rider': (255, 0, 0), 'car': (0, 0, 142), 'truck': (0, 0, 70),
    'bus': (0, 60, 100), 'train': (0, 80, 100), 'motorcycle': (0, 0, 230),
    'bicycle': (119, 11, 32)}


def from_timm(name: str, path: str | Path, options: dict[str, Any] | None = None) -> nn.Module:
    """
    Make a backbone of a timm (or published Swin) classifier's weights in a local file.

    name, options: as in build_backbone.  Raises ConvertError when they do not fit.
    """
    try:
        return build_backbone(name, str(path), options).eval()
    except (ValueError, RuntimeError) as error:
        raise ConvertError(str(error)) from error


def _color(index: int) -> tuple[int, int, int]:
    """Spread colours over the cube; neighbours differ in every bit plane (PASCAL VOC's map)."""
    index += 1
    return tuple(sum(((index >> (3 * bit + channel)) & 1) << (7 - bit) for bit in range(3))
                 for channel in range(3))


def save_network(network: MaskClassifier, folder: str | Path, *, name: str,
                 size: tuple[int, int], classes: Sequence[str] | None = None,
                 colours: Sequence[Sequence[int]] | None = None) -> None:
    """
    Write a run folder: config.yaml, model.safetensors, classes.json.

    closed_set.load_network, `owseg-train export` and a recipe that starts from it read it.
    size: (width, height) that the network is to run at; classes: names in the order of the ids;
    colours: (r, g, b) of each, by default those of Cityscapes or such that differ.
    Raises ConvertError when there are not as many names as classes or the size is no multiple
    of 32, or two names are alike.
    """
    if classes is not None and len(classes) != network.num_classes:
        raise ConvertError(f'{len(classes)} class names for {network.num_classes} classes')
    twice = [label for label, count in Counter(classes or ()).items() if count > 1]
    if twice:
        raise ConvertError(f'{len(twice)} class names are there twice, first {twice[0]!r}; name '
                           'the classes apart (--classes)')
    if any(side <= 0 or side % 32 for side in size):
        raise ConvertError(f'width and height must be multiples of 32, not {size[0]}x{size[1]}')
    if classes is None:
        classes = unnamed(network.num_classes)
    config = Config(name=name,
                    network=dataclasses.replace(network.config, pretrained=None))
    config.data.size = tuple(size)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / 'config.yaml').write_text(yaml.safe_dump(config.to_dict()))
    (folder / 'classes.json').write_text(json.dumps({'classes': [
        {'id': i, 'name': label,
         'colour': colours[i] if colours else CITYSCAPES.get(label, _color(i))}
        for i, label in enumerate(classes)]}, indent=1))
    save_file({key: value.contiguous() for key, value in network.state_dict().items()},
              str(folder / 'model.safetensors'))


def _require_normalisation(mean: Any, std: Any, where: str, scale: float = 1.0) -> None:
    """
    Raise ConvertError unless the pictures are normalised as everywhere in this package.

    scale: what brings mean and std to values of pixels, 0 to 255.
    """
    for key, value, usual in (('mean', mean, MEAN), ('std', std, STD)):
        if value is None:
            continue
        if (not isinstance(value, Sequence) or len(value) != 3
                or not all(isinstance(each, numbers.Real) for each in value)):
            raise ConvertError(f'{where}: input {key} {value!r} is not three numbers')
        value = [each * scale for each in value]
        if any(abs(a - b) > 0.01 for a, b in zip(value, usual)):
            raise ConvertError(f'{where}: input {key} {value} is not {list(usual)}')


def convert_detectron2(checkpoint: str | Path, config: str | Path, out: str | Path, *,
                       size: tuple[int, int], classes: Sequence[str] | None = None) -> Path:
    """
    Convert files of RbA or Mask2Former to a run folder, see from_detectron2 and save_network.

    Raises ConvertError, also for another input normalisation; FileNotFoundError.
    """
    values = read_detectron2_config(config)
    settings = Settings(values, str(config))
    mean, std = (settings.get(f'MODEL.PIXEL_{key}', None) for key in ('MEAN', 'STD'))
    if settings.get('INPUT.FORMAT', 'RGB') == 'BGR':
        mean, std = (value and list(value)[::-1] for value in (mean, std))
    _require_normalisation(mean, std, str(config))
    network = from_detectron2(read_file(checkpoint), values)
    # A list, or in hand-written files the text of a tuple.
    trained = str(settings.get('DATASETS.TRAIN', None))
    if classes is None and network.num_classes == 19 and 'cityscapes' in trained:
        classes = list(CITYSCAPES)
    name = re.sub(r'\W+', '_', Path(config).resolve().parent.name
                  if Path(config).stem == 'config' else Path(config).stem)
    save_network(network, out, name=name, size=size, classes=classes)
    return Path(out)


def convert_hugging_face(folder: str | Path, out: str | Path, *, size: tuple[int, int],
                         classes: Sequence[str] | None = None) -> Path:
    """
    Convert a Hugging Face folder to a run folder, see from_hugging_face and save_network.

    Raises ConvertError, also for another input normalisation; FileNotFoundError.
    """
    folder = Path(folder)
    network = from_hugging_face(folder)
    processor = read_processor(folder)
    if processor is not None:
        processor.require(do_rescale=True, do_normalize=True)
        _require_normalisation(*(processor.get(key, None) for key in ('image_mean', 'image_std')),
                               processor.where, 1 / processor.get('rescale_factor', 1 / 255))
    settings = read_settings(folder)
    labels = settings.get('id2label', {})
    if classes is None and labels:
        if sorted(labels) != sorted(map(str, range(len(labels)))):
            raise ConvertError(f'{settings.where} id2label must name the ids 0 to '
                               f'{len(labels) - 1}, not {", ".join(map(str, labels))}')
        classes = [str(labels[str(index)]) for index in range(len(labels))]
    save_network(network, out, name=re.sub(r'\W+', '_', folder.resolve().name), size=size,
                 classes=classes)
    return Path(out)


def convert_timm(name: str, path: str | Path, out: str | Path) -> Path:
    """
    Check a backbone's weights and write them as <out>/<name>.safetensors, for network.pretrained.

    Raises ConvertError when they do not fit, FileNotFoundError.
    """
    backbone = from_timm(name, path)
    state = getattr(backbone, 'model', backbone).state_dict()
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    target = out / f'{name}.safetensors'
    save_file({key: value.contiguous() for key, value in state.items()}, str(target))
    return target
