"""`clients/typescript` in programs that are CommonJS, as those of many backends are."""

import json
import re
import subprocess
from pathlib import Path

import pytest

from tests.ai_sdk_chat import needs_front_ends
from tests.ai_sdk_pages import NODE, ROOT
from tests.typescript_client import compiled, install

pytestmark = needs_front_ends

#: CommonJS has no `await` outside of functions.
STATIC = """\
{imports}
async function main(token: string) {{
{body}
}}
console.log(main.name, typeof Arkloop)
"""
DYNAMIC = """\
async function main(token: string) {{
{imports}
console.log(main.name, typeof Arkloop)
if (!token) return
{body}
}}
main("")
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose programs can import the package."""
    folder = tmp_path_factory.mktemp("commonjs")
    assert (0, "") == install(folder)
    return folder


@pytest.mark.parametrize(
    ("module", "program"),
    [
        ("commonjs", STATIC),
        ("commonjs", DYNAMIC),
        ("nodenext", STATIC),
        ("node16", DYNAMIC),
    ],
    ids=["commonjs", "commonjs-dynamic", "nodenext", "node16-dynamic"],
)
def test_a_commonjs_program_uses_the_client(folder: Path, module: str, program: str) -> None:
    """The guide's example compiles, and Node.js loads the package."""
    guide = (ROOT / "docs" / "how-to" / "client-libraries.md").read_text()
    example = re.search(r"^```ts\n(import .+?)\n\n(.+?)^```", guide, re.DOTALL | re.MULTILINE)
    assert example is not None
    imports, body = example.groups()
    if program == DYNAMIC:
        imports = re.sub(r"import (.+) from (.+)", r"const \1 = await import(\2)", imports)
    (folder / "program.ts").write_text(program.format(imports=imports, body=body))
    (folder / "package.json").write_text("{}")
    options = {"module": module, "target": "ES2022", "strict": True, "types": []}
    (folder / "tsconfig.json").write_text(json.dumps({"compilerOptions": options}))

    assert (0, "") == compiled(folder)
    command = [str(NODE), str(folder / "program.js")]
    loaded = subprocess.run(command, capture_output=True, text=True, timeout=150)
    assert ("main function\n", "") == (loaded.stdout, loaded.stderr)
