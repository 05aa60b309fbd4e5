"""JSON as QEMU's monitor reads and writes it: a parser that is fed bytes, and an encoder.

QMP has no framing. A client may send half a message, three messages in one packet, or a message with no newline
after it, so the server reads tokens as they come and acts when a value is complete. `JsonStream.feed` takes bytes
and returns what they completed: JSON values and `JsonError`s, in order. A number or keyword at top level is complete
only when the byte after it has been seen.

What QEMU adds to, or takes from, RFC 8259:

* strings may be in single quotes, and know the escape `\\'`;
* Unicode non-characters are refused, escaped or not; NUL may be written as the bytes C0 80;
* an integer outside -2**63 .. 2**64-1 becomes a floating-point number;
* duplicate keys are an error; nesting is limited to 1024, a message to 64 MiB of token text and 2 Mi tokens.

After a lexical error (a byte that no token can have) input is skipped up to the next structural character, control
character other than TAB, or byte FE or FF. A message with any other error is read up to where its brackets balance,
or close once too often, and answered by one error.

Ref: vectors qemu-qmp-transcript.jsonl, session `protocol`, sections `malformed`, `limits` and `framing`.
"""

from __future__ import annotations

import re
from json.encoder import JSONEncoder
from typing import Any, Final, NamedTuple

MAX_NESTING: Final = 1024
"""Open brackets and braces in one message."""
MAX_TOKEN_BYTES: Final = 64 << 20
"""Bytes of token text in one message."""
MAX_TOKENS: Final = 2 << 20
"""Tokens in one message."""
MAX_SHOWN: Final = 1024
"""Bytes of a bad token that an error repeats."""

# A token that is all there, and holds no escape. Whatever does not match goes through `_advance`, byte class by class.
_TOKEN: Final = re.compile(
    rb"[ \t\r\n]*(?:"
    rb"([{}\[\],:])"
    rb'|"([^"\\\x00-\x1f\xfe\xff]*)"'
    rb"|'([^'\\\x00-\x1f\xfe\xff]*)'"
    rb"|(-?(?:0(?![0-9.eE])|[1-9][0-9]*(?![0-9.eE])))(?=[\x00-\xff])"
    rb"|([a-z]+)(?=[^a-z]))"
)
_STRUCTURAL, _DOUBLE, _SINGLE, _INTEGER, _KEYWORD = 1, 2, 3, 4, 5
_QUOTED: Final = (_DOUBLE, _SINGLE)

_SPACE: Final = re.compile(rb"[ \t\r\n]+")
_DIGITS: Final = re.compile(rb"[0-9]+")
_LETTERS: Final = re.compile(rb"[a-z]+")
_IN_DOUBLE: Final = re.compile(rb'[^"\\\x00-\x1f\xfe\xff]+')
_IN_SINGLE: Final = re.compile(rb"[^'\\\x00-\x1f\xfe\xff]+")
_RECOVERS: Final = re.compile(rb"[\x00-\x08\x0a-\x1f\xfe\xff{}\[\]:,]")
_ESCAPE: Final = re.compile(rb"\\(?:u([0-9a-fA-F]{4})|(.))", re.DOTALL)
_TRAIL_SURROGATE: Final = re.compile(rb"\\u([dD][c-fC-F][0-9a-fA-F]{2})")
_NONCHARACTER: Final = re.compile(
    "[\ufdd0-\ufdef" + "".join(chr(plane << 16 | last) for plane in range(17) for last in (0xFFFE, 0xFFFF)) + "]"
)
_SHORT_ESCAPES: Final = {
    b'"': '"',
    b"'": "'",
    b"\\": "\\",
    b"/": "/",
    b"b": "\b",
    b"f": "\f",
    b"n": "\n",
    b"r": "\r",
    b"t": "\t",
}
_KEYWORDS: Final = {b"true": True, b"false": False, b"null": None}

# Lexer states. The number states are those of RFC 8259's grammar.
_START, _RECOVERY, _STRING, _STRING_ESCAPE, _IN_KEYWORD = 0, 1, 2, 3, 4
_MINUS, _ZERO, _INT, _POINT, _FRACTION, _E, _E_SIGN, _EXPONENT = 5, 6, 7, 8, 9, 10, 11, 12

