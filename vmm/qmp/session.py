"""One client's QMP session, without I/O: bytes in by `feed`, bytes out by a callable.

The life of a session: greeting; negotiation by `qmp_capabilities`, before which everything else is refused; commands.
In-band commands and malformed input wait in one queue and are answered in order, one at a time. A command that
is sent as `exec-oob`, once the capability `oob` is enabled, runs at once, even while an in-band one is still busy.

Ref: docs/interop/qmp-spec.rst of QEMU; vectors qemu-qmp-transcript.jsonl, sessions `protocol`, `oob`, `preconfig`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, Final

from vmm.errors import QmpError, VintxError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from vmm.qmp.call import Call
    from vmm.qmp.events import Events
    from vmm.qmp.json_stream import JsonStream

    Spawn = Callable[[Coroutine[Any, Any, None]], object]
    """Runs a coroutine to its end, some time; `asyncio.get_running_loop().create_task` is one."""

QUEUE_LIMIT: Final = 8
"""In-band requests that may wait before the session asks for no more input (`wants_input`)."""

BATCH_LIMIT: Final = 64 << 10
"""Bytes of replies that are sent together."""

_ABSENT: Final = object()
_BUSY: Final = object()


class Session:
    """A QMP session.

    `write` takes bytes for the client and must not block; `spawn` starts the coroutine of a command that is an
    `async def`. Neither is called after `close`.
    """

    def __init__(
        self,
        call: Call,
        events: Events,
        write: Callable[[bytes], object],
        spawn: Spawn,
        pretty: bool = False,
    ) -> None:
        self._call = call
        self._events = events
        self._write = write
        self._spawn = spawn
        self._pretty = pretty
        self._stream: JsonStream | None = None
        """Made for the first bytes: a greeting needs none."""
        self._queue: deque[Any] = deque()
        self._busy = False
        self._held = False
        self._closed = False
        self._batch: list[bytes] | None = None
        """Replies to the chunk in hand, sent together at its end."""
        self._batch_bytes = 0
        self.negotiated = False
        """True once `qmp_capabilities` has been accepted."""
        self.oob = False
        """True once the client has enabled the capability `oob`."""
        self._subscription = events.subscribe(self._on_event)

    # --- the transport's side --------------------------------------------------------------------------------

    def greet(self) -> None:
        """Send the greeting. The first thing to do."""
        version = self._call.version
        qemu, package = version["qemu"], version["package"]
        if self._pretty or not (package.isascii() and package.isprintable()) or '"' in package or "\\" in package:
            self._send({"QMP": {"version": version, "capabilities": ["oob"]}})
            return
        # The same, without waiting for the JSON encoder to be imported.
        members = ", ".join(f'"{name}": {number}' for name, number in qemu.items())
        text = f'{{"QMP": {{"version": {{"qemu": {{{members}}}, "package": "{package}"}}, "capabilities": ["oob"]}}}}'
        self._put(f"{text}\r\n".encode("ascii"))

    def feed(self, data: bytes) -> None:
        """Take bytes of the client, and act on each message that they complete. Never raises on any bytes."""
        if self._closed:
            return
        if self._stream is None:
            from vmm.qmp.json_stream import JsonStream

            self._stream = JsonStream()
        outermost = self._batch is None
        if outermost:
            self._batch = []
        for message in self._stream.feed(data):
            if type(message) is dict and "exec-oob" in message and "execute" not in message:
                self._run(message)
            else:
                self._queue.append(message)
                if not self._busy:
                    self._pump()
        if outermost:
            self._flush()

    @property
    def wants_input(self) -> bool:
        """False while the client should be made to wait: read no more of its bytes."""
        return not self._held and len(self._queue) < (QUEUE_LIMIT if self.oob else 1)

    def hold(self) -> None:
        """The client does not read its replies: start no more in-band commands until `release`."""
        self._held = True

    def release(self) -> None:
        """The client reads again."""
        self._held = False
        self._pump()

    def close(self) -> None:
        """The client is gone. A command that is still busy runs to its end; its reply goes nowhere."""
        if self._closed:
            return
        self._closed = True
        self._batch = None
        self._queue.clear()
        self._subscription.close()

    # --- replies and events ----------------------------------------------------------------------------------

    def _send(self, message: Mapping[str, Any]) -> None:
        from vmm.qmp.json_stream import dumps

        self._put(dumps(message, self._pretty).encode("ascii") + b"\r\n")

    def _put(self, line: bytes) -> None:
        if self._closed:
            return
        if self._batch is None:
            self._write(line)
            return
        self._batch.append(line)
        self._batch_bytes += len(line)
        if self._batch_bytes > BATCH_LIMIT:
            # Now, not at the end: the transport may answer with `hold`.
            self._flush()
            if not self._closed:
                self._batch = []

    def _flush(self) -> None:
        batch, self._batch = self._batch, None
        self._batch_bytes = 0
        if batch and not self._closed:
            self._write(b"".join(batch))

    def _on_event(self, message: dict[str, Any]) -> None:
        if self.negotiated:
            from vmm.qmp.events import event_line

            self._put(event_line(message, self._pretty))

    def _reply(self, value: Any, request_id: Any) -> None:
        if self._pretty:
            self._send({"return": value} if request_id is _ABSENT else {"return": value, "id": request_id})
            return
        from vmm.qmp.json_stream import dumps, dumps_exactly

        text = "{}" if value == {} else dumps(value)
        if request_id is _ABSENT:
            line = f'{{"return": {text}}}\r\n'
        else:
            line = f'{{"return": {text}, "id": {dumps_exactly(request_id)}}}\r\n'
        self._put(line.encode("ascii"))

    def _refuse(self, error: VintxError, request_id: Any = _ABSENT) -> None:
        refusal = {"class": error.qmp_class, "desc": str(error)}
        if self._pretty:
            self._send({"error": refusal} if request_id is _ABSENT else {"id": request_id, "error": refusal})
            return
        from vmm.qmp.json_stream import dumps, dumps_exactly

        start = "{" if request_id is _ABSENT else f'{{"id": {dumps_exactly(request_id)}, '
        self._put(f'{start}"error": {dumps(refusal)}}}\r\n'.encode("ascii"))

    # --- requests --------------------------------------------------------------------------------------------

    def _pump(self) -> None:
        """Run in-band requests until there are none, or one takes its time."""
        while self._queue and not (self._busy or self._held or self._closed):
            self._run(self._queue.popleft())

    def _run(self, message: Any) -> None:
        """Answer one request, or start to."""
        request_id = _ABSENT
        try:
            if type(message) is not dict:
                # What the parser has to say of malformed input, or a value that is no object.
                raise QmpError(getattr(message, "desc", "QMP input must be a JSON object"))
            request_id = message.get("id", _ABSENT)
            value = self._dispatch(message, request_id)
            if value is not _BUSY:
                self._reply(value, request_id)
        except VintxError as error:
            self._refuse(error, request_id)
        except Exception as error:
            self._broken(error, request_id)

    def _broken(self, error: Exception, request_id: Any) -> None:
        """A handler failed in a way that is none of its refusals: a bug, which costs this one command."""
        import logging

        logging.getLogger(__name__).error("QMP command failed", exc_info=error)
        self._refuse(QmpError(f"Internal error: {type(error).__name__}: {error}"), request_id)

    def _dispatch(self, message: dict[str, Any], request_id: Any) -> Any:
        name, is_oob, arguments = self._check(message)
        if not self.negotiated:
            if name != "qmp_capabilities":
                raise QmpError("Expecting capabilities negotiation with 'qmp_capabilities'", "CommandNotFound")
            declared = self._call.registry.find(name)
            if declared is not None:
                declared.args.check_members(arguments)
            self.oob = "oob" in arguments.get("enable", ())
            self.negotiated = True
            return {}
        command = self._call.registry.find(name)
        if command is None:
            raise QmpError(f"The command {name} has not been found", "CommandNotFound")
        if is_oob and not command.oob:
            raise QmpError(f"The command {name} does not support OOB")
        if not command.preconfig and self._call.target.preconfig:
            raise QmpError(f"The command '{name}' is permitted only after machine initialization has completed")
        if command.checked:
            command.args.check_members(arguments)
        value = command.handler(self._call, arguments)
        if value is None:
            return {}
        if isinstance(value, Coroutine):
            if not is_oob:
                self._busy = True
            self._spawn(self._finish(value, request_id, is_oob))
            return _BUSY
        return value

    def _check(self, message: dict[str, Any]) -> tuple[str, bool, dict[str, Any]]:
        """Take a request apart: the command's name, whether it is out of band, its arguments."""
        name: str | None = None
        is_oob = False
        arguments: dict[str, Any] = {}
        for member, value in message.items():
            if member == "execute" or (member == "exec-oob" and self.oob):
                if type(value) is not str:
                    raise QmpError(f"QMP input member '{member}' must be a string")
                if name is not None:
                    raise QmpError("QMP input member 'exec-oob' clashes with 'execute'")
                name = value
                is_oob = member == "exec-oob"
            elif member == "arguments":
                if type(value) is not dict:
                    raise QmpError("QMP input member 'arguments' must be an object")
                arguments = value
            elif member != "id":
                raise QmpError(f"QMP input member '{member}' is unexpected")
        if name is None:
            raise QmpError("QMP input lacks member 'execute'")
        return name, is_oob, arguments

    async def _finish(self, work: Coroutine[Any, Any, Any], request_id: Any, is_oob: bool) -> None:
        """Wait for a command that takes its time; answer it; go on with the queue."""
        try:
            value = await work
            self._reply({} if value is None else value, request_id)
        except VintxError as error:
            self._refuse(error, request_id)
        except Exception as error:
            self._broken(error, request_id)
        finally:
            if not is_oob:
                self._busy = False
                if not self._closed:
                    self._pump()
