"""The value grammar of QEMU's command line: `key=value` lists, JSON objects, booleans, sizes, numbers.

    key=value,key=value     a doubled comma in a value stands for one comma
    first,key=value         where an option has an implied first key, as `-device edu,id=e0`
    {'key': value, ...}     where an option takes JSON; strings may be in single quotes

Everything here is pure. Errors are UsageErrors in QEMU's words, without the option's name: the caller puts that first.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from vmm.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

_KEY: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
_TRUE: Final = ("on", "yes", "true", "y")
_FALSE: Final = ("off", "no", "false", "n")
_SIZE: Final = re.compile(r"(0[xX][0-9a-fA-F]+|[0-9]+(?:\.[0-9]*)?|\.[0-9]+)([bBkKmMgGtTpPeE]?)")
_SHIFTS: Final = {"b": 0, "k": 10, "m": 20, "g": 30, "t": 40, "p": 50, "e": 60}
_SIZE_HINT: Final = (
    "\nOptional suffix k, M, G, T, P or E means kilo-, mega-, giga-, tera-, peta-\nand exabytes, respectively."
)


class Properties(NamedTuple):
    """What a `key=value` list or a JSON object says. `help`: it asks for help instead.

    `from_text`: the values are text; otherwise they are of JSON types.
    """

    values: dict[str, Any]
    from_text: bool = True
    help: bool = False


def parse_keyval(text: str, implied: str | None = None, flags: bool = False) -> Properties:
    """A `key=value` list. `implied`: the key of a first part that has none.

    `flags`: a key alone means `on`, as it does for -device; otherwise it is an error. A key that is given twice has its
    last value. `help` or `?` alone asks for help. Raises UsageError.
    """
    values: dict[str, Any] = {}
    wants_help = False
    if not text:
        return Properties(values)
    for place, part in enumerate(text.replace(",,", "\0").split(",")):
        key, equals, value = part.replace("\0", ",").partition("=")
        if not equals:
            if key in ("help", "?"):
                wants_help = True
                continue
            if place == 0 and implied is not None:
                if not key:
                    raise UsageError(f"Parameter '{implied}' is missing")
                key, value = implied, part.replace("\0", ",")
            elif not key:
                raise UsageError("Invalid parameter ''")
            elif flags:
                value = "on"
            else:
                raise UsageError(f"Expected '=' after parameter '{key}'")
        if not _KEY.fullmatch(key):
            raise UsageError(f"Invalid parameter '{key}'")
        values[key] = value
    return Properties(values, help=wants_help)


def nest(values: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted keys as members of members: `file.filename` becomes {"file": {"filename": ...}}.

    Members that are numbered from 0 on become a list. Raises UsageError for a key that is both a value and a parent.
    """
    root: dict[str, Any] = {}
    for key, value in values.items():
        at = root
        *path, last = key.split(".")
        for part in path:
            at = at.setdefault(part, {})
            if not isinstance(at, dict):
                raise UsageError(f"Parameters '{key}' and '{key.rpartition('.')[0]}' are both given")
        if isinstance(at.get(last), dict) and value != {}:
            raise UsageError(f"Parameters '{key}' and '{key}.*' are both given")
        at[last] = value
    return {key: _listed(value) for key, value in root.items()}


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """The opposite of `nest`, with values of JSON types as texts."""
    flat: dict[str, str] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, list):
            value = {str(n): element for n, element in enumerate(value)}
        if isinstance(value, dict):
            flat |= flatten(value, f"{name}.")
        else:
            flat[name] = ("on" if value else "off") if isinstance(value, bool) else str(value)
    return flat


def _listed(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    members = {key: _listed(member) for key, member in value.items()}
    if members and all(str(n) in members for n in range(len(members))):
        return [members[str(n)] for n in range(len(members))]
    return members


def parse_json_object(text: str) -> Properties:
    """A JSON object with QEMU's extensions. Raises UsageError."""
    from vmm.qmp.json_stream import JsonError, JsonStream

    found = JsonStream().feed(text.encode("utf-8", "surrogateescape") + b"\n")
    if len(found) != 1:
        bad = next((item for item in found if isinstance(item, JsonError)), None)
        raise UsageError(bad.desc if bad else f"JSON parse error, {'premature EOI' if not found else 'trailing text'}")
    if isinstance(found[0], JsonError):
        raise UsageError(found[0].desc)
    if not isinstance(found[0], dict):
        raise UsageError("JSON object expected")
    return Properties(found[0], from_text=False)


def parse_properties(text: str, implied: str) -> Properties:
    """Either of the two, as `-device` and `-object` take it."""
    return parse_json_object(text) if text.startswith("{") else parse_keyval(text, implied, flags=True)


def parse_bool(name: str, text: str) -> bool:
    """`on`, `yes`, `true`, `y`, or their opposites. Raises UsageError."""
    if text in _TRUE:
        return True
    if text in _FALSE:
        return False
    raise UsageError(f"Parameter '{name}' expects 'on' or 'off'")


def parse_size(name: str, text: str, unit: str = "b") -> int:
    """A size in bytes: `512M`, `1.5G`, `0x1000`. `unit`: the suffix if there is none. Raises UsageError."""
    found = _SIZE.fullmatch(text)
    if found is not None:
        number, suffix = found.groups()
        shift = _SHIFTS[(suffix or unit).lower()]
        if number[:2] in ("0x", "0X"):
            # In hexadecimal b and e are digits; QEMU takes no suffix there but what cannot be one.
            size = int(number, 16) << shift
        else:
            whole, _, fraction = number.partition(".")
            size = int(whole or "0") << shift
            if fraction:
                size += (int(fraction) << shift) // 10 ** len(fraction)
        if size < 1 << 64:
            return size
    raise UsageError(f"Parameter '{name}' expects a non-negative number below 2^64{_SIZE_HINT}")


def parse_number(name: str, text: str, low: int = 0, high: int = (1 << 64) - 1) -> int:
    """An integer, decimal, hexadecimal or octal with a leading 0. Raises UsageError."""
    try:
        number = int(text, 8 if re.fullmatch(r"0[0-7]+", text) else 0)
    except ValueError:
        raise UsageError(f"Parameter '{name}' expects a number") from None
    if not low <= number <= high:
        raise UsageError(f"Parameter '{name}' expects a number from {low} to {high}")
    return number


def parse_choice(name: str, text: str, choices: Collection[str]) -> str:
    """One of a few words. Raises UsageError that names them."""
    if text not in choices:
        raise UsageError(f"Parameter '{name}' does not accept value '{text}'; use {', '.join(choices)}")
    return text


def only(values: Mapping[str, Any], known: Collection[str]) -> None:
    """Raise UsageError for a key that is not known."""
    for key in values:
        if key not in known:
            raise UsageError(f"Invalid parameter '{key}'; known are {', '.join(known)}")
