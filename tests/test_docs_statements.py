"""Statements in the documents work for operators behind row-level security, too."""

import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from arkloop.shared.storage import row_security
from tests.test_docs import DOCS, DOCUMENTS, ROOT

#: Those that describe statements of the service itself.
OF_THE_SERVICE = {DOCS / "architecture.md", *(DOCS / "decisions").iterdir()}
SAYS_WHOSE = "SET arkloop.orgs = "
STATEMENT = re.compile(r"(SELECT|WITH|UPDATE|DELETE|INSERT|SET)\s")


@pytest.mark.parametrize(
    "document", sorted({*DOCUMENTS} - OF_THE_SERVICE), ids=lambda path: str(path.relative_to(ROOT))
)
def test_statements_say_whose_rows_they_are_for(document: Path) -> None:
    """Without that they find no rows, which looks as if there were none: a block itself says it,
    and of code in a text it or the passage before it.
    """
    walled = row_security.policies().keys()
    assert [] == [
        statement
        for statement, said in _statements(document.read_text())
        if walled & set(re.findall(r"\b(?:FROM|JOIN|UPDATE|INTO)\s+(\w+)", statement))
        and SAYS_WHOSE not in said
    ]


def _statements(text: str) -> Iterator[tuple[str, str]]:
    """Yield each statement with the text that may say whose rows it is for."""
    fence = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)
    for _, language, block in fence.findall(text):
        if language == "sql":
            yield block, block
    passages = re.split(r"\n\s*\n|\n(?=\s*- )|\n(?=#)", fence.sub("", text))
    for before, passage in pairwise(["", *passages]):
        for code in re.findall(r"`([^`]+)`", passage):
            if STATEMENT.match(code):
                yield code, code if passage.lstrip().startswith("- ") else before + passage
