"""Make a release: the version, the changelog, wheel, chart, commit and tag; nothing is pushed.

    .venv/bin/python -m scripts.release VERSION

All of it happens in a work tree of its own. The commit gets its tag, and the branch the commit,
when the files in `dist` are there; if either fails, branch and tags are as they were.
"""

import gzip
import hashlib
import io
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

BRANCH = "main"
CHART = Path("deploy/helm/arkloop")
CHANGELOG = Path("CHANGELOG.md")
UNRELEASED = "## Unreleased\n"
#: Where the version stands. The first one counts: what else shows it reads it from the installed
#: package (`arkloop --version`, the API's description), or is compared with it by the tests.
PLACES = (
    ("pyproject.toml", r'^version = "(.+)"$'),
    ("clients/python/pyproject.toml", r'^version = "(.+)"$'),
    ("clients/typescript/package.json", r'^  "version": "(.+)",$'),
    (f"{CHART}/Chart.yaml", r"^version: (.+)$"),
    (f"{CHART}/Chart.yaml", r'^appVersion: "(.+)"$'),
    ("compose.yaml", r"^  image: arkloop-runs:(.+)$"),
    ("docs/how-to/plugins.md", r"^FROM arkloop-runs:(.+)$"),
)


class Refused(Exception):
    """A release cannot be made; nothing was changed."""


def main(arguments: Sequence[str]) -> int:
    """Make the release of the repository in this folder, and say what to do next."""
    if len(arguments) != 1:
        print("usage: python -m scripts.release VERSION", file=sys.stderr)
        return 2
    try:
        files = release(Path.cwd(), arguments[0])
    except Refused as refused:
        print(f"No release was made: {refused}", file=sys.stderr)
        return 1
    version = arguments[0]
    print(
        "\n".join(f"{file.stat().st_size:>12,}  {file.relative_to(Path.cwd())}" for file in files)
    )
    print(
        f"{BRANCH} and the tag v{version} are in this clone alone. Look at them, then:\n"
        f"  git push origin {BRANCH} v{version}\n"
        "and push wheel, chart and image as docs/how-to/releasing.md shows."
    )
    return 0


def release(root: Path, version: str) -> list[Path]:
    """Make the release; returns the files in `dist`.

    Raises:
        Refused: the version is none, or not a later one; the tree has changes or is not on the
            branch; the changelog has nothing to release; the wheel cannot be built again; the tag
            cannot be made, or the branch has got other commits meanwhile.
    """
    check(root, version)
    dist = root / "dist"
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        git(root, "worktree", "add", "--quiet", "--detach", str(tree), "HEAD")
        try:
            notes = _write(tree, version)
            git(tree, "commit", "--quiet", "--all", "--message", f"Release {version}")
            commit = git(tree, "rev-parse", "HEAD")
            seconds = int(git(tree, "log", "-1", "--format=%ct"))
            built = Path(folder) / "dist"
            built.mkdir()
            _build_wheel(root, commit, built)
            package_chart(tree / CHART, built / f"arkloop-{version}.tgz", seconds)
        finally:
            git(root, "worktree", "remove", "--force", str(tree))
        _write_sums(built)
        shutil.rmtree(dist, ignore_errors=True)
        shutil.copytree(built, dist)
    tag = f"v{version}"
    # Not as an argument, which has 128 KiB at most.
    git(root, "tag", "--annotate", "--cleanup=verbatim", "--file=-", tag, commit, given=notes)
    try:
        git(root, "merge", "--quiet", "--ff-only", commit)
    except BaseException:  # Ctrl-C, too
        git(root, "tag", "--delete", tag)
        raise
    return sorted(dist.iterdir())


