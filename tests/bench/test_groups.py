"""The groups of `python -m bench`, and their description."""

import re

from bench.groups import GROUPS
from bench.service import ROOT


def test_the_groups_are_described_in_their_order() -> None:
    """The first table of bench/README.md has a row for each group."""
    page = (ROOT / "bench" / "README.md").read_text()
    rows = page.partition("| group |")[2].partition("\n\n")[0]

    assert [group.name for group in GROUPS] == re.findall(r"^\| `(\w+)` \|", rows, re.MULTILINE)
