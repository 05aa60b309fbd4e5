"""A device tried out before a guest has it: `vintx serve --check`, or from a test of your own

    from devices import check

    def test_device(): assert check(Thermometer) == []

It is realized on a board of its own with a clock that does not wait. All its registers are read and written, with every
size, its configuration space is used as firmware and drivers do, its timers run, and whenever the pin goes high, what
drivers do about it is tried: Interrupt Disable on and off, reset. devices/mistakes.py says what is found.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from devices.mistakes import Mistake, Watcher
from devices.pci import config as cfg
from devices.pci.bus import PciBus
from devices.vfio_host import HostBoard
from vmm.clock import NS_PER_SEC, VirtualClock
from vmm.memory import ALL_ONES, AddressSpace, GuestMemory
from vmm.trace import Trace

if TYPE_CHECKING:
    from devices.pci.device import Bar, PciDevice

RAM = 1 << 20
MOST_REGISTERS = 256
"""Of a larger BAR the first registers are tried, and some places behind them."""
VALUES = (1, 0, 2, 0x80, 0x8000_0001, 0xFFFF_FFFF, 0x1000)
MOST_RESETS = 16
"""How many of the resets are looked at closely."""
TIMERS = 16
"""How many timers may run out after an access, of those that are due within a minute."""
_ENABLED = cfg.COMMAND_IO | cfg.COMMAND_MEMORY | cfg.COMMAND_MASTER


class Report(list[Mistake]):
    """The mistakes. `accesses`: how many there were; `interrupted`: whether the pin was ever high."""

    accesses = 0
    interrupted = False

    def text(self) -> str:
        """What was done, in one line."""
        pin = "the pin was high" if self.interrupted else "the pin was never high"
        return f"{self.accesses} accesses, {pin}, {len(self) or 'no'} mistake{'' if len(self) == 1 else 's'}"


def check(cls: type[PciDevice], **values: Any) -> Report:
    """Try a device out. VintxError if it cannot be made or realized at all."""
    report = Report()
    device = cls(None, **cls.parse(values))
    watcher = Watcher(device, report.append)
    if report:
        return report  # what it cannot be realized with
    clock = VirtualClock()
    device.bus = PciBus("check")
    memory = GuestMemory(RAM)
    try:
        device.realize(HostBoard(memory, clock, Trace(clock.now)))
        _Trial(device, watcher, clock, report).run()
    finally:
        device.unwind()
        memory.close()
    return report


class _Trial:
    def __init__(self, device: PciDevice, watcher: Watcher, clock: VirtualClock, report: Report) -> None:
        self.device = device
        self.watcher = watcher
        self.clock = clock
        self.report = report
        self.spaces: list[tuple[Bar, AddressSpace]] = []
        self.steady: dict[tuple[int, int], int] = {}
        """Registers by BAR and offset that do not change by themselves, as they are at power-on."""
        self.resets = 0
        for bar in device.bars:
            space = AddressSpace(f"BAR{bar.index}", bar.region.size)
            space.map(0, bar.region)
            self.spaces.append((bar, space))

    def run(self) -> None:
        self._firmware()
        self._let_time_pass()
        before = self._registers()
        self._let_time_pass()
        self.steady = {place: value for place, value in self._registers().items() if before[place] == value}
        for bar, space in self.spaces:
            for offset in _places(bar):
                for size in (1, 2, 4, 8):
                    self._touch(space, offset, size)
        self._reset()

    def _config(self, offset: int, size: int, value: int) -> None:
        self.report.accesses += 1
        self.device.config_write(offset, size, value)

    def _firmware(self) -> None:
        """BARs are sized, and everything is switched on."""
        for bar in self.device.bars:
            offset = cfg.BASE_ADDRESS_0 + 4 * bar.index
            self._config(offset, 4, ALL_ONES[4])
            size = 1 + (
                ~self.device.config_read(offset, 4) & (0xFFFF_FFFC if bar.io else 0xFFFF_FFF0) | (3 if bar.io else 15)
            )
            if size & ALL_ONES[4] != bar.region.size & ALL_ONES[4]:
                self.watcher.tell(
                    f"BAR{bar.index} has {bar.region.size:#x} bytes and says {size:#x}", "leave it to PciDevice"
                )
            self._config(offset, 4, 0)
        self._config(cfg.COMMAND, 2, cfg.COMMAND_INTX_DISABLE)
        self._config(cfg.COMMAND, 2, _ENABLED)

    def _registers(self) -> dict[tuple[int, int], int]:
        found = {}
        for bar, space in self.spaces:
            for offset in _places(bar):
                found[bar.index, offset] = self._read(space, offset, min(4, bar.region.size))
        return found

    def _read(self, space: AddressSpace, offset: int, size: int) -> int:
        self.report.accesses += 1
        try:
            return space.read(offset, size)
        except Exception:  # the watcher has told of it
            return -1

    def _touch(self, space: AddressSpace, offset: int, size: int) -> None:
        for value in VALUES:
            self.report.accesses += 1
            try:
                space.write(offset, size, value & ALL_ONES[size])
            except Exception:  # as above
                return
            self._let_time_pass()
            self._read(space, offset, size)
            if self.watcher.level:
                self._interrupt()

    def _let_time_pass(self) -> None:
        limit = self.clock.now() + 60 * NS_PER_SEC
        for _ in range(TIMERS):
            deadline = self.clock.next_deadline()
            if deadline is None or deadline > limit:
                return
            try:
                self.clock.step()
            except Exception as error:
                self.watcher.tell(f"a timer: {type(error).__name__}: {error}", "let no exception out of a callback")

    def _interrupt(self) -> None:
        """The pin is high: what a driver may do about it."""
        self.report.interrupted = True
        level = [self.watcher.level]
        for command in (_ENABLED | cfg.COMMAND_INTX_DISABLE, _ENABLED):
            self._config(cfg.COMMAND, 2, command)
            level.append(self.watcher.level)
        if level != [True, False, True]:
            self.watcher.tell(
                "the pin does not follow COMMAND.Interrupt Disable while an interrupt is pending",
                "drive it by self.set_intx(level) alone, and let config_write call super().config_write",
            )
        if self.resets < MOST_RESETS:
            self._reset()
        else:
            self.device.reset()
        self._config(cfg.COMMAND, 2, _ENABLED)

    def _reset(self) -> None:
        """Reset it, and look at what its registers are then."""
        self.resets += 1
        self.device.reset()
        self._let_time_pass()
        now, steady = self._registers(), self.steady
        changed = [place for place, value in steady.items() if now[place] != value]
        if changed:
            bar, offset = changed[0]
            more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
            self.watcher.tell(
                f"BAR{bar}+{offset:#x}{more} is {now[bar, offset]:#x} after a reset and was {steady[bar, offset]:#x} at"
                " power-on",
                "override reset: call super().reset() and give every register its first value",
            )


def _places(bar: Bar) -> list[int]:
    """Offsets to try: the first registers, and some of the rest."""
    size = bar.region.size
    low = range(0, min(size, 4 * MOST_REGISTERS), 4)
    return [*low, *(at for at in range(4 * MOST_REGISTERS, size - 3, max(size // 16, 4)))]
