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
Export of text encoders to the folders that owseg_ros.language runs: ONNX and tokenizers JSON.

The sentence encoder (sentence_encoder) and the text towers of open_clip (clip_text) come as a
TextTower; what is exported is compared with it, tokens and embeddings, before it is written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
import tempfile
from typing import Any

import numpy as np
import onnx
from owseg_ros.errors import OwsegError
from owseg_ros.language.encoder_folder import (
    NETWORK, TextEncoderFolder, WEIGHTS, write_text_encoder_folder)
from owseg_ros.language.onnx_encoder import OnnxTextEncoder, OUTPUT, TOKENS
from owseg_ros.language.text import normalise_text, TextError
from owseg_ros.language.vocabulary import default_vocabulary
import torch
from torch import nn

OPSET = 18
TOLERANCE = 1e-5
MAX_BATCH = 4096
# An ONNX file holds less than 2 GiB; newer torch keeps weights apart from here on by itself.
MAX_ONNX_BYTES = 1536 * 2 ** 20
# Every eighth wording of the vocabulary is also checked.
_STEP = 8
CHECK_TEXTS = (
    '', ' ', '.', '?!', '0', '1234567890', 'a', 'an orange traffic cone on the road.',
    "the driver's car isn't there", "we'll see, they've left, I'm here, she'd go, you're on",
    'rock-and-roll', 'e-scooter', 'semi-trailer/truck', 'tuk_tuk', '50 km/h', '3.5t', 'M&M',
    'a  b   c', 'ABC Def', 'don’t “quote” ‘me’', 'naïve café', 'straße', 'Ångström', 'œuvre',
    'señal de tráfico', 'piéton', 'Fußgänger', 'żółty samochód', 'çalışma', 'İstanbul', 'ığdır',
    'ΟΔΟΣ', 'οδός', 'дорожный конус', 'велосипедист', 'გზა', 'ճանապարհ', 'כביש', 'مخروط مرور',
    'می‌رود', 'सड़क', 'ถนน', 'đường phố', '道路', '交通锥', '歩行者', 'トラック', 'ﾄﾗｯｸ', '보행자',
    'ＦＵＬＬ ｗｉｄｔｈ', 'ﬁre', 'x²', '½', '№ 5', '™', '5€', '🚧', '🚗🚙', '👩\u200d🔬', '🇩🇪',
    'e\u0301', 'a\u0301\u0323', '\u00a0dog\u00a0', 'a\u200bb', '[CLS] dog [SEP]', '[MASK]',
    '##ing', '<s> road </s>', '<mask>', 'a <pad> b', '<unk>',
    'supercalifragilisticexpialidocious', 'x' * 128, 'stone ' * 60, '狗' * 128, '🚧' * 100)


class TextExportError(OwsegError):
    """Weights that are not the expected ones, or an export that differs from its model."""


@dataclass(frozen=True)
class TextTower:
    """
    A text encoder in torch, ready for export.

    network: (input_ids, attention_mask) int64 [n, tokens], or input_ids alone where not masked,
        to float32 [n, D] of unit length.
    onnx: writes the same as an ONNX file, for any number of texts up to 4096, to the path that it
        is given; weights that make it too large for one file to path + '.data'.
    masked: whether it takes the mask; then the count of tokens may vary, else it is fixed.
    tokenizer: for the robot, JSON of the library tokenizers. original: the model's own, texts to
        token lists, without padding where masked, else with the model's padding.
    manifest: as encoder_folder.write_text_encoder_folder takes it.
    """

    network: nn.Module
    onnx: Callable[[Path], object]
    masked: bool
    tokenizer: str
    original: Callable[[Sequence[str]], list[list[int]]]
    manifest: Mapping[str, Any]


@dataclass(frozen=True)
class Parity:
    """How an export compares: texts compared, those with other tokens, largest difference."""

    texts: int
    other_tokens: tuple[str, ...]
    difference: float