# What the parser expects next.
_VALUE, _FIRST_ELEMENT, _FIRST_KEY, _KEY, _COLON, _AFTER_ELEMENT, _AFTER_MEMBER = range(7)
_WANTS_VALUE: Final = (_VALUE, _FIRST_ELEMENT)
_WANTS_KEY: Final = (_FIRST_KEY, _KEY)
_MAY_CLOSE_OBJECT: Final = (_FIRST_KEY, _AFTER_MEMBER)
_MAY_CLOSE_ARRAY: Final = (_FIRST_ELEMENT, _AFTER_ELEMENT)


class JsonError(NamedTuple):
    """What was wrong with the bytes of one message. `desc` is the description of the QMP error reply."""

    desc: str


class _BadString(Exception):
    """The rest of a parse error's text."""


class JsonStream:
    """A push parser for a stream of JSON values. Sans I/O; never raises on any bytes.

    Positions in errors are `line:column`, both from 1, columns in bytes, counted since the stream began.
    """

    def __init__(self, max_token_bytes: int = MAX_TOKEN_BYTES, max_tokens: int = MAX_TOKENS) -> None:
        self._max_token_bytes = max_token_bytes
        self._max_tokens = max_tokens
        self._state = _START
        self._token = bytearray()
        """The text of a token that is not complete yet."""
        self._in_string = _IN_DOUBLE
        self._base = 0
        """Stream offset of the first byte of the chunk in hand."""
        self._line = 1
        self._line_start = 0
        """Stream offset of the first byte of the line."""
        self._position = (1, 1)
        """Where the token in hand began."""
        self._shift = 0
        self._out: list[Any] = []
        self._reset_message()

    def feed(self, data: bytes) -> list[Any]:
        """Take the next bytes; return the values and `JsonError`s that they completed."""
        out = self._out = []
        pos, end = 0, len(data)
        match = _TOKEN.match
        while pos < end:
            found = match(data, pos) if self._state == _START else None
            if found is None:
                pos = self._advance(data, pos)
                continue
            kind: int = found.lastindex  # type: ignore[assignment]  # every alternative has its group
            start, pos_after = found.start(kind), found.end()
            if kind in _QUOTED:
                start -= 1
            if start > pos:
                self._skipped_space(data, pos, start)
            pos = pos_after
            self._begin_token(start)
            text: bytes = found.group(kind)
            if kind == _STRUCTURAL:
                self._structural(text)
            elif kind == _KEYWORD:
                self._keyword(text)
            elif kind == _INTEGER:
                self._number(text)
            else:
                self._string(text, text[:0])
        self._base += end
        self._out = []
        return out

    # --- the lexer -------------------------------------------------------------------------------------------

    def _begin_token(self, start: int) -> None:
        self._position = (self._line, self._base + start - self._line_start + 1 + self._shift)
        self._shift = 0

    def _newline(self, pos: int) -> None:
        self._line += 1
        self._line_start = self._base + pos + 1

    def _skipped_space(self, data: bytes, pos: int, end: int) -> None:
        self._shift = 0
        newline = data.rfind(b"\n", pos, end)
        if newline >= 0:
            self._line += data.count(b"\n", pos, end) - 1
            self._newline(newline)

    def _advance(self, data: bytes, pos: int) -> int:
        """Move the lexer over at least one byte, or one change of state; return the new position."""
        state = self._state
        if state == _START:
            return self._start(data, pos)
        if state == _RECOVERY:
            found = _RECOVERS.search(data, pos)
            if found is None:
                return len(data)
            self._state = _START
            # QEMU notes where a token begins when the one before it ends; the byte that ends the recovery has been
            # counted by then, so a token that begins with it is reported one column late.
            self._shift = 1
            return found.start()
        if state == _STRING:
            found = self._in_string.match(data, pos)
            if found is not None:
                self._keep(found.group())
                return found.end()
            return self._end_string(data, pos)
        if state == _IN_KEYWORD:
            found = _LETTERS.match(data, pos)
            if found is not None:
                self._keep(found.group())
                return found.end()
            self._state = _START
            self._keyword(self._taken())
            return pos
        if state == _STRING_ESCAPE:
            if data[pos] < 0x20 or data[pos] > 0xFD:
                return self._stray(data, pos)
            self._keep(data[pos : pos + 1])
            self._state = _STRING
            return pos + 1
        return self._in_number(data, pos)

    def _start(self, data: bytes, pos: int) -> int:
        space = _SPACE.match(data, pos)
        if space is not None:
            self._skipped_space(data, pos, space.end())
            return space.end()
        byte = data[pos]
        self._begin_token(pos)
        if byte in b"{}[],:":
            self._structural(data[pos : pos + 1])
            return pos + 1
        if byte in b"\"'":
            self._state = _STRING
            self._in_string = _IN_DOUBLE if byte == 0x22 else _IN_SINGLE
        elif byte in b"0":
            self._state = _ZERO
        elif byte in b"-":
            self._state = _MINUS
        elif byte in b"123456789":
            self._state = _INT
        elif byte in b"abcdefghijklmnopqrstuvwxyz":
            self._state = _IN_KEYWORD
        else:
            return self._stray(data, pos)
        self._keep(data[pos : pos + 1])
        return pos + 1

    def _end_string(self, data: bytes, pos: int) -> int:
        byte = data[pos]
        if byte == 0x5C:
            self._keep(b"\\")
            self._state = _STRING_ESCAPE
            return pos + 1
        if byte < 0x20 or byte > 0xFD:
            return self._stray(data, pos)
        self._state = _START
        text = self._taken()
        self._string(text[1:], text[:1])
        return pos + 1

    def _in_number(self, data: bytes, pos: int) -> int:
        state = self._state
        byte = data[pos]
        digits = _DIGITS.match(data, pos)
        if digits is not None:
            if state == _ZERO:
                return self._stray(data, pos)
            if state == _MINUS:
                self._state = _ZERO if byte == 0x30 else _INT
                self._keep(data[pos : pos + 1])
                return pos + 1
            self._state = {_POINT: _FRACTION, _E: _EXPONENT, _E_SIGN: _EXPONENT}.get(state, state)
            self._keep(digits.group())
            return digits.end()
        if byte == 0x2E and state in (_ZERO, _INT):
            self._state = _POINT
        elif byte in b"eE" and state in (_ZERO, _INT, _FRACTION):
            self._state = _E
        elif byte in b"+-" and state == _E:
            self._state = _E_SIGN
        elif state in (_ZERO, _INT, _FRACTION, _EXPONENT):
            self._state = _START
            self._number(self._taken())
            return pos
        else:
            return self._stray(data, pos)
        self._keep(data[pos : pos + 1])
        return pos + 1

    def _keep(self, text: bytes) -> None:
        if self._error is None:
            if self._token_bytes + len(self._token) + len(text) <= self._max_token_bytes:
                self._token += text
                return
            self._fail("JSON token size limit exceeded")
        # The message is lost; of its tokens only brackets and quotes matter now.
        if not self._token:
            self._token += text[:1]

    def _taken(self) -> bytes:
        text = bytes(self._token)
        self._token.clear()
        return text

    def _stray(self, data: bytes, pos: int) -> int:
        """A lexical error: no token has this byte here. The byte belongs to the bad token."""
        text = self._taken() + data[pos : pos + 1]
        if data[pos] == 0x0A:
            self._newline(pos)
        line, column = self._position
        shown = text[:MAX_SHOWN].decode("utf-8", "replace")
        self._reset_message()
        self._out.append(JsonError(f"{line}:{column}: JSON parse error, stray '{shown}'"))
        self._state = _RECOVERY
        return pos + 1

    # --- the parser ------------------------------------------------------------------------------------------

    def _reset_message(self) -> None:
        self._containers: list[Any] = []
        self._keys: list[str] = []
        """The key that waits for its value, for each open object."""
        self._expect = _VALUE
        self._braces = 0
        self._brackets = 0
        self._tokens = 0
        self._token_bytes = 0
        self._error: str | None = None

    def _fail(self, desc: str) -> None:
        """The message is bad: forget what it held, and read on to its end."""
        if self._error is None:
            self._error = desc
            self._containers.clear()
            self._keys.clear()

    def _syntax(self, what: str) -> None:
        line, column = self._position
        self._fail(f"{line}:{column}: JSON parse error, {what}")

    def _misplaced(self) -> None:
        """A token came that may not come here."""
        expect = self._expect
        if expect == _COLON:
            self._syntax("expecting ':'")
        elif expect == _AFTER_MEMBER:
            self._syntax("expected ',' or '}'")
        elif expect == _AFTER_ELEMENT:
            self._syntax("expected ',' or ']'")
        elif expect in _WANTS_KEY:
            self._syntax("expecting key")
        else:
            self._syntax("expecting value")

    def _count(self, size: int) -> bool:
        """Account for one token; False if the message is bad."""
        self._tokens += 1
        self._token_bytes += size
        if self._tokens > self._max_tokens:
            self._fail("JSON token count limit exceeded")
        elif self._token_bytes > self._max_token_bytes:
            self._fail("JSON token size limit exceeded")
        return self._error is None

    def _structural(self, text: bytes) -> None:
        good = self._count(1)
        expect = self._expect
        if text == b"{" or text == b"[":
            if text == b"{":
                self._braces += 1
            else:
                self._brackets += 1
            if self._braces + self._brackets > MAX_NESTING:
                self._fail("JSON nesting depth limit exceeded")
            elif good and expect in _WANTS_VALUE:
                if text == b"{":
                    self._containers.append({})
                    self._keys.append("")
                    self._expect = _FIRST_KEY
                else:
                    self._containers.append([])
                    self._expect = _FIRST_ELEMENT
            elif good:
                self._misplaced()
            return
        if text == b"}":
            self._braces -= 1
            if good and expect in _MAY_CLOSE_OBJECT:
                self._keys.pop()
                self._value(self._containers.pop())
                return
        elif text == b"]":
            self._brackets -= 1
            if good and expect in _MAY_CLOSE_ARRAY:
                self._value(self._containers.pop())
                return
        elif text == b":":
            if good and expect == _COLON:
                self._expect = _VALUE
                return
        elif good and expect == _AFTER_MEMBER:
            self._expect = _KEY
            return
        elif good and expect == _AFTER_ELEMENT:
            self._expect = _VALUE
            return
        if good:
            self._misplaced()
        self._bad_message_ends()

    def _string(self, text: bytes, quote: bytes) -> None:
        """A string token. `quote` is given if the text may hold escapes."""
        if self._count(len(text) + 2):
            expect = self._expect
            try:
                value = _unescape(text, quote) if quote or not text.isascii() else text.decode("ascii")
            except _BadString as bad:
                self._syntax(str(bad))
            else:
                if expect in _WANTS_VALUE:
                    self._value(value)
                    return
                if expect in _WANTS_KEY:
                    self._keys[-1] = value
                    self._expect = _COLON
                    return
                self._misplaced()
        self._bad_message_ends()

    def _keyword(self, text: bytes) -> None:
        if self._count(len(text)):
            if self._expect not in _WANTS_VALUE:
                self._misplaced()
            elif text not in _KEYWORDS:
                self._syntax(f"invalid keyword '{text.decode('ascii')}'")
            else:
                self._value(_KEYWORDS[text])
                return
        self._bad_message_ends()

    def _number(self, text: bytes) -> None:
        if self._count(len(text)):
            if self._expect not in _WANTS_VALUE:
                self._misplaced()
            else:
                self._value(_parse_number(text))
                return
        self._bad_message_ends()

    def _value(self, value: Any) -> None:
        """A value is complete: it is the message, or goes into the container that is open."""
        if not self._containers:
            self._reset_message()
            self._out.append(value)
            return
        container = self._containers[-1]
        if type(container) is list:
            container.append(value)
            self._expect = _AFTER_ELEMENT
            return
        key = self._keys[-1]
        if key in container:
            self._syntax("duplicate key")
            return
        container[key] = value
        self._expect = _AFTER_MEMBER

    def _bad_message_ends(self) -> None:
        """Answer a bad message once its brackets balance or close too often."""
        if self._error is None:
            return
        if self._braces < 0 or self._brackets < 0 or (self._braces == 0 and self._brackets == 0):
            desc = self._error
            self._reset_message()
            self._out.append(JsonError(desc))


