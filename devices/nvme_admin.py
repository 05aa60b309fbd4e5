"""NVMe admin commands: queues, Identify, features, log pages, aborts and asynchronous events.

Ref: NVMe 1.4, 5.
"""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

from devices import nvme_registers as r
from devices.nvme_namespace import NSID, UNIT
from devices.nvme_queues import CommandFailed, CompletionQueue, SubmissionQueue

if TYPE_CHECKING:
    from collections.abc import Callable

    from devices.nvme import Nvme
    from devices.nvme_queues import Sqe

MODEL = "vintx NVMe Controller"
FIRMWARE = b"1.0     "
MAX_EVENT_REQUESTS = 4
TEMPERATURE = 323
"""Of the composite, in kelvins."""
WARNING_TEMPERATURE = 343
CRITICAL_TEMPERATURE = 373

_FEATURES = {
    r.FEATURE_ARBITRATION: (0, 0xFFFF_FF07),
    r.FEATURE_POWER: (0, 0),
    r.FEATURE_TEMPERATURE: (WARNING_TEMPERATURE, 0xFFFF),
    r.FEATURE_ERROR_RECOVERY: (0, 0xFFFF),
    r.FEATURE_WRITE_CACHE: (1, 1),
    r.FEATURE_COALESCING: (0, 0xFFFF),
    r.FEATURE_VECTOR: (0, 0x1_0000),
    r.FEATURE_ATOMICITY: (0, 1),
    r.FEATURE_ASYNC_EVENT: (0, 0xFF),
}
"""Feature: its default, and the bits that can be set. The number of queues goes by property."""
_SELECT_DEFAULT = (1, 2)
_SELECT_CAPABILITIES = 3
_CHANGEABLE = 0x4


