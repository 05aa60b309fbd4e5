"""QEMU's configuration files: `[group "id"]` and `key = "value"`, as -readconfig and blkdebug read them.

Ref: QEMU util/qemu-config.c, of which this has the grammar: values in double quotes, no escapes, `#` begins a comment
line.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from vmm.errors import UsageError

_GROUP = re.compile(r'\[\s*([^\s"\]]+)\s*(?:"([^"]*)")?\s*\]')
_VALUE = re.compile(r'([^\s=]+)\s*=\s*"([^"]*)"')


class Section(NamedTuple):
    """One section. `id` is empty if it has none; `line` is where it begins, from 1."""

    group: str
    id: str
    values: dict[str, str]
    line: int


def parse_ini(text: str, name: str) -> list[Section]:
    """The sections in order. UsageError, with `name` and the line, for what is none."""
    found: list[Section] = []
    for number, raw in enumerate(text.splitlines(), 1):
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        group = _GROUP.fullmatch(line)
        if group is not None:
            found.append(Section(group[1], group[2] or "", {}, number))
            continue
        value = _VALUE.fullmatch(line)
        if value is None:
            raise UsageError(f"{name}:{number}: parse error")
        if not found:
            raise UsageError(f"{name}:{number}: no group defined")
        found[-1].values[value[1]] = value[2]
    return found


def format_ini(sections: list[Section]) -> str:
    """The text of a file with these sections."""
    parts = ["# configuration file of a machine, for -readconfig\n"]
    for section in sections:
        name = f' "{section.id}"' if section.id else ""
        parts.append(f"\n[{section.group}{name}]\n")
        parts += [f'  {key} = "{value}"\n' for key, value in section.values.items()]
    return "".join(parts)
