"""vfio-pci in a machine: what its guest and its user see of plug, interrupts, routing and unplug."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devices.pci import config as cfg
from devices.vfio_pci import VfioIntxEnable, VfioIntxKvmRefused, VfioPci
from machine import plug
from machine.machine import Machine, MachineConfig
from tests.support.vfio_board import BAR, IRQ_ACK, IRQ_RAISE, IRQ_STATUS, VfioBoard
from vmm.errors import ConfigError, DeviceNotFound, InUse, PropertyError
from vmm.kernel.policies import POLICIES


@pytest.fixture(params=["kvm", "user"])
def road(request) -> str:
    return request.param


@pytest.fixture
def board() -> VfioBoard:
    return VfioBoard(trace=True)


@pytest.fixture
def device(board, road) -> VfioPci:
    board.host()
    device = board.plug(**{"x-no-kvm-intx": road == "user"})
    assert device.road == road
    board.setup(device)
    return device


# Identity and registers


def test_guest_sees_the_host_device(board, device):
    assert device.config_read(0, 4) == 0x11E81234
    assert device.config_read(cfg.INTERRUPT_PIN, 1) == 1
    assert board.read(BAR) == 0x010000ED
    board.poke(4, 0x1234)
    assert board.read(BAR + 4) == 0xFFFFFFFF & ~0x1234


def test_bar_is_sized_and_moved_without_touching_the_host_device(board, device):
    device.config_write(cfg.BASE_ADDRESS_0, 4, 0xFFFFFFFF)
    assert device.config_read(cfg.BASE_ADDRESS_0, 4) == 0xFFF00000
    device.config_write(cfg.BASE_ADDRESS_0, 4, 0xFD000000)
    assert board.read(0xFD000000) == 0x010000ED
    assert board.objects["h0"].device.config.get(cfg.BASE_ADDRESS_0, 4) == 0


def test_bus_master_is_the_devices_own(board, device):
    host = board.objects["h0"].device
    assert host.bus_master
    device.config_write(cfg.COMMAND, 2, cfg.COMMAND_MEMORY)
    assert not host.bus_master
    assert device.config_read(cfg.COMMAND, 2) == cfg.COMMAND_MEMORY


def test_memory_decoding_off_reads_all_ones_and_loses_writes(board, device):
    device.config_write(cfg.COMMAND, 2, 0)
    assert board.read(BAR) == 0xFFFFFFFF
    board.poke(IRQ_RAISE, 1)
    assert board.objects["h0"].device.irq_status == 0


# Interrupts


@pytest.mark.usefixtures("device")
def test_every_interrupt_arrives_exactly_once(board):
    for n in range(1, 20):
        board.poke(IRQ_RAISE, n)
        assert board.serve() == 10
        assert board.take() == -1
    assert board.objects["h0"].device.stats() == {"raised": 19, "acked": 19}


@pytest.mark.usefixtures("device")
def test_eoi_before_the_device_is_served_brings_the_interrupt_again(board):
    board.poke(IRQ_RAISE, 1)
    assert board.take() == 10
    board.eoi()
    assert board.serve() == 10
    assert board.take() == -1


@pytest.mark.usefixtures("device")
def test_second_cause_during_service_is_not_lost(board):
    board.poke(IRQ_RAISE, 1)
    assert board.take() == 10
    board.poke(IRQ_ACK, board.read(BAR + IRQ_STATUS))
    board.poke(IRQ_RAISE, 2)
    board.eoi()
    assert board.serve() == 10
    assert board.take() == -1


@pytest.mark.usefixtures("device")
def test_two_devices_on_one_gsi_are_both_served(board, road):
    board.host("h1")
    other = board.plug("v1", "h1", **{"x-no-kvm-intx": road == "user"})
    other.config_write(cfg.BASE_ADDRESS_0, 4, BAR + 0x100000)
    other.config_write(cfg.COMMAND, 2, cfg.COMMAND_MEMORY)
    hosts = [board.objects[name].device for name in ("h0", "h1")]
    for first, second in ((0, 1), (1, 0)):
        for n in (first, second):
            board.write(BAR + n * 0x100000 + IRQ_RAISE, 1)
            board.rig.drain()
        rounds = 0
        while board.take() == 10:
            rounds += 1
            for n, host in enumerate(hosts):
                if host.irq_status:
                    board.write(BAR + n * 0x100000 + IRQ_ACK, host.irq_status)
                    break  # one device per interrupt
            board.eoi()
        assert rounds <= 4
        assert [host.irq_status for host in hosts] == [0, 0]


def test_intx_disable_holds_the_interrupt_back_until_it_is_cleared(board, device):
    device.config_write(cfg.COMMAND, 2, cfg.COMMAND_MEMORY | cfg.COMMAND_INTX_DISABLE)
    board.poke(IRQ_RAISE, 1)
    assert board.take() == -1
    assert device.config_read(cfg.COMMAND, 2) & cfg.COMMAND_INTX_DISABLE
    assert device.config_read(cfg.STATUS, 2) & cfg.STATUS_INTERRUPT
    device.config_write(cfg.COMMAND, 2, cfg.COMMAND_MEMORY)
    board.rig.drain()
    assert board.serve() == 10
    assert board.take() == -1


def test_intx_disable_by_a_byte_write_works_too(board, device):
    device.config_write(cfg.COMMAND + 1, 1, cfg.COMMAND_INTX_DISABLE >> 8)
    board.poke(IRQ_RAISE, 1)
    assert board.take() == -1
    device.config_write(cfg.COMMAND + 1, 1, 0)
    board.rig.drain()
    assert board.serve() == 10


def test_older_device_without_intx_disable_is_masked_at_the_host(board):
    board.host(**{"x-pci-2-3": False})
    device = board.plug()
    board.setup(device)
    for _ in range(3):
        board.poke(IRQ_RAISE, 1)
        assert board.serve() == 10
    hardware = device.vfio.intx.hardware
    assert hardware.depth == int(device.vfio.intx.ctx.masked) == 0


@pytest.mark.usefixtures("device")
def test_masked_pin_delivers_after_unmask(board):
    rig = board.rig
    rig.redir_half(10, False, 0x1805A)
    board.poke(IRQ_RAISE, 1)
    assert board.take() == -1
    rig.redir_half(10, False, 0x805A)
    assert board.serve() == 10
    assert board.take() == -1


@pytest.mark.parametrize("policy", [name for name in POLICIES if name != "resample"])
def test_kernel_with_eoifd_carries_the_interrupt_too_and_lets_go_under_every_policy(policy):
    board = VfioBoard(policy=policy)
    board.host()
    before = snapshot(board)
    for _ in range(70):  # more turns than there are source ids
        device = board.plug()
        assert device.road == "kvm"
        board.setup(device)
        board.poke(IRQ_RAISE, 1)
        assert board.serve() == 10
        board.poke(IRQ_RAISE, 2)
        assert board.take() == 10
        device.unrealize()
        board.rig.drain()
        board.eoi()
        assert snapshot(board) == before
    assert board.kvm.gsis.sources.live() == 1


@pytest.mark.parametrize("policy", POLICIES)
def test_pc_takes_a_policy_and_its_ledger_is_balanced_after_plug_and_removal(policy):
    machine = Machine.create("pc", MachineConfig(accel="qtest", ram_size=1 << 20, options={"irqfd-policy": policy}))
    machine.object_add({"qom-type": "vfio-host-device", "id": "h0", "driver": "edu"})
    for pirq in range(4):
        machine.piix3.config_write(0x60 + pirq, 1, 11)
    before = machine.ledger.snapshot()
    device = machine.device_add({"driver": "vfio-pci", "id": "v0", "x-host-object": "h0"})
    assert (device.road, device.gsi) == ("kvm", 11)
    with pytest.raises(InUse, match="in use"):
        machine.object_del("h0")
    plug.remove(machine, device)
    machine.executor.drain()
    assert machine.ledger.difference(before) == ([], [])
    machine.close()


# Routing


def test_reroute_moves_the_irqfd_and_what_is_pending(board, device, road):
    board.poke(IRQ_RAISE, 1)
    board.route(11)
    assert device.gsi == 11
    got = {board.take()}
    board.eoi()
    got.add(board.serve())
    got.discard(-1)
    assert 11 in got
    while board.serve() >= 0:
        pass
    assert board.objects["h0"].device.irq_status == 0
    board.poke(IRQ_RAISE, 2)
    assert board.serve() == 11
    assert len(board.kvm.irqfds.items) == (1 if road == "kvm" else 0)


def test_route_to_nowhere_holds_the_interrupt_until_there_is_one(board, device, road):
    board.route(None)
    assert (device.road, device.gsi) == ("user", None)
    board.poke(IRQ_RAISE, 1)
    assert board.take() == -1
    board.route(11)
    assert device.road == road
    assert board.serve() == 11
    assert board.take() == -1


@pytest.mark.usefixtures("device")
def test_route_change_of_others_changes_nothing(board):
    before = board.recording.of(VfioIntxEnable)
    board.bus.route_changed()
    assert board.recording.of(VfioIntxEnable) == before


def test_kvm_that_refuses_leaves_the_monitor_to_forward(board):
    board.host()
    board.kvm.irqfds.irqchip = "split"
    device = board.plug()
    assert device.road == "user"
    assert len(board.recording.of(VfioIntxKvmRefused)) == 1
    assert board.files.files.count(None) + 3 == len(board.files.files)  # stdin, the VM, the trigger
    board.setup(device)
    board.poke(IRQ_RAISE, 1)
    assert board.serve() == 10


# Life


def snapshot(board: VfioBoard):
    files = [file.name if file else None for file in board.files.files]
    while files and files[-1] is None:
        files.pop()
    return (
        board.ledger.snapshot(),
        files,
        board.kvm.irqfds.items,
        board.kvm.irqfds.resamplers,
        dict(board.kvm.gsis.notifiers),
        board.rig.ioapic.irr,
        [wire.high for wire in (*board.bus.pirqs, *board.wires.values())],
        [len(wire.holders) for wire in board.bus.pirqs],
        len(board.bus.route_subscriptions),
        board.mmio.mappings(),
    )


@pytest.mark.parametrize("when", ["idle", "raised", "taken", "disabled"])
def test_unplug_leaves_the_machine_as_before_the_plug(board, road, when):
    board.host()
    before = snapshot(board)
    for _ in range(2):
        device = board.plug(**{"x-no-kvm-intx": road == "user"})
        board.setup(device)
        if when != "idle":
            board.poke(IRQ_RAISE, 1)
        if when == "taken":
            assert board.take() == 10
        if when == "disabled":
            device.config_write(cfg.COMMAND, 2, cfg.COMMAND_INTX_DISABLE)
        device.unrealize()
        board.rig.drain()
        if when == "taken":
            board.eoi()
        else:
            while board.take() >= 0:
                board.eoi()
        assert snapshot(board) == before
        assert board.objects["h0"].in_use is None
        assert board.objects["h0"].device.irq_status == 0


def test_takedown_follows_the_safe_order(board, monkeypatch):
    """Each step of the module's list, in its order, whatever it was built with."""
    steps: list[str] = []
    board.host()
    device = board.plug()

    class Watched(list):
        def pop(self, *at):
            row, release = super().pop(*at)
            steps.append(f"{row.kind} {row.name}")
            return row, release

    for holdings in (device._intx, device._road):
        monkeypatch.setattr(holdings, "_releases", Watched(holdings._releases))
    device.unrealize()
    assert steps == [
        "notifier intx-route",
        "road INTx",
        "vfio-unmasked INTx",
        "irqfd gsi-10",
        "vfio-irq unmask",
        "fd unmask",
        "vfio-irq INTx",
        "level INTx",
        "fd trigger",
        "interrupt-mode INTx",
    ]
    assert device.mode == "NONE"


