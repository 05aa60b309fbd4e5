"""Guest programs of the CPU tests: the bytes, and beside them what they are in assembler (Intel syntax).

Name, width of the code segment, address, listing. A label stands on a line of its own.
"""

from __future__ import annotations

_LISTINGS = """\
== report64 64 0x3000
58                     | pop rax
e640                   | out 0x40, al
58                     | pop rax
e741                   | out 0x41, eax
8b0424                 | mov eax, [rsp]
e742                   | out 0x42, eax
8b442410               | mov eax, [rsp+16]
e743                   | out 0x43, eax
f4                     | hlt

== report32 32 0x3000
58                     | pop eax
e640                   | out 0x40, al
58                     | pop eax
e741                   | out 0x41, eax
8b0424                 | mov eax, [esp]
e742                   | out 0x42, eax
8b442408               | mov eax, [esp+8]
e743                   | out 0x43, eax
f4                     | hlt

== return64 64 0x3100
50                     | push rax
8b442408               | mov eax, [rsp+8]
e650                   | out 0x50, al
58                     | pop rax
4883c410               | add rsp, 16
48cf                   | iretq

== return32 32 0x3100
50                     | push eax
8b442404               | mov eax, [esp+4]
e650                   | out 0x50, al
58                     | pop eax
83c408                 | add esp, 8
cf                     | iretd

== ports16 16 0x1000
e410                   | in al, 0x10
e511                   | in ax, 0x11
66e512                 | in eax, 0x12
baf80c                 | mov dx, 0xcf8
ec                     | in al, dx
ed                     | in ax, dx
66ed                   | in eax, dx
66b878563412           | mov eax, 0x12345678
e610                   | out 0x10, al
e711                   | out 0x11, ax
66e712                 | out 0x12, eax
bafc0c                 | mov dx, 0xcfc
ee                     | out dx, al
ef                     | out dx, ax
66ef                   | out dx, eax
f4                     | hlt

== strings16 16 0x1000
be0040                 | mov si, 0x4000
bf0041                 | mov di, 0x4100
ba7000                 | mov dx, 0x70
b90300                 | mov cx, 3
f36e                   | rep outsb
b90200                 | mov cx, 2
f36f                   | rep outsw
b90200                 | mov cx, 2
66f36f                 | rep outsd
b90300                 | mov cx, 3
f36c                   | rep insb
b90200                 | mov cx, 2
66f36d                 | rep insd
f4                     | hlt

== mmio64 64 0x1000
48bb0000008000000000   | mov rbx, 0x80000000
48b88877665544332211   | mov rax, 0x1122334455667788
8803                   | mov [rbx], al
66894302               | mov [rbx+2], ax
894304                 | mov [rbx+4], eax
48894308               | mov [rbx+8], rax
8a0b                   | mov cl, [rbx]
668b4b02               | mov cx, [rbx+2]
8b4b04                 | mov ecx, [rbx+4]
488b4b08               | mov rcx, [rbx+8]
f4                     | hlt

== rmwmmio64 64 0x1000
48bb0000008000000000   | mov rbx, 0x80000000
f0ff03                 | lock inc dword ptr [rbx]
f4                     | hlt

== shadow64 64 0x1000
fb                     | sti
e620                   | out 0x20, al
e621                   | out 0x21, al
f4                     | hlt

== movss64 64 0x1000
fb                     | sti
8cd0                   | mov eax, ss
90                     | nop
e630                   | out 0x30, al
90                     | nop
f4                     | hlt

== window64 64 0x1000
e620                   | out 0x20, al
fb                     | sti
90                     | nop
fa                     | cli
e621                   | out 0x21, al
f4                     | hlt

== clihlt64 64 0x1000
fa                     | cli
f4                     | hlt
e620                   | out 0x20, al
f4                     | hlt

== stihlt64 64 0x1000
fb                     | sti
f4                     | hlt
e620                   | out 0x20, al
f4                     | hlt

== selfarm64 64 0x1000
fb                     | sti
90                     | nop
e630                   | out 0x30, al
eb00                   | jmp 1f
e621                   | 1:  out 0x21, al
f4                     | hlt

== eoi64 64 0x1000
48bbb000e0fe00000000   | mov rbx, 0xfee000b0
fb                     | sti
90                     | nop
e630                   | out 0x30, al
eb00                   | jmp 1f
f4                     | 1:  hlt
                       | eoi:
8903                   | mov [rbx], eax
48cf                   | iretq

== nmi64 64 0x1000
fa                     | cli
e630                   | out 0x30, al
f4                     | 1:  hlt
ebfd                   | jmp 1b
                       | nmi:
e623                   | out 0x23, al
e631                   | out 0x31, al
eb00                   | jmp 2f
e624                   | 2:  out 0x24, al
48cf                   | iretq

== step64 64 0x1000
6802010000             | push 0x102
9d                     | popfq
0fa2                   | cpuid
90                     | nop
f4                     | hlt

== stepret64 64 0x1000
6802010000             | push 0x102
9d                     | popfq
0fa2                   | cpuid
b974010000             | mov ecx, 0x174
0f32                   | rdmsr
6a02                   | push 2
9d                     | popfq
f4                     | hlt

== ltr32 32 0x1000
31c0                   | xor eax, eax
0f00d8                 | ltr ax
f4                     | hlt

== ltrmem32 32 0x1000
c7050050000040000000   | mov dword ptr [0x5000], 0x40
0f001d00500000         | ltr [0x5000]
660f00c8               | str ax
e720                   | out 0x20, eax
0f001d04500000         | ltr [0x5004]
f4                     | hlt

== lmsw32 32 0x1000
0f20c0                 | mov eax, cr0
83c80e                 | or eax, 0xe
0f01f0                 | lmsw ax
0f01e3                 | smsw ebx
66c705005000000100     | mov word ptr [0x5000], 0x1
0f013500500000         | lmsw [0x5000]
0f20c1                 | mov ecx, cr0
0f06                   | clts
f4                     | hlt

== syscall64 64 0x1000
48c7c100110000         | mov rcx, 0x1100
49c7c346020000         | mov r11, 0x246
480f07                 | sysretq
                       | kernel:
48890c2500500000       | mov [0x5000], rcx
4c891c2508500000       | mov [0x5008], r11
9c                     | pushfq
58                     | pop rax
4889042510500000       | mov [0x5010], rax
8cc8                   | mov eax, cs
89042518500000         | mov [0x5018], eax
8cd0                   | mov eax, ss
8904251c500000         | mov [0x501c], eax
f4                     | hlt

== user64 64 0x1100
f9                     | stc
0f05                   | syscall

== userrex64 64 0x1100
f9                     | stc
480f05                 | rex.W syscall

== syscallbad64 64 0x1000
90                     | nop
0f05                   | syscall
f4                     | hlt

== compat32 64 0x1000
6a2b                   | push 0x2b
6800f00000             | push 0xf000
6802020000             | push 0x202
6a23                   | push 0x23
6800110000             | push 0x1100
48cf                   | iretq

== usercompat 32 0x1100
90                     | nop
0f05                   | syscall

== wrmsr64 64 0x1000
0f30                   | wrmsr
0f32                   | rdmsr
f4                     | hlt

== rdmsr64 64 0x1000
0f32                   | rdmsr
f4                     | hlt

== prefixed64 64 0x1000
6648                   | .byte 0x66, 0x48
0fa2                   | cpuid
b910000000             | mov ecx, 0x10
2e                     | .byte 0x2e
0f32                   | rdmsr
e620                   | out 0x20, al
f4                     | hlt

== cpuid64 64 0x1000
0fa2                   | cpuid
f4                     | hlt

== osxsave64 64 0x1000
b801000000             | mov eax, 1
0fa2                   | cpuid
4189c8                 | mov r8d, ecx
0f20e0                 | mov rax, cr4
0d00020400             | or eax, 0x40200
0f22e0                 | mov cr4, rax
b801000000             | mov eax, 1
0fa2                   | cpuid
f4                     | hlt

== cr8 64 0x1000
b809000000             | mov eax, 9
440f22c0               | mov cr8, rax
450f20c1               | mov r9, cr8
b810000000             | mov eax, 0x10
440f22c0               | mov cr8, rax
f4                     | hlt

== cr0 64 0x1000
0f22c0                 | mov cr0, rax
f4                     | hlt

== cr4 64 0x1000
0f22e0                 | mov cr4, rax
f4                     | hlt

== cr9 64 0x1000
410f20c1               | mov r9, cr0
410f22c1               | mov cr0, r9
410f20e2               | mov r10, cr4
410f22e2               | mov cr4, r10
f4                     | hlt

== div64 64 0x1000
31c9                   | xor ecx, ecx
f7f1                   | div ecx

== int64 64 0x1000
cd80                   | int 0x80
f4                     | hlt

== int3 64 0x1000
cc                     | int3
f4                     | hlt

== ud64 64 0x1000
0f0b                   | ud2

== gp64 64 0x1000
48b80000000000000080   | mov rax, 0x8000000000000000
8900                   | mov [rax], eax

== pf64 64 0x1000
48c7c000000040         | mov rax, 0x40000000
8900                   | mov [rax], eax

== pffetch64 64 0x1000
48c7c000000040         | mov rax, 0x40000000
ffe0                   | jmp rax

== ud32 32 0x1000
0f0b                   | ud2

== gp32 32 0x1000
b800100000             | mov eax, 0x1000
8ed8                   | mov ds, eax

== triple64 64 0x1000
0f011c2500500000       | lidt [0x5000]
0f0b                   | ud2

== mmiocode64 64 0x1000
48b80000008000000000   | mov rax, 0x80000000
ffe0                   | jmp rax

== rdpmc64 64 0x1000
31c9                   | xor ecx, ecx
0f33                   | rdpmc

== vmmcall64 64 0x1000
0f01d9                 | vmmcall

== monitor64 64 0x1000
31c9                   | xor ecx, ecx
0f01c8                 | monitor

== count64 64 0x1000
48ff042500500000       | 1:  inc qword ptr [0x5000]
48ffc0                 | inc rax
ebf3                   | jmp 1b

== spin64 64 0x1000
ebfe                   | 1:  jmp 1b

== pause64 64 0x1000
f390                   | 1:  pause
48ffc0                 | inc rax
ebf9                   | jmp 1b

== pausen64 64 0x1000
f390                   | 1:  pause
ffc9                   | dec ecx
75fa                   | jnz 1b
f4                     | hlt

== ap16 16 0x6000
e660                   | out 0x60, al
f4                     | 1:  hlt
ebfd                   | jmp 1b

== smp0 64 0x1000
e630                   | out 0x30, al
f390                   | 1:  pause
833c250050000005       | cmp dword ptr [0x5000], 5
75f4                   | jne 1b
c6430107               | mov byte ptr [rbx+1], 7
c704250450000001000000 | mov dword ptr [0x5004], 1
f390                   | 2:  pause
833c250050000007       | cmp dword ptr [0x5000], 7
75f4                   | jne 2b
f4                     | hlt
66b80500               | mov ax, 5
c3                     | ret

== dma64 64 0x1000
e8fb1e0000             | call 0x2f00
e620                   | out 0x20, al
e8f41e0000             | call 0x2f00
e621                   | out 0x21, al
f4                     | hlt

== dmacode 64 0x2f00
b801000000             | mov eax, 1
c3                     | ret

== smp1 16 0x6000
31c0                   | xor ax, ax
8ed8                   | mov ds, ax
e81300                 | 1:  call patch
a30050                 | mov [0x5000], ax
f390                   | pause
833e045000             | cmp word ptr [0x5004], 0
74f1                   | je 1b
e80400                 | call patch
a30050                 | mov [0x5000], ax
f4                     | hlt
                       | patch:
b80500                 | mov ax, 5
c3                     | ret

== alias64 64 0x1000
41b804000000           | mov r8d, 4
44890425f00f2000       | 1:  mov [0x200ff0], r8d
e8ed1e0000             | call 0x2f00
e720                   | out 0x20, eax
fe0425010f2000         | inc byte ptr [0x200f01]
41ffc8                 | dec r8d
75e5                   | jnz 1b
f4                     | hlt

== int1 64 0x1000
f1                     | .byte 0xf1
f4                     | hlt

== breakpoint64 64 0x1000
b800600000             | mov eax, 0x6000
0f23c0                 | mov dr0, rax
b901040000             | mov ecx, 0x401
0f23f9                 | mov dr7, rcx
e620                   | out 0x20, al
ffe0                   | jmp rax

== userout64 64 0x1100
e620                   | out 0x20, al
66baf803               | mov dx, 0x3f8
ef                     | out dx, eax
0f05                   | syscall

== leaky64 64 0x1000
b903000000             | mov ecx, 3
e8f6ef0300             | 1:  call 0x40000
ffc9                   | dec ecx
75f7                   | jnz 1b
f4                     | hlt

== shadowexit64 64 0x1000
fb                     | sti
0fa2                   | cpuid
e621                   | out 0x21, al
f4                     | hlt

== wrap16 16 0x1000
eafeff0010             | jmp 0x1000:0xfffe

== wrapped16 16 0x1fffe
0fa2                   | cpuid

== wraptarget16 16 0x10000
e622                   | out 0x22, al
f4                     | hlt

== ltrirq32 32 0x1000
c7050050000040000000   | mov dword ptr [0x5000], 0x40
fb                     | sti
f4                     | hlt
                       | handler:
0f001d00500000         | ltr [0x5000]
f4                     | hlt

== alias0 64 0x1000
8b042500700000         | mov eax, [0x7000]
e720                   | out 0x20, eax
eb00                   | jmp 1f
8b042500700000         | 1:  mov eax, [0x7000]
e721                   | out 0x21, eax
f4                     | hlt

== alias1 16 0x6000
a10070                 | mov ax, [0x7000]
e761                   | out 0x61, ax
f4                     | hlt

== chained64 64 0x1000
fb                     | sti
e631                   | 1:  out 0x31, al
eb00                   | jmp 2f
ffc9                   | 2:  dec ecx
75f8                   | jnz 1b
f4                     | hlt

== xgetbv64 64 0x1000
0f20e0                 | mov rax, cr4
0d00020400             | or eax, 0x40200
0f22e0                 | mov cr4, rax
31c9                   | xor ecx, ecx
0f01d0                 | xgetbv
f4                     | hlt

== ring3_32 32 0x1000
6a2b                   | push 0x2b
6800f80000             | push 0xf800
6a02                   | push 0x2
6a23                   | push 0x23
6800110000             | push 0x1100
cf                     | iretd
"""


class Program:
    """Machine code and its labels. `bits`: width of the code segment it is written for."""

    def __init__(self, listing: str) -> None:
        head, *lines = listing.splitlines()
        self.name, bits, address = head.split()
        self.bits = int(bits)
        self.address = int(address, 16)
        code = bytearray()
        self.labels: dict[str, int] = {}
        for line in lines:
            left, _, right = line.partition("|")
            right = right.strip()
            if right.endswith(":") and right[0].isalpha():
                self.labels[right[:-1]] = self.address + len(code)
            code += bytes.fromhex(left)
        self.code = bytes(code)


PROGRAMS = {p.name: p for p in (Program(text) for text in _LISTINGS.split("== ")[1:])}