def _parse_number(text: bytes) -> int | float:
    if len(text) <= 20 and text.removeprefix(b"-").isdigit():
        value = int(text)
        if -(1 << 63) <= value < 1 << 64:
            return value
    return float(text)


def _decode(text: bytes) -> str:
    """A string's bytes, without escapes. Raises `_BadString`."""
    if text.isascii():
        return text.decode("ascii")
    try:
        decoded = text.replace(b"\xc0\x80", b"\0").decode("utf-8")
    except UnicodeDecodeError:
        raise _BadString("invalid UTF-8 sequence in string") from None
    if _NONCHARACTER.search(decoded):
        raise _BadString("invalid UTF-8 sequence in string")
    return decoded


def _unescape(text: bytes, quote: bytes) -> str:
    """The string that a token's inside stands for. Raises `_BadString`."""
    parts: list[str] = []
    pos = 0
    while True:
        at = text.find(b"\\", pos)
        if at < 0:
            parts.append(_decode(text[pos:]))
            return "".join(parts)
        parts.append(_decode(text[pos:at]))
        found = _ESCAPE.match(text, at)
        if found is None or found.group(1) is None:
            letter = text[at + 1 : at + 2]
            if letter == b"u":
                shown = (text[at : at + 6] + quote)[:6].decode("utf-8", "replace")
                raise _BadString(f"{shown} is not a valid Unicode character")
            if letter not in _SHORT_ESCAPES:
                raise _BadString("invalid escape sequence in string")
            parts.append(_SHORT_ESCAPES[letter])
            pos = at + 2
            continue
        code = int(found.group(1), 16)
        pos = at + 6
        if 0xD800 <= code < 0xDC00:
            trail = _TRAIL_SURROGATE.match(text, pos)
            if trail is not None:
                code = 0x10000 + ((code & 0x3FF) << 10) + (int(trail.group(1), 16) & 0x3FF)
                pos = at + 12
        character = chr(code)
        if 0xD800 <= code < 0xE000 or _NONCHARACTER.match(character):
            raise _BadString(f"{text[at:pos].decode('ascii')} is not a valid Unicode character")
        parts.append(character)


