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
"""The parser that owseg and owseg-train share: help that states every default."""

from __future__ import annotations

import argparse
from typing import Any


class DefaultsFormatter(argparse.HelpFormatter):
    """
    Add '(default: ...)' to the help of an option with a value, unless it has that already.

    A tuple is a size: (640, 480) is written 640x480.
    """

    def _get_help_string(self, action: argparse.Action) -> str | None:
        text = action.help
        if (text is None or 'default' in text or action.nargs == 0 or action.required
                or not action.option_strings or action.default in (None, '', argparse.SUPPRESS)):
            return text
        if isinstance(action.default, (list, tuple)):
            if not action.default:
                return text
            between = ' ' if isinstance(action.default, list) else 'x'
            return f'{text} (default: {between.join(map(str, action.default))})'
        return f'{text} (default: %(default)s)'


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose help, and that of its subcommands, states every default."""

    def __init__(self, **options: Any) -> None:
        options.setdefault('formatter_class', DefaultsFormatter)
        super().__init__(**options)
