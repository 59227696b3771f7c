"""The variables of OpenSSL that name the trusted certificate authorities."""

import os
from collections.abc import Mapping

FILE, DIRECTORY = "SSL_CERT_FILE", "SSL_CERT_DIR"


def check(environ: Mapping[str, str], problems: list[str]) -> None:
    """Check the authorities that `checked_http` trusts, as it reads them: the file goes first.

    What is wrong is added to `problems`: the error of a run that needs them would name neither.
    """
    if file := environ.get(FILE, ""):
        import ssl  # takes its time, and few set this

        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(file)
        except ssl.SSLError:
            problems.append(f"{FILE}: {file!r} has no certificates in PEM")
        except OSError as error:
            problems.append(f"{FILE}: {file!r} cannot be read: {error.strerror}")
    elif (folders := environ.get(DIRECTORY, "")) and not _is_any_readable(folders):
        problems.append(f"{DIRECTORY}: {folders!r} is not a folder that this user may read")


def _is_any_readable(folders: str) -> bool:
    """Return whether one of them can be read; OpenSSL passes over the others."""
    return any(map(_is_readable, filter(None, folders.split(os.pathsep))))


def _is_readable(folder: str) -> bool:
    return os.path.isdir(folder) and os.access(folder, os.R_OK | os.X_OK)
