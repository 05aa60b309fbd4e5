from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from support.qmp_target import sent_bytes, transcript
from vmm.qmp.json_stream import MAX_NESTING, JsonError, JsonStream, dumps, dumps_exactly

TEXT = st.text(st.characters(blacklist_categories=["Cs", "Cn"]), max_size=8)
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | TEXT | FLOATS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)
# Bytes that a grammar cares about, so that random input reaches every state.
FRAGMENTS = st.sampled_from(
    [*b"{}[],:\"'\\/-+.eE019aunt \t\r\n%", 0, 1, 0x7F, 0x80, 0xC0, 0xC3, 0xA9, 0xFD, 0xFE, 0xFF]
).map(lambda byte: bytes([byte])) | st.sampled_from(
    [b"true", b"false", b"null", b'"key"', b"'a'", b'"\\u00e9"', b"\\ud83d\\ude00", b"\\ud800", b"1.5e+3", b"-0"]
)
NOISE = st.lists(FRAGMENTS, max_size=60).map(b"".join) | st.binary(max_size=200)
RECORDED = b"".join(
    sent_bytes(line["raw"]) for line in transcript() if line["sess"] == "protocol" and line["dir"] == ">"
)


def parse(data: bytes) -> list[Any]:
    return JsonStream().feed(data)


def errors(data: bytes) -> list[str]:
    return [found.desc for found in parse(data) if isinstance(found, JsonError)]


def shown(item: Any) -> str:
    """An item as text, however deep."""
    return item.desc if isinstance(item, JsonError) else dumps_exactly(item)


def comparable(found: list[Any]) -> list[str]:
    return [repr(item) for item in found]


@given(st.lists(JSON, max_size=4), st.sampled_from([b"", b"\n", b" \r\n\t"]))
def test_values_written_by_another_encoder_come_back(values: list[Any], between: bytes) -> None:
    containers = [[value] for value in values]
    data = between.join(json.dumps(value).encode() for value in containers)
    assert comparable(parse(data)) == comparable(containers)


@given(JSON)
def test_values_come_back_from_our_own_encoders(value: Any) -> None:
    assert comparable(parse(dumps([value]).encode("ascii"))) == comparable([[value]])
    assert parse(dumps_exactly([value]).encode("ascii")) == [[value]]


@given(NOISE, st.data())
@example(b'{"a":01}{"x":1}', None)
def test_any_bytes_in_any_chunks_give_the_same_as_one_chunk(data: bytes, draw: Any) -> None:
    whole = parse(data)
    single = JsonStream()
    assert comparable([item for byte in data for item in single.feed(bytes([byte]))]) == comparable(whole)
    if draw is not None:
        cut = draw.draw(st.integers(0, len(data)))
        split = JsonStream()
        assert comparable(split.feed(data[:cut]) + split.feed(data[cut:])) == comparable(whole)


def test_recorded_input_byte_by_byte_gives_the_same_as_one_chunk() -> None:
    stream = JsonStream()
    found = [item for byte in RECORDED for item in stream.feed(bytes([byte]))]
    assert list(map(shown, found)) == list(map(shown, parse(RECORDED)))
    assert sum(isinstance(item, JsonError) for item in found) > 20


@given(NOISE)
@settings(max_examples=300)
def test_after_any_bytes_a_message_is_understood_again(noise: bytes) -> None:
    stream = JsonStream()
    stream.feed(noise)
    # An impossible byte ends whatever was open; what follows the next brace is read afresh.
    stream.feed(b"\xff")
    assert stream.feed(b'{"execute":"stop"}')[-1] == {"execute": "stop"}


