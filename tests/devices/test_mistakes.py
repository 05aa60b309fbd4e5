"""The classic mistakes of a device's author are found, and devices without them are left in peace."""

from __future__ import annotations

import runpy
import time
from pathlib import Path

import pytest

from devices import IoRegion, PciDevice, Property, check
from devices.pci import config as cfg
from machine.registry import device_type
from vmm.errors import ConfigError, PropertyError

THERMOMETER = Path(__file__).parents[2] / "docs/examples/thermometer.py"


class Good(PciDevice):
    """Writing a register raises bits, writing the next lowers them."""

    driver = "good"
    vendor_id, device_id, class_id, interrupt_pin = 0x1234, 0x7E41, 0x00FF, 1
    bar_size = 0x100

    def realize(self, board):
        super().realize(board)
        self.register_bar(0, IoRegion("good", self.bar_size, self.read, self.write, min_access=4, max_access=4))
        self.timer = board.clock.timer("good", self.tick)
        self.holdings.hold("timer", "good", self.timer.cancel)
        self.pending = 0

    def reset(self):
        super().reset()
        self.pending = 0
        self.timer.cancel()

    def tick(self):
        pass

    def read(self, offset, _size):
        return self.pending if offset == 0 else 0

    def write(self, offset, _size, value):
        if offset == 0:
            self.pending |= value
        elif offset == 4:
            self.pending &= ~value
        self.drive()

    def drive(self):
        self.set_intx(self.pending != 0)


class DrivesTheLineItself(Good):
    def drive(self):
        self._line.set(self.pending != 0)


class ForgetsInterruptDisable(Good):
    def update_intx(self):
        pass


class AssertsWhileDisabled(Good):
    def config_write(self, offset, size, value):
        super().config_write(offset, size, value)
        self._line.set(self.intx_level)


class KeepsStatusToItself(Good):
    def drive(self):
        super().drive()
        self.config.data[cfg.STATUS] &= ~cfg.STATUS_INTERRUPT


class KeepsConfigWritesToItself(Good):
    def config_write(self, offset, size, value):
        pass


class HasNoPin(Good):
    interrupt_pin = 0


class Pulses(Good):
    def drive(self):
        if self.pending:
            self.set_intx(True)
            self.set_intx(False)


class PulsesInATimer(Good):
    def drive(self):
        self.timer.arm(self.board.clock.now() + 1000)

    def tick(self):
        self._line.set(True)
        self._line.set(False)


class RemembersAcrossReset(Good):
    def reset(self):
        PciDevice.reset(self)


class IsHighAfterReset(Good):
    def reset(self):
        super().reset()
        self.set_intx(True)


class ResetsOnlyItself(Good):
    def reset(self):
        self.pending = 0


class Divides(Good):
    def read(self, offset, _size):
        return 1 // offset


class FailsInATimer(Good):
    def write(self, _offset, _size, _value):
        self.timer.arm(self.board.clock.now() + 1000)

    def tick(self):
        raise KeyError("cause")


class ReadsTime(Good):
    def read(self, _offset, _size):
        return time.time()


class ReadsMemoryInARead(Good):
    def read(self, _offset, _size):
        return int.from_bytes(self.dma_read(0x1000, 4), "little")


