"""The classic mistakes of a PCI device's author, found while the device is used.

    Watcher(device, report)

is set on a device before it is realized, and tells `report` each mistake once, with what to do about it. It looks at
what comes out: the wire, the configuration space, what the handlers give and how long they take; so it also finds what
a class does behind the back of `PciDevice`. It does not change what the device does.
"""

from __future__ import annotations

import time
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from devices.pci import config as cfg
from devices.pci.bus import pirq_of
from vmm.errors import ConfigError, VintxError

if TYPE_CHECKING:
    from collections.abc import Callable

    from devices.device import Board
    from devices.pci.device import PciDevice
    from vmm.memory import IoRegion

MOST_OF_A_KIND = 3
"""How many mistakes that are mended alike are told: a device may make one in every register."""
SLOW_S = 1.0
"""A handler that takes longer is told of: the guest's CPU waits for it, and QEMU gives a server up after 5 s."""
_IDENTITY = (("vendor_id", 0xFFFE), ("device_id", 0xFFFE), ("class_id", 0xFFFF), ("prog_if", 0xFF), ("revision", 0xFF))


class Mistake(NamedTuple):
    """`what` is wrong, and how to mend it: `fix`."""

    what: str
    fix: str

    def __str__(self) -> str:
        return f"{self.what}; {self.fix}"


NO_SUPER_CONFIG_WRITE = "let config_write call super().config_write(offset, size, value), and look at the result then"
USE_SET_INTX = "drive the pin by self.set_intx(level) alone: it keeps Interrupt Status and looks at Interrupt Disable"


def of_class(cls: type[PciDevice]) -> list[Mistake]:
    """What can be seen without making one."""
    found = []
    if not cls.driver:
        found.append(Mistake(f"{cls.__name__} has no driver name", 'give the class one: driver = "thermometer"'))
    for name, most in _IDENTITY:
        value = getattr(cls, name)
        if not isinstance(value, int) or not 0 <= value <= most:
            fix = f"it is 0 to {most:#x}"
            if name == "class_id":
                fix += ", base class << 8 | subclass; the programming interface is prog_if"
            found.append(Mistake(f"{name} is {value!r}", fix))
    if cls.interrupt_pin not in range(5):
        found.append(
            Mistake(f"interrupt_pin is {cls.interrupt_pin!r}", "it is 1 to 4 for INTA# to INTD#, or 0 for none")
        )
    return found