def test_plug_that_fails_halfway_leaves_nothing(board, road):
    board.host()
    before = snapshot(board)
    limit = sum(1 for file in board.files.files if file is not None)
    board.files.limit = limit + 1  # the trigger fits, the unmask eventfd does not
    device = board.plug(**{"x-no-kvm-intx": road == "user"})
    assert device.road == "user"
    device.unrealize()
    board.files.limit = limit
    with pytest.raises(OSError, match="Too many open files"):
        board.plug()
    assert snapshot(board) == before
    assert board.objects["h0"].in_use is None


def test_reset_with_an_interrupt_pending_silences_the_device(board, device):
    board.poke(IRQ_RAISE, 1)
    device.reset()
    board.rig.drain()
    assert board.objects["h0"].device.irq_status == 0
    assert not board.rig.irr(10)
    assert device.config_read(cfg.COMMAND, 2) == 0
    assert board.read(BAR) == 0xFFFFFFFF
    while board.take() >= 0:
        board.eoi()
    board.setup(device)
    board.poke(IRQ_RAISE, 1)
    assert board.serve() == 10


def test_device_has_one_user_at_a_time(board):
    board.host()
    board.plug("v0")
    with pytest.raises(InUse, match="in use by 'v0'"):
        board.plug("v1")
    assert board.objects["h0"].in_use == "v0"