def check_texts(manifest: Mapping[str, Any]) -> list[str]:
    """Return CHECK_TEXTS and wordings in their prompts, as queries are spelt; without repeats."""
    vocabulary = default_vocabulary()
    texts = list(CHECK_TEXTS)
    for wording in sorted(vocabulary.wordings)[::_STEP]:
        texts += vocabulary.prompts(manifest['templates'], wording)
    spelt = []
    for text in texts:
        try:
            spelt.append(normalise_text(text))
        except TextError:
            # Empty, or too long for a query: encoders take them all the same.
            spelt.append(text)
    return list(dict.fromkeys(spelt))


def torch_onnx(network: nn.Module, tokens: int, path: Path) -> None:
    """
    Write a network of fixed length as an ONNX file, exported by torch.

    network: input_ids int64 [n, tokens] to float32 [n, D]. path: of the file; weights above
    MAX_ONNX_BYTES are left to path + '.data'.
    """
    size = sum(tensor.numel() * tensor.element_size()
               for tensor in (*network.parameters(), *network.buffers()))
    # Two texts, because the exporter specialises a dimension whose example is one.
    torch.onnx.export(
        network.eval(), (torch.ones(2, tokens, dtype=torch.int64),), str(path),
        input_names=[TOKENS], output_names=[OUTPUT], opset_version=OPSET, dynamo=True,
        external_data=size > MAX_ONNX_BYTES, verbose=False,
        dynamic_shapes=[{0: torch.export.Dim('texts', min=1, max=MAX_BATCH)}])
    onnx.checker.check_model(str(path), full_check=True)


def parity(tower: TextTower, folder: str | Path, texts: Sequence[str]) -> Parity:
    """Compare what the robot computes with the model in torch and its own tokenizer."""
    encoder = OnnxTextEncoder(folder)
    expected, other = [], []
    for text, tokens in zip(texts, tower.original(texts)):
        ids, mask = encoder.tokens([text])
        found = ids[mask == 1] if tower.masked else ids[0]
        if found.tolist() != list(tokens):
            other.append(text)
        # The model's own tokens, so that both halves of the export are on trial.
        inputs = torch.tensor([tokens])
        arguments = (inputs, torch.ones_like(inputs)) if tower.masked else (inputs,)
        with torch.inference_mode():
            expected.append(tower.network(*arguments)[0].numpy())
    difference = np.abs(encoder.encode(texts) - np.array(expected)).max()
    return Parity(len(texts), tuple(other), float(difference))


def export_text_encoder(tower: TextTower, out: str | Path,
                        texts: Sequence[str] = ()) -> tuple[TextEncoderFolder, Parity]:
    """
    Write a text encoder to a folder, once it is known to compute what the tower computes.

    texts: compared besides check_texts. Raises TextExportError where tokens differ, or
    embeddings by more than 1e-5; nothing is written then.
    """
    with tempfile.TemporaryDirectory(prefix='owseg_text_') as staging:
        network, trial = Path(staging) / NETWORK, Path(staging) / 'trial'
        tower.onnx(network)
        weights = network.with_name(WEIGHTS)
        contents = (tower.manifest, network.read_bytes(), tower.tokenizer,
                    weights if weights.exists() else None)
        write_text_encoder_folder(trial, *contents)
        found = parity(tower, trial, [*check_texts(tower.manifest), *texts])
        _refuse_differences(found)
        return write_text_encoder_folder(out, *contents), found


def _refuse_differences(found: Parity) -> None:
    if found.other_tokens:
        raise TextExportError(
            f'the exported tokenizer differs from the original one on {len(found.other_tokens)} '
            f'of {found.texts} texts, such as {found.other_tokens[0]!r}; nothing was written')
    # Not a number fails the comparison.
    if not found.difference <= TOLERANCE:
        raise TextExportError(f'the exported embeddings differ by {found.difference:.1e} from '
                              f'those of torch, more than {TOLERANCE:g}; nothing was written')
