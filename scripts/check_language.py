"""The rules of our English that a program can check: docstrings, words, subjects of commits.

`python scripts/check_language.py` prints `path:line: why` for each violation, and fails if there
is one. With `--subjects` it checks the commits after `BASE` instead.
"""

import ast
import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
#: Where docstrings are checked, and the words of comments, texts and prose.
DOCSTRINGS = (
    "api",
    "arkloop",
    "bench",
    "chaos",
    "cli",
    "examples",
    "migrations",
    "scripts",
    "shared",
    "tests",
    "worker",
)
WORDS = (
    *DOCSTRINGS,
    *("clients", "deploy", "docs"),
    *("CHANGELOG.md", "CONTRIBUTING.md", "README.md", "SECURITY.md"),
    *("Makefile", "compose.yaml"),
)
#: The files there that people write by hand, and that others read.
SUFFIXES = (
    *(".py", ".md", ".sql", ".lua", ".js", ".jsx", ".mjs", ".ts", ".html", ".css"),
    *(".yaml", ".yml", ".tpl", ".cfg", ".conf", "Makefile"),
)
#: The first two have to name the banned words; others wrote the third.
UNCHECKED = ("scripts/check_language.py", "tests/test_language.py", "api/console/static/vendor/")

#: A function's docstring begins with one of these; a verb that is missing there is added.
VERBS = frozenset((ROOT / "scripts" / "verbs.txt").read_text().split())
#: Any other docstring begins with a noun: these words begin a fragment or a clause.
NOT_NOUNS = re.compile(
    "also|although|as|at|because|before|but|by|for|from|how|if|in|like|no|nobody|none|not|nothing"
    "|of|off|on|once|one|ones|only|or|since|so|somebody|something|such|than|that|then|there|these"
    "|they|this|those|though|to|under|unless|until|what|whatever|when|where|whether|which|while"
    "|who|whoever|whom|whose|why|with|within|without"
)
#: A test's docstring is a sentence of its own: these words would continue the test's name, and
#: leave its subject to the reader.
CONTINUATIONS = re.compile(
    "also|and|but|by|else|even|for|from|never|nor|not|of|or|so|than|then|those|to|unless|until"
    "|whatever|whether|which|who|whom|whose"
    "|one (above|after|before|below|by|in|is|of those|that|which|who|with|without)"
)
#: Such a sentence has one of these, or a form of a verb from the list above.
AUXILIARIES = re.compile(
    "are|can|cannot|could|did|do|does|had|has|have|is|may|might|must|needs?|should|was|were|will"
    "|would"
)
#: Name instead: what was reported or sent; the number; the time; the client, worker or caller;
#: "no … has"; "release"; "our"; "continues"; "requires".
BANNED = re.compile(
    r"(?<![\w-])(told|so many|so long|so late|whoever|nobody has|lets? go of|of ours|goes on|wants)"
    r"(?![\w-])",
    re.IGNORECASE,
)

#: Later commits have short subjects; a clone that lacks this commit has only later ones.
BASE = "99cccaa5aed7f4cbf7571c69d3e1e16075ffddb5"
MAX_SUBJECT = 72


def main() -> int:
    """Print the violations; return the exit status."""
    found = list(long_subjects() if "--subjects" in sys.argv else violations())
    if found:
        print("\n".join(found))
    return 1 if found else 0


def violations() -> Iterator[str]:
    """Yield the violations of every checked file."""
    for path in _files(DOCSTRINGS, ".py"):
        for line, why in wrong_docstrings((ROOT / path).read_text()):
            yield f"{path}:{line}: {why}"
    for path in _files(WORDS, *SUFFIXES):
        source = (ROOT / path).read_text()
        lines = texts(source) if path.endswith(".py") else enumerate(source.splitlines(), 1)
        for line, text in lines:
            yield from (f"{path}:{line}: {word!r} is banned" for word in BANNED.findall(text))


def wrong_docstrings(source: str) -> Iterator[tuple[int, str]]:
    """Yield line and reason for each docstring that begins with the wrong kind of word."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(
            node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
        ) or not (text := ast.get_docstring(node)):
            continue
        word = re.split(r"[^A-Za-z'-]", text.lstrip("`(\"'"), maxsplit=1)[0]
        if getattr(node, "name", "").startswith("test_"):
            if begins := re.match(rf"({CONTINUATIONS.pattern})\b", text.lower()):
                word = text[: begins.end()]
                yield node.body[0].lineno, f"a test's docstring begins with {word!r}, no noun"
            elif not _has_verb(text):
                yield node.body[0].lineno, "the first sentence of a test's docstring has no verb"
        elif _is_action(node):
            if word.lower() not in VERBS:
                yield node.body[0].lineno, f"a function's docstring begins with {word!r}, no verb"
        elif NOT_NOUNS.fullmatch(word.lower()):
            yield node.body[0].lineno, f"a docstring begins with {word!r}, no noun"


def _has_verb(text: str) -> bool:
    """Return whether the first sentence has a word that may be its verb."""
    sentence = re.split(r"(?<=[.!?])\s", text, maxsplit=1)[0]
    words = re.findall(r"[a-z]+", re.sub(r"`[^`]*`", "", sentence.lower()))
    return any(word in FORMS or AUXILIARIES.fullmatch(word) for word in words)


def _forms(verb: str) -> set[str]:
    """Return the regular third person and past of a verb."""
    if re.search("[^aeiou]y$", verb):
        return {f"{verb[:-1]}ies", f"{verb[:-1]}ied"}
    person = "es" if re.search("(s|x|z|ch|sh|o)$", verb) else "s"
    return {verb + person, verb.removesuffix("e") + "ed"}


def _is_action(node: ast.AST) -> bool:
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return False
    decorators = " ".join(map(ast.unparse, node.decorator_list))
    # Properties and fixtures are read as values.
    return not re.search("property|fixture", decorators)


def texts(source: str) -> Iterator[tuple[int, str]]:
    """Yield number and text of each line of a comment or a string."""
    kinds = {tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", None)}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in kinds:
            yield from enumerate(token.string.splitlines(), token.start[0])


def long_subjects() -> Iterator[str]:
    """Yield the commits after `BASE` with long subjects."""
    knows_base = not subprocess.run(
        ["git", "cat-file", "-e", BASE], cwd=ROOT, check=False, stderr=subprocess.DEVNULL
    ).returncode
    for line in _git("log", "--format=%h %s", f"{BASE}..HEAD" if knows_base else "HEAD"):
        commit, _, subject = line.partition(" ")
        if len(subject) > MAX_SUBJECT:
            yield f"{commit}: a subject of {len(subject)} characters; at most {MAX_SUBJECT}"


def _files(names: Iterable[str], *suffixes: str) -> list[str]:
    listed = _git("ls-files", "--", *names)
    return [path for path in listed if path.endswith(suffixes) and not path.startswith(UNCHECKED)]


def _git(*arguments: str) -> list[str]:
    command = ["git", *arguments]
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout.splitlines()


#: The verbs, and what they look like in a sentence.
FORMS = VERBS.union(*map(_forms, VERBS))

if __name__ == "__main__":
    sys.exit(main())