def test_missing_host_object_is_not_found_in_qemus_words(board):
    with pytest.raises(DeviceNotFound, match=r"^Device 'h9' not found$"):
        board.plug(host="h9")
    with pytest.raises(PropertyError, match="x-host-object property not set"):
        VfioPci.parse({})


@pytest.mark.parametrize(
    ("properties", "message"),
    [
        ({"driver": "nonsense"}, "not a valid device model"),
        ({"driver": "vfio-pci"}, "no PCI device that a host could have"),
        ({"driver": "edu", "colour": "red"}, "Property 'edu.colour' not found"),
        ({"driver": "edu", "x-pci-2-3": "maybe"}, "expects 'on' or 'off'"),
    ],
)
def test_host_object_that_cannot_be_made_leaves_nothing(board, properties, message):
    with pytest.raises(ConfigError, match=message):
        board.host(**properties)
    assert board.objects == {}


@pytest.mark.usefixtures("device")
def test_dma_of_the_host_device_reaches_the_machines_memory(board):
    board.memory.write(0x1000, b"interrupt")
    host = board.objects["h0"].device
    assert host.dma_read(0x1000, 9) == b"interrupt"


GUEST = st.one_of(
    st.tuples(st.just("config"), st.integers(0, 63), st.sampled_from([1, 2, 4]), st.integers(0, (1 << 32) - 1)),
    st.tuples(st.just("bar"), st.integers(0, 0x120), st.sampled_from([1, 2, 4, 8]), st.integers(0, (1 << 64) - 1)),
    st.tuples(st.just("route"), st.sampled_from([10, 11, None]), st.just(0), st.just(0)),
    st.tuples(st.sampled_from(["take", "eoi", "reset", "setup"]), st.just(0), st.just(0), st.just(0)),
)


