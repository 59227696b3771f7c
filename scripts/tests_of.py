"""Names of the tests that execute a line, as the last `make coverage` saw it."""

import sys
from pathlib import Path

from coverage import Coverage

if len(sys.argv) != 2 or not sys.argv[1].partition(":")[2].isdigit():
    sys.exit("Usage: make tests-of LINE=shared/config.py:42")
path, _, line = sys.argv[1].partition(":")
coverage = Coverage()
coverage.load()
data, module = coverage.get_data(), str(Path(path).resolve())
if not data.measured_files():
    sys.exit("Nothing has been measured yet: run make coverage first.")
if module not in data.measured_files():
    sys.exit(f"{path} is not among the modules that the last make coverage measured")
contexts = data.contexts_by_lineno(module).get(int(line), [])
tests = {context.rpartition("|")[0] for context in contexts} - {""}
if not contexts:
    sys.exit(f"no test executes {path}:{line}")
print("\n".join(sorted(tests)) or "only web and worker processes, which no single test owns")
