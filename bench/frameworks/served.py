"""The agents of `examples/agents` for `arkloop agents serve`; each is imported when it is named.

Their frameworks are in the folder that `FRAMEWORKS` names, behind the packages of the service.
"""

import os
import sys
from importlib import import_module
from typing import Any

from bench.frameworks import shop

__all__ = ["shop"]


def __getattr__(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    sys.path.append(os.environ["FRAMEWORKS"])
    return getattr(import_module(f"examples.agents.{name}"), name)
