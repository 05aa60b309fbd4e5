"""What every device is: a driver name, declared properties, a life, and what it holds.

A device is made with its properties (checked, converted), then realized on a `Board`, which is all it ever sees of
the machine, and later unrealized, which gives back everything in reverse. Everything a device acquires goes through
`self.holdings`, so a `realize` that fails half-way leaves nothing behind.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from vmm.errors import PropertyError
from vmm.lifecycle import Holdings, Life

if TYPE_CHECKING:
    from collections.abc import Mapping as Dict

    from vmm.clock import Clock
    from vmm.lifecycle import Ledger
    from vmm.lines import LevelLine
    from vmm.memory import AddressSpace, GuestMemory, IoRegion
    from vmm.trace import Trace

Kind = Literal["bool", "uint8", "uint16", "uint32", "uint64", "int32", "size", "str", "devfn", "link"]
_BITS = {"uint8": 8, "uint16": 16, "uint32": 32, "uint64": 64, "size": 64}


@dataclass(frozen=True, slots=True)
class Property:
    """A settable property of a device type. `kind` is QEMU's type name for it; None as default: not set."""

    name: str
    kind: Kind
    default: Any = None
    description: str = ""
    required: bool = False

    @property
    def type_name(self) -> str:
        """As `-device T,help` and device-list-properties show it."""
        return "str" if self.kind in ("devfn", "link") else self.kind

    def parse(self, driver: str, value: object, from_text: bool) -> Any:
        """The value in Python's terms; PropertyError in QEMU's words.

        `from_text`: it comes from a key=value list, where everything is a string.
        """
        refused = PropertyError(f"Property '{driver}.{self.name}' doesn't take value '{value}'", driver, self.name)

        def mistyped(expected: str) -> PropertyError:
            return PropertyError(f"Invalid parameter type for '{self.name}', expected: {expected}", driver, self.name)

        if self.kind == "devfn":
            return parse_devfn(driver, self.name, value)
        if self.kind == "bool":
            if from_text and isinstance(value, str):
                if value in ("on", "yes", "true", "y"):
                    return True
                if value in ("off", "no", "false", "n"):
                    return False
                raise PropertyError(f"Parameter '{self.name}' expects 'on' or 'off'", driver, self.name)
            if not isinstance(value, bool):
                raise mistyped("boolean")
            return value
        if self.kind in ("str", "link"):
            if not isinstance(value, str):
                raise mistyped("string")
            return value
        if from_text and isinstance(value, str):
            try:
                value = parse_size(value) if self.kind == "size" else int(value, 0)
            except ValueError:
                kind = "uint64" if self.kind == "size" else self.kind
                raise PropertyError(f"Parameter '{self.name}' expects {kind}", driver, self.name) from None
        if isinstance(value, bool) or not isinstance(value, int):
            if self.kind == "int32":
                raise mistyped("integer")
            raise PropertyError(f"Parameter '{self.name}' expects uint64", driver, self.name)
        low, high = (-(1 << 31), (1 << 31) - 1) if self.kind == "int32" else (0, (1 << _BITS[self.kind]) - 1)
        if not low <= value <= high:
            raise refused
        return value


def parse_devfn(driver: str, name: str, value: object) -> int:
    """A PCI address as QEMU's `addr`: "slot", "slot.function" (hexadecimal), or devfn as an integer; -1: any."""
    if isinstance(value, int) and not isinstance(value, bool):
        if -1 <= value <= 255:
            return value
        raise PropertyError(f"Property '{driver}.{name}' doesn't take value '{value}'", driver, name)
    if not isinstance(value, str):
        raise PropertyError(f"Invalid parameter type for '{name}', expected int or str", driver, name)
    slot, dot, function = value.partition(".")
    try:
        s, f = int(slot, 16), int(function, 16) if dot else 0
        if not (0 <= s <= 0x1F and 0 <= f <= 7):
            raise ValueError
    except ValueError:
        raise PropertyError(f"Property '{driver}.{name}' doesn't take value '{value}'", driver, name) from None
    return s << 3 | f


