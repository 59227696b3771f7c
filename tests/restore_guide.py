"""The statements that the guide has for a restored database, as it shows them."""

import re
from pathlib import Path

_GUIDE = Path(__file__).parents[1] / "docs" / "how-to" / "operations.md"
_FOUND = re.findall(r"^UPDATE runs r SET\n.+?;$", _GUIDE.read_text(), re.DOTALL | re.MULTILINE)

#: Gives time again to runs that wait for somebody.
[GIVES_TIME] = _FOUND
