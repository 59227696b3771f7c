"""Arithmetic, without a way to anything else."""

import ast
import math
import operator
from collections.abc import Callable

from arkloop.worker.contract.context import ToolContext
from arkloop.worker.tools import ToolFailed, tool

MAX_LENGTH = 500
MAX_DIGITS = 300


def _round(number: int | float, digits: int | None = None) -> int | float:
    # To minus a hundred million digits takes as long as that power of ten.
    if digits is not None and abs(digits) > MAX_DIGITS:
        raise ToolFailed(f"Numbers are rounded to at most {MAX_DIGITS} digits.")
    return round(number, digits)


_BINARY: dict[type[ast.operator], Callable[..., int | float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_FUNCTIONS: dict[str, Callable[..., int | float]] = {
    "abs": abs,
    "round": _round,
    "min": min,
    "max": max,
    "sqrt": math.sqrt,
}


@tool(idempotent=True)
def calculator(context: ToolContext, expression: str) -> str:
    """Work out an arithmetic expression: + - * / // % ** and abs, round, min, max, sqrt."""
    if len(expression) > MAX_LENGTH:
        raise ToolFailed(f"The expression is longer than {MAX_LENGTH} characters.")
    try:
        value = _value(ast.parse(expression.strip(), mode="eval").body)
    except ToolFailed:
        raise
    except ZeroDivisionError:
        raise ToolFailed("Division by zero.") from None
    except (SyntaxError, ValueError, TypeError, OverflowError, RecursionError, MemoryError):
        raise ToolFailed(f"{expression!r} is not an arithmetic expression.") from None
    return str(value)


def _value(node: ast.AST) -> int | float:
    match node:
        case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
            return _bounded(number)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand)
        case ast.UnaryOp(op=ast.UAdd(), operand=operand):
            return _value(operand)
        case ast.BinOp(left=left, op=ast.Pow(), right=right):
            return _power(_value(left), _value(right))
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
            return _bounded(_BINARY[type(op)](_value(left), _value(right)))
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in _FUNCTIONS:
            return _bounded(_FUNCTIONS[name](*map(_value, args)))
    raise ValueError


def _power(base: int | float, exponent: int | float) -> int | float:
    # Checked before the power is taken: 9**9**9 would keep the whole process busy for hours.
    # Of a result near 0, a float, the product is negative.
    if base and exponent * math.log10(abs(base)) > MAX_DIGITS:
        raise ToolFailed(f"The result has more than {MAX_DIGITS} digits.")
    return _bounded(base**exponent)


def _bounded(number: int | float | complex) -> int | float:
    if isinstance(number, complex):
        raise ToolFailed("The result is not a real number.")
    if not math.isfinite(number) if isinstance(number, float) else abs(number) >= 10**MAX_DIGITS:
        raise ToolFailed(f"The result has more than {MAX_DIGITS} digits.")
    return number
