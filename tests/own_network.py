"""A program in a network of its own, where the test's own server answers for names."""

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.web_server import ROOT


def output_in_own_network(program: ModuleType, folder: Path) -> dict[str, Any]:
    """Run the module as a program, with this host's port 53 as its name server.

    Returns what it printed as JSON. The test is skipped where namespaces are not permitted.
    """
    alone = ["unshare", "-rnm"]
    if subprocess.run([*alone, "true"], check=False).returncode:
        pytest.skip("this machine allows no network namespaces")
    resolv_conf = folder / "resolv.conf"
    resolv_conf.write_text("nameserver 127.0.0.1\n")
    child = f"exec {sys.executable} -m {program.__name__}"
    ended = subprocess.run(
        [*alone, "sh", "-c", f"mount --bind {resolv_conf} /etc/resolv.conf && {child}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert 0 == ended.returncode, ended.stderr
    return dict(json.loads(ended.stdout))
