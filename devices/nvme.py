"""An NVMe controller with one namespace in an image file, on INTx.

Registers, queues and commands are those of NVMe 1.4, so that every operating system's driver runs it, on the pin if
need be: there is no MSI. Commands run one after the other, outside of the doorbell's access, a batch at a time.
Ref: NVM Express Base Specification 1.4; identity as QEMU's `nvme`.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, cast

from devices import nvme_registers as r
from devices.device import Property
from devices.nvme_admin import AdminCommands
from devices.nvme_namespace import Namespace
from devices.nvme_queues import CQE, SQE, CommandFailed, CompletionQueue, GuestBuffers, Sqe, SubmissionQueue
from devices.pci.device import PciDevice
from vmm.block import FileImage
from vmm.errors import PropertyError
from vmm.memory import IoRegion
from vmm.trace import Event

if TYPE_CHECKING:
    from devices.device import Board
    from vmm.block_graph import BlockGraph
    from vmm.clock import Timer

BAR_SIZE = 0x4000
MAX_QUEUE_ENTRIES = 2048
MAX_QUEUE_PAIRS = 1024
"""What `max_ioqpairs` may be: their doorbells are in BAR0."""
MAX_MDTS = 13
"""32 MiB: a command runs in one go."""
MAX_PAGE_SHIFT = 4
"""CAP.MPSMAX: pages of 64 KiB."""
BATCH_COMMANDS = 64
BATCH_BYTES = 1 << 20
"""After so much the guest and the monitors get a turn."""

CAP = int.from_bytes(
    r.Capabilities.build(
        {"mqes": MAX_QUEUE_ENTRIES - 1, "cqr": True, "to": 15, "css": 1, "mpsmin": 0, "mpsmax": MAX_PAGE_SHIFT}
    ),
    "big",
)
_ALL_INTERRUPTS = 0xFFFF_FFFF


class PciNvmeAdminCmd(Event):
    """An admin command was fetched."""

    device: str
    cid: int
    opcode: int
    nsid: int


class PciNvmeIoCmd(Event):
    """An I/O command was fetched."""

    device: str
    queue: int
    cid: int
    opcode: int
    nsid: int
    lba: int
    blocks: int


class PciNvmeEnqueueReqCompletion(Event):
    """A completion was written. `status`: SCT << 8 | SC, and 0x4000 for do not retry."""

    device: str
    queue: int
    cid: int
    status: int


class PciNvmeErrInvalidDoorbell(Event):
    """The guest rang a doorbell that is none, or with a value that cannot be."""

    device: str
    offset: int
    value: int


class PciNvmeErrFatal(Event):
    """The controller failed (CSTS.CFS): the guest must reset it."""

    device: str
    reason: str


class Nvme(PciDevice):
    """`-device nvme,serial=S,drive=ID`: BAR0 is the registers and the doorbells.

    The image is flushed and closed at unplug. ConfigError if it cannot be opened; InUse if another device or process
    has it.
    """

    driver = "nvme"
    description = "Non-Volatile Memory Express"
    vendor_id, device_id, class_id, prog_if, revision, interrupt_pin = 0x1B36, 0x0010, 0x0108, 0x02, 0x02, 1
    properties = (
        *PciDevice.properties,
        Property("serial", "str", None, "serial number, up to 20 characters", required=True),
        Property("drive", "str", None, "drive or block node of the disk"),
        Property("x-image", "str", None, "path of the disk image, instead of a drive"),
        Property("x-readonly", "bool", False, "open the image for reading only"),
        Property("logical_block_size", "size", 512, "A power of two between 512 B and 2 MiB"),
        Property("max_ioqpairs", "uint32", 64, "I/O queue pairs"),
        Property("mdts", "uint8", 7, "largest transfer, as a power of two of 4 KiB"),
    )

    def __init__(self, id: str | None = None, **values: Any) -> None:
        super().__init__(id, **values)
        self.serial: str = self.values["serial"] or ""
        self._check()
        self.max_queues: int = self.values["max_ioqpairs"]
        self.max_queue_size = MAX_QUEUE_ENTRIES
        self.mdts: int = self.values["mdts"]
        self.max_transfer = 4096 << self.mdts
        self.submission: dict[int, SubmissionQueue] = {}
        self.completion: dict[int, CompletionQueue] = {}
        self.intms = self.cc = self.csts = 0
        self.aqa = self.asq = self.acq = 0
        self._ready: dict[int, SubmissionQueue] = {}
        """Submission queues with something to fetch and room to complete it, longest waiting first."""
        self._unread = 0
        """Bit n: completion queue n interrupts and has entries that were not consumed."""
        self.buffers: GuestBuffers
        self.namespace: Namespace
        self._admin: AdminCommands
        self._timer: Timer

    def _check(self) -> None:
        serial, block = self.serial, self.values["logical_block_size"]
        if not serial or len(serial) > 20 or not (serial.isascii() and serial.isprintable()):
            raise PropertyError(f"serial '{serial}': 1 to 20 printable ASCII characters", self.driver, "serial")
        drive, path = self.values["drive"], self.values["x-image"]
        if drive is None and path is None:
            raise PropertyError("drive property not set; it names a -drive or -blockdev", self.driver, "drive")
        if drive is not None and path is not None:
            raise PropertyError("drive= and x-image= exclude each other", self.driver, "drive")
        if not 512 <= block <= 1 << 21 or block & (block - 1):
            raise PropertyError(
                f"Property {self.driver}.logical_block_size doesn't take value {block} "
                "(a power of two between 512 B and 2 MiB)",
                self.driver,
                "logical_block_size",
            )
        if not 1 <= self.values["max_ioqpairs"] <= MAX_QUEUE_PAIRS:
            raise PropertyError(f"max_ioqpairs must be between 1 and {MAX_QUEUE_PAIRS}", self.driver, "max_ioqpairs")
        if not 1 <= self.values["mdts"] <= MAX_MDTS or 4096 << self.values["mdts"] < block:
            raise PropertyError(
                f"mdts must be between 1 and {MAX_MDTS}, and a transfer at least a block", self.driver, "mdts"
            )

    # Life.

    def realize(self, board: Board) -> None:
        """Open the image, take slot and line."""
        super().realize(board)
        block = self.values["logical_block_size"]
        image = self._open(block)
        self.holdings.hold("image", image.path, lambda: self._close(image))
        self.buffers = GuestBuffers(self)
        self.namespace = Namespace(image, block, self.buffers, self.max_transfer)
        self._admin = AdminCommands(self)
        self._timer = board.clock.timer(f"{self.path}/queues", self._work)
        self.holdings.hold("timer", "nvme", self._timer.cancel)
        self.register_bar(0, IoRegion("nvme-bar0", BAR_SIZE, self._read, self._write), mem64=True)

    def _open(self, block: int) -> FileImage:
        drive, readonly = self.values["drive"], self.values["x-readonly"]
        if drive is None:
            return FileImage(self.values["x-image"], readonly, block)
        blocks: BlockGraph | None = getattr(self.board, "blocks", None)
        if blocks is None:
            raise PropertyError("there are no drives here; give x-image=PATH", self.driver, "drive")
        # What it is to a namespace, a FileImage is too.
        return cast("FileImage", blocks.use(drive, self.path, readonly or blocks.readonly(drive), block))

    @staticmethod
    def _close(image: FileImage) -> None:
        with contextlib.suppress(OSError):  # nobody is left to be told
            image.flush()
        image.close()

    def reset(self) -> None:
        """Power-on state. What was written stays written."""
        super().reset()
        self._stop()
        self.cc = self.aqa = self.asq = self.acq = 0
        self._admin.power_on()

    # Registers. Ref: NVMe 1.4, 3.1.

    def _read(self, offset: int, size: int) -> int:
        if size == 8 and not offset & 3:
            return self._dword(offset) | self._dword(offset + 4) << 32
        return self._dword(offset & ~3) >> 8 * (offset & 3)

    def _dword(self, offset: int) -> int:
        if offset == r.REG_CSTS:
            return self.csts
        if offset in (r.REG_INTMS, r.REG_INTMC):
            return self.intms
        if offset == r.REG_CC:
            return self.cc
        if offset < r.REG_VS:
            return CAP >> 8 * offset & 0xFFFF_FFFF
        if offset == r.REG_VS:
            return r.VERSION_1_4
        if offset == r.REG_AQA:
            return self.aqa
        if r.REG_ASQ <= offset < r.REG_ACQ + 8:
            value = self.asq if offset < r.REG_ACQ else self.acq
            return value >> 8 * (offset & 4) & 0xFFFF_FFFF
        return 0

    def _write(self, offset: int, size: int, value: int) -> None:
        if size == 8 and not offset & 7 and offset < r.REG_DOORBELLS:
            self._write_dword(offset, value & 0xFFFF_FFFF)
            self._write_dword(offset + 4, value >> 32 & 0xFFFF_FFFF)
        elif size == 4 and not offset & 3:
            if offset >= r.REG_DOORBELLS:
                self._doorbell(offset, value)
            else:
                self._write_dword(offset, value & 0xFFFF_FFFF)
        # Other accesses are undefined: they are lost.

    def _write_dword(self, offset: int, value: int) -> None:
        if offset == r.REG_INTMS:
            self.intms |= value
            self._update_interrupt()
        elif offset == r.REG_INTMC:
            self.intms &= ~value & _ALL_INTERRUPTS
            self._update_interrupt()
        elif offset == r.REG_CC:
            self._configure(value & r.CC_WRITABLE)
        elif offset == r.REG_AQA:
            self.aqa = value & 0x0FFF_0FFF
        elif offset == r.REG_ASQ:
            self.asq = self.asq & ~0xFFFF_FFFF | value & 0xFFFF_F000
        elif offset == r.REG_ASQ + 4:
            self.asq = self.asq & 0xFFFF_FFFF | value << 32
        elif offset == r.REG_ACQ:
            self.acq = self.acq & ~0xFFFF_FFFF | value & 0xFFFF_F000
        elif offset == r.REG_ACQ + 4:
            self.acq = self.acq & 0xFFFF_FFFF | value << 32

    def _configure(self, value: int) -> None:
        """CC: enable, reset, shut down."""
        before, self.cc = self.cc, value
        enable = value & r.CC_EN
        if enable and not before & r.CC_EN:
            self._start()
        elif before & r.CC_EN and not enable:
            # A controller reset leaves the admin queue's registers and what this write sets. Ref: NVMe 1.4, 7.3.2.
            self._stop()
            self._admin.reset()
        if value & r.CC_SHN and not before & r.CC_SHN:
            with contextlib.suppress(CommandFailed):
                self.namespace.flush()
            self.csts = self.csts & ~r.CSTS_SHST | r.CSTS_SHST_COMPLETE
        elif before & r.CC_SHN and not value & r.CC_SHN:
            self.csts &= ~r.CSTS_SHST

    def _start(self) -> None:
        page_shift = 12 + (self.cc >> 7 & 0xF)
        low = (1 << page_shift) - 1
        submission, completion = (self.aqa & 0xFFF) + 1, (self.aqa >> 16) + 1
        wrong = (
            "CC.CSS" if self.cc >> 4 & 7
            else "CC.AMS" if self.cc >> 11 & 7
            else "CC.MPS" if page_shift > 12 + MAX_PAGE_SHIFT
            else "AQA" if submission < 2 or completion < 2
            else "ASQ" if self.asq & low
            else "ACQ" if self.acq & low
            else ""
        )  # fmt: skip
        if wrong:
            self._fail(f"enabled with a wrong {wrong}")
            return
        self.buffers.page = 1 << page_shift
        cq = CompletionQueue(0, self.acq, completion, irq=True)
        sq = SubmissionQueue(0, self.asq, submission, cq)
        cq.submitters.append(sq)
        self.completion[0], self.submission[0] = cq, sq
        self.csts |= r.CSTS_RDY

    def _stop(self) -> None:
        """No queue, no interrupt, no error."""
        self._timer.cancel()
        self._ready.clear()
        self.submission.clear()
        self.completion.clear()
        self.csts = self.intms = 0
        self._unread = 0
        self.set_intx(False)

    def _fail(self, reason: str) -> None:
        """Controller fatal status: nothing is fetched any more until the guest resets the controller."""
        self.csts |= r.CSTS_CFS
        self._ready.clear()
        self._timer.cancel()
        if self.board.trace.on:
            self.board.trace.emit(PciNvmeErrFatal(self.label, reason))

    @property
    def submission_entry_size_set(self) -> bool:
        """Whether CC.IOSQES says 64 bytes, as it must before an I/O queue is made."""
        return self.cc >> 16 & 0xF == 6

    @property
    def completion_entry_size_set(self) -> bool:
        """Whether CC.IOCQES says 16 bytes."""
        return self.cc >> 20 & 0xF == 4

    # Doorbells. Ref: NVMe 1.4, 3.1.17 and 3.1.18.

    def _doorbell(self, offset: int, value: int) -> None:
        if not self.csts & r.CSTS_RDY or self.csts & r.CSTS_CFS:
            return
        index = (offset - r.REG_DOORBELLS) >> 2
        queue = index >> 1
        value &= 0xFFFF
        error = None
        if index & 1:
            cq = self.completion.get(queue)
            if cq is None:
                error = r.EVENT_INVALID_DOORBELL_REGISTER
            elif not cq.consume(value):
                error = r.EVENT_INVALID_DOORBELL_VALUE
            else:
                self._consumed(cq)
        else:
            sq = self.submission.get(queue)
            if sq is None:
                error = r.EVENT_INVALID_DOORBELL_REGISTER
            elif not sq.submit(value):
                error = r.EVENT_INVALID_DOORBELL_VALUE
            else:
                self._wake(sq)
        if error is not None:
            if self.board.trace.on:
                self.board.trace.emit(PciNvmeErrInvalidDoorbell(self.label, offset, value))
            self._admin.doorbell_error(error)

    def _consumed(self, cq: CompletionQueue) -> None:
        if cq.head == cq.tail:
            self.drop_interrupt(cq)
        for sq in cq.submitters:
            if sq.head != sq.tail:
                self._wake(sq)
        if cq.id == 0:
            self._admin.report()

    def _wake(self, sq: SubmissionQueue) -> None:
        if not sq.cq.full:
            self._ready[sq.id] = sq
            if self._timer.deadline is None:
                self._timer.arm(self.board.clock.now())

    def forget(self, sq: SubmissionQueue) -> None:
        """A submission queue was deleted: what is still in it is not fetched."""
        self._ready.pop(sq.id, None)

    # Interrupt: the pin is high while a queue that interrupts has entries to consume. Ref: NVMe 1.4, 7.5.1.

    def drop_interrupt(self, cq: CompletionQueue) -> None:
        """A completion queue is empty, or gone."""
        self._unread &= ~(1 << cq.id)
        self._update_interrupt()

    def _update_interrupt(self) -> None:
        self.set_intx(self._unread != 0 and not self.intms & 1)

    # Commands.

    def _work(self) -> None:
        """Fetch and carry out a batch, one command of each queue in turn."""
        ready = self._ready
        budget = BATCH_BYTES
        for _ in range(BATCH_COMMANDS):
            if not ready or budget <= 0:
                break
            sq = ready.pop(next(iter(ready)))
            if sq.head == sq.tail or sq.cq.full:
                continue  # the doorbell of that queue wakes it
            at = sq.base + sq.head * r.SQE_SIZE
            sq.head = (sq.head + 1) % sq.size
            raw = self.buffers.read(at, r.SQE_SIZE)
            if raw is None:
                self._fail(f"submission queue {sq.id} is out of memory")
                return
            if self._alive(sq):
                budget -= self._execute(sq, Sqe(*SQE.unpack(raw)))
            if self.csts & r.CSTS_CFS:
                return
            if sq.head != sq.tail and self._alive(sq):
                ready[sq.id] = sq
        if ready:
            self._timer.arm(self.board.clock.now())

    def _alive(self, sq: SubmissionQueue) -> bool:
        """Whether a queue is still there. Memory of another process is reached by messages, and while one is waited for
        the guest may ring doorbells, delete queues or reset the controller."""
        return self.submission.get(sq.id) is sq

    def _execute(self, sq: SubmissionQueue, sqe: Sqe) -> int:
        """Carry out a command and complete it: how much it did, in bytes."""
        if self.board.trace.on:
            self._trace_command(sq, sqe)
        result: int | None = 0
        cost = status = 0
        try:
            if sqe.flags:
                raise CommandFailed(r.INVALID_FIELD)  # neither fused commands nor SGLs
            if sq.id:
                cost = self.namespace.execute(sqe)
            else:
                result = self._admin.execute(sqe)
        except CommandFailed as failure:
            status = failure.status
            self._admin.log_error(sq.id, sqe.cid, status, sqe.nsid)
            if status not in r.TRANSIENT:
                status |= r.DNR
        if result is not None:
            self._complete(sq, sqe.cid, status, result)
        if not sq.id:
            self._admin.report()
        return cost

    def _trace_command(self, sq: SubmissionQueue, sqe: Sqe) -> None:
        if sq.id:
            lba, blocks = sqe.cdw11 << 32 | sqe.cdw10, (sqe.cdw12 & 0xFFFF) + 1
            self.board.trace.emit(PciNvmeIoCmd(self.label, sq.id, sqe.cid, sqe.opcode, sqe.nsid, lba, blocks))
        else:
            self.board.trace.emit(PciNvmeAdminCmd(self.label, sqe.cid, sqe.opcode, sqe.nsid))

    def admin_room(self) -> int:
        """How many completions the admin queue can take; 0 while the controller is not ready."""
        cq = self.completion.get(0)
        if cq is None or self.csts & r.CSTS_CFS:
            return 0
        return (cq.head - cq.tail - 1) % cq.size

    def complete_admin(self, cid: int, status: int, result: int) -> None:
        """Complete an admin command that waited. There must be room."""
        self._complete(self.submission[0], cid, status, result)

    def _complete(self, sq: SubmissionQueue, cid: int, status: int, result: int) -> None:
        cq = sq.cq
        if self.completion.get(cq.id) is not cq:
            return  # reset while the command was carried out
        entry = CQE.pack(result, 0, sq.head, sq.id, cid, status << 1 | cq.phase)
        at = cq.base + cq.tail * r.CQE_SIZE
        cq.advance()  # before the guest can see the entry, and consume it
        if not self.buffers.write(at, entry):
            self._fail(f"completion queue {cq.id} is out of memory")
            return
        if self.board.trace.on:
            self.board.trace.emit(PciNvmeEnqueueReqCompletion(self.label, cq.id, cid, status))
        if cq.irq and cq.head != cq.tail and self.completion.get(cq.id) is cq:
            self._unread |= 1 << cq.id
            self._update_interrupt()
