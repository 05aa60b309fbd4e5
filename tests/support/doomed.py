"""A process that makes others which die by SIGKILL in the middle of a vfio-user conversation.

    python -m support.doomed client   lines of [path, messages, half] as JSON: connect, take part, die
    python -m support.doomed server   lines of [path, messages, mode]: serve an edu, die at that message

It says a line when the doomed one is ready or dead. It has one thread, so it may fork.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys

from devices.edu import Edu
from support.vfio_user import recording
from vmm.vfio_user import protocol as p
from vmm.vfio_user.protocol import Command
from vmm.vfio_user.server import Server
from vmm.vfio_user.transport import Connection

RECORDING = "qemu11-python-server-kvm.log"
NEVER = 1 << 30


def die() -> None:
    """As a crash does: nothing is flushed, nothing is closed in order."""
    os.kill(os.getpid(), signal.SIGKILL)


def session(name: str = RECORDING):
    """What a client said, with the kinds of descriptors that went along."""
    return [message for message in recording(name) if message.to_server]


def be_client(path: str, messages: int, half: bool) -> None:
    """Say so many messages of the recording, hear the answers, die at the next one: before it or in its middle."""
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(path)
    connection = Connection(sock)
    for number, message in enumerate(session()):
        data = message.bytes()
        last = number == messages
        if last and not half:
            die()
        fds = []
        for _ in range(message.fds):
            fds.append(os.eventfd(0) if message.command is Command.DEVICE_SET_IRQS else os.memfd_create("ram"))
            if message.command is not Command.DEVICE_SET_IRQS:
                os.truncate(fds[-1], 256 << 20)
        connection.send(data[: len(data) // 2] if last else data, fds)
        for fd in fds:
            os.close(fd)
        if last:
            die()
        if not message.flags & p.FLAG_NO_REPLY:
            connection.wait(float("inf")).close()
    die()


class DoomedServer(Server):
    """Dies at message number `messages`: `before` it, `after` it without an answer, or `half` an answer given."""

    def __init__(self, path: str, messages: int, mode: str) -> None:
        self.left, self.mode = messages, mode
        super().__init__(Edu(**{"x-dma-delay-us": 0}), path)

    def _dispatch(self, connection, message):
        self.left -= 1
        if self.left < 0:
            if self.mode != "before":
                reply = self.endpoint.handle(message)
                if self.mode == "half" and reply is not None:
                    connection.send(reply[: len(reply) // 2])
            die()
        super()._dispatch(connection, message)


def be_server(path: str, messages: int, mode: str) -> None:
    server = DoomedServer(path, messages, mode)
    say("ready")
    server.run()


def say(text: str) -> None:
    os.write(1, f"{text}\n".encode())


def main(role: str) -> None:
    child = 0
    for line in sys.stdin:
        if child:
            os.kill(child, signal.SIGKILL)  # it may have lived through the session
            os.waitpid(child, 0)
        arguments = json.loads(line)
        if not arguments:
            break
        child = os.fork()
        if not child:
            try:
                (be_client if role == "client" else be_server)(*arguments)
            finally:
                die()
        if role == "client":
            _, status = os.waitpid(child, 0)
            child = 0
            say(f"dead of {os.WTERMSIG(status)}")


if __name__ == "__main__":
    main(sys.argv[1])
