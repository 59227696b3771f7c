"""Broken variants of the service, each without one of its guards: what proves the checker."""

import shutil
from dataclasses import dataclass
from pathlib import Path

#: What web and worker processes run from.
PARTS = ("api", "arkloop", "cli", "migrations", "shared", "worker", "Procfile", "pyproject.toml")


@dataclass(frozen=True, slots=True)
class Edit:
    """An edit of `file`: `old`, which must occur exactly once, becomes `new`."""

    file: str
    old: str
    new: str


@dataclass(frozen=True, slots=True)
class Mutant:
    """A mutant that lacks a guard, which `scenario` of `chaos.mutation.scenarios` shows: the
    checker then reports one of `caught_by`.
    """

    name: str
    scenario: str
    caught_by: frozenset[str]
    edits: tuple[Edit, ...]


class DoesNotApply(Exception):
    """The text of an edit is not in the code exactly once: the code has changed."""


def mutated(mutant: Mutant, source: Path) -> dict[str, str]:
    """Return the new texts of the files that the mutant changes, by path.

    Raises:
        DoesNotApply
    """
    texts: dict[str, str] = {}
    for edit in mutant.edits:
        text = texts.get(edit.file) or (source / edit.file).read_text(encoding="utf-8")
        if text.count(edit.old) != 1:
            found = text.count(edit.old)
            raise DoesNotApply(f"{mutant.name}: {edit.file} has {found} × {edit.old!r}")
        texts[edit.file] = text.replace(edit.old, edit.new)
    return texts


def plant(mutant: Mutant, source: Path, target: Path) -> Path:
    """Copy the service's code from `source` into the new folder `target`, and break it there.

    Raises:
        DoesNotApply
    """
    texts = mutated(mutant, source)
    copy(source, target)
    for file, text in texts.items():
        (target / file).write_text(text, encoding="utf-8")
    return target


def copy(source: Path, target: Path) -> Path:
    """Copy the service's code from `source` into the new folder `target`."""
    target.mkdir(parents=True)
    for part in PARTS:
        if (source / part).is_dir():
            no_caches = shutil.ignore_patterns("__pycache__")
            shutil.copytree(source / part, target / part, ignore=no_caches, symlinks=True)
        else:
            shutil.copy2(source / part, target / part)
    return target


def mutant(name: str, scenario: str, caught_by: str, *edits: Edit) -> Mutant:
    """Make a mutant; `caught_by` is a list of invariants with spaces between them."""
    return Mutant(name, scenario, frozenset(caught_by.split()), edits)
