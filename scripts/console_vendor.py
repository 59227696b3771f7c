"""The packages that the console's pages use, from npm into `api/console/static/vendor`.

`make console-vendor` downloads each at the version of `packages.json`, compares it with the
`integrity` there, and writes its files anew. To upgrade one, change its version, and run it with
`--trust` once: the new integrity is written down then.
"""

import base64
import hashlib
import json
import re
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

VENDOR = Path(__file__).parents[1] / "api" / "console" / "static" / "vendor"
PACKAGES = VENDOR / "packages.json"


def main() -> int:
    packages = json.loads(PACKAGES.read_text())
    trust = "--trust" in sys.argv
    with tempfile.TemporaryDirectory() as folder:
        for name, package in packages.items():
            archive = download(name, package["version"], Path(folder))
            integrity = integrity_of(archive)
            if integrity != package["integrity"] and not trust:
                print(f"{name}: its integrity is {integrity}", file=sys.stderr)
                return 1
            package["integrity"] = integrity
            write_files(archive, package["files"])
    PACKAGES.write_text(json.dumps(packages, indent=2) + "\n")
    return 0


def download(name: str, version: str, folder: Path) -> Path:
    """Download a package by npm's own client, and return its archive."""
    command = ["npm", "pack", "--silent", f"{name}@{version}"]
    done = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    return folder / done.stdout.strip().splitlines()[-1]


def integrity_of(archive: Path) -> str:
    """Return what npm calls the integrity of an archive."""
    digest = hashlib.sha512(archive.read_bytes()).digest()
    return f"sha512-{base64.b64encode(digest).decode()}"


def write_files(archive: Path, files: dict[str, dict[str, Any]]) -> None:
    """Write the files of a package, and note the hash of each."""
    with tarfile.open(archive) as opened:
        for name, file in files.items():
            member = opened.extractfile(f"package/{file['from']}")
            assert member is not None, file["from"]
            text = member.read().decode()
            if name.endswith(".js"):
                text = as_module(text)
            (VENDOR / name).write_text(text)
            file["sha256"] = hashlib.sha256(text.encode()).hexdigest()


def as_module(text: str) -> str:
    """Return a module that a browser loads as it is: imports by path, and no map of its source.

    An import map would have to stand in the page, which its policy forbids.
    """
    text = re.sub(r"^//# sourceMappingURL=.*\n?", "", text, flags=re.MULTILINE)
    return re.sub(r'\bfrom\s*"preact"', 'from"./preact.js"', text)


if __name__ == "__main__":
    sys.exit(main())