class AdminCommands:
    """The admin commands of one controller, and the state that a controller reset clears."""

    def __init__(self, controller: Nvme) -> None:
        self._controller = controller
        self._handlers: dict[int, Callable[[Sqe], int | None]] = {
            r.ADMIN_DELETE_SQ: self._delete_sq,
            r.ADMIN_CREATE_SQ: self._create_sq,
            r.ADMIN_GET_LOG_PAGE: self._get_log_page,
            r.ADMIN_DELETE_CQ: self._delete_cq,
            r.ADMIN_CREATE_CQ: self._create_cq,
            r.ADMIN_IDENTIFY: self._identify,
            r.ADMIN_ABORT: self._abort,
            r.ADMIN_SET_FEATURES: self._set_features,
            r.ADMIN_GET_FEATURES: self._get_features,
            r.ADMIN_ASYNC_EVENT: self._async_event,
        }
        self.errors = 0
        """Commands that ended with an error, and doorbells that were wrong, since power-on."""
        self._last_error = bytes(64)
        self.reset()

    def reset(self) -> None:
        """What a controller reset does: features as by default, no event and no request for one."""
        self.features = {feature: default for feature, (default, _) in _FEATURES.items()}
        self._controller.namespace.write_cache = True
        self._requests: list[int] = []
        """Command ids of the Asynchronous Event Requests that wait."""
        self._event: int | None = None
        """The event to report next."""
        self._masked = False
        """An event was reported, and its log page not read yet."""

    def power_on(self) -> None:
        """The error log too is empty."""
        self.errors = 0
        self._last_error = bytes(64)
        self.reset()

    def execute(self, sqe: Sqe) -> int | None:
        """Carry out a command: DW0 of its completion, or None if it completes later."""
        handler = self._handlers.get(sqe.opcode)
        if handler is None:
            raise CommandFailed(r.INVALID_OPCODE)
        return handler(sqe)

    def log_error(self, sq_id: int, cid: int, status: int, nsid: int) -> None:
        """Put an error into the error information log, which has one entry."""
        self.errors += 1
        self._last_error = r.ErrorLogEntry.build(
            {
                "count": self.errors,
                "sq_id": sq_id,
                "cid": cid,
                "status": status << 1,
                "parameter": 0xFFFF,
                "lba": 0,
                "nsid": nsid,
            }
        )

    # Asynchronous events.

    def doorbell_error(self, info: int) -> None:
        """The guest wrote a doorbell that is none, or a value that cannot be."""
        self.log_error(0xFFFF, 0xFFFF, 0, 0)
        if self._event is None and not self._masked:
            self._event = r.EVENT_ERROR | info << 8 | r.LOG_ERROR << 16
            self.report()

    def report(self) -> None:
        """Complete a waiting request with the event, if there are both and the admin queue has room.

        Never from a command: the one entry that is free may be its own.
        """
        if self._event is not None and self._requests and self._controller.admin_room():
            event, self._event = self._event, None
            self._masked = True
            self._controller.complete_admin(self._requests.pop(0), 0, event)

    def _async_event(self, sqe: Sqe) -> None:
        if len(self._requests) >= MAX_EVENT_REQUESTS:
            raise CommandFailed(r.AER_LIMIT_EXCEEDED)
        self._requests.append(sqe.cid)

    def _abort(self, sqe: Sqe) -> int:
        sq_id, cid = sqe.cdw10 & 0xFFFF, sqe.cdw10 >> 16
        controller = self._controller
        if sq_id not in controller.submission:
            raise CommandFailed(r.INVALID_FIELD)
        # Whatever else was fetched is over: commands run one at a time.
        if sq_id == 0 and cid in self._requests and controller.admin_room() > 1:
            self._requests.remove(cid)
            controller.complete_admin(cid, r.ABORT_REQUESTED, 0)
            return 0
        return 1

    # Queues. Ref: NVMe 1.4, 5.3 to 5.6.

    def _create_cq(self, sqe: Sqe) -> int:
        controller = self._controller
        queue, size = sqe.cdw10 & 0xFFFF, (sqe.cdw10 >> 16) + 1
        if not 1 <= queue <= controller.max_queues or queue in controller.completion:
            raise CommandFailed(r.INVALID_QUEUE_ID)
        self._check_queue(sqe, size, controller.completion_entry_size_set)
        if sqe.cdw11 >> 16:
            raise CommandFailed(r.INVALID_VECTOR)  # a pin is vector 0
        controller.completion[queue] = CompletionQueue(queue, sqe.prp1, size, bool(sqe.cdw11 & 2))
        return 0

    def _create_sq(self, sqe: Sqe) -> int:
        controller = self._controller
        queue, size = sqe.cdw10 & 0xFFFF, (sqe.cdw10 >> 16) + 1
        completes = sqe.cdw11 >> 16
        if not 1 <= completes <= controller.max_queues:
            raise CommandFailed(r.INVALID_QUEUE_ID)
        cq = controller.completion.get(completes)
        if cq is None:
            raise CommandFailed(r.CQ_INVALID)
        if not 1 <= queue <= controller.max_queues or queue in controller.submission:
            raise CommandFailed(r.INVALID_QUEUE_ID)
        self._check_queue(sqe, size, controller.submission_entry_size_set)
        sq = SubmissionQueue(queue, sqe.prp1, size, cq)
        controller.submission[queue] = sq
        cq.submitters.append(sq)
        return 0

    def _check_queue(self, sqe: Sqe, size: int, entry_size_set: bool) -> None:
        if not 2 <= size <= self._controller.max_queue_size or not entry_size_set:
            raise CommandFailed(r.INVALID_QUEUE_SIZE)
        if not sqe.cdw11 & 1:
            raise CommandFailed(r.INVALID_FIELD)  # CAP.CQR: physically contiguous only
        if sqe.prp1 & (self._controller.buffers.page - 1):
            raise CommandFailed(r.INVALID_PRP_OFFSET)

    def _delete_sq(self, sqe: Sqe) -> int:
        controller = self._controller
        sq = controller.submission.get(sqe.cdw10 & 0xFFFF)
        if sq is None or sq.id == 0:
            raise CommandFailed(r.INVALID_QUEUE_ID)
        del controller.submission[sq.id]
        sq.cq.submitters.remove(sq)
        controller.forget(sq)
        return 0

    def _delete_cq(self, sqe: Sqe) -> int:
        controller = self._controller
        cq = controller.completion.get(sqe.cdw10 & 0xFFFF)
        if cq is None or cq.id == 0:
            raise CommandFailed(r.INVALID_QUEUE_ID)
        if cq.submitters:
            raise CommandFailed(r.INVALID_QUEUE_DELETION)
        del controller.completion[cq.id]
        controller.drop_interrupt(cq)
        return 0

    # Identify.

    def _identify(self, sqe: Sqe) -> int:
        cns = sqe.cdw10 & 0xFF
        nsid = sqe.nsid
        if cns == r.CNS_CONTROLLER:
            data = self._identify_controller()
        elif cns == r.CNS_NAMESPACE:
            if nsid != NSID:
                raise CommandFailed(r.INVALID_NAMESPACE)
            data = self._controller.namespace.identify()
        elif cns == r.CNS_NAMESPACE_LIST:
            if nsid >= r.NSID_ALL - 1:
                raise CommandFailed(r.INVALID_NAMESPACE)
            data = NSID.to_bytes(4, "little") if nsid < NSID else b""
        elif cns == r.CNS_NAMESPACE_DESCRIPTORS:
            if nsid != NSID:
                raise CommandFailed(r.INVALID_NAMESPACE)
            data = r.NamespaceDescriptor.build({"nidt": r.NIDT_UUID, "nid": self._uuid("namespace 1").bytes})
        else:
            raise CommandFailed(r.INVALID_FIELD)
        self._controller.buffers.send(sqe.prp1, sqe.prp2, data.ljust(r.IDENTIFY_SIZE, b"\0"))
        return 0

    def _uuid(self, what: str) -> uuid.UUID:
        """The same for the same serial number, on every machine."""
        return uuid.uuid5(uuid.NAMESPACE_OID, f"{MODEL}/{self._controller.serial}/{what}")

    def _identify_controller(self) -> bytes:
        controller = self._controller
        zero = (
            *("rab", "cmic", "cntlid", "oaes", "ctratt", "oacs", "acl", "elpe", "npss", "avscc", "apsta", "maxcmd"),
            *("rtd3r", "rtd3e", "fuses", "fna", "awun", "awupf", "sgls", "psd0_enlat", "psd0_exlat"),
        )
        data: bytes = r.IdentifyController.build(
            dict.fromkeys(zero, 0)
            | {
                "vid": controller.vendor_id,
                "ssvid": controller.subsystem[0],
                "sn": controller.serial.encode("ascii").ljust(20),
                "mn": MODEL.encode("ascii").ljust(40),
                "fr": FIRMWARE,
                "ieee": bytes(3),
                "mdts": controller.mdts,
                "ver": r.VERSION_1_4,
                "cntrltype": 1,
                "aerl": MAX_EVENT_REQUESTS - 1,
                "frmw": 0x3,  # one slot, read-only
                "lpa": 0x4,
                "wctemp": WARNING_TEMPERATURE,
                "cctemp": CRITICAL_TEMPERATURE,
                "sqes": 0x66,
                "cqes": 0x44,
                "nn": 1,
                "oncs": r.ONCS_WRITE_ZEROES,
                "vwc": r.VWC_PRESENT | r.VWC_FLUSH_ALL,
                "subnqn": f"nqn.2014-08.org.nvmexpress:uuid:{self._uuid('subsystem')}",
                "psd0_mp": 2500,
            }
        )
        return data

    # Features. Ref: NVMe 1.4, 5.9 and 5.21.

    def _queue_count(self) -> int:
        count = self._controller.max_queues - 1
        return count << 16 | count

    def _get_features(self, sqe: Sqe) -> int:
        feature, select = sqe.cdw10 & 0xFF, sqe.cdw10 >> 8 & 7
        if (feature not in _FEATURES and feature != r.FEATURE_QUEUES) or select > _SELECT_CAPABILITIES:
            raise CommandFailed(r.INVALID_FIELD)
        if select == _SELECT_CAPABILITIES:
            return _CHANGEABLE
        if feature == r.FEATURE_QUEUES:
            return self._queue_count()
        if feature == r.FEATURE_TEMPERATURE and sqe.cdw11 & 0x3F_0000:
            # Other sensors there are not, and no temperature is too low.
            if sqe.cdw11 & 0x20_0000:
                raise CommandFailed(r.INVALID_FIELD)
            return 0
        if feature == r.FEATURE_VECTOR and sqe.cdw11 & 0xFFFF:
            raise CommandFailed(r.INVALID_FIELD)
        return _FEATURES[feature][0] if select in _SELECT_DEFAULT else self.features[feature]

    def _set_features(self, sqe: Sqe) -> int:
        feature, value = sqe.cdw10 & 0xFF, sqe.cdw11
        controller = self._controller
        if sqe.cdw10 >> 31:
            raise CommandFailed(r.FEATURE_NOT_SAVEABLE)
        if feature == r.FEATURE_QUEUES:
            if len(controller.completion) > 1 or len(controller.submission) > 1:
                raise CommandFailed(r.COMMAND_SEQUENCE)
            if value & 0xFFFF == 0xFFFF or value >> 16 == 0xFFFF:
                raise CommandFailed(r.INVALID_FIELD)
            return self._queue_count()
        if feature not in _FEATURES:
            raise CommandFailed(r.INVALID_FIELD)
        if feature == r.FEATURE_POWER and value & 0x1F:
            raise CommandFailed(r.INVALID_FIELD)  # there is power state 0 only
        if feature == r.FEATURE_VECTOR and value & 0xFFFF:
            raise CommandFailed(r.INVALID_FIELD)
        if feature == r.FEATURE_TEMPERATURE:
            if value & 0x20_0000:
                raise CommandFailed(r.INVALID_FIELD)
            if value & 0x3F_0000 not in (0, 0xF_0000):
                return 0
        if feature == r.FEATURE_WRITE_CACHE:
            # What was written while it was on must not stay behind.
            controller.namespace.flush()
            controller.namespace.write_cache = bool(value & 1)
        self.features[feature] = value & _FEATURES[feature][1]
        return 0

    # Log pages. Ref: NVMe 1.4, 5.14.

    def _get_log_page(self, sqe: Sqe) -> int:
        page = sqe.cdw10 & 0xFF
        length = (((sqe.cdw11 & 0xFFFF) << 16 | sqe.cdw10 >> 16) + 1) * 4
        offset = sqe.cdw13 << 32 | sqe.cdw12
        if page == r.LOG_ERROR:
            data = self._last_error
        elif page == r.LOG_SMART:
            if sqe.nsid not in (0, r.NSID_ALL):
                raise CommandFailed(r.INVALID_FIELD)
            data = self._smart()
        elif page == r.LOG_FIRMWARE:
            data = r.FirmwareLog.build({"active": 1, "slot1": FIRMWARE})
        else:
            raise CommandFailed(r.INVALID_LOG_PAGE)
        if offset & 3 or offset > len(data) or length > self._controller.max_transfer:
            raise CommandFailed(r.INVALID_FIELD)
        # A guest may ask for more than there is; what lies behind the page is not its business.
        self._controller.buffers.send(sqe.prp1, sqe.prp2, data[offset:].ljust(length, b"\0")[:length])
        if page == r.LOG_ERROR and not sqe.cdw10 & 0x8000:
            self._masked = False
        return 0

    def _smart(self) -> bytes:
        namespace = self._controller.namespace
        data: bytes = r.SmartLog.build(
            {
                "temperature": TEMPERATURE,
                "available_spare": 100,
                "spare_threshold": 10,
                "data_units_read": -(-namespace.bytes_read // UNIT),
                "data_units_written": -(-namespace.bytes_written // UNIT),
                "host_reads": namespace.reads,
                "host_writes": namespace.writes,
                "media_errors": namespace.media_errors,
                "error_entries": self.errors,
            }
        )
        return data
