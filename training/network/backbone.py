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
"""Backbones by name: multi-scale features at strides 4, 8, 16, 32."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from owseg_training.torchvision_compat import make_torchvision_importable
from safetensors.torch import load_file
import torch
from torch import nn

make_torchvision_importable()

import timm  # noqa: E402, I100, I202
from timm.models._efficientnet_blocks import InvertedResidual  # noqa: E402, I100


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
        """Stop training the stem and the first `stages` block groups."""
        if stages <= 0:
            return
        blocks = getattr(self.model, 'blocks', None)
        if blocks is None:
            raise ValueError('freeze_stages needs a backbone with timm `blocks`')
        parts = [self.model.conv_stem, self.model.bn1, *list(blocks)[:stages]]
        for part in parts:
            part.requires_grad_(False)

    def load(self, path: str | Path) -> None:
        """
        Load pretrained weights (safetensors in timm's keys).

        Keys of layers that the feature extractor does not have (the classifier's last 1x1
        convolution) are the only ones left out.

        Raises ValueError when a weight of the network is not in the file or a shape differs.
        """
        state = load_file(str(path))
        extra = [k for k in state if k.split('.')[0] in ('conv_head', 'bn2', 'classifier')]
        for key in extra:
            del state[key]
        result = self.model.load_state_dict(state, strict=False)
        missing = [k for k in result.missing_keys if not k.endswith('num_batches_tracked')]
        if missing or result.unexpected_keys:
            raise ValueError(
                f'{path} does not fit the backbone: missing {missing[:5]}, '
                f'unexpected {result.unexpected_keys[:5]}')


def _mobilenetv2_100_e1() -> TimmBackbone:
    """MobileNetV2 1.0 whose first block keeps its expansion convolution (ONNX Model Zoo)."""
    backbone = TimmBackbone('mobilenetv2_100')
    backbone.model.blocks[0][0] = InvertedResidual(
        32, 16, dw_kernel_size=3, stride=1, pad_type='', exp_ratio=1.0, act_layer=nn.ReLU6)
    return backbone


BACKBONES: dict[str, Callable[[], TimmBackbone]] = {
    'mobilenetv2_100_e1': _mobilenetv2_100_e1,
}


def build_backbone(name: str, pretrained: str | None = None) -> TimmBackbone:
    """
    Create a backbone: a name of the registry, else any timm model with strides 4 to 32.

    Raises ValueError when the model has no such strides or the weights do not fit.
    """
    backbone = BACKBONES[name]() if name in BACKBONES else TimmBackbone(name)
    if pretrained is not None:
        backbone.load(pretrained)
    return backbone
