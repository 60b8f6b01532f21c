"""The expressions that claims are written in: `metric(aopd, learned) > metric(opd, learned) + 0.02`.

An expression is one comparison by > or <. Each side holds numbers, `metric(adapter, name)`, + - * / and parentheses. Python's
parser reads it, but nothing is evaluated as Python: a syntax tree with any other node is refused.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from harness.stats.estimates import Estimate

LONGEST, LARGEST = 500, 1e6
RATIO = "ratio"
FORM = "expected one comparison by > or < of numbers, metric(adapter, name) and + - * /, for example metric(aopd, learned) > 0"


class Metric(NamedTuple):
    """A named figure of one adapter's runs; `start` is empty for the start that the claim is judged from."""

    adapter: str
    name: str
    start: str = ""


Value = Estimate | float
Lookup = Callable[[Metric], Estimate]


@dataclass(frozen=True)
class Expression:
    """A parsed comparison: the effect is its left side minus its right side; `sign` is 1 where > is claimed, -1 where <."""

    text: str
    left: ast.expr
    right: ast.expr
    sign: int

    @property
    def metrics(self) -> list[Metric]:
        """The metrics that the expression names, in order, each once."""
        return list(dict.fromkeys([*_metrics(self.left), *_metrics(self.right)]))

    @property
    def adapters(self) -> list[str]:
        """The adapters that the expression names, in order, each once."""
        return list(dict.fromkeys(metric.adapter for metric in self.metrics))

    @property
    def is_difference(self) -> bool:
        """Whether the expression compares one metric of two adapters from the same start, and nothing else."""
        return (
            isinstance(self.left, ast.Call)
            and isinstance(self.right, ast.Call)
            and _alike_but_for_adapter(self.metrics)
        )

    def unit(self, units: Mapping[str, str]) -> str:
        """Return the effect's unit, given the metrics' units; raises `ValueError` where the expression mixes units."""
        return _alike(_unit(self.left, units), _unit(self.right, units))

    def effect(self, lookup: Lookup) -> Estimate:
        """Return left minus right for the seeds that every metric has; values that are not finite are left out."""
        change = _value(self.left, lookup) - _value(self.right, lookup)
        assert isinstance(change, Estimate)
        return change.finite()


def parse(text: str) -> Expression:
    """Parse an expression; raises a `ValueError` that says what was found and what is allowed."""
    if len(text) > LONGEST:
        raise ValueError(f"an expression of {len(text)} characters; {LONGEST} are allowed")
    try:
        found = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"{text!r} cannot be read ({error}); {FORM}") from error
    if not isinstance(found, ast.Compare) or len(found.ops) != 1 or not isinstance(found.ops[0], ast.Gt | ast.Lt):
        raise ValueError(f"{text!r} is not one comparison; {FORM}")
    left, right = found.left, found.comparators[0]
    _check(left)
    _check(right)
    expression = Expression(text, left, right, 1 if isinstance(found.ops[0], ast.Gt) else -1)
    if not expression.metrics:
        raise ValueError(f"{text!r} names no metric, so there is nothing to judge; {FORM}")
    return expression


def _check(node: ast.expr) -> None:
    """Raise `ValueError` for a node that the grammar does not have."""
    match node:
        case ast.BinOp(left=left, op=ast.Add() | ast.Sub() | ast.Mult() | ast.Div(), right=right):
            _check(left)
            _check(right)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            _check(operand)
        case ast.Constant(value=int(number) | float(number)) if not isinstance(number, bool):
            if not abs(number) <= LARGEST:
                raise ValueError(
                    f"the number {ast.unparse(node)[:30]} is larger than {LARGEST:g}; give one such as 0.5"
                )
        case ast.Call():
            _metric(node)
        case _:
            raise ValueError(f"{ast.unparse(node)[:60]!r} is not allowed; {FORM}")


def _metric(node: ast.Call) -> Metric:
    known = isinstance(node.func, ast.Name) and node.func.id == "metric"
    keywords = {keyword.arg: keyword.value for keyword in node.keywords}
    if not known or len(node.args) != 2 or not set(keywords) <= {"start"} or len(keywords) < len(node.keywords):
        raise ValueError(
            f"{ast.unparse(node)[:60]!r} is not allowed; the one function is metric(adapter, name), or "
            "metric(adapter, name, start=weak)"
        )
    return Metric(_word(node.args[0]), _word(node.args[1]), _word(keywords["start"]) if keywords else "")


def _word(node: ast.expr) -> str:
    match node:
        case ast.Name(id=name):
            return name
        case ast.Constant(value=str(text)):
            return text
        case _:
            raise ValueError(f"{ast.unparse(node)[:60]!r} is not a name; expected a word, or one in quotes")


def _metrics(node: ast.expr) -> Iterator[Metric]:
    for found in ast.walk(node):
        if isinstance(found, ast.Call):
            yield _metric(found)


def _alike_but_for_adapter(metrics: Sequence[Metric]) -> bool:
    return len(metrics) == 2 and len({metric.adapter for metric in metrics}) == 2 and metrics[0][1:] == metrics[1][1:]


def _unit(node: ast.expr, units: Mapping[str, str]) -> str:
    """Return the unit of a part of an expression; empty for numbers, which take the unit of the other side."""
    match node:
        case ast.Call():
            return units[_metric(node).name]
        case ast.UnaryOp(operand=operand):
            return _unit(operand, units)
        case ast.BinOp(left=left, op=op, right=right):
            sides = _unit(left, units), _unit(right, units)
            if isinstance(op, ast.Add | ast.Sub):
                return _alike(*sides)
            return _quotient(*sides) if isinstance(op, ast.Div) else _product(*sides)
        case _:
            return ""


def _alike(left: str, right: str) -> str:
    if left and right and left != right:
        raise ValueError(f"it adds or compares {left} and {right}; give both sides the same unit")
    return left or right


def _product(left: str, right: str) -> str:
    plain = [unit for unit in (left, right) if unit not in ("", RATIO)]
    if len(plain) > 1:
        raise ValueError(f"it multiplies {left} by {right}, which has no unit; multiply by numbers and ratios")
    return plain[0] if plain else left or right


def _quotient(left: str, right: str) -> str:
    if right in ("", RATIO):
        return left or right
    if left != right:
        raise ValueError(
            f"it divides {left or 'a number'} by {right}, which has no unit; divide by the same unit, or by a number"
        )
    return RATIO


def _value(node: ast.expr, lookup: Lookup) -> Value:
    match node:
        case ast.BinOp(left=left, op=op, right=right):
            return _combined(op, _value(left, lookup), _value(right, lookup))
        case ast.UnaryOp(operand=operand):
            return -_value(operand, lookup)
        case ast.Constant(value=int(number) | float(number)):
            return float(number)
        case ast.Call():
            return lookup(_metric(node))
        case _:
            raise ValueError(f"{ast.unparse(node)!r} is not allowed; {FORM}")


def _combined(op: ast.operator, left: Value, right: Value) -> Value:
    if isinstance(op, ast.Add):
        return left + right
    if isinstance(op, ast.Sub):
        return left - right
    if isinstance(op, ast.Mult):
        return left * right
    return left / right if isinstance(right, Estimate) or right else left * math.nan
