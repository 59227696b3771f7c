"""Releases: one version everywhere, and the command that makes the next one."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from importlib.metadata import version as installed_version
from pathlib import Path

import pytest
from flask import Flask

from scripts import release

pytestmark = pytest.mark.processes

ROOT = Path(__file__).parents[1]
NOTES = "### Added\n\n- A thing that people notice.\n"
needs_release = pytest.mark.skipif(
    not os.environ.get("NEED_RELEASE"), reason="it builds the wheel twice: make test-release"
)


def test_there_is_one_version(app: Flask) -> None:
    """Packages, chart, image, `arkloop --version` and the API's description have the same one."""
    found = release.versions(ROOT)
    described = app.test_client().get("/openapi.json").json
    assert described is not None

    [version] = set(found.values())
    assert len(release.PLACES) == len(found)
    assert version == installed_version("arkloop-runs"), "run `make setup`"
    assert version == described["info"]["version"]


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A repository with the files that a release reads, at 0.4.2, of which 0.4.1 is released."""
    root = tmp_path / "small"
    for path in {path for path, _ in release.PLACES}:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, root / path)
    for path, pattern in release.PLACES:
        text = (root / path).read_text()
        line = next(re.finditer(pattern, text, re.MULTILINE))
        (root / path).write_text(text.replace(line[0], line[0].replace(line[1], "0.4.2")))
    (root / "CHANGELOG.md").write_text(f"# Changelog\n\n{release.UNRELEASED}\n{NOTES}\n## 0.4.1\n")
    for arguments in (
        ("init", "--quiet", "--initial-branch", "main"),
        ("config", "user.name", "Tests"),
        ("config", "user.email", "tests@example.com"),
        ("add", "--all"),
        ("commit", "--quiet", "--message", "Begin"),
        ("tag", "v0.4.1"),
    ):
        release.git(root, *arguments)
    return root


def nothing(root: Path) -> None:
    """Leave the repository as it is."""


def with_change(root: Path) -> None:
    (root / "forgotten").touch()


def on_another_branch(root: Path) -> None:
    release.git(root, "switch", "--quiet", "--create", "feature")


def without_notes(root: Path) -> None:
    _commit(root, "CHANGELOG.md", f"# Changelog\n\n{release.UNRELEASED}\n## 0.4.1\n\n- Old.\n")


def with_two_versions(root: Path) -> None:
    text = (root / "clients/python/pyproject.toml").read_text()
    _commit(root, "clients/python/pyproject.toml", text.replace("0.4.2", "0.4.1"))


def _commit(root: Path, path: str, text: str) -> None:
    (root / path).write_text(text)
    release.git(root, "commit", "--quiet", "--all", "--message", "Change")


@pytest.mark.parametrize(
    ("prepare", "version", "why"),
    [
        (nothing, "v0.5.0", "is not a version"),
        (nothing, "0.5", "is not a version"),
        (nothing, "0.4.1", "v0.4.1 is released"),
        (nothing, "0.3.9", "v0.4.1 is released"),
        (with_change, "0.5.0", "the tree has changes:\n?? forgotten"),
        (on_another_branch, "0.5.0", "the branch feature, not main"),
        (without_notes, "0.5.0", "nothing under Unreleased"),
        (with_two_versions, "0.5.0", "the versions differ"),
    ],
)
def test_a_state_that_is_not_fit_is_refused(
    small: Path, prepare: Callable[[Path], None], version: str, why: str
) -> None:
    """The command says why, and changes nothing."""
    prepare(small)
    before = _state(small)

    with pytest.raises(release.Refused) as refused:
        release.release(small, version)

    assert why in str(refused.value)
    assert before == _state(small)


def test_a_wheel_that_is_not_built_leaves_no_trace(small: Path) -> None:
    """Branch, tags, tree and work trees are as before when the build fails."""
    _with_build(small, "echo 'The builds differ' >&2; exit 1")
    before = _state(small)

    with pytest.raises(release.Refused, match="The builds differ"):
        release.release(small, "0.5.0")

    assert before == _state(small)


def test_a_tag_that_cannot_be_made_leaves_no_trace(small: Path) -> None:
    """A key for signatures that is not there, say: the branch has no release without a tag."""
    _with_build(small, "true")
    release.git(small, "config", "tag.gpgSign", "true")
    release.git(small, "config", "gpg.program", "false")
    before = _state(small)

    with pytest.raises(release.Refused, match="git tag"):
        release.release(small, "0.5.0")

    assert before == _state(small)


def test_notes_of_any_length_are_in_the_tag(small: Path) -> None:
    """More than one argument of a command can hold."""
    text = (small / "CHANGELOG.md").read_text()
    many = NOTES + "- A change.\n" * 12_000
    (small / "CHANGELOG.md").write_text(text.replace(NOTES, many))
    _with_build(small, "true")

    release.release(small, "0.5.0")

    notes = release.git(small, "tag", "--list", "v0.5.0", "--format=%(contents)")
    assert 12_000 == notes.count("- A change.")


def test_an_interrupted_merge_leaves_no_tag(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C between tag and merge: the branch has no release, and no tag names one."""
    _with_build(small, "true")
    before, run = _state(small), release.git

    def interrupted(root: Path, *arguments: str, given: str = "") -> str:
        if arguments[0] == "merge":
            raise KeyboardInterrupt
        return run(root, *arguments, given=given)

    monkeypatch.setattr(release, "git", interrupted)
    with pytest.raises(KeyboardInterrupt):
        release.release(small, "0.5.0")

    assert before == _state(small)