@pytest.mark.parametrize(
    ("data", "desc"),
    [
        (b"[1 2]", "1:4: JSON parse error, expected ',' or ']'"),
        (b"[1,]", "1:4: JSON parse error, expecting value"),
        (b'{"a":}', "1:6: JSON parse error, expecting value"),
        (b"{1:2}", "1:2: JSON parse error, expecting key"),
        (b'\n\n  {"a" 1}', "3:8: JSON parse error, expecting ':'"),
        (b'["\\uZZZZ"]', "1:2: JSON parse error, \\uZZZZ is not a valid Unicode character"),
        (b'["\\u12"]', '1:2: JSON parse error, \\u12" is not a valid Unicode character'),
        (b'["\\ud800\\u0041"]', "1:2: JSON parse error, \\ud800 is not a valid Unicode character"),
        (b'["\\ufffe"]', "1:2: JSON parse error, \\ufffe is not a valid Unicode character"),
        (b'["\x80"]', "1:2: JSON parse error, invalid UTF-8 sequence in string"),
        (b'["\xed\xa0\x80"]', "1:2: JSON parse error, invalid UTF-8 sequence in string"),
        (b"[truth]", "1:2: JSON parse error, invalid keyword 'truth'"),
        (b"[1e]", "1:2: JSON parse error, stray '1e]'"),
    ],
)
def test_bad_message_gives_one_error_that_names_the_place(data: bytes, desc: str) -> None:
    assert errors(data) == [desc]


def test_scalar_is_complete_only_when_another_byte_follows() -> None:
    stream = JsonStream()
    assert stream.feed(b"12") == []
    assert stream.feed(b" ") == [12]
    assert stream.feed(b"null") == []
    assert stream.feed(b"{") == [None]


def test_bad_message_is_answered_when_its_brackets_balance() -> None:
    stream = JsonStream()
    assert stream.feed(b'{"a":[}') == []
    assert [type(item) for item in stream.feed(b"]")] == [JsonError]
    assert stream.feed(b"{}") == [{}]


def test_nesting_at_the_limit_is_read_and_one_more_is_refused() -> None:
    deep = b"[" * MAX_NESTING + b"]" * MAX_NESTING
    assert len(parse(deep)) == 1
    assert errors(deep) == []
    assert errors(b"[" + deep + b"]") == ["JSON nesting depth limit exceeded"]


def test_oversized_string_is_refused_without_being_kept() -> None:
    stream = JsonStream(max_token_bytes=100)
    assert stream.feed(b'["') == []
    for _ in range(1000):
        assert stream.feed(b"x" * 50) == []
    assert len(stream._token) <= 100
    assert stream.feed(b'"]') == [JsonError("JSON token size limit exceeded")]
    assert stream.feed(b"[1]") == [[1]]


def test_message_of_too_many_tokens_is_refused() -> None:
    stream = JsonStream(max_tokens=10)
    assert stream.feed(b"[" + b"1," * 10 + b"1]") == [JsonError("JSON token count limit exceeded")]
    assert stream.feed(b"[1,2]") == [[1, 2]]


def test_integer_beyond_64_bits_becomes_a_float() -> None:
    value, low, high = parse(b"[18446744073709551616,-9223372036854775808,18446744073709551615]")[0]
    assert (type(value), low, high) == (float, -(1 << 63), (1 << 64) - 1)


def test_integer_of_any_length_is_read() -> None:
    assert parse(b"[" + b"9" * 10_000 + b"]") == [[float("inf")]]


def test_echoed_numbers_are_written_as_recorded() -> None:
    assert dumps_exactly([99999999999999999999999.0, 1e3, 1.5, -0.0, 0.1]) == (
        "[9.9999999999999992e+22, 1000, 1.5, -0, 0.10000000000000001]"
    )
    assert dumps_exactly(parse(b"[1e999,-1e999]")[0]) == "[1e999, -1e999]"


def test_text_is_written_in_ascii_with_capital_hexadecimal_digits() -> None:
    assert dumps('é😀\x7f\\u00e9"\n') == r'"\u00E9\uD83D\uDE00\u007F\\u00e9\"\n"'


def test_deepest_message_can_be_echoed() -> None:
    (deep,) = parse(b"[" * MAX_NESTING + b"]" * MAX_NESTING)
    assert dumps_exactly(deep) == "[" * MAX_NESTING + "]" * MAX_NESTING
