"""SQL statements in files of their own: `sql/<name>.sql` in the room that executes them."""

from importlib.resources import files


def statement(package: str, name: str) -> str:
    """Return the statement of `sql/<name>.sql` in a package, without its comments.

    Its parameters are psycopg's, `%(name)s`. The driver parses a statement of up to 4,096
    characters once, and a longer one each time.
    """
    text = files(package).joinpath("sql", f"{name}.sql").read_text(encoding="utf-8")
    lines = (line for line in text.splitlines() if not line.lstrip().startswith("--"))
    return "\n".join(line for line in lines if line)
