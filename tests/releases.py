"""The release before this one: its code, as processes of a deploy still run it."""

import subprocess
from pathlib import Path

from tests.web_server import ROOT

#: The commit that counts as the release before while no tag `v…` is an ancestor of this one.
BEFORE_ANY_TAG = "b65e53aae6943542efa8adbd8445fde3fa4be447"


def before() -> str:
    """Return the newest tag of a release before this commit, else the commit that stands in."""
    described = _git("describe", "--tags", "--abbrev=0", "--match", "v[0-9]*", "HEAD^")
    return described or BEFORE_ANY_TAG


def is_known(revision: str) -> bool:
    """Return whether this clone has the revision; a shallow one may lack it."""
    return _git("rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}") != ""


def unpack(revision: str, folder: Path) -> Path:
    """Write the revision's files into the new folder, and return it."""
    folder.mkdir()
    archive = subprocess.run(
        ["git", "archive", "--format=tar", revision], cwd=ROOT, capture_output=True, check=True
    ).stdout
    subprocess.run(["tar", "--extract"], cwd=folder, input=archive, check=True)
    return folder


def _git(*args: str) -> str:
    """Return what git prints, nothing if it fails."""
    done = subprocess.run(["git", *args], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else ""