def test_a_branch_that_moved_meanwhile_leaves_no_tag(small: Path) -> None:
    """Somebody commits during the build: the release would leave that out."""
    _with_build(small, "git commit --quiet --allow-empty --message Meanwhile")
    tags = release.git(small, "tag", "--list")

    with pytest.raises(release.Refused, match="git merge"):
        release.release(small, "0.5.0")

    assert "Meanwhile" == release.git(small, "log", "-1", "--format=%s")
    assert tags == release.git(small, "tag", "--list")


def _with_build(root: Path, line: str) -> None:
    """Let this line of the shell stand for the build of the wheel."""
    script = root / "scripts/wheel-twice"
    script.parent.mkdir()
    script.write_text(f"#!/bin/sh\n{line}\n")
    script.chmod(0o755)
    (root / ".gitignore").write_text("dist\n")
    release.git(root, "add", "--all")
    release.git(root, "commit", "--quiet", "--message", "Build otherwise")


def _state(root: Path) -> list[str]:
    queries = (
        ("rev-parse", "HEAD"),
        ("tag", "--list"),
        ("status", "--porcelain"),
        ("worktree", "list"),
    )
    return [release.git(root, *query) for query in queries]


@needs_release
def test_a_clone_makes_its_next_release(tmp_path: Path) -> None:
    """Version, changelog, commit, tag, and a wheel and a chart of this version with their sums."""
    clone = tmp_path / "clone"
    release.git(tmp_path, "clone", "--quiet", "--shared", str(ROOT), str(clone))
    for arguments in (
        ("switch", "--quiet", "--force-create", "main"),
        ("config", "user.name", "Tests"),
        ("config", "user.email", "tests@example.com"),
    ):
        release.git(clone, *arguments)
    notes = release.unreleased((clone / "CHANGELOG.md").read_text())
    before = release.git(clone, "rev-parse", "HEAD")
    major = int(next(iter(release.versions(clone).values())).split(".")[0])
    version = f"{major + 1}.0.0"

    done = subprocess.run(
        [sys.executable, "-m", "scripts.release", version],
        cwd=clone,
        capture_output=True,
        text=True,
    )

    assert 0 == done.returncode, done.stderr
    assert f"git push origin main v{version}" in done.stdout
    assert {version} == set(release.versions(clone).values())
    assert f"Release {version}" == release.git(clone, "log", "-1", "--format=%s")
    assert before == release.git(clone, "rev-parse", "HEAD^")
    assert f"v{version}" == release.git(clone, "describe", "HEAD")
    assert "" == release.git(clone, "status", "--porcelain")
    changelog = (clone / "CHANGELOG.md").read_text()
    assert "" == release.unreleased(changelog)
    assert f"## {version} - " in changelog and notes in changelog
    assert notes in release.git(clone, "tag", "--list", "--format=%(contents)", f"v{version}")

    subprocess.run(["sha256sum", "--check", "SHA256SUMS"], cwd=clone / "dist", check=True)
    wheel, chart = f"arkloop_runs-{version}-py3-none-any.whl", f"arkloop-{version}.tgz"
    assert {wheel, chart, "SHA256SUMS"} == {file.name for file in (clone / "dist").iterdir()}
    with zipfile.ZipFile(clone / "dist" / wheel) as archive:
        metadata = archive.read(f"arkloop_runs-{version}.dist-info/METADATA").decode()
    assert f"\nVersion: {version}\n" in metadata
    with tarfile.open(clone / "dist" / chart) as archive:
        assert "arkloop/Chart.yaml" == archive.getnames()[0]
        described = archive.extractfile("arkloop/Chart.yaml")
        assert described is not None
        assert f"\nversion: {version}\n" in described.read().decode()
