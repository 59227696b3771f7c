"""The variables of OpenSSL that name the trusted certificate authorities."""

import os
from collections.abc import Mapping

FILE, DIRECTORY = "SSL_CERT_FILE", "SSL_CERT_DIR"


def read(environ: Mapping[str, str], problems: list[str]) -> str | None:
    """Check the authorities that `checked_http` trusts, as it reads them: the file goes first.

    Returns the file, if one is named. What is wrong is added to `problems`: the error of a run that
    needs them would name neither.
    """
    if file := environ.get(FILE, ""):
        if (why := unusable(file)) is not None:
            problems.append(f"{FILE}: {why}")
    elif (folders := environ.get(DIRECTORY, "")) and not _is_any_readable(folders):
        problems.append(f"{DIRECTORY}: {folders!r} is not a folder that this user may read")
    return file or None


def unusable(file: str) -> str | None:
    """Return why no authorities can be read from a file; None if they can."""
    import ssl  # takes its time, and few name files

    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(file)
    except ssl.SSLError:
        return f"{file!r} has no certificates in PEM"
    except OSError as error:
        return f"{file!r} cannot be read: {error.strerror}"
    return None


def _is_any_readable(folders: str) -> bool:
    """Return whether one of them can be read; OpenSSL passes over the others."""
    return any(map(_is_readable, filter(None, folders.split(os.pathsep))))


def _is_readable(folder: str) -> bool:
    return os.path.isdir(folder) and os.access(folder, os.R_OK | os.X_OK)
