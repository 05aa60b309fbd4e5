"""Makes a failing sequence short: drops what is not needed for it to fail, then makes what is left plain."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Op = list[Any]


def shrink(ops: list[Op], fails: Callable[[list[Op]], bool]) -> list[Op]:
    """The shortest list that `fails`, as far as leaving out runs of operations and simplifying single ones comes.

    `ops` must fail. In the result no operation can be left out, and none can be made simpler.
    """
    changed = True
    while changed:
        shorter = _drop(ops, fails)
        plainer = _simplify(shorter, fails)
        changed = plainer != ops
        ops = plainer
    return ops


def _drop(ops: list[Op], fails: Callable[[list[Op]], bool]) -> list[Op]:
    """Leave out runs of operations, from long to single ones, from the end."""
    size = max(len(ops) // 2, 1)
    while True:
        start = len(ops)
        dropped = False
        while start > 0:
            start = max(start - size, 0)
            candidate = ops[:start] + ops[start + size :]
            if len(candidate) < len(ops) and fails(candidate):
                ops = candidate
                dropped = True
        if size > 1:
            size //= 2
        elif not dropped:
            return ops


def _simplify(ops: list[Op], fails: Callable[[list[Op]], bool]) -> list[Op]:
    for place in range(len(ops)):
        again = True
        while again:
            again = False
            for simpler in _simpler(ops[place]):
                candidate = [*ops[:place], simpler, *ops[place + 1 :]]
                if fails(candidate):
                    ops = candidate
                    again = True
                    break
    return ops


def _simpler(op: Op) -> Iterator[Op]:
    """Operations that say less, most plain first."""
    name = op[0]
    if name == "line_status":
        yield ["line", *op[1:]]
    if name == "routing":
        for n in range(len(op[1])):
            yield [name, op[1][:n] + op[1][n + 1 :]]
    if name == "set_ioapic":
        for key in op[1]:
            yield [name, {k: v for k, v in op[1].items() if k != key}]
    if name == "redir":
        value = int(op[2], 16)
        for bit in _set_bits(value >> 8):
            yield [name, op[1], f"{value ^ bit << 8:016x}"]
    if name in ("redir_lo", "wreg"):
        for bit in _set_bits(op[2] >> 8):
            yield [name, op[1], op[2] ^ bit << 8]
    if name == "efd" and len(op) > 2:
        yield op[:2]
    if name == "efd_write" and op[2:] not in ([], [1]):
        yield [*op[:2], 1]


def _set_bits(value: int) -> Iterator[int]:
    while value:
        bit = 1 << value.bit_length() - 1
        yield bit
        value ^= bit