def check(root: Path, version: str) -> None:
    """Raise `Refused` unless this version can be released from the state of the repository."""
    if re.fullmatch(r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)", version) is None:
        raise Refused(f"{version!r} is not a version such as 1.4.0")
    if (branch := git(root, "rev-parse", "--abbrev-ref", "HEAD")) != BRANCH:
        raise Refused(f"this is the branch {branch}, not {BRANCH}")
    if changes := git(root, "status", "--porcelain"):
        raise Refused(f"the tree has changes:\n{changes}")
    tags = git(root, "tag", "--list", "v[0-9]*").split()
    for tag in tags:
        if numbers(tag.removeprefix("v")) >= numbers(version):
            raise Refused(f"{tag} is released: choose a later version than {version}")
    found = versions(root)
    if len(set(found.values())) > 1:
        raise Refused(f"the versions differ: {found}")
    present = next(iter(found.values()))
    if numbers(present) > numbers(version):
        raise Refused(f"pyproject.toml says {present}: choose no earlier version")
    if not unreleased((root / CHANGELOG).read_text()):
        raise Refused(f"{CHANGELOG} has nothing under Unreleased")


def versions(root: Path) -> dict[str, str]:
    """Return the version in each of the places.

    Raises:
        Refused: a place has none, or several.
    """
    found = {}
    for path, pattern in PLACES:
        matches = re.findall(pattern, (root / path).read_text(), re.MULTILINE)
        if len(matches) != 1:
            raise Refused(f"{path} has {len(matches)} lines like {pattern}")
        found[f"{path} {pattern}"] = matches[0]
    return found


def numbers(version: str) -> tuple[int, ...]:
    """Return the numbers of a version, of which the tag of a foreign form has none."""
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def unreleased(changelog: str) -> str:
    """Return what the changelog has under Unreleased, without space around it."""
    _, _, rest = changelog.partition(UNRELEASED)
    return re.split(r"^## ", rest, maxsplit=1, flags=re.MULTILINE)[0].strip()


def _write(tree: Path, version: str) -> str:
    """Write version and changelog; returns the message of the tag."""
    for path, pattern in PLACES:
        file = tree / path
        file.write_text(
            re.sub(
                pattern,
                lambda match: match[0].replace(match[1], version),
                file.read_text(),
                flags=re.MULTILINE,
            )
        )
    changelog = tree / CHANGELOG
    text = changelog.read_text()
    notes = unreleased(text)
    heading = f"## {version} - {datetime.now(UTC):%Y-%m-%d}\n"
    changelog.write_text(text.replace(UNRELEASED, f"{UNRELEASED}\n{heading}", 1))
    return f"Release {version}\n\n{notes}\n"


def _build_wheel(root: Path, commit: str, folder: Path) -> None:
    done = subprocess.run(
        ["env", f"PYTHON={sys.executable}", root / "scripts/wheel-twice", commit, folder],
        cwd=root,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise Refused(f"the wheel cannot be built: {done.stderr}")


def package_chart(chart: Path, file: Path, seconds: int) -> None:
    """Write the chart as Helm packages it; the same files give the same bytes.

    `seconds` is the time of all files in it, since 1970.
    """
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        # Helm reads Chart.yaml first.
        files = sorted(path for path in chart.rglob("*") if path.is_file())
        for path in sorted(files, key=lambda path: path.name != "Chart.yaml"):
            entry = tarfile.TarInfo(f"{chart.name}/{path.relative_to(chart)}")
            entry.size, entry.mtime, entry.mode = path.stat().st_size, seconds, 0o644
            with path.open("rb") as content:
                archive.addfile(entry, content)
    with (
        file.open("wb") as output,
        gzip.GzipFile("", "wb", 9, output, mtime=seconds) as compressed,
    ):
        compressed.write(packed.getvalue())


def _write_sums(folder: Path) -> None:
    """Write `SHA256SUMS`, which `sha256sum --check` reads."""
    lines = [
        f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n"
        for file in sorted(folder.iterdir())
    ]
    (folder / "SHA256SUMS").write_text("".join(lines))


def git(folder: Path, *arguments: str, given: str = "") -> str:
    """Return what git prints, without space around it, when it is `given` an input.

    Raises:
        Refused: git failed.
    """
    command = ["git", *arguments]
    done = subprocess.run(command, cwd=folder, input=given, capture_output=True, text=True)
    if done.returncode:
        raise Refused(f"git {arguments[0]}: {done.stderr.strip()}")
    return done.stdout.strip()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
