"""SQL statements in files of their own: `sql/<name>.sql` in the room that executes them."""

from importlib.resources import files

#: psycopg parses a longer statement each time that it is executed.
MAX_CHARACTERS = 4096


def statement(package: str, name: str) -> str:
    """Return the statement in `sql/<name>.sql` of a package, without comments and indentation.

    Its parameters are psycopg's, `%(name)s`.
    """
    text = files(package).joinpath("sql", f"{name}.sql").read_text(encoding="utf-8")
    lines = (line.strip() for line in text.splitlines())
    return "\n".join(line for line in lines if line and not line.startswith("--"))
