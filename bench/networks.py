"""Network namespaces: processes that reach nothing of this machine but one address.

Each has a loopback interface of its own, and a cable (`veth(4)`) to this machine. Its other end has
an address of 198.18.0.0/15, which RFC 2544 sets aside for benchmarks.
"""

import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from arkloop.cli.dev.die_with_parent import dying_with_parent

READY_SECONDS = 60.0
MOST = 64  # each has four of the 256 addresses that this process uses


@dataclass(frozen=True, slots=True)
class Network:
    """A network for processes; `here` is this machine's address in it, `there` is theirs."""

    here: str
    there: str
    pid: int  # of the process that keeps it alive

    def inside(self, command: Sequence[str]) -> list[str]:
        """Return the command that runs `command` in it, as the same process."""
        return ["nsenter", "--target", str(self.pid), "--net", *command]


@contextmanager
def own_networks(count: int) -> Iterator[list[Network]]:
    """Make some networks, which end with the block or this process; at most `MOST`.

    Yields none where that takes more permissions than this process has, or a command that is not
    there (`ip`, `unshare`, `nsenter`).
    """
    assert count <= MOST
    with ExitStack() as stack:
        try:
            made = [_make(stack, number) for number in range(count)]
        except (OSError, subprocess.CalledProcessError):
            stack.close()
            made = []
        yield made


def _make(stack: ExitStack, number: int) -> Network:
    """Make the network of this number. Raises: OSError, CalledProcessError."""
    own = Path("/proc/self/ns/net").readlink()
    keeper = subprocess.Popen(
        dying_with_parent(["unshare", "--net", "sleep", "infinity"]), stderr=subprocess.DEVNULL
    )
    stack.callback(keeper.wait)
    stack.callback(keeper.kill)
    deadline = time.monotonic() + READY_SECONDS
    while Path(f"/proc/{keeper.pid}/ns/net").readlink() == own:
        if keeper.poll() is not None or time.monotonic() > deadline:
            raise PermissionError("no network namespace")
        time.sleep(0.01)
    own_id, first = os.getpid(), 4 * number
    cable, net = f"ark{own_id}n{number}", f"198.{18 + own_id % 2}.{own_id // 2 % 256}"
    network = Network(f"{net}.{first + 1}", f"{net}.{first + 2}", keeper.pid)
    _run(["ip", *f"link add {cable} type veth peer name eth0 netns {keeper.pid}".split()])
    # With the namespace it goes, too, but only some time later.
    stack.callback(subprocess.run, ["ip", "link", "delete", cable], capture_output=True)
    for command in (
        f"address add {network.here}/30 dev {cable}",
        f"link set {cable} up",
    ):
        _run(["ip", *command.split()])
    for command in (
        f"address add {network.there}/30 dev eth0",
        "link set eth0 up",
        "link set lo up",
    ):
        _run(network.inside(["ip", *command.split()]))
    return network


def _run(command: Sequence[str]) -> None:
    subprocess.run(command, check=True, capture_output=True)
