"""Self-modifying code, done right.

Stores take a slow path while their TLB entry says NOTDIRTY; it looks for translated code on the page. QEMU drops
that mark when the page holds no code, and sets it again on all mappings when it gets some. Unicorn decides by whether
the *entry* is executable, which is wrong both ways: a store through another mapping of a page with code is missed
once its entry has lost the mark (stale code runs), and all stores to executable pages stay slow for ever (a guest
without NX stores 15 times slower).

Two calls inside the library go through its procedure linkage table; their slots there are redirected to routines of
`thunk` that apply QEMU's rule. A third one is redirected to keep translation blocks short: the translator overruns its
temporaries when some hundred instructions in a row leak one each, and a guest could arrange for that.

All this holds for the whole process, so the routines leave every other user of the library alone: they act for engines
with `no_exit_request` set only, which is ours.
"""

from __future__ import annotations

import ctypes
import functools
import struct
from typing import TYPE_CHECKING, Final

from vmm.cpu.unicorn import thunk
from vmm.cpu.unicorn.library import REMEDY
from vmm.errors import EngineRefused

if TYPE_CHECKING:
    from vmm.cpu.unicorn.library import Library

_INVALIDATE_CALL: Final = ("tlb_set_dirty_x86_64", 0x2C8)
"""The call of tb_invalidate_phys_page_fast in notdirty_write, counted from the function before it."""
_PROTECT_CALL: Final = ("tb_gen_code_x86_64", 0x5C8)
_TRANSLATE_CALL: Final = ("tb_gen_code_x86_64", 0x123)
_BEFORE: Final = bytes.fromhex("4c8b5c2410 4c8b442408 4489f1 498bbfa8810000 4989c5 4889c6 4c89da")
_AFTER: Final = bytes.fromhex("4c89ef")
_COMPARES: Final = bytes.fromhex("48837d08ff 4c8b4c2418")
"""What notdirty_write does around that call. It shows that rbp is the TLB entry, and what happens to it next."""


@functools.cache
def install(library: Library) -> None:
    """Redirect the three calls, once. EngineRefused if the machine code is not the expected one."""
    function, offset = _INVALIDATE_CALL
    call = library.address(function) + offset
    before = ctypes.string_at(call - len(_BEFORE), len(_BEFORE))
    after = ctypes.string_at(call + 5, len(_AFTER))
    compares = ctypes.string_at(call + 5 + len(_AFTER) + 5, len(_COMPARES))
    if (before, after, compares) != (_BEFORE, _AFTER, _COMPARES):
        raise EngineRefused("unicorn", "notdirty_write is not the machine code that is expected", REMEDY)
    invalidate = _slot(library, call, "tb_invalidate_phys_page_fast_x86_64")
    protect = _slot(library, library.address(_PROTECT_CALL[0]) + _PROTECT_CALL[1], "tlb_protect_code_x86_64")
    call = library.address(_TRANSLATE_CALL[0]) + _TRANSLATE_CALL[1]
    translate = _slot(library, call, "gen_intermediate_code_x86_64")
    page = thunk.Page()
    page.quads[thunk.P_INVALIDATE >> 3] = library.address("tb_invalidate_phys_page_fast_x86_64")
    page.quads[thunk.P_FLUSH >> 3] = library.address("tlb_flush_x86_64")
    page.quads[thunk.P_TRANSLATE >> 3] = library.address("gen_intermediate_code_x86_64")
    translate.value = page.entry("translate")
    invalidate.value = page.entry("written")
    protect.value = page.entry("first_code")
    _installed.append(page)


_installed: list[thunk.Page] = []


def _slot(library: Library, call: int, name: str) -> ctypes.c_uint64:
    """The slot in the global offset table through which this call instruction reaches function `name`."""
    opcode, displacement = struct.unpack("<Bi", ctypes.string_at(call, 5))
    stub = call + 5 + displacement
    jump = ctypes.string_at(stub, 6) if opcode == 0xE8 else b""
    if jump[:2] == b"\xff\x25":
        slot = ctypes.c_uint64.from_address(stub + 6 + struct.unpack("<i", jump[2:])[0])
        if slot.value in (library.address(name), stub + 6):  # bound, or still waiting for its first call
            return slot
    raise EngineRefused("unicorn", f"{name} is not called through the procedure linkage table", REMEDY)
