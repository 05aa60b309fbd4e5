"""Machine type `pc`: an i440FX-like board, wired up.

One wire per GSI drives irq source 0 of that GSI; the routing table leads GSIs 0 to 15 to PIC and IOAPIC pins and 16
to 23 to the IOAPIC alone, with GSI 0 on IOAPIC pin 2 as on real boards and in QEMU. ISA interrupt n is GSI n.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from devices.acpi_pm import AcpiPm
from devices.apic_bus import ApicBus
from devices.device import Property
from devices.fw_cfg import BOOT_MENU, MAX_CPUS, NB_CPUS, RAM_SIZE, UUID, FwCfg
from devices.i8042 import I8042
from devices.i8254 import I8254
from devices.i8259 import I8259
from devices.ioapic_device import IoApicDevice
from devices.ioapic_qemu import QemuIoApic
from devices.isa_serial import IsaSerial
from devices.lapic import LocalApic
from devices.mc146818 import Mc146818
from devices.pci.device import PciDevice
from devices.pci.host import I440FX, I440FXPciHost
from devices.pci.hotplug import AcpiPciHotplug
from devices.pci.piix3 import Piix3, Piix4Pm
from devices.port92 import Port92
from machine import plug
from machine.cpu_model import CpuModel
from machine.machine import Machine
from machine.processor import Processor, Processors
from machine.registry import device_type
from machine.x86_cpu import Places
from vmm.boot import acpi, firmware, flat, loader
from vmm.errors import ConfigError, EngineRefused
from vmm.kernel.files import DescriptorTable
from vmm.kernel.gsi import KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, AckNotifier, Route
from vmm.kernel.kvm import Vm
from vmm.lifecycle import Phase, Who
from vmm.lines import Wire
from vmm.order import WorkQueue

if TYPE_CHECKING:
    from collections.abc import Sequence

    from devices.device import Device
    from vmm.boot.image import BootState
    from vmm.chardev import CharBackend
    from vmm.cpu.engine import Engine
    from vmm.lines import LevelLine

GSIS = 24
ISA_IRQS = 16
NOTHING_TO_BOOT = bytes.fromhex("fa f4 eb fd")
"""cli; hlt; jmp to the hlt: firmware that found nothing to boot waits for a reset."""


def pc_routes(personality: str = "kvm") -> list[Route]:
    """The GSI routing of a PC. Ref: MP specification 1.4, 5.3 (the timer is on I/O APIC input 2).

    To QEMU's I/O APIC all 24 GSIs go one to one: it is the chip that serves input 0 by the entry of pin 2.
    """
    routes = []
    for gsi in range(ISA_IRQS):
        chip = KVM_IRQCHIP_PIC_MASTER if gsi < 8 else KVM_IRQCHIP_PIC_SLAVE
        routes.append(Route.irqchip(gsi, chip, gsi & 7))
    for gsi in range(GSIS):
        if personality == "qemu":
            routes.append(Route.irqchip(gsi, KVM_IRQCHIP_IOAPIC, gsi))
        elif gsi != 2:
            routes.append(Route.irqchip(gsi, KVM_IRQCHIP_IOAPIC, gsi or 2))
    return routes


class PcMachine(Machine):
    """An i440FX-like PC. Implements `devices.device.Board`."""

    type_name = "pc"
    description = "Standard PC (i440FX + PIIX, 1996)"
    max_cpus = 64
    properties = (
        Property("kernel-irqchip", "str", None, "on, off or split; the chips are ours under every engine"),
        Property("x-unpack-kernel", "bool", True, "off: a Linux bzImage unpacks itself in the guest"),
        Property("pit", "bool", True, "off: there is no 8254"),
        Property("ioapic", "str", None, "whose IOAPIC: kvm (version 0x11) or qemu (version 0x20)"),
        Property("irqfd-era", "str", None, "how the kernel's irqfd behaved when: v5, 3.8, 5.11, 6.3, 6.18 (default)"),
        Property("irqfd-policy", "str", None, "what becomes of an eoifd without its irqfd: see docs/eoifd.md"),
    )

    def build(self) -> None:
        """Make the board; nothing has run yet."""
        config = self.config
        if not 1 <= config.cpus <= self.max_cpus:
            raise ConfigError(
                f"Invalid SMP CPUs {config.cpus}. The max CPUs supported by machine 'pc' is {self.max_cpus}"
            )
        irqchip = self.values["kernel-irqchip"]
        if irqchip not in (None, "on", "off", "split"):
            raise ConfigError(f"Invalid parameter '{irqchip}': kernel-irqchip takes on, off or split")
        personality = self.values["ioapic"] or ("qemu" if config.accel == "qtest" else "kvm")
        if personality not in ("kvm", "qemu"):
            raise ConfigError(f"ioapic={personality}: use kvm or qemu")
        self._boot: BootState
        if config.kernel is not None:
            self._boot = loader.prepare(
                config.kernel,
                config.initrd,
                config.append,
                config.ram_size,
                unpack_here=self.values["x-unpack-kernel"],
            )
        elif config.initrd is not None or config.append:
            raise ConfigError("-append and -initrd only allowed with -kernel option")
        else:
            self._boot = flat.load(NOTHING_TO_BOOT, "firmware", config.ram_size)

        self.buses = {
            "main-system-bus": plug.SimpleBus("main-system-bus", "System"),
            "isa.0": plug.SimpleBus("isa.0", "ISA"),
        }
        self._build_interrupts(personality)
        self._build_cpus()
        self._build_pci()
        self._build_isa()
        if self.engine is not None:
            self.memory.on_write = self.engine.invalidate

    # Interrupt controllers and the kernel side.

    def _build_interrupts(self, personality: str) -> None:
        self.files = DescriptorTable()
        era, policy = self.values["irqfd-era"], self.values["irqfd-policy"]
        self.kvm = Vm(self.files, self.executor, self.trace, era_name=era, policy_name=policy)
        self.holdings.hold("fd", "kvm-vm", self.kvm.close)
        self.apic_bus = ApicBus(self.trace)
        self.pics = self.make(I8259, personality=personality)
        self.add_board_device(self.pics)
        self.pic = self.pics.pic
        self.ioapic_device = self.make(IoApicDevice, personality=personality)
        queue = WorkQueue("ioapic", self.executor)
        self.ioapic_device.wire(self.apic_bus, self.kvm.ioapic_acks, queue)
        self.add_board_device(self.ioapic_device)
        self.ioapic = self.ioapic_device.chip
        if isinstance(self.ioapic, QemuIoApic):
            self.ioapic.pic_read_irq = self.pic.intack
        self.kvm.connect(ioapic=self.ioapic, pic=self.pic, bus=self.apic_bus)
        self.kvm.set_gsi_routing(pc_routes(personality))
        self.irq_counts = [0] * GSIS
        """How often each GSI's wire rose, for `info irq`. irqfds do not go over the wires."""
        self.gsi_wires = [Wire(f"gsi-{n}", self.kvm.gsi_target(n), partial(self._count, n)) for n in range(GSIS)]

    def _count(self, gsi: int, level: bool) -> None:
        self.irq_counts[gsi] += level

    def gsi_irq(self, holder: str, gsi: int) -> LevelLine:
        """A handle on GSI 0 to 23, held by `holder`."""
        return self.gsi_wires[gsi].hold(holder)

    def isa_irq(self, holder: str, irq: int) -> LevelLine:
        """A handle on ISA interrupt 0 to 15, held by `holder`."""
        if not 0 <= irq < ISA_IRQS:
            raise ConfigError(f"ISA interrupt {irq}: there are 0 to {ISA_IRQS - 1}")
        return self.gsi_wires[irq].hold(holder)

    # CPUs.

    def _build_cpus(self) -> None:
        pending, drain = self.executor.pending, self.executor.drain
        model = CpuModel(self.config.cpu_model, self.config.cpu_options)
        self.cpu_places = Places(self.config)
        self.processors = Processors(self.ports, self.mmio, model, pending, drain)
        self.engine: Engine | None = None
        tsc = self.clock.now
        if self.config.accel == "tcg":
            from vmm.cpu.unicorn.engine import UnicornEngine

            engine = UnicornEngine(
                self.memory.ram, self.config.ram_size, self.config.cpus, self.processors, below=self.memory.below
            )
            self.engine = engine
            self.holdings.hold("engine", engine.name, engine.close)
            self.warnings += model.missing(lambda leaf: engine.cpuid_table.get(leaf, 0, osxsave=True))
        elif self.config.accel == "qtest":
            from vmm.cpu.none import NoneEngine

            self.engine = NoneEngine(self.config.cpus)
        else:
            raise EngineRefused(self.config.accel, "no such engine", "Use tcg or qtest.")
        self.loop.engine = self.processors.engine = self.engine
        self.loop.on_shutdown = partial(self.request_reset, "guest-reset")
        for index, vcpu in enumerate(self.engine.vcpus):
            processor = Processor(vcpu, self.loop, self.pic, self.trace)
            if self.config.accel == "tcg":
                tsc = partial(_guest_tsc, vcpu)
            processor.lapic = LocalApic(
                index,
                processor,
                self.apic_bus,
                self.clock,
                self.trace,
                tsc=tsc if model.tsc_deadline else None,
                tsc_hz=self._tsc_hz,
                x2apic=model.x2apic,
            )
            self.holdings.hold("lapic", str(index), processor.lapic.close)
            self.processors.all.append(processor)
            self._add_cpu(index)
        self.pic.output = self.processors.pic_output
        self.pic.changed = self.processors.interrupts_changed
        self.pic.accepts = lambda: any(p.lapic.accept_pic_intr for p in self.processors.all)

    def _add_cpu(self, index: int) -> None:
        cls = device_type(self.cpu_places.type_name)
        assert cls is not None  # of a model that there is
        place = self.cpu_places.all[index]
        device = self.make(cls, **{"socket-id": place.socket, "core-id": place.core, "thread-id": place.thread})
        self.add_board_device(device)

    def _tsc_hz(self) -> float:
        assert self.engine is not None
        return self.engine.tsc_hz

    def cpus(self) -> Sequence[Device]:
        """The CPUs, in order."""
        return self.cpu_places.cpus()

    def hotpluggable_cpus(self) -> list[dict[str, Any]]:
        """query-hotpluggable-cpus."""
        return self.cpu_places.query()

    # PCI.

    def _build_pci(self) -> None:
        self.pci_host = self.make(I440FXPciHost)
        self.add_board_device(self.pci_host)
        self.pci = self.pci_host.pci
        self.buses["pci.0"] = self.pci
        self.add_pci_board_device(self.make(I440FX, addr=0x00))
        self.piix3 = self.make(Piix3, addr=0x08, multifunction=True)
        self.add_pci_board_device(self.piix3)
        self.pm = self.make(AcpiPm)
        self.add_board_device(self.pm)
        self.add_pci_board_device(Piix4Pm(addr=0x0B, pm=self.pm))
        sci = self.pm.sci.source("gpe0")
        self.holdings.hold("wire-holder", "gpe0", sci.close)
        self.pcihp = AcpiPciHotplug(bus=self.pci, sci=sci)
        self.add_board_device(self.pcihp)
        self.pcihp.on_eject(self._ejected)

    def add_pci_board_device(self, device: PciDevice) -> None:
        """Realize a PCI function of the board."""
        device.bus = self.pci
        self.add_board_device(device)

    def chardev(self, name: str) -> CharBackend | None:
        """The character device of that id."""
        return self.config.chardevs.get(name)

    def announce_plug(self, device: Device) -> None:
        """Tell the guest of a hot-plugged device. The last step of a plug."""
        if isinstance(device, PciDevice):
            self.pcihp.device_added(device)

    def request_unplug(self, device: Device) -> None:
        """Ask the guest to let go of a device."""
        assert isinstance(device, PciDevice)
        self.pcihp.request_unplug(device)

    def card_pulled(self, device: Device) -> Sequence[Device]:
        """A card is out of its slot: its functions, for whom no unplug is pending any more."""
        if not isinstance(device, PciDevice):
            return (device,)
        return self.pcihp.forget(device.slot)

    def _ejected(self, slot: int) -> None:
        """The guest, or a reset, ejects a slot: all its functions go."""
        for device in self.pci.slot_devices(slot):
            plug.remove(self, device, Who.GUEST)

    # The ISA side.

    def _build_isa(self) -> None:
        config = self.config
        if self.values["pit"]:
            pit = self.make(I8254)
            self.add_board_device(pit)
            if self.ioapic.personality == "kvm":
                # QEMU's I/O APIC tells nobody of an edge's EOI, and QEMU's own 8254 drops ticks that come too soon.
                self.kvm.gsis.register(AckNotifier(0, pit.watch_acks()))
                self.kvm.gsis.on_mask[0] = pit.mask_changed
        self.rtc = self.make(Mc146818, base=config.rtc_base)
        self.add_board_device(self.rtc)
        self.add_board_device(self.make(I8042))
        self.add_board_device(self.make(Port92))
        self._boot_order = cmos_boot_order(config.boot_order)
        self._boot_once = None if config.boot_once is None else cmos_boot_order(config.boot_once)
        self.fw_cfg = self.make(FwCfg)
        self.fw_cfg.add_u16(BOOT_MENU, config.boot_menu)
        self.fw_cfg.add_bytes(UUID, bytes.fromhex(config.uuid.replace("-", "")))
        self.fw_cfg.add_u16(NB_CPUS, config.cpus)
        self.fw_cfg.add_u16(MAX_CPUS, config.max_cpus or config.cpus)
        self.fw_cfg.add_u64(RAM_SIZE, config.ram_size)
        for name, content in config.fw_cfg:
            self.fw_cfg.add_file(name, content)
        self.add_board_device(self.fw_cfg)
        for index, backend in enumerate(config.serial):
            if backend is None:
                continue
            serial = self.make(IsaSerial, index=index)
            serial.backend = backend
            self.add_board_device(serial)
            self.loop.before_poll.append(backend.flush)

    # Power.

    def power_on(self) -> None:
        """Reset everything, and leave the machine as SeaBIOS would, the kernel loaded."""
        for device in [*self.unattached, *self.peripherals.values(), *self.anonymous.values()]:
            if device.life.phase is not Phase.ABSENT or device in self.unattached:
                device.reset()  # the hot-plug block's reset ejects what was to go
        for processor in self.processors.all:
            processor.lapic.reset()
        registers = None
        self.rtc.set_memory(self.memory.below, self.memory.above)
        self.rtc.set_cpus(self.config.cpus)
        order = self._boot_order if self._boot_once is None else self._boot_once
        self._boot_once = None
        self.rtc.set_equipment(order | (not self.config.fd_bootchk))
        if self.config.accel != "qtest":
            firmware.run(self.processors, sum(self.memory.ranges()[-1]) if self.memory.above else firmware.HIGH_BASE)
            for piece in acpi.tables(self.config.cpus):
                self.memory.write(piece.address, piece.data)
            for address, length in self._boot.place(self.memory.view):
                if self.memory.on_write is not None:
                    self.memory.on_write(address, length)
            registers = self._boot.registers
        self.processors.reset(registers)

    def inject_nmi(self) -> None:
        for processor in self.processors.all:
            processor.nmi()

    def powerdown(self) -> None:
        """Press the power button."""
        super().powerdown()
        self.pm.power_button()

    # What monitors ask.

    def named_board_devices(self) -> dict[str, Device]:
        return {"i440fx": self.pci_host, "i440fx/ioapic": self.ioapic_device, "fw_cfg": self.fw_cfg}

    def query_pci(self) -> Sequence[Any]:
        return [self.pci.query()]


def cmos_boot_order(letters: str) -> int:
    """What CMOS 0x3d and 0x38 hold for `-boot order=`: the first three devices. ConfigError for another letter."""
    codes = []
    for letter in letters:
        if letter not in "acdn":
            raise ConfigError(f"Invalid boot device for PC: '{letter}'")
        codes.append("acdn".index(letter) + 1)
    first, second, third = [*codes, 0, 0, 0][:3]
    return second << 12 | first << 8 | third << 4


def _guest_tsc(vcpu: Any) -> int:
    return int(vcpu.tsc())
