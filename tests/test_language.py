"""The check of our English: it finds what it is for, and passes what is right."""

import subprocess
from pathlib import Path

import pytest

from scripts import check_language

pytestmark = pytest.mark.processes


@pytest.mark.parametrize(
    ("source", "begins"),
    [
        ('def f():\n    """What is sent."""', "What"),
        ('def f():\n    """The result."""', "The"),
        ('async def f():\n    """`None` for none."""', "None"),
        ('class A:\n    """Who is asking."""', "Who"),
        ('"""Of many, one."""', "Of"),
        ('class A:\n    @property\n    def f(self):\n        """Whether it is."""', "Whether"),
        ('@pytest.fixture\ndef f():\n    """One that is new."""', "One"),
        ('def test_it_ends():\n    """Also when it is late."""', "Also"),
        ('def test_it_ends():\n    """Nor does another one."""', "Nor"),
        ('def test_it_ends():\n    """Whatever comes, it ends."""', "Whatever"),
        ('def test_it_ends():\n    """One that is late ends, too."""', "One that"),
    ],
)
def test_a_docstring_that_begins_with_a_fragment_is_found(source: str, begins: str) -> None:
    """A function needs a verb; modules, classes, properties and fixtures need a noun; the docstring
    of a test does not continue its name.
    """
    [(_line, why)] = check_language.wrong_docstrings(source)

    assert f"begins with {begins!r}" in why


@pytest.mark.parametrize(
    "text", ["In the header and in the cookie.", "A fifth, which `is` a minute at most. It ends."]
)
def test_a_sentence_without_a_verb_is_found(text: str) -> None:
    """A test's docstring can be read without its name."""
    [(line, why)] = check_language.wrong_docstrings(f'def test_it():\n    """{text}"""')

    assert (2, True) == (line, why.endswith("has no verb"))


def test_verbs_and_nouns_pass() -> None:
    """Good docstrings of each kind, and functions without one, are not reported."""
    source = '''"""A module."""
class A:
    """The class."""
    @property
    def p(self):
        """The value."""
    def f(self):
        """Return the value."""
    def g(self):
        return 1
def test_it():
    """A late one ends, too."""
def test_more():
    """One copy carries the rest."""
'''

    assert [] == list(check_language.wrong_docstrings(source))


@pytest.mark.parametrize(
    ("source", "line"),
    [
        ("x = 1  # nobody has seen it", 1),
        ('x = 1\ny = f"{x} is told so"', 2),
        ('"""A text\n\nthat goes on.\n"""', 3),
    ],
)
def test_a_banned_word_is_found(source: str, line: int) -> None:
    """Comments, texts and docstrings are read; identifiers are not."""
    found = [at for at, text in check_language.texts(source) if check_language.BANNED.search(text)]

    assert [line] == found
    assert [] == list(check_language.texts("told = wants"))


@pytest.mark.parametrize(
    "name", ["shared/sql/wait.sql", "api/console/static/page.js", "deploy/web.yaml", "Makefile"]
)
def test_a_banned_word_is_found_in_each_kind_of_file(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Statements, pages and configuration are read as Python is; what others wrote is not."""
    vendored = "api/console/static/vendor/theirs.js"
    for path in (name, vendored):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text("one\nwhoever waits\n")
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
    subprocess.run(["git", "add", "."], cwd=tmp_path, check=True)
    monkeypatch.setattr(check_language, "ROOT", tmp_path)

    assert [f"{name}:2: 'whoever' is banned"] == list(check_language.violations())
