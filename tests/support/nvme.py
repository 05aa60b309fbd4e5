"""An NVMe driver for tests: queues in the memory of a board, commands by name, completions as declared."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from devices import nvme_registers as r
from devices.nvme import Nvme
from support.pci import PciBoard

if TYPE_CHECKING:
    from pathlib import Path

DEVFN = 5 << 3
BAR = 0xFE00_0000
IRQ = 11
RAM = 1 << 20
ASQ, ACQ, IOSQ, IOCQ = 0x1_0000, 0x1_4000, 0x1_8000, 0x1_C000
BUFFER = 0x4_0000
PAGE = 4096


class Queue:
    """A pair of queues as the driver sees it."""

    def __init__(self, id: int, sq: int, cq: int, size: int) -> None:
        self.id = id
        self.sq = sq
        self.cq = cq
        self.size = size
        self.tail = self.head = 0
        self.phase = 1


class NvmeBoard(PciBoard):
    """A board with an NVMe controller that firmware has set up; `start` makes its queues."""

    def __init__(self, image: Path, trace: bool = False, **values: Any) -> None:
        super().__init__(RAM, trace)
        self.route(IRQ)
        self.before = self.ledger.snapshot()
        self.nvme = self.plug(Nvme("n0", addr=DEVFN, **{"serial": "S1", "x-image": str(image), **values}))
        self.firmware()

    def firmware(self) -> None:
        self.config_write(DEVFN, 0x10, BAR)
        self.config_write(DEVFN, 4, 6, 2)

    def get(self, register: int, size: int = 4) -> int:
        return self.read(BAR + register, size)

    def put(self, register: int, value: int, size: int = 4) -> None:
        self.write(BAR + register, value, size)

    @property
    def irq(self) -> bool:
        return IRQ in self.high()

    # Bringing it up.

    def configure(self, **fields: Any) -> None:
        self.put(r.REG_CC, int.from_bytes(r.ControllerConfiguration.build({"en": True, **fields}), "big"))

    def enable(self, size: int = 16, **fields: Any) -> None:
        """Reset and enable with an admin queue pair of `size` entries."""
        self.put(r.REG_CC, 0)
        self.put(r.REG_AQA, (size - 1) << 16 | size - 1)
        self.put(r.REG_ASQ, ASQ, 8)
        self.put(r.REG_ACQ, ACQ, 8)
        self.memory.write(ACQ, bytes(size * r.CQE_SIZE))
        self.admin = Queue(0, ASQ, ACQ, size)
        self.configure(**fields)

    def create_io(self, size: int = 16, irq: bool = True) -> None:
        """Make I/O queue pair 1."""
        self.memory.write(IOCQ, bytes(size * r.CQE_SIZE))
        assert self.command(r.ADMIN_CREATE_CQ, prp1=IOCQ, cdw10=(size - 1) << 16 | 1, cdw11=1 | irq << 1).status == 0
        assert self.command(r.ADMIN_CREATE_SQ, prp1=IOSQ, cdw10=(size - 1) << 16 | 1, cdw11=1 | 1 << 16).status == 0
        self.io = Queue(1, IOSQ, IOCQ, size)

    def start(self, size: int = 16, irq: bool = True) -> NvmeBoard:
        self.enable()
        self.create_io(size, irq)
        return self

    @property
    def status(self) -> Any:
        """CSTS by name."""
        return r.ControllerStatus.parse(self.get(r.REG_CSTS).to_bytes(4, "big"))

    # Commands.

    def queue_raw(self, queue: Queue, entry: bytes) -> None:
        """Put 64 bytes at the tail; no doorbell yet."""
        self.memory.write(queue.sq + queue.tail * r.SQE_SIZE, entry)
        queue.tail = (queue.tail + 1) % queue.size

    def queue(self, queue: Queue, opcode: int, **fields: Any) -> None:
        self.queue_raw(queue, r.Command.build({"opcode": opcode, **fields}))

    def ring(self, queue: Queue) -> None:
        """The tail doorbell; and let the controller work."""
        self.put(r.REG_DOORBELLS + 8 * queue.id, queue.tail)
        self.clock.step(0)

    def completions(self, queue: Queue, consume: bool = True) -> list[Any]:
        """What the controller completed; `status` without the phase tag."""
        found = []
        while len(found) < queue.size:
            entry = r.Completion.parse(self.memory.read(queue.cq + queue.head * r.CQE_SIZE, r.CQE_SIZE))
            if entry.status & 1 != queue.phase:
                break
            entry.status >>= 1
            found.append(entry)
            queue.head += 1
            if queue.head == queue.size:
                queue.head, queue.phase = 0, queue.phase ^ 1
        if found and consume:
            self.consume(queue)
        return found

    def consume(self, queue: Queue) -> None:
        """The head doorbell; and let the controller work."""
        self.put(r.REG_DOORBELLS + 8 * queue.id + 4, queue.head)
        self.clock.step(0)

    def submit(self, queue: Queue, opcode: int, **fields: Any) -> list[Any]:
        """Queue one command, ring, and take what was completed."""
        self.queue(queue, opcode, **fields)
        self.ring(queue)
        return self.completions(queue)

    def command(self, opcode: int, **fields: Any) -> Any:
        """An admin command and its completion."""
        [completion] = self.submit(self.admin, opcode, **fields)
        return completion

    def io_command(self, opcode: int, nsid: int = 1, **fields: Any) -> Any:
        """An I/O command and its completion."""
        [completion] = self.submit(self.io, opcode, nsid=nsid, **fields)
        return completion

    def transfer(self, opcode: int, lba: int, blocks: int, prp1: int, prp2: int = 0, flags: int = 0) -> int:
        """Read or write; the status."""
        fields = {"cdw10": lba & 0xFFFF_FFFF, "cdw11": lba >> 32, "cdw12": blocks - 1 | flags}
        status: int = self.io_command(opcode, prp1=prp1, prp2=prp2, **fields).status
        return status

    def identify(self, cns: int, nsid: int = 0) -> bytes:
        """4096 bytes of Identify data."""
        assert self.command(r.ADMIN_IDENTIFY, nsid=nsid, prp1=BUFFER, cdw10=cns).status == 0
        return self.memory.read(BUFFER, r.IDENTIFY_SIZE)
