"""`make setup`: what it makes of environments and installations that failed."""

import hashlib
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.processes

SCRIPT = Path(__file__).parents[1] / "scripts" / "setup"
#: Builds the project of the test, without a package that would have to be installed for it.
BACKEND = """\
import shutil

def build_editable(folder, settings=None, metadata=None):
    return shutil.copy("project-1-py3-none-any.whl", folder).rpartition("/")[2]
"""
PYPROJECT = """\
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
"""
UNREACHABLE = {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_RETRIES": "0"}
NO_WHEEL = "No wheel of the local model for this machine"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that the script reads; its local model is in `any` and `other`."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "pyproject.toml").write_text(PYPROJECT)
    (folder / "backend.py").write_text(BACKEND)
    (folder / "requirements-dev.txt").write_text("# none\n")
    _wheel(folder, "project", "py3-none-any")
    fits = _wheel(folder / "any", "xllamacpp", "py3-none-any")
    other = _wheel(folder / "other", "xllamacpp", "cp311-cp311-win32")
    hashes = " ".join(f"--hash=sha256:{value}" for value in (fits, other))
    (folder / "requirements-model.txt").write_text(f"xllamacpp==1 {hashes}\n")
    return folder


def _wheel(folder: Path, name: str, tag: str) -> str:
    """Make a wheel without content; returns its SHA-256."""
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}-1-{tag}.whl"
    about = f"{name}-1.dist-info"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
        kind = f"Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: {tag}\n"
        wheel.writestr(f"{about}/WHEEL", kind)
        wheel.writestr(f"{about}/RECORD", "")
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _set_up(project: Path, **variables: str) -> tuple[int, str]:
    """Run the script with settings of pip; returns its status and its output."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    done = subprocess.run(
        [SCRIPT, sys.executable, "venv"],
        cwd=project,
        env={**inherited, "PIP_CONFIG_FILE": os.devnull, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return done.returncode, done.stdout


def test_an_environment_without_pip_is_made_again(project: Path) -> None:
    """It was interrupted, or Debian's python3-venv was not installed then."""
    command = [sys.executable, "-m", "venv", "--clear", "--without-pip", str(project / "venv")]
    subprocess.run(command, check=True)

    status, output = _set_up(project, PIP_NO_INDEX="1", PIP_FIND_LINKS="any")

    assert 0 == status, output
    assert NO_WHEEL not in output


def test_a_machine_without_a_wheel_goes_without_the_local_model(project: Path) -> None:
    """There are wheels for other machines alone."""
    _forget_the_model(project)

    status, output = _set_up(project, PIP_NO_INDEX="1", PIP_FIND_LINKS="other")

    assert 0 == status, output
    assert NO_WHEEL in output


@pytest.mark.parametrize(
    ("variables", "reason"),
    [
        (UNREACHABLE, "No matching distribution"),
        ({**UNREACHABLE, "PIP_FIND_LINKS": "changed"}, "HASHES"),
    ],
)
def test_another_failure_of_the_local_model_ends_it(
    project: Path, variables: dict[str, str], reason: str
) -> None:
    """The reason is printed, and the next `make setup` tries again."""
    _forget_the_model(project)
    _wheel(project / "changed", "xllamacpp", "py2.py3-none-any")

    status, output = _set_up(project, **variables)

    assert 1 == status
    assert reason in output and NO_WHEEL not in output


def _forget_the_model(project: Path) -> None:
    for folder in project.glob("venv/lib/python*/site-packages/xllamacpp-*"):
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
