"""Network namespaces of the benchmarks."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from bench.networks import own_networks

_REACHES = """
import socket, sys

for place in sys.argv[1:]:
    host, port = place.split(":")
    try:
        socket.create_connection((host, int(port)), timeout=60).close()
        print("yes")
    except ConnectionRefusedError:
        print("no")
"""


def test_a_process_reaches_this_machine_by_its_own_cable_alone() -> None:
    """This machine's loopback interface is not there."""
    with own_networks(2) as networks:
        if not networks:
            pytest.skip("this machine allows no network namespaces")
        with (
            socket.create_server(("127.0.0.1", 0)) as inside,
            socket.create_server((networks[0].here, 0)) as outside,
        ):
            places = [
                f"127.0.0.1:{inside.getsockname()[1]}",
                "{}:{}".format(*outside.getsockname()),
            ]
            command = networks[0].inside([sys.executable, "-c", _REACHES, *places])
            done = subprocess.run(command, capture_output=True, text=True, check=True)

    assert "no\nyes\n" == done.stdout


def test_networks_end_with_their_block() -> None:
    """Their processes and cables do not stay."""
    with own_networks(2) as networks:
        if not networks:
            pytest.skip("this machine allows no network namespaces")
        assert 2 == len(_cables())
        keepers = [Path(f"/proc/{one.pid}") for one in networks]
        assert all(map(Path.exists, keepers))

    assert [] == _cables()
    assert not any(map(Path.exists, keepers))


def _cables() -> list[str]:
    own = f"ark{os.getpid()}n"
    return [name for name in os.listdir("/sys/class/net") if name.startswith(own)]
