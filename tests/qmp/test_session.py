from __future__ import annotations

import asyncio
import gc
import json
import weakref
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.qmp_target import PACKAGE, Client
from vmm.errors import VintxError
from vmm.qmp.command import ANY, NUMBER, SIZE, UINT8, Arg, Command, ListOf, Struct
from vmm.qmp.session import QUEUE_LIMIT


class Gate:
    """A command that waits until it is opened, without any event loop."""

    def __init__(self) -> None:
        self.open = False
        self.value: Any = {"done": True}

    def __await__(self) -> Any:
        while not self.open:
            yield
        if isinstance(self.value, Exception):
            raise self.value
        return self.value


def add_gate(client: Client, name: str = "x-wait", oob: bool = False) -> Gate:
    gate = Gate()

    async def wait(call: Any, arguments: Any) -> Any:  # noqa: ARG001
        return await gate

    client.call.registry.add(Command(name, wait, oob=oob))
    return gate


@pytest.fixture
def client() -> Client:
    client = Client()
    client.negotiate("oob")
    return client


def test_first_message_is_the_greeting() -> None:
    (greeting,) = Client().replies()
    version = {"qemu": {"major": 11, "minor": 1, "micro": 3}, "package": PACKAGE}
    assert greeting == {"QMP": {"version": version, "capabilities": ["oob"]}}


def test_event_before_negotiation_is_not_sent() -> None:
    client = Client()
    client.replies()
    client.target.stop()
    assert client.replies() == []
    client.negotiate()
    client.target.cont()
    assert client.replies() == [{"timestamp": {"seconds": 1795347418, "microseconds": 1}, "event": "RESUME"}]


def test_event_that_a_command_causes_comes_before_its_reply(client: Client) -> None:
    assert [next(iter(reply)) for reply in client.ask({"execute": "stop"})] == ["timestamp", "return"]


def test_event_goes_to_every_negotiated_session_and_no_more_after_close(client: Client) -> None:
    seen: list[str] = []
    subscription = client.events.subscribe(lambda message: seen.append(message["event"]))
    client.replies()
    client.session.close()
    client.target.stop()
    assert seen == ["STOP"]
    subscription.close()
    subscription.close()
    client.target.cont()
    assert (seen, client.replies()) == (["STOP"], [])


def test_closed_session_is_forgotten_by_the_machine(client: Client) -> None:
    session = weakref.ref(client.session)
    client.session.close()
    del client.session
    gc.collect()
    assert session() is None


def test_command_that_waits_holds_back_in_band_ones_but_not_oob(client: Client) -> None:
    gate = add_gate(client)
    assert client.ask({"execute": "x-wait", "id": 1}) == []
    assert client.ask({"execute": "query-name", "id": 2}) == []
    assert client.ask({"execute": "{", "id": 3}) == []
    assert client.ask({"exec-oob": "x-query-ledger", "id": 4}) == [{"return": [], "id": 4}]
    client.step()
    gate.open = True
    assert client.step()
    assert [reply["id"] for reply in client.replies()] == [1, 2, 3]


def test_malformed_input_is_answered_in_its_turn(client: Client) -> None:
    gate = add_gate(client)
    client.ask({"execute": "x-wait", "id": 1})
    client.session.feed(b"{]")
    assert client.replies() == []
    gate.open = True
    client.step()
    assert [reply.get("id") for reply in client.replies()] == [1, None]


def test_oob_command_that_waits_holds_back_nothing(client: Client) -> None:
    gate = add_gate(client, oob=True)
    assert client.ask({"exec-oob": "x-wait", "id": 1}) == []
    assert client.ask({"execute": "query-name", "id": 2}) == [{"return": {}, "id": 2}]
    gate.open = True
    client.step()
    assert client.replies() == [{"return": {"done": True}, "id": 1}]


def test_full_queue_asks_for_no_more_input(client: Client) -> None:
    gate = add_gate(client)
    client.ask({"execute": "x-wait"})
    for _ in range(QUEUE_LIMIT):
        assert client.session.wants_input
        client.ask({"execute": "query-name"})
    assert not client.session.wants_input
    gate.open = True
    client.step()
    assert client.session.wants_input
    assert len(client.replies()) == QUEUE_LIMIT + 1


def test_client_gone_while_its_command_runs_gets_no_reply_and_command_ends(client: Client) -> None:
    gate = add_gate(client)
    client.ask({"execute": "x-wait"})
    client.ask({"execute": "quit"})
    client.session.close()
    gate.open = True
    assert client.step()
    assert (client.replies(), client.target.quits) == ([], 0)


def test_held_session_starts_no_command_until_released(client: Client) -> None:
    client.session.hold()
    assert client.ask({"execute": "stop"}) == []
    assert client.target.run_state == "running"
    client.session.release()
    assert client.target.run_state == "paused"


@pytest.mark.parametrize("failure", [ZeroDivisionError("by nought"), RecursionError(), object()])
def test_handler_with_a_bug_costs_one_command(client: Client, failure: Any) -> None:
    def broken(call: Any, arguments: Any) -> Any:  # noqa: ARG001
        if isinstance(failure, Exception):
            raise failure
        return failure

    client.call.registry.add(Command("x-broken", broken))
    error_class, desc = client.error({"execute": "x-broken", "id": 1})
    assert error_class == "GenericError"
    assert desc.startswith("Internal error: ")
    assert client.ask({"execute": "query-name"}) == [{"return": {}}]


