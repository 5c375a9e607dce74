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
"""Read weight files without running code from them: safetensors, torch archives, numpy pickles."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
import pickle
from typing import Any

import numpy as np
from owseg_ros.errors import OwsegError
from safetensors.torch import load_file
import torch


# What training programs keep beside the weights, sometimes in the same mapping.
BOOKKEEPING = frozenset({
    '_metadata', '__author__', 'args', 'arch', 'config', 'epoch', 'hyper_parameters', 'iteration',
    'lr_scheduler', 'matching_heuristics', 'meta', 'optimizer', 'scaler', 'scheduler', 'trainer'})


class WeightsError(OwsegError, ValueError):
    """A file of weights that cannot be read or does not fit; the message says why."""


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickles dicts of numpy arrays (detectron2's model zoo) and refuses everything else."""

    allowed = frozenset({
        ('_codecs', 'encode'), ('collections', 'OrderedDict'), ('numpy', 'dtype'),
        ('numpy', 'ndarray'), ('numpy.core.multiarray', '_reconstruct'),
        ('numpy.core.multiarray', 'scalar'), ('numpy._core.multiarray', '_reconstruct'),
        ('numpy._core.multiarray', 'scalar')})

    def find_class(self, module: str, name: str) -> Any:
        """Return an allowed constructor."""
        if (module, name) not in self.allowed:
            raise pickle.UnpicklingError(f'the file asks for {module}.{name}, which is no array')
        return super().find_class(module, name)


def read_file(path: str | Path) -> dict[str, Any]:
    """
    Read a .safetensors, .pth, .pt, .bin or .pkl file; tensors are on the CPU.

    Raises WeightsError for other files, broken ones, and such that hold more than arrays and
    plain types; FileNotFoundError.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'no file {path}')
    try:
        if path.suffix == '.safetensors':
            return load_file(str(path))
        if path.suffix in ('.pth', '.pt', '.bin'):
            content = torch.load(path, map_location='cpu', weights_only=True)
        elif path.suffix == '.pkl':
            with path.open('rb') as file:
                content = _ArrayUnpickler(file, encoding='latin1').load()
        else:
            raise WeightsError(
                f'{path}: not a file of weights; .safetensors, .pth, .pt, .bin and .pkl are read')
    except WeightsError:
        raise
    except Exception as error:  # Damaged pickles fail in any way.
        raise WeightsError(f'{path} is damaged, or cannot be read without running code from it: '
                           f'{error!r}; fetch it again, or save the state dict alone') from error
    if not isinstance(content, Mapping):
        raise WeightsError(f'{path} holds a {type(content).__name__}, not a state dict')
    return dict(content)


def state_tensors(content: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """
    Take the float32 state dict out of a checkpoint.

    content: a state dict or a dict with one under `model`, `state_dict` or `params`; values are
    torch tensors or numpy arrays of any floating type; integer ones keep their type.  A prefix
    `module.` (DistributedDataParallel) on every key and BOOKKEEPING are dropped.
    Raises WeightsError when there is another thing among the values.
    """
    for key in ('model', 'state_dict', 'params'):
        if isinstance(content.get(key), Mapping):
            content = content[key]
            break
    tensors = {}
    for key, value in content.items():
        if key in BOOKKEEPING:
            continue
        if isinstance(value, (np.ndarray, np.generic)):
            # A copy, because pickled arrays may be read-only.
            value = torch.from_numpy(np.array(value))
        if not isinstance(value, torch.Tensor):
            raise WeightsError(f'{key} is a {type(value).__name__}, not a tensor; this is no '
                               'state dict')
        tensors[key] = value.detach().float() if value.is_floating_point() else value.detach()
    if tensors and all(key.startswith('module.') for key in tensors):
        tensors = {key[len('module.'):]: value for key, value in tensors.items()}
    return tensors


def read_weights(path: str | Path) -> dict[str, torch.Tensor]:
    """Read a file's state dict, see read_file and state_tensors."""
    return state_tensors(read_file(path))
