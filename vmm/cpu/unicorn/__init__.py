"""The default CPU engine: QEMU's TCG, as the Unicorn 2.1.4 library ships it.

The library's public interface is made for running snippets, not machines: it cannot intercept MSRs, delivers no
events, and its asynchronous stop runs read-modify-write instructions twice. The code inside the library can do all
of that; so this package calls it directly (`library`, by symbol) and reads and writes the CPU state where it lies
(`layout`, by offset). Both are known for one build only, hence the pinned version and the self-test at start.

    layout    offsets, flags and numbers of that build
    library   loading it, its symbols, and refusing any other
    thunk     the few machine-code routines that run where Python must not
    selfmod   self-modifying code, seen through every mapping
    alarm     a timer that ends a run at its deadline
    vcpu      one virtual CPU: its saved state, registers, INIT/SIPI, interrupt and NMI
    cpuid     what CPUID tells: only what is executed
    msr       model-specific registers of the CPU itself
    exits     what happens at an intercepted instruction
    engine    memory, hooks, the run loop
    selftest  proves the parts that would corrupt a guest silently
"""

from vmm.cpu.unicorn.engine import UnicornEngine

__all__ = ["UnicornEngine"]
