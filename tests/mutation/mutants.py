"""Mechanical changes of a Python source, one at a time: comparisons, booleans, constants, deletions."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}


class Mutant(NamedTuple):
    """One change. `name` outlives moved lines: file, function, what becomes what, and which of its equals."""

    name: str
    path: Path
    line: int
    module: ast.Module
    node: ast.AST
    change: Callable[[ast.AST], None]

    def mutate(self) -> ast.Module:
        """The changed tree. In place: all mutants of a file share one, so each wants a process of its own."""
        self.change(self.node)
        return ast.fix_missing_locations(self.module)


class _Change(NamedTuple):
    what: str
    apply: Callable[[ast.AST], None]


def mutants(path: Path, root: Path) -> Iterator[Mutant]:
    """All mutants of a file, in the order of its text.

    Left alone is what no test can observe: docstrings, annotations, texts, what an error says, `__slots__`, imports
    for types, trace events.
    """
    module = ast.parse(path.read_text())
    place = str(path.relative_to(root))
    twins: dict[str, int] = {}
    for node, where in _nodes(module):
        for what, apply in _changes(node):
            text = f"{place}:{where}: {what}"
            twins[text] = twins.get(text, 0) + 1
            name = text if twins[text] == 1 else f"{text} #{twins[text]}"
            yield Mutant(name, path, getattr(node, "lineno", 0), module, node, apply)


def _nodes(module: ast.Module) -> Iterator[tuple[ast.AST, str]]:
    """Each node that may be changed, with the qualified name of its function or class."""

    def visit(node: ast.AST, where: str) -> Iterator[tuple[ast.AST, str]]:
        if _left_alone(node):
            return
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            where = f"{where}.{node.name}" if where else node.name
            inside: list[ast.AST] = list(node.body)
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                inside = [*node.args.defaults, *[default for default in node.args.kw_defaults if default], *inside]
        else:
            yield node, where
            inside = list(ast.iter_child_nodes(node))
            if isinstance(node, ast.AnnAssign):
                inside = [node.value] if node.value else []
            if isinstance(node, ast.Raise):
                inside = []
        for child in inside:
            yield from visit(child, where)

    yield from visit(module, "")


def _left_alone(node: ast.AST) -> bool:
    match node:
        case ast.Expr(value=ast.Constant()) | ast.JoinedStr() | ast.Import() | ast.ImportFrom() | ast.Assert():
            return True
        case ast.Assign(targets=[ast.Name(id="__slots__" | "__all__")]):
            return True
        case ast.If(test=ast.Name(id="TYPE_CHECKING") | ast.Attribute(attr="on")):  # trace.on: what is told, not done
            return True
        case ast.FunctionDef(name="__repr__" | "__str__"):
            return True
        case ast.FunctionDef(decorator_list=decorators):
            return any(isinstance(one, ast.Name) and one.id == "overload" for one in decorators)
    return False


def _changes(node: ast.AST) -> Iterator[_Change]:
    match node:
        case ast.Compare(ops=ops):
            for nth, op in enumerate(ops):
                new = COMPARISONS[type(op)]
                yield _Change(
                    f"{_text(node)} -> {new.__name__}" + (f" at {nth}" if nth else ""),
                    lambda twin, nth=nth, new=new: twin.ops.__setitem__(nth, new()),  # type: ignore[misc]
                )
        case ast.BoolOp(op=op):
            other: ast.boolop = ast.Or() if isinstance(op, ast.And) else ast.And()
            yield _Change(f"{_text(node)} -> {type(other).__name__}", lambda twin: setattr(twin, "op", other))
        case ast.UnaryOp(op=ast.Not()):
            yield _Change(f"{_text(node)} -> without not", _doubled)
        case ast.If(test=test) | ast.While(test=test) | ast.IfExp(test=test):
            if not isinstance(test, (ast.Compare, ast.BoolOp, ast.UnaryOp, ast.Constant)):
                yield _Change(f"if {_text(test)} -> if not", lambda twin: setattr(twin, "test", _negated(twin)))
        case ast.Constant(value=bool() as value):
            yield _Change(f"{value} -> {not value}", lambda twin: setattr(twin, "value", not value))
        case ast.Constant(value=int() as number):
            yield _Change(f"{number} -> {number + 1}", lambda twin: setattr(twin, "value", number + 1))
        case ast.Expr() | ast.AugAssign() | ast.Delete():
            yield _Change(f"{_text(node)} -> pass", _emptied)
        case ast.Return(value=ast.expr() as value) if not (isinstance(value, ast.Constant) and not value.value):
            yield _Change(f"{_text(node)} -> return None", lambda twin: setattr(twin, "value", ast.Constant(None)))
        case ast.Assign(targets=[ast.Attribute() | ast.Subscript()]):
            yield _Change(f"{_text(node)} -> pass", _emptied)


def _text(node: ast.AST) -> str:
    text = " ".join(ast.unparse(node).split())
    return text if len(text) <= 70 else text[:67] + "..."


def _negated(twin: ast.AST) -> ast.expr:
    return ast.UnaryOp(ast.Not(), twin.test)  # type: ignore[attr-defined]


def _doubled(twin: ast.AST) -> None:
    """`not x` becomes `not not x`, which is the truth of x."""
    twin.operand = ast.UnaryOp(ast.Not(), twin.operand)  # type: ignore[attr-defined]


def _emptied(twin: ast.AST) -> None:
    """A statement becomes an expression that does nothing; in place, for its parent holds it."""
    twin.__class__ = ast.Expr  # type: ignore[assignment]
    twin.value = ast.Constant(None)  # type: ignore[attr-defined]
