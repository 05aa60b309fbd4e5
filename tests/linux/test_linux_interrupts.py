"""Level interrupts of stock drivers: what Linux counted is what the machine delivered and what the devices raised."""

from __future__ import annotations

import pytest

from devices.ioapic import REMOTE_IRR
from support.endurance import size
from support.linux_shell import boot, interrupts, needs_linux
from vmm import pytest_plugin
from vmm.attribution import Attribution
from vmm.boot.firmware import PIRQ_IRQS

pytestmark = needs_linux
ROUNDS = size(2_000, 50_000)
SLOTS = {"e0": 4, "e1": 8}
"""Four slots apart: the same PIRQ, and so the same pin."""
UIO = (
    "modprobe uio_pci_generic; echo 1234 11e8 > /sys/bus/pci/drivers/uio_pci_generic/new_id; "
    "for d in {slots}; do echo -n /sys/bus/pci/devices/$d/uio/*; done"
)


def bind(shell, *slots: int) -> list[str]:
    """Let uio_pci_generic have the edu devices in these slots; for each the arguments of edu_irqs."""
    places = [f"0000:00:{slot:02x}.0" for slot in slots]
    shell.run(UIO.format(slots=" ".join(places)))
    arguments = []
    for place in places:
        folder = f"/sys/bus/pci/devices/{place}"
        node = shell.run(f"basename $(echo {folder}/uio/uio*)")
        arguments.append(f"/dev/{node} {folder}/resource0 {folder}/config")
    return arguments


def counts(shell) -> dict[int, tuple[int, int]]:
    """For each level pin what Linux counted, and how often the CPU that the pin leads to took its vector.

    Linux has vectors by CPU, and gives one that it freed to another pin: only what is added later can be compared.
    """
    table = interrupts(shell)
    chips = shell.guest.qmp("x-query-irqchip")
    found = {}
    for name, (count, handling, _) in table.items():
        if handling.endswith("fasteoi"):
            entry = chips["ioapics"][0]["entries"][int(name)]
            where = entry >> 56
            cpu = where.bit_length() - 1 if entry >> 11 & 1 else where
            found[int(name)] = (count, chips["lapics"][cpu]["taken"].get(str(entry & 0xFF), 0))
    return found


@pytest.mark.parametrize("cpus", [1, 2])
def test_every_interrupt_of_two_devices_on_a_pin_is_counted_once_everywhere(vm, cpus, monkeypatch):
    monkeypatch.setattr(pytest_plugin, "PATIENCE", size(60, 600))
    attribution = Attribution()
    devices = [{"driver": "edu", "id": i, "addr": str(a)} for i, a in SLOTS.items()]
    shell = boot(vm, cpus=cpus, devices=devices, listen=[attribution])
    guest_arguments = bind(shell, *SLOTS.values())
    before = counts(shell)
    end = shell.start(f"edu_irqs {ROUNDS} {' '.join(guest_arguments)}")
    assert shell.wait(end)[1] == "0"

    ((pin, row),) = [(int(p), row) for p, row in interrupts(shell).items() if "uio_pci_generic" in row[2]]
    assert row[1] == f"{pin}-fasteoi"
    assert row[2].count("uio_pci_generic") == 2
    after = counts(shell)
    by_linux, by_machine = (new - old for new, old in zip(after[pin], before[pin], strict=True))
    assert by_linux == by_machine
    stats = [shell.machine.peripherals[i].stats() for i in SLOTS]
    both = (ROUNDS + 7) // 8
    raised = ROUNDS + both
    assert [s["raised"] for s in stats] == [s["acked"] for s in stats]
    assert sum(s["raised"] for s in stats) == raised
    # Where both raised theirs, one interrupt may serve both, and the driver of one that waits to be acknowledged
    # answers for it again.
    assert ROUNDS <= by_linux <= raised
    events = [int(shell.run(f"cat /sys/class/uio/{a.split()[0][5:]}/event")) for a in guest_arguments]
    assert raised <= sum(events) <= raised + 2 * both
    assert attribution.by_pin[pin] >= by_linux
    assert attribution.unattributed == []
    assert shell.run("dmesg | grep -c 'nobody cared'", status=1) == "0"
    assert shell.machine.ioapic.redir[pin] & REMOTE_IRR == 0
    assert shell.power_off() == 0


def test_all_pins_of_pci_are_level_and_their_counts_agree_with_the_machine(vm, tmp_path):
    image = tmp_path / "disk"
    image.write_bytes(bytes(16 << 20))
    devices = [
        {"driver": "nvme", "id": "n0", "addr": "5", "serial": "s", "x-image": str(image)},
        {"driver": "pci-serial", "id": "p0", "addr": "6"},
        {"driver": "edu", "id": "e0", "addr": "4"},
    ]
    shell = boot(vm, cpus=2, devices=devices)
    (arguments,) = bind(shell, 4)
    before = counts(shell)
    shell.run(f"edu_irqs 300 {arguments}")
    shell.run("dd if=/dev/nvme0n1 of=/dev/null bs=4k count=300 iflag=direct 2>&1")
    after = counts(shell)
    nvme, _, _, edu = shell.machine.piix3.routes  # which of 10 and 11, Linux decides by what it has there already
    assert {nvme, edu} <= {10, 11}
    assert before.keys() == after.keys() == {9, nvme, edu}
    for pin in after:
        by_linux, by_machine = (new - old for new, old in zip(after[pin], before[pin], strict=True))
        assert by_linux == by_machine
    assert sum(after[pin][0] - before[pin][0] for pin in after) > 300
    table = interrupts(shell)
    level = {name for row in table.values() if "fasteoi" in row[1] for name in row[2].replace(",", " ").split()}
    assert level >= {"acpi", "nvme0q0", "nvme0q1", "uio_pci_generic"}
    assert shell.power_off() == 0


@pytest.mark.parametrize(("append", "pin"), [("", 10), ("acpi_irq_isa=10,11", 5)], ids=["as-found", "elsewhere"])
def test_pin_is_the_one_that_linux_sets_the_link_device_to(vm, append, pin):
    shell = boot(vm, append=f"quiet {append}", cpus=1, devices=[{"driver": "edu", "id": "e0", "addr": "5"}])
    links = shell.run("dmesg | sed -n 's/.*ACPI: PCI: Interrupt link //p'").splitlines()
    assert links == [f"LNK{link} configured for IRQ {irq}" for link, irq in zip("ABCD", PIRQ_IRQS, strict=True)]
    routes = shell.machine.piix3.routes
    assert routes == [None] * 4  # Linux switches off what no driver asked for
    (arguments,) = bind(shell, 5)
    assert routes == [pin, None, None, None]
    before = counts(shell)
    shell.run(f"edu_irqs 100 {arguments}")
    by_linux, by_machine = (new - old for new, old in zip(counts(shell)[pin], before[pin], strict=True))
    assert by_linux == by_machine == 100
    _, handling, names = interrupts(shell)[str(pin)]
    assert (handling, names) == (f"{pin}-fasteoi", "uio_pci_generic")
    assert shell.power_off() == 0