@pytest.mark.parametrize(
    ("cls", "what", "fix"),
    [
        (DrivesTheLineItself, "Interrupt Status is 0 while the pin is high", "self.set_intx(level) alone"),
        (DrivesTheLineItself, "does not follow COMMAND.Interrupt Disable", "self.set_intx(level) alone"),
        (
            ForgetsInterruptDisable,
            "INTx is asserted while COMMAND.Interrupt Disable is set",
            "self.set_intx(level) alone",
        ),
        (AssertsWhileDisabled, "INTx is asserted while COMMAND.Interrupt Disable is set", "self.set_intx(level) alone"),
        (KeepsStatusToItself, "Interrupt Status is 0 while the pin is high", "self.set_intx(level) alone"),
        (KeepsConfigWritesToItself, "Interrupt Disable cannot be written", "super().config_write"),
        (HasNoPin, "without interrupt pin", "interrupt_pin = 1"),
        (Pulses, "the pin goes high and low again at once", "INTx is a level"),
        (PulsesInATimer, "Interrupt Status is 0 while the pin is high", "self.set_intx(level) alone"),
        (RemembersAcrossReset, "after a reset and was 0x0 at power-on", "override reset"),
        (IsHighAfterReset, "after a reset the pin is high", "raise nothing there"),
        (ResetsOnlyItself, "after a reset the pin is high, or COMMAND is not 0", "super().reset()"),
        (Divides, "ZeroDivisionError", "let no exception out"),
        (FailsInATimer, "a timer: KeyError", "let no exception out"),
        (ReadsTime, "gives 1", "return an int"),
        (ReadsMemoryInARead, "guest memory is read inside of a register read", "in a timer"),
    ],
)
def test_mistake_is_named_with_what_mends_it(cls, what, fix):
    found = [str(mistake) for mistake in check(cls)]
    assert any(what in text and fix in text for text in found), found


def named(name, value):
    return type("Named", (Good,), {name: value})


@pytest.mark.parametrize(
    ("name", "value", "fix"),
    [
        ("driver", "", "driver = "),
        ("class_id", 0xFF0000, "base class << 8 | subclass"),
        ("vendor_id", 0xFFFF, "0 to 0xfffe"),
        ("interrupt_pin", 5, "1 to 4"),
    ],
)
def test_identity_that_cannot_be_is_named(name, value, fix):
    found = list(map(str, check(named(name, value))))
    assert any(name.replace("driver", "driver name") in text and fix in text for text in found), found


def test_bar_that_is_no_power_of_two_says_what_would_be():
    with pytest.raises(ConfigError, match=r"0x1800 bytes is not a power of two.*make it 0x2000"):
        check(named("bar_size", 0x1800))


class CallsSuperTooLate(Good):
    def realize(self, board):
        self.register_bar(0, IoRegion("late", 0x100, self.read, self.write))
        super().realize(board)


class NeverCallsSuper(Good):
    def realize(self, board):
        self.board = board


class FailsInRealize(Good):
    def realize(self, board):
        super().realize(board)
        raise ValueError("no sensor")


@pytest.mark.parametrize(
    ("cls", "says"),
    [
        (CallsSuperTooLate, r"call super\(\).realize\(board\) first"),
        (NeverCallsSuper, r"does not call super\(\).realize"),
        (FailsInRealize, "ValueError: no sensor"),
    ],
)
def test_realize_that_fails_says_why(cls, says):
    with pytest.raises(ConfigError, match=says):
        check(cls)


def test_good_device_has_no_mistake_and_its_interrupt_was_tried():
    report = check(Good)
    assert report == []
    assert report.interrupted
    assert report.accesses > 1000
    assert "the pin was high, no mistakes" in report.text()


def test_tutorials_thermometer_has_no_mistake():
    cls = runpy.run_path(str(THERMOMETER))["Thermometer"]
    report = check(cls, **{"period-us": 1000})
    assert report == []
    assert report.interrupted


@pytest.mark.parametrize("driver", ["edu", "pci-testdev", "pci-serial", "virtio-rng-pci", "virtio-net-pci"])
def test_devices_of_ours_have_no_mistake(driver):
    assert check(device_type(driver)) == []


def test_a_mistake_in_every_register_is_told_a_few_times_only():
    class Fails(Good):
        def read(self, offset, _size):
            raise KeyError(offset)

    assert len(check(Fails)) == 3


def test_properties_are_checked_as_ever():
    class WithProperty(Good):
        properties = (*PciDevice.properties, Property("n", "uint8", 1))

    assert check(WithProperty, n=2) == []
    with pytest.raises(PropertyError):
        check(WithProperty, n=300)