# --- the encoder -------------------------------------------------------------------------------------------------

_encode_fast: Final = JSONEncoder(allow_nan=False).encode
_encode_pretty: Final = JSONEncoder(indent=4, allow_nan=False).encode
_HEX_ESCAPE: Final = re.compile(r"\\(?:u([0-9a-f]{4})|.)")


def dumps(value: Any, pretty: bool = False) -> str:
    """JSON text as QEMU writes it: ASCII only, `", "` and `": "` between, hexadecimal digits in capitals.

    Raises TypeError or ValueError for what JSON cannot say. Floating-point numbers are as Python writes them:
    see `dumps_exactly`.
    """
    text = _encode_pretty(value) if pretty else _encode_fast(value)
    if "\\u" in text or "\x7f" in text:
        text = _HEX_ESCAPE.sub(lambda m: f"\\u{m[1].upper()}" if m[1] else m[0], text).replace("\x7f", "\\u007F")
    return text


def dumps_exactly(value: Any) -> str:
    """`dumps` with each floating-point number in 17 digits, as QEMU echoes it; for the `id` of a request.

    An infinity, which a client can ask for by 1e999, comes back as 1e999: QEMU writes `inf`, which is not JSON.
    """
    parts: list[str] = []
    # A client may nest deeper than Python may recurse.
    todo: list[Any] = [value]
    while todo:
        item = todo.pop()
        if isinstance(item, _Text):
            parts.append(item.text)
        elif isinstance(item, float):
            infinite = item in (float("inf"), float("-inf"))
            parts.append(("1e999" if item > 0 else "-1e999") if infinite else f"{item:.17g}")
        elif isinstance(item, dict):
            members: list[Any] = [_Text("{")]
            for key, member in item.items():
                members += [_Text((", " if len(members) > 1 else "") + dumps(key) + ": "), member]
            todo += [_Text("}"), *reversed(members)]
        elif isinstance(item, list):
            elements: list[Any] = [_Text("[")]
            for element in item:
                elements += [_Text(", "), element] if len(elements) > 1 else [element]
            todo += [_Text("]"), *reversed(elements)]
        else:
            parts.append(dumps(item))
    return "".join(parts)


class _Text(NamedTuple):
    """Text that is written already."""

    text: str
