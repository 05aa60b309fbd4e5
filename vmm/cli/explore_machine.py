"""`vintx explore SCENARIO --replay SCHEDULE --in-machine`: the order on a booted machine, over QMP."""

from __future__ import annotations

import asyncio
import re
import sys
from typing import TYPE_CHECKING, Any

from qemu.qmp import ExecuteError, QMPError

import guest_images
from vmm.cli import explore_text
from vmm.cli.process import GuestLost, MachineProcess, program
from vmm.errors import UsageError
from vmm.explore import in_machine, scenes, story
from vmm.explore.parts import GSI

if TYPE_CHECKING:
    import argparse

    from rich.console import Console

    from vmm.explore.in_machine import Action, End, Plan

HELD, VIOLATED, DIFFERS = 0, 1, 4
"""Exit statuses: as the order ends, or not."""
FILLER_GSI = 23
"""Whose irqfds take the source ids that the scene does not have."""


def run(arguments: argparse.Namespace) -> int:
    """1 if the machine ends as an order that breaks a rule does, 0 if as one that breaks none, 4 if not. UsageError."""
    if not arguments.replay:
        raise UsageError("--in-machine runs one order: give it with --replay")
    if getattr(arguments, "bug", None):
        raise UsageError("a machine has the real classes: leave out --bug")
    family = scenes.load(arguments.scenario)
    plan = in_machine.plan(family, arguments.replay)
    console = explore_text.Screen(highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console = explore_text.Screen(highlight=False, soft_wrap=True, width=150)
    try:
        return asyncio.run(_play(plan, console))
    except (GuestLost, QMPError, OSError) as error:
        if isinstance(error, BrokenPipeError):
            raise
        print(f"vintx explore: the machine: {error}", file=sys.stderr)
        return DIFFERS


async def _play(plan: Plan, console: Console) -> int:
    setup = plan.schedule.setup
    machine = f"pc,irqfd-policy={setup.policy}"
    if plan.merged and setup.era:
        machine += f",irqfd-era={setup.era}"
    argv = [program(), "-M", machine, "-m", "32", "-nodefaults", "-display", "none"]
    argv += ["-kernel", str(guest_images.path("mailbox")), "-append", f"pin={GSI}"]
    async with MachineProcess(argv, typing=True) as vm:
        await vm.line("^mailbox: ready")
        player = _Player(vm, plan, console)
        await player.begin()
        for action in plan.actions:
            await player.do(action)
        end = await player.end()
    for text in plan.at_once:
        console.print(f"done at once, and it comes to the same: {text}", markup=False)
    differences = plan.end.differs(end)
    if differences:
        console.print(
            f"the machine ends otherwise than the order: {'; '.join(differences)}", style="bold", markup=False
        )
        return DIFFERS
    for line in _read_back(end, player):
        console.print(line, markup=False)
    if plan.rule is None:
        console.print("nothing is violated, here as there", style="bold")
        return HELD
    console.print(_words(plan.rule), style="bold", markup=False)
    return VIOLATED


def _words(rule: str) -> str:
    number = rule.partition(":")[0]
    known = story.words(number)
    return f"{number}{f' ({known})' if known else ''}, in the machine as in the explorer: {rule.partition(': ')[2]}"


class _Player:
    """Does a plan's actions."""

    def __init__(self, vm: MachineProcess, plan: Plan, console: Console) -> None:
        self.vm = vm
        self.plan = plan
        self.console = console
        self.fds: dict[str, int] = {}
        self.open: set[str] = set()
        self.results: dict[str, list[str]] = {action.who: [] for action in plan.actions if action.kind == "call"}
        self.pending: dict[int, tuple[str, str]] = {}
        """Operations that are held or wait: who, and what."""
        self.static = 0
        self.fillers = 0
        self.number = 0
        self.step = 0

    async def begin(self) -> None:
        """Eventfds, irqfds and eoifds of the scene, and as many source ids as it has."""
        vm, start = self.vm, self.plan.start
        self.static = len((await vm.qmp("x-query-irqfds"))["sources"])
        sources = self.plan.schedule.setup.sources
        if sources is not None and not self.plan.merged:
            await self._fill(sources)
        for name, count, semaphore in start.eventfds:
            reply = await vm.qmp("x-eventfd-open", name=name, count=count, semaphore=semaphore)
            self.fds[name] = reply["fd"]
            self.open.add(name)
        for name, level, resamplefd in start.irqfds:
            await vm.qmp("x-irqfd-assign", **self._assign(name, level, resamplefd))
        for name, irqfd in start.eoifds:
            await vm.qmp("x-eoifd-assign", fd=self.fds[name], irqfd=self.fds[irqfd])

    async def _fill(self, sources: int) -> None:
        """Take source ids with irqfds of a GSI that nobody uses, until so many are left."""
        fds = []
        while True:
            fd = (await self.vm.qmp("x-eventfd-open", name="filler"))["fd"]
            fds.append(fd)
            try:
                await self.vm.qmp("x-irqfd-assign", fd=fd, gsi=FILLER_GSI, level=True)
            except ExecuteError:
                break
        for fd in fds[max(len(fds) - 1 - sources, 0) :]:
            await self.vm.qmp("x-eventfd-close", fd=fd)
        self.fillers = max(len(fds) - 1 - sources, 0)

    def _assign(self, name: str, level: bool, resamplefd: str) -> dict[str, Any]:
        more: dict[str, Any] = {"resamplefd": self.fds[resamplefd]} if resamplefd else {"level": True} if level else {}
        return {"fd": self.fds[name], "gsi": GSI, **more}

    async def do(self, action: Action) -> None:
        """One action."""
        self.step += 1
        if action.kind == "hold":
            await self.vm.qmp("x-point-hold", point=action.text)
            self._say("x-point-hold", action.text)
        elif action.kind == "release":
            self._say("x-point-release", action.text)
            for outcome in await self.vm.qmp("x-point-release", point=action.text):
                self._came(outcome["operation"], outcome.get("state"), outcome.get("error", ""))
        elif action.text.split()[0] in in_machine.GUEST:
            await self._guest(action)
        else:
            await self._call(action)

    async def _guest(self, action: Action) -> None:
        self.number += 1
        start = len(self.vm.lines)
        await self.vm.type(f"{self.number} {action.text.lower()}\n")
        match = await self.vm.line(rf"^mailbox: {self.number} (.*)", start=start)
        self._say(f"{action.who}: {action.text}", f"the guest says: {match[1]}")
        if match[1] == "took 0":
            self.results[action.who].append(f"{action.text} = nothing")
            return
        self.results[action.who].append(f"{action.text} = ok")

    async def _call(self, action: Action) -> None:
        kind, *words = action.text.split()
        command, arguments = self._command(kind, words)
        shown = ", ".join(f"{name}={value}" for name, value in arguments.items())
        if kind == "C":
            self.open.discard(words[0])
        try:
            reply = await self.vm.qmp(command, **arguments)
        except ExecuteError as error:
            result = self._errno(str(error))
            self.results[action.who].append(f"{action.text} = {result}")
            self._say(f"{action.who}: {action.text}", f"{command} {shown}: {error}")
            return
        self._say(f"{action.who}: {action.text}", f"{command} {shown}: {self._state(reply)}")
        if isinstance(reply, dict) and "operation" in reply:
            self.pending[reply["operation"]] = action.who, action.text
        else:
            self.results[action.who].append(f"{action.text} = ok")

    @staticmethod
    def _state(reply: Any) -> str:
        if not isinstance(reply, dict) or "operation" not in reply:
            return "ok"
        return f"operation {reply['operation']} is {reply['state']} at {reply['point']}"

    def _came(self, operation: int, state: str | None, error: str) -> None:
        who, text = self.pending[operation]
        if state != "done":
            self._say(f"{who}: {text}", f"operation {operation} is {state}")
            return
        del self.pending[operation]
        result = self._errno(error) if error else "ok"
        self.results[who].append(f"{text} = {result}")
        self._say(f"{who}: {text}", f"operation {operation} is done: {error or 'ok'}")

    @staticmethod
    def _errno(text: str) -> str:
        found = re.match(r"E[A-Z0-9]+", text)
        return found[0] if found else text

    def _command(self, kind: str, words: list[str]) -> tuple[str, dict[str, Any]]:
        fd = self.fds[words[0]]
        if kind == "I+":
            edge = words[1:] == ["edge"]
            resamplefd = words[1] if len(words) > 1 and not edge else ""
            return "x-irqfd-assign", self._assign(words[0], not edge and not self.plan.merged, resamplefd)
        if kind == "I-":
            return "x-irqfd-deassign", {"fd": fd, "gsi": GSI}
        if kind in ("E+", "E-"):
            verb = "assign" if kind == "E+" else "deassign"
            return f"x-eoifd-{verb}", {"fd": fd, "irqfd": self.fds[words[1]]}
        return ("x-eventfd-close" if kind == "C" else "x-eventfd-signal"), {"fd": fd}

    def _say(self, what: str, came: str) -> None:
        self.console.print(f"{self.step:3}. {what:<28} {came}", markup=False)

    async def end(self) -> End:
        """What can be read back."""
        vm = self.vm
        state = await vm.qmp("x-query-irqfds")
        chip = (await vm.qmp("x-query-irqchip"))["ioapics"][0]
        self.number += 1
        start = len(vm.lines)
        await vm.type(f"{self.number} read\n")
        entry = await vm.line(rf"^mailbox: {self.number} entry ([0-9a-f]+)", start=start)
        counts = []
        for name in self.fds:
            if name in self.open:
                try:
                    counts.append((name, (await vm.qmp("x-eventfd-read", fd=self.fds[name]))["count"]))
                except ExecuteError:
                    counts.append((name, 0))
        names = {fd: name for name, fd in self.fds.items() if name in self.open}
        bound = [names[fd] for item in state["irqfds"] for fd in item["fds"] if fd in names]
        eoifds = [names[fd] for item in state["eoifds"] for fd in item["fds"] if fd in names]
        return in_machine.End(
            tuple((who, tuple(results)) for who, results in sorted(self.results.items()) if results),
            tuple(sorted(bound)),
            tuple(sorted(eoifds)),
            len(state["sources"]) - self.static - self.fillers,
            bool(chip["irr"] >> GSI & 1),
            bool(int(entry[1], 16) >> 14 & 1),
            tuple(counts),
        )


def _read_back(end: End, player: _Player) -> list[str]:
    """The end in words."""
    counts = " ".join(f"{name}={count}" for name, count in end.counts)
    lines = [f"x-query-irqfds: irqfds of {' '.join(end.bound) or 'nobody'}; eoifds {' '.join(end.eoifds) or '-'}"]
    lines[0] += f"; {end.ids} source ids in use"
    lines[0] += f", {player.fillers} taken beforehand" if player.fillers else ""
    lines.append(
        f"x-query-irqchip: IRR of pin {GSI} {end.irr:d}, Remote IRR {end.remote_irr:d}; x-eventfd-read: {counts}"
    )
    return lines
