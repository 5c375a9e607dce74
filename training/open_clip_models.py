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
"""Models of open_clip by name, with random weights or those of a local file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
import logging
from pathlib import Path
from typing import Any

from owseg_ros.errors import OwsegError
from owseg_training.torchvision_compat import make_torchvision_importable
from torch import nn


class OpenClipError(OwsegError, ValueError):
    """A model that open_clip cannot make; the message says why."""


def import_open_clip() -> Any:
    """Return the module open_clip; raises OpenClipError where it is not installed."""
    make_torchvision_importable()
    try:
        import open_clip
    except ImportError as error:
        raise OpenClipError(f'{error}; install open_clip_torch') from error
    return open_clip


def text_configuration(name: str) -> dict[str, Any]:
    """
    Return what open_clip states of a model's text tower; keys as in its model configurations.

    name: as open_clip.list_models() has it. Raises OpenClipError where it is not known.
    """
    open_clip = import_open_clip()
    if name not in open_clip.list_models():
        raise OpenClipError(f'open_clip knows no model {name!r}; its names are those of '
                            'open_clip.list_models()')
    return open_clip.get_model_config(name)['text_cfg']


def hub_folder(name: str, repository: str, folder: str | Path | None) -> Path:
    """
    Return the folder that holds what a model takes from a repository of the Hugging Face hub.

    Raises OpenClipError, which says what to download, for None and where there is no such folder.
    """
    if folder is not None and Path(folder).is_dir():
        return Path(folder)
    problem = 'no folder with them was given' if folder is None else f'{folder} is no folder'
    raise OpenClipError(
        f'{name} takes files from {repository} on the Hugging Face hub, and {problem}; get them '
        f"(hf download {repository} --include '*.json' '*.model' '*.txt' --local-dir FOLDER) and "
        'pass --hf-folder FOLDER to owseg-train text-encoder open-clip')


def open_clip_model(name: str, weights: str | Path | None = None,
                    hf_folder: str | Path | None = None) -> nn.Module:
    """
    Return a model of open_clip in evaluation mode.

    name: as open_clip.list_models() has it; weights: a local checkpoint that open_clip reads
    (its own, OpenAI's, safetensors), None for random ones. hf_folder: with the config.json of a
    text tower that is a model of transformers; no other model reads it. Nothing is downloaded.
    Raises OpenClipError where the model is not known, the checkpoint cannot be read or does
    not fit, or a configuration is needed that is not there.
    """
    open_clip, text = import_open_clip(), text_configuration(name)
    if weights is not None and not Path(weights).is_file():
        raise OpenClipError(f'{weights} cannot be read: there is no such file')
    changes: dict[str, Any] = {}
    if 'hf_model_name' in text:
        folder = hub_folder(name, text['hf_model_name'], hf_folder)
        if not (folder / 'config.json').is_file():
            raise OpenClipError(f'{folder} has no config.json, which states the text tower of '
                                f'{name}: that of {text["hf_model_name"]}')
        # Its weights are in the checkpoint; open_clip would ask for others.
        changes = {'pretrained_text': False, 'text_cfg': {
            **text, 'hf_model_name': str(folder), 'hf_model_pretrained': False}}
    try:
        with _random_weights_expected():
            return open_clip.create_model(
                name, pretrained=weights and str(weights), **changes).eval()
    # Checkpoints fail in as many ways as there are formats of them.
    except (RuntimeError, ValueError, KeyError, OSError, AttributeError, AssertionError) as error:
        raise OpenClipError(f'open_clip cannot make {name} of {weights}: '
                            f'{" ".join(str(error).split())[:300]}') from error


@contextmanager
def _random_weights_expected() -> Iterator[None]:
    """Leave out open_clip's warning that it was given no weights; they may come later."""
    def keep(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith('No pretrained weights loaded')

    # open_clip logs to the root logger.
    logger = logging.getLogger()
    logger.addFilter(keep)
    try:
        yield
    finally:
        logger.removeFilter(keep)
