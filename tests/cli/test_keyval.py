from __future__ import annotations

import re
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm.cli.keyval import (
    Properties,
    only,
    parse_bool,
    parse_choice,
    parse_json_object,
    parse_keyval,
    parse_number,
    parse_properties,
    parse_size,
)
from vmm.errors import UsageError

KEYS = st.from_regex(r"[a-z][a-z0-9_.-]{0,6}", fullmatch=True).filter(lambda key: key != "help")
VALUES = st.text("ab,=? {}'\"x1", max_size=8)


@given(st.dictionaries(KEYS, VALUES, min_size=1, max_size=5))
def test_list_written_with_doubled_commas_comes_back(values: dict[str, str]) -> None:
    text = ",".join(f"{key}={value.replace(',', ',,')}" for key, value in values.items())
    assert parse_keyval(text) == Properties(values)


@given(st.text(max_size=30), st.booleans())
def test_any_text_is_a_list_or_a_usage_error(text: str, flags: bool) -> None:
    with suppress(UsageError):
        assert all(isinstance(value, str) for value in parse_keyval(text, "first", flags).values.values())


@given(st.text(max_size=30))
def test_any_text_is_a_size_or_a_usage_error(text: str) -> None:
    with suppress(UsageError):
        assert 0 <= parse_size("size", text) < 1 << 64


@pytest.mark.parametrize(
    ("text", "values", "wants_help"),
    [
        ("", {}, False),
        ("edu", {"driver": "edu"}, False),
        ("edu,id=e0,multifunction", {"driver": "edu", "id": "e0", "multifunction": "on"}, False),
        ("driver=edu", {"driver": "edu"}, False),
        ("help", {}, True),
        ("?", {}, True),
        ("edu,help", {"driver": "edu"}, True),
        ("edu,id=a,id=b", {"driver": "edu", "id": "b"}, False),
        ("edu,id=", {"driver": "edu", "id": ""}, False),
        ("a,,b,path=x=y,,z", {"driver": "a,b", "path": "x=y,z"}, False),
    ],
)
def test_list_with_an_implied_first_key(text: str, values: dict[str, str], wants_help: bool) -> None:
    assert parse_keyval(text, "driver", flags=True) == Properties(values, True, wants_help)


@pytest.mark.parametrize(
    ("text", "desc"),
    [
        (",id=x", "Parameter 'driver' is missing"),
        ("edu,", "Invalid parameter ''"),
        ("edu,=x", "Invalid parameter ''"),
        ("edu,a b=x", "Invalid parameter 'a b'"),
        ("edu,flag", "Expected '=' after parameter 'flag'"),
    ],
)
def test_bad_list_is_refused(text: str, desc: str) -> None:
    with pytest.raises(UsageError, match=f"^{re.escape(desc)}$"):
        parse_keyval(text, "driver")


def test_json_object_may_use_single_quotes_and_keeps_types() -> None:
    given = parse_properties("{'driver': \"edu\", 'addr': 40, 'on': true, 'list': [null]}", "driver")
    assert given == Properties({"driver": "edu", "addr": 40, "on": True, "list": [None]}, from_text=False)


@pytest.mark.parametrize(
    ("text", "desc"),
    [
        ("{'a' 1}", "expecting ':'"),
        ("{'a': 1", "premature EOI"),
        ("{} {}", "trailing text"),
        ("{'a': 01}", "stray '01'"),
        ("[1]", "JSON object expected"),
    ],
)
def test_bad_json_is_refused_with_what_is_wrong(text: str, desc: str) -> None:
    with pytest.raises(UsageError, match=re.escape(desc)):
        parse_json_object(text)


@pytest.mark.parametrize(
    ("text", "unit", "size"),
    [
        ("512M", "b", 512 << 20),
        ("512", "m", 512 << 20),
        ("512", "b", 512),
        ("1.5G", "b", 3 << 29),
        (".5k", "b", 512),
        ("0x1000", "b", 4096),
        ("1k", "m", 1024),
        ("16E", "b", None),
        ("15E", "b", 15 << 60),
        ("-1", "b", None),
        ("1 M", "b", None),
        ("M", "b", None),
        ("1MB", "b", None),
    ],
)
def test_size_has_a_suffix_or_the_default_unit(text: str, unit: str, size: int | None) -> None:
    if size is None:
        with pytest.raises(UsageError, match="Parameter 'size' expects a non-negative number below 2"):
            parse_size("size", text, unit)
    else:
        assert parse_size("size", text, unit) == size


@pytest.mark.parametrize(("text", "number"), [("10", 10), ("0x10", 16), ("010", 8), ("0", 0)])
def test_number_has_cs_bases(text: str, number: int) -> None:
    assert parse_number("n", text) == number


@pytest.mark.parametrize(("text", "desc"), [("x", "expects a number"), ("9", "from 0 to 8"), ("-1", "from 0 to 8")])
def test_number_out_of_range_is_refused(text: str, desc: str) -> None:
    with pytest.raises(UsageError, match=desc):
        parse_number("n", text, 0, 8)


def test_words_for_true_and_false() -> None:
    assert [parse_bool("x", word) for word in ("on", "yes", "true", "y")] == [True] * 4
    assert [parse_bool("x", word) for word in ("off", "no", "false", "n")] == [False] * 4
    with pytest.raises(UsageError, match="Parameter 'x' expects 'on' or 'off'"):
        parse_bool("x", "1")


def test_unknown_choice_or_key_names_the_known_ones() -> None:
    with pytest.raises(UsageError, match="does not accept value 'c'; use a, b"):
        parse_choice("x", "c", ("a", "b"))
    known: dict[str, Any] = {"a": 1}
    only(known, ("a", "b"))
    with pytest.raises(UsageError, match="Invalid parameter 'c'; known are a, b"):
        only({**known, "c": 2}, ("a", "b"))
