"""The memory of a stream's Python stack."""

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

#: Slots of a frame that no chunk of CPython's stack has room for: a chunk has 2,048.
_SLOTS = 3_000


def gives_back_its_stack(view: Callable[P, R]) -> Callable[P, R]:
    """Make a view give back the memory of the stack that it has used, before its response streams.

    A greenlet keeps its stack as long as it lives. The deepest calls of a stream are those before
    its first byte, and idle streams would keep up to 16 KiB for them. CPython has no room for the
    frame of `call` in a stack's first chunk: it makes a second chunk for that frame and all above
    it, and frees this with the frame.
    """

    def call(args: Any, kwargs: Any) -> Any:
        return view(*args, **kwargs)

    call.__code__ = call.__code__.replace(co_stacksize=_SLOTS)

    @wraps(view)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        result: R = call(args, kwargs)
        return result

    return wrapper
