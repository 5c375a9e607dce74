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
"""One configuration object for network, data, optimisation and loss; recipes are YAML files."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

import yaml

RECIPES = Path(__file__).parent / 'recipes'


class ConfigError(ValueError):
    """A recipe that cannot be used; the message names the key and what is allowed."""


@dataclass
class NetworkConfig:
    """
    Shape of the mask classifier (RbA appendix A.1).

    backbone: name in the backbone registry, else in timm; backbone_options: arguments that
    differ from its own (Swin: embed_dim, depths, heads, window, drop_path, ...); pretrained:
    safetensors with its weights; freeze_stages: leading backbone stages that are not trained.
    pixel_decoder: fpn or msdeform; of the latter, encoder_layers deformable layers with
    encoder_points samples a head and level over encoder_strides (coarse to fine; RbA's released
    networks: 32 alone).
    hidden_dim, mask_dim: channels of transformer and pixel features; heads: of every attention.
    transformer_decoder: masked_attention or region_cross_attention (OpenSeg: 128 queries, 3
    layers); queries: N; decoder_layers: its layers (RbA: 1, Mask2Former: 9).
    attention_strides: feature maps that the decoder layers attend to, in round-robin order.
    pixel_classifier: per-pixel head for the auxiliary loss, in training only.
    region_head: what embeds the regions in a text space, a name in network.region_embedding, or
    none; region_dim: D of that space; region_hidden_dim: channels that are pooled.  With
    frozen_clip (and backbone open_clip) classes are told by their texts: region_pooling is
    soft_stride_4 or fc_clip (hard, at stride 32), region_ensemble the shares of CLIP's own
    embeddings for classes that training has seen and others, and region_valid_masks whether
    masks that pooling leaves empty are told by the trained ones alone (FC-CLIP's
    ENSEMBLE_ON_VALID_MASK), see network.frozen_clip.
    metric_dim: length of the embeddings of regions that classes are taught by (RAML: 128), 0 for
    no metric head.
    meta_channels: channels that over-segment what no class explains (RAML: 4), 0 for none;
    meta_activation: of them, see network.meta_channels; they need the pixel_classifier.
    outlier_class: one more column of the class head between the known classes and no-object, for
    outliers (UNO); outlier_head: DenseHybrid's per-pixel head (RbA eq 16).  Outlier supervision
    sets both, as its loss needs them.
    """

    backbone: str = 'mobilenetv2_100'
    backbone_options: dict[str, Any] = field(default_factory=dict)
    pretrained: str | None = None
    freeze_stages: int = 0
    pixel_decoder: str = 'fpn'
    encoder_layers: int = 6
    encoder_strides: list[int] = field(default_factory=lambda: [32, 16, 8])
    encoder_points: int = 4
    encoder_feedforward_dim: int = 1024
    hidden_dim: int = 256
    mask_dim: int = 256
    transformer_decoder: str = 'masked_attention'
    queries: int = 100
    decoder_layers: int = 1
    attention_strides: list[int] = field(default_factory=lambda: [32, 16, 8])
    heads: int = 8
    feedforward_dim: int = 2048
    pixel_classifier: bool = True
    region_head: str = 'none'
    region_dim: int = 384
    region_hidden_dim: int = 256
    region_pooling: str = 'soft_stride_4'
    region_ensemble: tuple[float, float] = (0.4, 0.8)
    region_valid_masks: bool = True
    metric_dim: int = 0
    meta_channels: int = 0
    meta_activation: str = 'sigmoid'
    outlier_class: bool = False
    outlier_head: bool = False


@dataclass
class LossConfig:
    """
    Weights of the set loss (Mask2Former) and of the optional per-pixel auxiliary loss.

    void: what unlabelled pixels are to the masks: negative (outside of every mask, as Mask2Former
    and the released code have it) or ignore.
    """

    class_weight: float = 2.0
    mask_weight: float = 5.0
    dice_weight: float = 5.0
    no_object_weight: float = 0.1
    points: int = 12544
    oversample_ratio: float = 3.0
    importance_ratio: float = 0.75
    pixel_weight: float = 0.0
    void: str = 'negative'


@dataclass
class DataConfig:
    """
    Training images.

    data_set: name in data.datasets.DATA_SETS, with the splits train and val.
    root: folder of the data sets (None: OWSEG_DATA or ../shared/data); size: (width, height) of
    training crops; validation_size: (width, height) that whole frames are stretched to for
    validation, None for size.
    scale, aspect: ranges of augment.random_crop.
    street_probability: share of samples from the procedural street (owseg_ros.scene), from
    sample street_start of the run on.
    hidden: names of classes that become void, in training and validation; the ids of the others
    are compacted.
    """

    data_set: str = 'camvid'
    root: str | None = None
    size: tuple[int, int] = (480, 352)
    validation_size: list[int] | None = None
    scale: tuple[float, float] = (0.75, 1.75)
    aspect: tuple[float, float] = (0.8, 1.25)
    street_probability: float = 0.0
    street_start: int = 0
    hidden: list[str] = field(default_factory=list)
    workers: int = 1


@dataclass
class PebalConfig:
    """
    PEBAL (RbA C.3): margins of the energy (eq 13), weights of its parts (eqs 14 and 15).

    The margins are those for 19 classes, see outlier_losses.pebal.
    """

    inlier_margin: float = -3.5
    outlier_margin: float = -2.5
    energy_weight: float = 0.1
    smoothness_weight: float = 3e-7
    sparsity_weight: float = 5e-5


@dataclass
class DenseHybridConfig:
    """DenseHybrid (RbA C.3, eq 17): weights beta_1 of its head and beta_2 of L_o."""

    head_weight: float = 0.3
    outlier_weight: float = 0.03


@dataclass
class OutlierConfig:
    """
    Outlier supervision (RbA 3.4): AnomalyMix, and a loss on the outliers.

    cutouts: objects to paste, 'cutouts', 'coco', or a folder of RGBA pictures; cutouts_split,
    categories: of them, see data.datasets.open_cutouts; without categories, all but those that
    street scenes know.
    probability: of pasting an outlier into a sample (p_out; the paper's 0.1 at batch 16 is 1.6
    outliers a batch); pool: fixed number of outlier pictures;
    height: range of a cut-out's height relative to the picture's, None for its native size.
    loss: name in outlier_losses.OUTLIER_LOSSES; weight: of it; alpha: target of RbA; reduction:
    'mean' over pixels, as the released code, or 'sum', as the paper; inlier_target: of mse and
    l1, RbA of known pixels, None for the paper's equations, 0 as the released code.
    trainable: names of outliers.freeze_except, what Table 7 compares.
    """

    cutouts: str = 'cutouts'
    cutouts_split: str | None = None
    categories: list[str] | None = None
    probability: float = 0.1
    pool: int = 300
    loss: str = 'squared_hinge'
    alpha: float = 5.0
    weight: float = 1.0
    reduction: str = 'mean'
    inlier_target: float | None = None
    pebal: PebalConfig = field(default_factory=PebalConfig)
    densehybrid: DenseHybridConfig = field(default_factory=DenseHybridConfig)
    height: list[float] | None = None
    trainable: list[str] = field(default_factory=lambda: ['mask_embed', 'class_embed'])


@dataclass
class GroundingConfig:
    """
    Grounding of regions in words (OpenSeg), with words in place of captions.

    text_encoder: folder of owseg-train text-encoder, None for the installed one.
    region_hidden_dim: channels of the region head, where the start has none.
    keep: probability of keeping a word (OpenSeg: 0.75); hypernyms: share of words that say what a
    thing is a kind of; negatives: words a step for things that may be absent.
    grounding_weight: of the contrastive loss between images and their words; sharp: whether its
    softmax over regions has the temperature, else 1 as printed. region_weight: of the
    cross-entropy of regions whose concept the labels tell, 0 for words of whole images alone;
    mask_weight: of the class-agnostic mask loss, where masks are trained.
    captions: folder of pictures with captions (data.captions.CaptionFolder) that are learned from
    instead of the labelled set, whose objects and region_weight have no part then.
    objects: cut-outs to paste under their own names, see data.datasets.open_cutouts, '' for none;
    object_probability, object_height: see OutlierConfig.
    trainable: parts of the network, as outliers.freeze_except names them.
    """

    text_encoder: str | None = None
    region_hidden_dim: int = 256
    keep: float = 0.75
    hypernyms: float = 0.2
    negatives: int = 64
    grounding_weight: float = 1.0
    sharp: bool = True
    region_weight: float = 1.0
    mask_weight: float = 1.0
    captions: str | None = None
    objects: str = 'cutouts'
    object_probability: float = 0.5
    object_height: tuple[float, float] = (0.15, 0.7)
    trainable: list[str] = field(default_factory=lambda: ['region_head'])


@dataclass
class MetricConfig:
    """
    Region-aware metric learning (RAML 3.2), on the regions that the labels tell.

    dim: of the embeddings, where the start has no metric head.
    unit: what is embedded: region, the classes of a picture, each whole, or pixel, for comparison
    with metric learning of pixels.
    margin, gamma: of the Circle loss (RAML eq 16); self_paced: whether its pairs are weighed, see
    circle_loss. circle_weight: of it; class_weight: of the cross-entropy of the released code
    over the known classes, 0 for the paper's loss, which is the Circle loss alone.
    views: DropBlock views of each region a step, or pixels of each; drop_probability, block: see
    network.metric_head.drop_blocks, 0 for views of the whole region.
    min_area: smaller regions, in pixels of stride 4, are left out.
    """

    dim: int = 128
    unit: str = 'region'
    margin: float = 0.25
    gamma: float = 8.0
    self_paced: bool = False
    circle_weight: float = 0.1
    class_weight: float = 1.0
    views: int = 4
    drop_probability: float = 0.3
    block: int = 3
    min_area: int = 4


@dataclass
class MetaChannelConfig:
    """
    Meta channels (RAML eq 6): how many, where the start has none, and the weights of their losses.

    one_vs_all, intersection, split, reconstruction, eta, reading, void: see
    meta_channel_losses.MetaChannelLoss. trainable: parts of the network, as
    outliers.freeze_except names them; the paper trains all, beside the segmentation loss.
    """

    channels: int = 4
    activation: str = 'sigmoid'
    one_vs_all: float = 0.1
    intersection: float = 0.1
    split: float = 0.1
    reconstruction: float = 0.01
    eta: float = 0.02
    reading: str = 'code'
    void: str = 'negative'
    trainable: list[str] = field(default_factory=lambda: ['meta_head'])


@dataclass
class ShotConfig:
    """
    Fine-tuning on a few pictures of new classes, see shot_training.

    pictures: of the training split, by new class, names of those that show it; labels: what all
    else in them is, void (FT), or pseudo, what the start sees there (PLM); trainable: parts of
    the network, as outliers.freeze_except names them.
    """

    pictures: dict[str, list[str]] = field(default_factory=dict)
    labels: str = 'void'
    trainable: list[str] = field(default_factory=lambda: ['all'])


@dataclass
class OptimizerConfig:
    """
    AdamW with a poly schedule; learning rate of the backbone is lr * backbone_multiplier.

    batch_size: samples a step, of all processes together; accumulate: parts in which each process
    computes its share, for less memory and the same gradient.
    autocast: off, bf16 or fp16 (with loss scaling) for the network; losses stay float32.
    """

    iterations: int = 90000
    batch_size: int = 16
    accumulate: int = 1
    autocast: str = 'off'
    lr: float = 1e-4
    backbone_multiplier: float = 0.1
    weight_decay: float = 0.05
    warmup: int = 0
    power: float = 0.9
    clip_norm: float = 0.01
    ema_decay: float = 0.0
    seed: int = 0


@dataclass
class Config:
    """A whole recipe; stage is set by the training stage that uses it."""

    name: str = 'mask_classifier'
    stage: str = 'closed_set'
    network: NetworkConfig = field(default_factory=NetworkConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    data: DataConfig = field(default_factory=DataConfig)
    outliers: OutlierConfig = field(default_factory=OutlierConfig)
    grounding: GroundingConfig = field(default_factory=GroundingConfig)
    metric: MetricConfig = field(default_factory=MetricConfig)
    meta: MetaChannelConfig = field(default_factory=MetaChannelConfig)
    shots: ShotConfig = field(default_factory=ShotConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)

    def to_dict(self) -> dict[str, Any]:
        """Return plain YAML-able types."""
        return asdict(self)


def build(cls, values: dict[str, Any], where: str):
    """
    Build a dataclass with defaults, and those in it, from plain types.

    where: what the message names.  Raises ConfigError for unknown keys and wrong types.
    """
    if not isinstance(values, dict):
        raise ConfigError(f'{where} must be a mapping, not {type(values).__name__}')
    known = {f.name: f for f in fields(cls)}
    for key in values:
        if key not in known:
            raise ConfigError(f'unknown key {where}.{key}; known: {", ".join(sorted(known))}')
    result = cls()
    for key, value in values.items():
        current = getattr(result, key)
        if is_dataclass(current):
            value = build(type(current), value, f'{where}.{key}')
        elif isinstance(current, str) and value is False:
            value = 'off'  # YAML 1.1 reads a bare `off` as a boolean.
        elif isinstance(current, tuple):
            if not isinstance(value, (list, tuple)) or len(value) != len(current):
                raise ConfigError(f'{where}.{key} must be a list of {len(current)} numbers')
            value = tuple(value)
        elif isinstance(current, float) and type(value) in (int, float):
            value = float(value)
        elif isinstance(current, (int, float, str, list, dict)) and not isinstance(
                value, type(current)):
            raise ConfigError(
                f'{where}.{key} must be {type(current).__name__}, not {type(value).__name__}')
        setattr(result, key, value)
    return result


def config_from_dict(values: dict[str, Any]) -> Config:
    """
    Build a Config from plain types.

    Raises ConfigError for unknown keys and wrong types.
    """
    return build(Config, values, 'config')


def run_config(folder: str | Path) -> Config:
    """
    Read the recipe of a run, config.yaml in its folder.

    Raises FileNotFoundError where it is not there, ConfigError when a key is unknown.
    """
    return config_from_dict(yaml.safe_load((Path(folder) / 'config.yaml').read_text()))


def named_file(name_or_path: str | Path, folder: Path, kind: str) -> Path:
    """
    Return the path of a YAML file that is given as such, or by its name in a folder.

    kind: what it is called in the message.  Raises ConfigError when there is no such file.
    """
    path = Path(name_or_path)
    if path.suffix not in ('.yaml', '.yml'):
        path = folder / f'{name_or_path}.yaml'
    if not path.is_file():
        names = ', '.join(sorted(p.stem for p in folder.glob('*.yaml')))
        raise ConfigError(f'no {kind} {name_or_path!r}; give a path or one of: {names}')
    return path


def load_config(name_or_path: str | Path) -> Config:
    """
    Read a recipe by name (a file in training/recipes) or by path.

    Raises ConfigError when there is no such file or a key is unknown.
    """
    path = named_file(name_or_path, RECIPES, 'recipe')
    return config_from_dict(yaml.safe_load(path.read_text()) or {})