@settings(max_examples=60, deadline=None)
@given(st.booleans(), st.booleans(), st.lists(GUEST, max_size=40))
def test_guest_can_do_anything_and_unplug_still_leaves_nothing(no_kvm, pci_2_3, acts):
    board = VfioBoard()
    board.host(**{"x-pci-2-3": pci_2_3})
    before = snapshot(board)
    device = board.plug(**{"x-no-kvm-intx": no_kvm})
    board.setup(device)
    for act, where, size, value in acts:
        if act == "config":
            offset = where * 4 + (value & 3 & -size)
            device.config_write(offset, size, value & ((1 << 8 * size) - 1))
            assert 0 <= device.config_read(offset, size) < 1 << 8 * size
        elif act == "bar":
            board.mmio.write(BAR + where, size, value & ((1 << 8 * size) - 1))
            assert 0 <= board.mmio.read(BAR + where, size) < 1 << 8 * size
        elif act == "route":
            board.route(where)
        elif act == "setup":
            board.setup(device)
        elif act == "reset":
            device.reset()
        else:
            getattr(board, act)()
        board.rig.drain()
    device.unrealize()
    board.rig.drain()
    board.route(10)
    while board.take() >= 0:
        board.eoi()
    for _ in range(8):
        board.eoi()  # whatever was in service
        while board.take() >= 0:
            board.eoi()
    assert snapshot(board) == before
