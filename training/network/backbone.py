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
Backbones by name: multi-scale features at strides 4, 8, 16, 32.

A backbone is a module with `channels` (dict stride -> channels), `forward` (image to a dict
stride -> features), `freeze` (leading stages) and `load` (pretrained weights from a file).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
import re
from typing import Any

from owseg_training.network.clip_backbone import OpenClipBackbone
from owseg_training.network.swin import SwinTransformer
from owseg_training.torchvision_compat import make_torchvision_importable
from owseg_training.weights import read_weights
import torch
from torch import nn

make_torchvision_importable()

import timm  # noqa: E402, I100, I202
from timm.models._efficientnet_blocks import InvertedResidual  # noqa: E402, I100
from timm.models.resnet import Bottleneck  # noqa: E402, I100


class TimmBackbone(nn.Module):
    """
    Features of a timm model.

    forward: float32 [B, 3, H, W] to a dict stride -> [B, C, H/stride, W/stride] for 4, 8, 16, 32.
    Batch norms keep their stored statistics (the frozen batch norm of detection training): with
    the batch sizes of fine-tuning their estimates would be worse than the pretrained ones.
    """

    strides = (4, 8, 16, 32)

    def __init__(self, name: str, **kwargs) -> None:
        super().__init__()
        self.name = name
        probe = timm.create_model(name, features_only=True, pretrained=False)
        reductions = probe.feature_info.reduction()
        missing = [s for s in self.strides if s not in reductions]
        if missing:
            raise ValueError(f'backbone {name} has no features at strides {missing}')
        indices = tuple(reductions.index(s) for s in self.strides)
        self.model = timm.create_model(
            name, features_only=True, pretrained=False, out_indices=indices, **kwargs)
        self.channels = dict(zip(self.strides, self.model.feature_info.channels()))

    def forward(self, image: torch.Tensor) -> dict[int, torch.Tensor]:
        """Compute the features."""
        return dict(zip(self.strides, self.model(image)))

    def train(self, mode: bool = True) -> TimmBackbone:
        """Set the mode; batch norms stay in evaluation mode."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self

    def freeze(self, stages: int) -> None:
        """
        Stop training the stem and the first `stages` groups of blocks.

        Raises ValueError for more groups than there are.
        """
        if stages <= 0:
            return
        children = list(self.model.named_children())
        # EfficientNet's kind lists its groups in `blocks`, others name them one by one.
        first = next((index for index, (name, _) in enumerate(children)
                      if re.fullmatch(r'blocks|(layer|stages_|s)\d', name)), len(children))
        stem, groups = children[:first], children[first:]
        if groups and groups[0][0] == 'blocks':
            groups = list(groups[0][1].named_children())
        if stages > len(groups):
            raise ValueError(f'backbone {self.name} has {len(groups)} groups of blocks, not '
                             f'{stages} to freeze')
        for _, part in (*stem, *groups[:stages]):
            part.requires_grad_(False)

    def load(self, path: str | Path) -> None:
        """
        Load pretrained weights: a file in the keys of the timm classifier or of its features.

        Keys of the classifier's layers that the features do not have (its head) are the only ones
        left out.

        Raises ValueError when a weight of the network is not in the file, a key is not of this
        model, or a shape differs.
        """
        state = read_weights(path)
        with torch.device('meta'):
            classifier = timm.create_model(self.name, pretrained=False).state_dict()
        matched = {}
        for key in self.model.state_dict():
            # Where the features flatten a sequence, timm joins its name and index by `_`.
            for name in (key, re.sub(r'^(\w+)_(\d+)\.', r'\1.\2.', key)):
                if name in state:
                    matched[key] = state.pop(name)
                    break
        unexpected = [key for key in state if key not in classifier
                      and not key.endswith('num_batches_tracked')]
        own = self.model.state_dict()
        missing = [key for key in own if key not in matched
                   and not key.endswith('num_batches_tracked')]
        wrong = [key for key, value in matched.items() if value.shape != own[key].shape]
        if missing or unexpected or wrong:
            raise ValueError(
                f'{path} does not fit the backbone {self.name}: missing {missing[:5]}, '
                f'unexpected {unexpected[:5]}, other shapes {wrong[:5]}')
        self.model.load_state_dict(matched, strict=False)


def _mobilenetv2_100_e1(**kwargs) -> TimmBackbone:
    """MobileNetV2 1.0 whose first block keeps its expansion convolution (ONNX Model Zoo)."""
    backbone = TimmBackbone('mobilenetv2_100', **kwargs)
    backbone.model.blocks[0][0] = InvertedResidual(
        32, 16, dw_kernel_size=3, stride=1, pad_type='', exp_ratio=1.0, act_layer=nn.ReLU6)
    return backbone


def _resnet_caffe(name: str, **kwargs) -> TimmBackbone:
    """Make a ResNet that halves the resolution in a block's 1x1 convolution (He et al., 2015)."""
    backbone = TimmBackbone(name, **kwargs)
    for module in backbone.modules():
        if isinstance(module, Bottleneck):
            module.conv1.stride, module.conv2.stride = module.conv2.stride, module.conv1.stride
    return backbone


def _swin(embed_dim: int, depths: tuple[int, ...], heads: tuple[int, ...], window: int,
          ) -> Callable[..., SwinTransformer]:
    return partial(SwinTransformer, embed_dim=embed_dim, depths=depths, heads=heads,
                   window=window)


BACKBONES: dict[str, Callable[..., nn.Module]] = {
    'mobilenetv2_100_e1': _mobilenetv2_100_e1,
    'open_clip': OpenClipBackbone,
    'resnet50_caffe': partial(_resnet_caffe, 'resnet50'),
    'resnet101_caffe': partial(_resnet_caffe, 'resnet101'),
    'resnet152_caffe': partial(_resnet_caffe, 'resnet152'),
    'swin_t': _swin(96, (2, 2, 6, 2), (3, 6, 12, 24), 7),
    'swin_s': _swin(96, (2, 2, 18, 2), (3, 6, 12, 24), 7),
    'swin_b': _swin(128, (2, 2, 18, 2), (4, 8, 16, 32), 12),
    'swin_l': _swin(192, (2, 2, 18, 2), (6, 12, 24, 48), 12),
}


def build_backbone(name: str, pretrained: str | None = None,
                   options: dict[str, Any] | None = None) -> nn.Module:
    """
    Create a backbone: a name of the registry, else any timm model with strides 4 to 32.

    options: arguments that differ from the registry's.
    Raises ValueError when the model has no such strides, an option is not one of its arguments,
    or the weights do not fit.
    """
    create = BACKBONES.get(name) or partial(TimmBackbone, name)
    try:
        backbone = create(**(options or {}))
    except TypeError as error:
        raise ValueError(f'backbone {name} with options {options}: {error}') from error
    if pretrained is not None:
        backbone.load(pretrained)
    return backbone
