"""Sequence a' of the dispute over KVM_EOIFD, with Linux and its own driver on the line: docs/dispute.md, row a'.

An irqfd and its eoifd are bound, the irqfd is deassigned and the same eventfd assigned again; then it is signalled.
Where the eoifd follows neither, nobody lowers the line at the EOI: Linux finds an interrupt that no handler answers
for, a hundred thousand times, says so, and masks the pin. The device that shares it is dead from then on.
"""

from __future__ import annotations

import pytest
from qemu.qmp import ExecuteError

from devices.ioapic import MASKED
from support.endurance import FULL
from support.linux_shell import boot, needs_linux
from vmm import pytest_plugin

pytestmark = needs_linux
SLOT = "0000:00:04.0"
PIN = 11
STUCK = ("eoifd-v5", "eoifd-follows-irqfd", "eoifd-holds-file")
REFUSED = ("deassign-fails", "assign-busy")
SHORT = ("eoifd-v5", "assign-busy", "assign-rebinds")


def bound(vm, policy):
    """Linux with an edu's driver on the pin, and an eventfd pair bound to it."""
    devices = [{"driver": "edu", "id": "e0", "addr": "4"}]
    shell = boot(vm, cpus=2, devices=devices, options={"irqfd-policy": policy})
    shell.run("modprobe uio_pci_generic; echo 1234 11e8 > /sys/bus/pci/drivers/uio_pci_generic/new_id")
    folder = f"/sys/bus/pci/devices/{SLOT}"
    shell.run(f"edu_irqs 10 /dev/uio0 {folder}/resource0 {folder}/config; exec 9</dev/uio0; dmesg -n 4")
    assert not shell.machine.ioapic.redir[PIN] & MASKED
    guest = shell.guest
    e, f = (guest.qmp("x-eventfd-open", name=name)["fd"] for name in "ef")
    if policy == "resample":
        guest.qmp("x-irqfd-assign", fd=e, gsi=PIN, resamplefd=f)
    else:
        guest.qmp("x-irqfd-assign", fd=e, gsi=PIN, level=True)
        guest.qmp("x-eoifd-assign", fd=f, irqfd=e)
    return shell, e, f


def told(shell, fd):
    return shell.machine.files.file(fd).ctx.count


@pytest.mark.parametrize("policy", [*STUCK, *REFUSED, "assign-rebinds", "resample"])
def test_the_same_eventfd_assigned_again_comes_to_what_the_dispute_says(vm, policy, monkeypatch):
    if not FULL and policy not in SHORT:
        pytest.skip("a short run plays three rules; VINTX_FULL=1 plays all")
    # Linux starts to count anew when it saw no such interrupt for 100 ms, as on a host that is busy.
    monkeypatch.setattr(pytest_plugin, "PATIENCE", 300)
    shell, e, f = bound(vm, policy)
    guest = shell.guest
    guest.qmp("x-eventfd-signal", fd=e)
    guest.wait_for(lambda: told(shell, f) == 1, "the EOI of a pair that is bound")

    again = {"resamplefd": f} if policy == "resample" else {"level": True}
    if policy == "deassign-fails":
        with pytest.raises(ExecuteError, match="EBUSY"):
            guest.qmp("x-irqfd-deassign", fd=e, gsi=PIN)
    else:
        guest.qmp("x-irqfd-deassign", fd=e, gsi=PIN)
    if policy == "assign-busy":
        with pytest.raises(ExecuteError, match="EBUSY"):
            guest.qmp("x-irqfd-assign", fd=e, gsi=PIN, **again)
    elif policy not in REFUSED:
        guest.qmp("x-irqfd-assign", fd=e, gsi=PIN, **again)
        guest.qmp("x-eventfd-signal", fd=e)
    if policy in STUCK:
        shell.wait(f"irq {PIN}: nobody cared")
        shell.wait(f"Disabling IRQ #{PIN}")
        assert told(shell, f) == 1  # the eoifd never heard of it
        shell.guest.wait_for(lambda: shell.machine.ioapic.redir[PIN] & MASKED, "the mask")
        # The device's driver is stalled: its interrupt stands, and its pin stays masked.
        shell.machine.peripherals["e0"].raise_irq(1)
        shell.run("true")
        assert shell.machine.ioapic.irr >> PIN & 1
        assert shell.machine.ioapic.redir[PIN] & MASKED
    else:
        if policy not in REFUSED:
            guest.wait_for(lambda: told(shell, f) == 2, "the EOI of the pair that was bound again")
        folder = f"/sys/bus/pci/devices/{SLOT}"
        shell.run(f"exec 9<&-; edu_irqs 10 /dev/uio0 {folder}/resource0 {folder}/config")
        assert shell.run("dmesg | grep -c 'nobody cared'", status=1) == "0"
    assert shell.power_off() == 0
