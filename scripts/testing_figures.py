"""Write the figures of docs/testing.md, which come from the code and its tests.

    .venv/bin/python -m scripts.testing_figures [--check | --quick]

Each table stands between two comments that name it. With `--check` nothing is written, and the
status is 1 if a table of variants or bugs is not that of the code; the other tables change with
every test, so they are as old as the date above them. `--quick` leaves those as they are.
"""

import ast
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

from arkloop.shared.fault_points import POINTS
from chaos.model.bugs import BUGS
from chaos.mutation.mutants import MUTANTS
from chaos.scenarios import SCENARIOS

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "testing.md"
PRODUCT = ("api", "worker", "shared", "cli", "migrations", "arkloop")
TESTS = ("tests", "chaos", "bench")


def main(arguments: Sequence[str]) -> int:
    """Write the tables, or compare those that must not be outdated.

    Raises:
        ValueError: the page lacks the comments of a table
    """
    page = PAGE.read_text(encoding="utf-8")
    if "--check" in arguments:
        wrong = [name for name in CHECKED if replaced(page, name, TABLES[name]()) != page]
        for name in wrong:
            print(
                f"docs/testing.md: the table `{name}` is outdated:"
                " .venv/bin/python -m scripts.testing_figures --quick"
            )
        return int(bool(wrong))
    for name in CHECKED if "--quick" in arguments else TABLES:
        page = replaced(page, name, TABLES[name]())
    PAGE.write_text(page, encoding="utf-8")
    return 0


def replaced(page: str, name: str, table: str) -> str:
    """Return the page with `table` between the comments `<!-- name -->` and `<!-- /name -->`.

    Raises:
        ValueError: they are not there exactly once
    """
    between = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
    page, times = between.subn(lambda found: f"{found[1]}{table}{found[2]}", page)
    if times != 1:
        raise ValueError(f"docs/testing.md has {times} tables named {name}, not one")
    return page


# ---- the tables ----------------------------------------------------------------------


def size() -> str:
    """Count lines of what git tracks; blank lines and comments count."""
    product = sum(map(_lines, _tracked(PRODUCT, ".py", ".sql")))
    console = sum(map(_lines, _tracked(("api/console/static",), ".js", ".css", ".html")))
    tests = sum(map(_lines, _tracked(TESTS, ".py")))
    asserts = sum(map(_asserts, _tracked(("tests",), ".py")))
    conformance = _conformance()
    cases = Counter(
        case.partition("::")[0] for case in _cases("-m", f"not (stack or {conformance})")
    )
    apart = len(_cases("-m", f"(processes or tools) and not (stack or {conformance})"))
    served = sum(n for file, n in cases.items() if file.startswith("tests/acceptance/"))
    return _table(
        ("", datetime.now(UTC).date().isoformat()),
        ("lines of the product, Python and SQL", f"{product:,}"),
        ("lines of the console's pages, without the packages in them", f"{console:,}"),
        ("lines of tests, fault injection and benchmarks", f"{tests:,}"),
        ("tests of `make test` and `make test-rest`", f"{sum(cases.values()):,}"),
        ("– of these, those of `make test-rest`", f"{apart:,}"),
        ("– against a service of several processes", f"{served:,}"),
        ("tests of `make test-conformance`", f"{len(_cases('-m', conformance)):,}"),
        ("`assert` statements in them", f"{asserts:,}"),
    )


def hostile() -> str:
    """Count the inputs of the tests that attack."""
    from tests.acceptance.test_hijacked_model import ATTACKS
    from tests.api.auth.test_auth_by_caller import CALLERS, ROWS, SUSPENDED
    from tests.hostile_texts import ALL
    from tests.worker.providers.test_provider_tool_output import APIS, FORGED

    cases = _cases("tests/api/auth", "tests/shared/security", "tests/worker/tools")

    def of(*files: str) -> str:
        return str(sum(case.partition("::")[0].rpartition("/")[2] in files for case in cases))

    tokens = of("test_access_tokens.py", "test_signed_tokens.py")
    addresses = of("test_egress.py", "test_http_fetch_ssrf.py")
    cells = len(ROWS) * (len(CALLERS) + len(SUSPENDED))
    return _table(
        ("attack", "inputs"),
        ("routes × kinds of callers, each with its expected response", f"{cells:,}"),
        ("forged, changed and expired access tokens", tokens),
        ("addresses that lead inside, and name servers that change their answer", addresses),
        ("calls of a model that an attacker directs", str(len(ATTACKS))),
        ("outputs of tools that claim to be more, by each API", str(len(FORGED) * len(APIS))),
        ("texts that would run, load or steer something in a page", str(len(ALL))),
    )


def faults() -> str:
    """Count what faults are injected by."""
    return _table(
        ("fault injection", "number"),
        ("places at which a process can be killed or frozen", str(len(POINTS))),
        ("scenarios on the whole system", str(len(SCENARIOS))),
        ("broken variants of the service that the checker must catch", str(len(MUTANTS))),
        ("bugs of busy threads that the model must catch", str(len(BUGS))),
    )


def variants() -> str:
    """List the mutants of `chaos.mutation` with what each breaks."""
    rows = []
    for one in MUTANTS:
        files = dict.fromkeys(edit.file for edit in one.edits)
        links = ", ".join(f"[{file.rpartition('/')[2]}](../{file})" for file in files)
        caught_by = sorted(one.caught_by, key=lambda name: (name[0], int(name[1:])))
        rows.append((one.name, links, f"`{one.scenario}`", " or ".join(caught_by)))
    return _table(("variant", "guard removed from", "scenario", "caught by"), *rows)


def bugs() -> str:
    """List the seeded bugs of `chaos.model`."""
    return _table(("bug", "caught by"), *((bug.name, bug.caught_by) for bug in BUGS))


TABLES: dict[str, Callable[[], str]] = {
    "size": size,
    "hostile": hostile,
    "faults": faults,
    "variants": variants,
    "bugs": bugs,
}
CHECKED = ("faults", "variants", "bugs")


# ---- what they are made of -----------------------------------------------------------


def _tracked(folders: Sequence[str], *suffixes: str) -> Iterator[Path]:
    listed = subprocess.run(
        ["git", "ls-files", *folders], cwd=ROOT, check=True, capture_output=True, text=True
    )
    for name in listed.stdout.splitlines():
        if name.endswith(suffixes) and "/vendor/" not in name:
            yield ROOT / name


def _lines(file: Path) -> int:
    return len(file.read_text(encoding="utf-8").splitlines())


def _asserts(file: Path) -> int:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return sum(isinstance(node, ast.Assert) for node in ast.walk(tree))


def _conformance() -> str:
    [marks] = re.findall(r"^CONFORMANCE := (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    return str(marks)


def _cases(*arguments: str) -> list[str]:
    listed = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", "-n", "0", *arguments],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    return [line for line in listed.stdout.splitlines() if "::" in line]


def _table(head: tuple[str, ...], *rows: tuple[str, ...]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
