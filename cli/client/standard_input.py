"""Standard input: the text of an argument `-`, and confirmations."""

import sys

import click


def read_text() -> str:
    """Read all of it, without the newline at its end.

    Raises:
        click.UsageError: it is closed, cannot be read, or is not UTF-8.
    """
    if sys.stdin is None:
        raise click.UsageError("Standard input is closed.")
    try:
        return sys.stdin.read().removesuffix("\n")
    except UnicodeDecodeError:
        raise click.UsageError("Standard input is not valid UTF-8.") from None
    except OSError as error:
        raise click.UsageError(f"Standard input cannot be read: {error.strerror}.") from None


def confirm(question: str) -> None:
    """Ask a question to which the answer has to be yes.

    Raises:
        click.Abort: it is no.
        click.UsageError: standard input is closed.
    """
    if sys.stdin is None:
        raise click.UsageError("Standard input is closed: only --yes can confirm this.")
    click.confirm(question, abort=True)