def parse_size(text: str) -> int:
    """`512M`, `1G`, `0x1000`, `4096`: a size in bytes. ValueError otherwise."""
    units = {"B": 0, "K": 10, "M": 20, "G": 30, "T": 40, "P": 50, "E": 60}
    shift = units.get(text[-1:].upper())
    if shift is None or text.lower().startswith("0x"):
        return int(text, 0)
    number = float(text[:-1])
    return int(number * (1 << shift))


class Board(Protocol):
    """All that a device sees of the machine it is on."""

    ports: AddressSpace
    mmio: AddressSpace
    memory: GuestMemory
    clock: Clock
    trace: Trace
    ledger: Ledger

    def isa_irq(self, holder: str, irq: int) -> LevelLine:
        """A handle on ISA IRQ `irq` (0..15), held by `holder`; it reaches the PICs and the IOAPIC."""

    def request_reset(self, reason: str) -> None:
        """Reset the machine as soon as the access at hand is over (`guest-reset`, `host-qmp-system-reset`, ...)."""

    def request_shutdown(self, reason: str, status: int = 0) -> None:
        """End the machine; `status` is the exit status of the process."""


class Device:
    """Base of all devices. A subclass sets `driver` and `properties`, and extends realize, unrealize and reset."""

    driver: ClassVar[str] = ""
    aliases: ClassVar[tuple[str, ...]] = ()
    """Other names that `-global` knows the driver by."""
    description: ClassVar[str] = ""
    properties: ClassVar[tuple[Property, ...]] = ()
    bus_type: ClassVar[str] = "System"
    """`System`, `ISA` or `PCI`: the kind of bus it goes on."""
    user_creatable: ClassVar[bool] = True
    hotpluggable: ClassVar[bool] = False

    def __init__(self, id: str | None = None, **values: Any) -> None:
        self.id = id
        self.values: dict[str, Any] = {p.name: p.default for p in self.properties} | values
        self.path = f"/machine/peripheral/{id}" if id else f"/machine/unattached/{self.driver}"
        self.life = Life(self.path)
        self.hotplugged = False
        """Plugged after the machine was powered on."""
        self.board: Board
        self.holdings: Holdings

    @classmethod
    def parse(cls, given: Dict[str, object], from_text: bool = False) -> dict[str, Any]:
        """Check and convert properties. PropertyError in QEMU's words for one unknown, mistyped or missing."""
        known = {p.name: p for p in cls.properties}
        values: dict[str, Any] = {}
        for name, value in given.items():
            if name not in known:
                raise PropertyError(f"Property '{cls.driver}.{name}' not found", cls.driver, name)
            values[name] = known[name].parse(cls.driver, value, from_text)
        for prop in cls.properties:
            if prop.required and prop.name not in values:
                raise PropertyError(f"{prop.name} property not set", cls.driver, prop.name)
        return values

    def realize(self, board: Board) -> None:
        """Acquire what it needs and answer the guest. On any error the caller closes `holdings`."""
        self.board = board
        self.holdings = Holdings(board.ledger, self.id or self.path)

    def unrealize(self) -> None:
        """Stop answering and give everything back."""
        self.holdings.close()

    def unwind(self) -> None:
        """Give back what a realize that failed had taken."""
        holdings: Holdings | None = getattr(self, "holdings", None)  # not there if it failed at once
        if holdings is not None:
            holdings.close()

    def reset(self) -> None:
        """Power-on state; lines low. Acquired resources stay."""

    # What most devices do in realize.

    def map_ports(self, base: int, region: IoRegion) -> None:
        """Answer at I/O ports from `base` on, until unrealize."""
        mapping = self.board.ports.map(base, region)
        self.holdings.hold("port-region", f"{region.name}@{base:#x}", mapping.close)

    def map_memory(self, base: int, region: IoRegion, priority: int = 0) -> None:
        """Answer at guest-physical addresses from `base` on, until unrealize."""
        mapping = self.board.mmio.map(base, region, priority)
        self.holdings.hold("mmio-region", f"{region.name}@{base:#x}", mapping.close)

    def isa_irq(self, irq: int) -> LevelLine:
        """A handle on an ISA IRQ, until unrealize."""
        line = self.board.isa_irq(self.id or self.driver, irq)
        self.holdings.hold("wire-holder", f"isa-irq-{irq}", line.close)
        return line
