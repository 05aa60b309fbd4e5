"""A board with a VM, real interrupt chips, a PCI bus and a host device, and the acts of a guest's driver."""

from __future__ import annotations

from devices.edu import Edu
from devices.pci import config as cfg
from devices.pci.bus import PciBus
from devices.vfio_host import VfioHostDevice
from devices.vfio_pci import VfioPci
from tests.support.board import FakeBoard
from tests.support.kvm_rig import LEVEL, KvmRig
from vmm.lines import Wire

BAR = 0xFE000000
IRQ_RAISE, IRQ_ACK, IRQ_STATUS = 0x60, 0x64, 0x24
VECTOR = 0x50


class VfioBoard(FakeBoard):
    """GSI n is IOAPIC pin n, level-triggered with vector 0x50 + n. All PIRQs reach `gsi`, which `route` changes."""

    def __init__(self, trace: bool = False, gsi: int | None = 10, policy: str | None = None) -> None:
        super().__init__(trace=trace)
        self.rig = KvmRig(policy=policy)
        self.kvm, self.files, self.executor = self.rig.vm, self.rig.files, self.rig.executor
        self.objects: dict[str, VfioHostDevice] = {}
        self.bus = PciBus()
        self.gsi = gsi
        self.bus.set_router(lambda _pirq: self.gsi)
        self.wires = {n: Wire(f"gsi-{n}", self.kvm.gsi_target(n)) for n in (10, 11)}
        self.lines = {n: wire.hold("piix3") for n, wire in self.wires.items()}
        for wire in self.bus.pirqs:
            wire.connect(self._pirq)
        self.level = 0
        for n in (10, 11):
            self.rig.redir(n, LEVEL | VECTOR + n)

    def device_class(self, driver: str):
        return {"edu": Edu, "vfio-pci": VfioPci}.get(driver)

    def _pirq(self, high: bool) -> None:
        self.level += 1 if high else -1
        if self.gsi is not None:
            self.lines[self.gsi].set(self.level > 0)

    def route(self, gsi: int | None) -> None:
        """What a PIRQRC write does: tell who asked, then move the level."""
        self.gsi = gsi
        self.bus.route_changed()
        for n, line in self.lines.items():
            line.set(n == gsi and self.level > 0)
        self.rig.drain()

    def host(self, id: str = "h0", **properties: object) -> VfioHostDevice:
        host = VfioHostDevice.create(id, {"driver": "edu", **properties}, False, self)
        self.objects[id] = host
        return host

    def plug(self, id: str = "v0", host: str = "h0", **properties: object) -> VfioPci:
        """Plug a vfio-pci; if it cannot be, nothing of it is left."""
        device = VfioPci(id, **VfioPci.parse({"x-host-object": host, **properties}))
        device.bus = self.bus
        try:
            device.realize(self)
        except Exception:
            if hasattr(device, "holdings"):
                device.holdings.close()
            raise
        self.rig.drain()
        return device

    def setup(self, device: VfioPci) -> None:
        """What a driver's probe does: BAR 0 and memory decoding."""
        device.config_write(cfg.BASE_ADDRESS_0, 4, BAR)
        device.config_write(cfg.COMMAND, 2, cfg.COMMAND_MEMORY | cfg.COMMAND_MASTER)
        self.rig.drain()

    def poke(self, register: int, value: int) -> None:
        """A guest's write to a register of the device, with what follows from it."""
        self.write(BAR + register, value)
        self.rig.drain()

    def take(self) -> int:
        """The guest takes an interrupt: its GSI, -1 for none."""
        vector = self.rig.inta()
        return vector - VECTOR if vector > 0 else -1

    def eoi(self) -> None:
        self.rig.eoi()

    def serve(self) -> int:
        """The guest's handler, in the usual order: acknowledge at the device, then EOI."""
        gsi = self.take()
        if gsi >= 0:
            self.poke(IRQ_ACK, self.read(BAR + IRQ_STATUS))
            self.eoi()
        return gsi
