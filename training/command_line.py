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
"""What subcommands of owseg-train have in common: texts of help and types of arguments."""

from __future__ import annotations

import argparse

DATA_HELP = ('folder of all data sets (default: $OWSEG_DATA, or ../shared/data beside the '
             'project)')
PRETRAINED_HELP = "safetensors with the backbone's weights (default: random ones)"


def positive(text: str) -> int:
    """Read a whole number from 1; raises ArgumentTypeError."""
    value = int(text) if text.isdecimal() else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f'{text!r} is not a number from 1')
    return value
