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

"""Grounding: region embeddings that follow words (OpenSeg), on top of a trained network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from owseg_ros.language import default_vocabulary, TextEncoder
from owseg_ros.language.book import embed_texts
from owseg_training.class_texts import TEXT_SPACE
from owseg_training.closed_set import ClosedSetTraining
from owseg_training.config import Config, ConfigError
from owseg_training.data.captions import caption_nouns, CaptionFolder, CaptionStream
from owseg_training.data.cutouts import CutoutSet
from owseg_training.data.datasets import COCO_ROAD_CATEGORIES, open_cutouts
from owseg_training.data.grounding_stream import GroundingStream, stream_labels
from owseg_training.data.words import concept_of, held_out_words, WordTable
from owseg_training.grounding_losses import GroundingCriterion
from owseg_training.history import check_classes, class_names, load_start, record_start
from owseg_training.network import MaskClassifier
from owseg_training.outliers import freeze_except
import torch
from torch import nn
from torch.utils.data import Dataset

REGION_HEAD = 'pooled'


def word_embeddings(encoder: TextEncoder, words: list[str]) -> torch.Tensor:
    """Return float32 [V, D] of bare words, as queries without a vocabulary are encoded."""
    return torch.from_numpy(embed_texts(encoder, default_vocabulary(), words))


def absent_words(table: WordTable, hidden: Sequence[str] = ()) -> list[str]:
    """
    Return words of the vocabulary that are neither learned from nor held out.

    hidden: names of classes that pictures show without a label; their words are not absent.
    """
    vocabulary = default_vocabulary()
    known = held_out_words().union(table.words)
    for name in hidden:
        for word in concept_of(name).words:
            known = known.union((word,), vocabulary.expand(word))
    return sorted({wording for group in vocabulary.wordings.values() for wording in group
                   if wording not in known})


def _check_space(start: Path, encoder: TextEncoder) -> None:
    known = start / TEXT_SPACE
    if known.is_file() and known.read_text().strip() != encoder.space:
        raise ConfigError(f'{start} embeds its regions in the text space '
                          f'{known.read_text().strip()}, and the text encoder is of '
                          f'{encoder.space}; give the encoder of that space')


class GroundingTraining(ClosedSetTraining):
    """
    Training of region embeddings; folder and resuming as for ClosedSetTraining.

    start: folder of a run; its network gets a region head where it has none. encoder: of the
    words; its space becomes the network's. With a trainable of region_head alone, masks and
    classes stay exactly those of the start; with others, masks learn by the class-agnostic loss
    and class head and pixel classifier stay.
    With config.grounding.captions, pictures with captions take the place of the labelled set,
    which still names the classes and validates.
    Raises ConfigError when the start has other classes than the data set or embeds its regions
    in another text space, a part to train is not there, or parts of a batch have one picture, and
    so nothing to contrast its words with.
    """

    def __init__(self, config: Config, folder: str | Path, start: str | Path,
                 encoder: TextEncoder, device: str | None = None) -> None:
        self._start, self._names = load_start(start, config), class_names(start)
        _check_space(Path(start), encoder)
        self.encoder = encoder
        config.stage = 'grounding'
        grounding = config.grounding
        self.captions = CaptionFolder(grounding.captions) if grounding.captions else None
        self.objects: CutoutSet | None = open_cutouts(
            grounding.objects, None, root=config.data.root,
            exclude=COCO_ROAD_CATEGORIES) if grounding.objects and not self.captions else None
        super().__init__(config, folder, device)
        if grounding.grounding_weight and self.part_size < 2:
            raise ConfigError(
                'grounding.grounding_weight: words are contrasted with the other pictures in a '
                f'part of a batch, and optimizer.batch_size {config.optimizer.batch_size} over '
                f'{self.processes.size} processes x optimizer.accumulate '
                f'{config.optimizer.accumulate} leaves 1 a part; it takes 2')
        if self.processes.first:
            record_start(start, self.folder)
            (self.folder / TEXT_SPACE).write_text(f'{encoder.space}\n')

    def _make_network(self, num_classes: int) -> MaskClassifier:
        network = self._start
        check_classes(network.num_classes, self._names, self.data_set)
        network.add_region_head(REGION_HEAD, self.encoder.dim,
                                self.config.grounding.region_hidden_dim)
        _, self.parameters = freeze_except(network, self.config.grounding.trainable)
        # No loss of this stage reaches them.
        network.transformer_decoder.class_embed.requires_grad_(False)
        if network.pixel_classifier is not None:
            network.pixel_classifier.requires_grad_(False)
        self.trainable = sum(p.numel() for p in network.parameters() if p.requires_grad)
        return network.train()

    @property
    def _labels(self) -> tuple[str, ...]:
        return stream_labels(self.data_set, self.objects)

    def _make_criterion(self, num_classes: int) -> nn.Module:
        self.table = WordTable(self._labels, caption_nouns() if self.captions else ())
        words = word_embeddings(self.encoder, list(self.table.words))
        absent = word_embeddings(
            self.encoder, absent_words(self.table, self.config.data.hidden))
        with_masks = any(
            parameter.requires_grad for name, parameter in self.network.named_parameters()
            if not name.startswith('region_head.'))
        return GroundingCriterion(self.config.grounding, words,
                                  torch.from_numpy(self.table.names), absent, with_masks)

    def _make_stream(self, length: int) -> Dataset:
        config, seed = self.config, self.config.optimizer.seed
        if self.captions is not None:
            return CaptionStream(self.captions, config.data, seed, length, config.grounding,
                                 self.table)
        return GroundingStream(self.data_set, config.data, seed, length, config.grounding,
                               self.table, self._labels, self.objects)