def test_async_handler_that_is_refused_or_broken_is_answered(client: Client) -> None:
    for error, desc in ((VintxError("no"), "no"), (OSError("gone"), "Internal error: OSError: gone")):
        gate = add_gate(client, f"x-{desc}")
        gate.open, gate.value = True, error
        client.ask({"execute": f"x-{desc}"})
        client.step()
        assert client.replies()[0]["error"] == {"class": "GenericError", "desc": desc}


@given(st.binary(max_size=300), st.booleans())
def test_any_bytes_leave_the_session_alive(noise: bytes, negotiated: bool) -> None:
    client = Client()
    if negotiated:
        client.negotiate("oob")
    client.session.feed(noise + b"\xff\n")
    client.replies()
    if client.session.negotiated:
        assert client.ask({"execute": "query-status", "id": "alive"})[-1]["id"] == "alive"
    else:
        assert client.error({"execute": "query-status"})[0] == "CommandNotFound"


NAMES = st.sampled_from(["stop", "no-such", "x-query-ledger", ""])
MEMBERS = st.sampled_from(["execute", "exec-oob", "arguments", "id", "x"])


@given(st.dictionaries(MEMBERS, st.none() | NAMES | st.just({})))
def test_any_object_is_answered_once_with_its_id(message: dict[str, Any]) -> None:
    client = Client()
    client.negotiate("oob")
    reply = client.ask(message)[-1]
    assert ("id" in reply, reply.get("id")) == ("id" in message, message.get("id"))


def test_deepest_id_is_echoed() -> None:
    client = Client()
    client.negotiate()
    client.replies()
    client.session.feed(b'{"execute":"query-name","id":' + b"[" * 1023 + b"]" * 1023 + b"}")
    assert client.wire == b'{"return": {}, "id": ' + b"[" * 1023 + b"]" * 1023 + b"}\r\n"


def test_both_kinds_of_execute_together_clash(client: Client) -> None:
    assert client.error({"execute": "stop", "exec-oob": "stop"})[1] == (
        "QMP input member 'exec-oob' clashes with 'execute'"
    )


def test_pretty_session_writes_many_lines_with_the_same_meaning() -> None:
    client = Client(pretty=True)
    client.wire = b""
    client.session.feed(b'{"execute":"qmp_capabilities","id":1}{"execute":"stop"}')
    wire = client.wire.decode("ascii")
    assert wire.startswith('{\n    "return": {},\n    "id": 1\n}\r\n{\n    "timestamp": {')
    decoded = json.JSONDecoder().raw_decode(wire)[0]
    assert decoded == {"return": {}, "id": 1}


def test_spawned_command_runs_under_asyncio_too(client: Client) -> None:
    async def slow(call: Any, arguments: Any) -> Any:  # noqa: ARG001
        await asyncio.sleep(0)
        return [1]

    client.call.registry.add(Command("x-slow", slow))
    client.ask({"execute": "x-slow", "id": 7})
    asyncio.run(client.spawned.pop())
    assert client.replies() == [{"return": [1], "id": 7}]


# --- arguments ---------------------------------------------------------------------------------------------------

ARGUMENTS = Struct(
    (
        Arg("byte", UINT8, optional=True),
        Arg("size", SIZE, optional=True),
        Arg("number", NUMBER, optional=True),
        Arg("any", ANY, optional=True),
        Arg("list", ListOf(Struct((Arg("n", UINT8),))), optional=True),
    )
)


@pytest.mark.parametrize(
    ("arguments", "desc"),
    [
        ({"byte": 256}, "Parameter 'byte' expects uint8_t"),
        ({"byte": -1}, "Parameter 'byte' expects uint8_t"),
        ({"byte": True}, "Parameter 'byte' expects uint64"),
        ({"size": -1}, "Parameter 'size' expects uint64"),
        ({"number": "1"}, "Invalid parameter type for 'number', expected: number"),
        ({"list": {}}, "Invalid parameter type for 'list', expected: array"),
        ({"list": [{"n": 1}, 5]}, "Invalid parameter type for 'list[1]', expected: object"),
        ({"list": [{"n": 1}, {}]}, "Parameter 'list[1].n' is missing"),
        ({"list": [{"n": 300}]}, "Parameter 'n' expects uint8_t"),
        ({"list": [{"n": 1, "m": 2}]}, "Parameter 'list[0].m' is unexpected"),
        ({"byte": "x", "unknown": 1}, "Parameter 'byte' expects uint64"),
        ({"unknown": 1}, "Parameter 'unknown' is unexpected"),
    ],
)
def test_argument_out_of_its_type_is_refused_in_qemus_words(client: Client, arguments: Any, desc: str) -> None:
    client.call.registry.add(Command("x-check", lambda call, given: dict(given), ARGUMENTS))  # noqa: ARG005
    assert client.error({"execute": "x-check", "arguments": arguments}) == ("GenericError", desc)


def test_arguments_of_their_types_reach_the_handler(client: Client) -> None:
    client.call.registry.add(Command("x-check", lambda call, given: dict(given), ARGUMENTS))  # noqa: ARG005
    good = {"byte": 255, "size": (1 << 64) - 1, "number": 1.5, "any": None, "list": [{"n": 0}]}
    assert client.ask({"execute": "x-check", "arguments": good}) == [{"return": good}]


def test_command_name_declared_twice_is_refused(client: Client) -> None:
    with pytest.raises(ValueError, match="query-name is declared twice"):
        client.call.registry.add(Command("query-name", lambda call, given: None))  # noqa: ARG005