class Watcher:
    """Watches one device from its realize on."""

    def __init__(self, device: PciDevice, report: Callable[[Mistake], None]) -> None:
        self.device = device
        self.level = False
        """The wire, as the machine sees it."""
        self._report = report
        self._told: set[Mistake] = set()
        self._kinds: Counter[str] = Counter()
        self._depth = 0
        """How many handlers of the device are at work."""
        self._reading = 0
        self._rose = self._fell = False
        """What the wire did since the guest's access began."""
        for mistake in of_class(type(device)):
            self.tell(*mistake)
        self._realize = device.realize
        device.realize = self._watched_realize  # type: ignore[method-assign]

    def tell(self, what: str, fix: str) -> None:
        """Report it, unless that was done before."""
        mistake = Mistake(what, fix)
        if mistake not in self._told and self._kinds[fix] < MOST_OF_A_KIND:
            self._told.add(mistake)
            self._kinds[fix] += 1
            self._report(mistake)

    # Getting in.

    def _watched_realize(self, board: Board) -> None:
        device = self.device
        try:
            self._realize(board)
        except VintxError:
            raise
        except Exception as error:
            if not hasattr(device, "config"):
                raise ConfigError(
                    f"{device.driver}: realize: {error}; call super().realize(board) first: it makes the configuration"
                    " space and takes slot and pin"
                ) from error
            raise ConfigError(f"{device.driver}: realize: {type(error).__name__}: {error}") from error
        if not hasattr(device, "config"):
            raise ConfigError(f"{device.driver}: realize does not call super().realize(board)")
        if device.interrupt_pin:
            assert device.bus is not None
            device.bus.pirqs[pirq_of(device.devfn, device.interrupt_pin)].connect(self._wire)
        else:
            self._wrap("set_intx", self._without_pin)
        device.holdings.hold("watcher", "mistakes", self._close)  # given back first
        self._wrap("config_write", self._config_write)
        self._wrap("reset", self._reset)
        self._wrap("dma_read", self._dma_read)
        for bar in device.bars:
            region = bar.region
            region.read = partial(self._read, region, bar.index, region.read)
            region.write = partial(self._write, region, bar.index, region.write)

    def _wrap(self, name: str, by: Callable[..., Any]) -> None:
        setattr(self.device, name, partial(by, getattr(self.device, name)))

    # What the guest does.

    def _handle(self, what: str, handler: Callable[..., Any], *arguments: Any) -> Any:
        if not self._depth:
            self._rose = self._fell = False
        self._depth += 1
        began = time.perf_counter()
        try:
            return handler(*arguments)
        except Exception as error:
            self.tell(
                f"{what}: {type(error).__name__}: {error}",
                "a guest may access any register at any time; let no exception out",
            )
            raise
        finally:
            took = time.perf_counter() - began
            self._depth -= 1
            if took > SLOW_S:
                fix = "the guest's CPU stands still meanwhile; begin the work here and end it in a timer"
                self.tell(f"{what} takes more than {SLOW_S:g} s", fix)
            if not self._depth:
                self._settle(what)

    def _read(self, region: IoRegion, bar: int, handler: Callable[[int, int], int], offset: int, size: int) -> int:
        what = f"read of BAR{bar}+{offset:#x} ({region.name}, {size} bytes)"
        self._reading += 1
        try:
            value = self._handle(what, handler, offset, size)
        finally:
            self._reading -= 1
        if not isinstance(value, int):
            self.tell(f"{what} gives {value!r}", "return an int; all ones where there is no register")
        return value  # type: ignore[no-any-return]  # whatever it is, the machine deals with it

    def _write(
        self, region: IoRegion, bar: int, handler: Callable[..., None], offset: int, size: int, value: int
    ) -> None:
        self._handle(f"write to BAR{bar}+{offset:#x} ({region.name}, {size} bytes)", handler, offset, size, value)

    def _config_write(self, handler: Callable[..., None], offset: int, size: int, value: int) -> None:
        self._handle(f"configuration write to {offset:#x}", handler, offset, size, value)
        if offset <= cfg.COMMAND + 1 < offset + size:
            wanted = value >> 8 * (cfg.COMMAND - offset) if offset <= cfg.COMMAND else value << 8
            if (wanted ^ self.device.config.get(cfg.COMMAND, 2)) & cfg.COMMAND_INTX_DISABLE:
                self.tell(
                    "COMMAND.Interrupt Disable cannot be written: drivers refuse the device", NO_SUPER_CONFIG_WRITE
                )

    def _reset(self, handler: Callable[[], None]) -> None:
        self._handle("reset", handler)
        if self.level or self.device.config.get(cfg.COMMAND, 2):
            self.tell(
                "after a reset the pin is high, or COMMAND is not 0",
                "let reset call super().reset(), and raise nothing there",
            )

    def _dma_read(self, handler: Callable[[int, int], bytes], address: int, length: int) -> bytes:
        if self._reading:
            self.tell(
                "guest memory is read inside of a register read",
                "a client whose memory is not shared cannot serve that (QEMU without share=on); read it in a timer",
            )
        return handler(address, length)

    def _close(self) -> None:
        """The device is taken off: its line goes low, whatever its registers say."""
        self._depth = 1

    # The pin.

    def _without_pin(self, handler: Callable[[bool], None], level: bool) -> None:
        if level:
            self.tell("set_intx on a device without interrupt pin: nobody hears it", "set interrupt_pin = 1 (INTA#)")
        handler(level)

    def _wire(self, level: bool) -> None:
        self.level = level
        if level:
            self._rose = True
        else:
            self._fell = True
        if not self._depth:
            self._settle("a timer")

    def _settle(self, what: str) -> None:
        """The device has done what it wanted to: pin and configuration space must agree."""
        get = self.device.config.get
        disabled = bool(get(cfg.COMMAND, 2) & cfg.COMMAND_INTX_DISABLE)
        status = bool(get(cfg.STATUS, 2) & cfg.STATUS_INTERRUPT)
        if self.level and disabled:
            self.tell("INTx is asserted while COMMAND.Interrupt Disable is set", USE_SET_INTX)
        elif not disabled and status != self.level:
            self.tell(
                f"STATUS.Interrupt Status is {int(status)} while the pin is {'high' if self.level else 'low'}: a driver"
                " that shares the line looks there",
                USE_SET_INTX,
            )
        if self._rose and self._fell and not self.level and not status:
            self.tell(
                f"{what}: the pin goes high and low again at once",
                "INTx is a level: keep it high until the guest has acknowledged the cause",
            )
        self._rose = self._fell = False
