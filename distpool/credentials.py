"""What a worker must know to be let in, as one line of text: the cluster's cookie, and with TLS its certificates, too.

Written by managers who start workers, read by the workers: from standard input, or whatever private channel an engine
has; never from a command line. Any thread. The line is the cookie itself, or a JSON object that is longer than a cookie
may be, so that the two cannot be mistaken for each other. Owns: the credentials that this process was given as a
worker.
"""

from __future__ import annotations

from distpool.cookie import MAX_CHARACTERS
from distpool.light import Final, Literal, NamedTuple

# What a process is in its cluster, and the name for it in certificates.
Part = Literal["driver", "worker"]
NAMES: Final[dict[Part, str]] = {"driver": "driver.distpool", "worker": "worker.distpool"}

# The longest line that makes sense: three texts of about a kilobyte each, and room for larger keys.
MAX_LINE_BYTES: Final = 1 << 14
# What a line that is no cookie has.
_FIELDS: Final = ("authority", "certificate", "cookie", "key")


class Credentials(NamedTuple):
    """What one process shows and expects in a connection with TLS: texts in PEM. ``key`` is secret."""

    authority: str
    certificate: str
    key: str

    def __repr__(self) -> str:
        return "Credentials(...)"  # the key must not stand in a log


def secret_line(cookie: str, credentials: Credentials | None = None) -> str:
    """Return what a worker has to read, without a line end.

    >>> secret_line("a secret")
    'a secret'
    """
    if credentials is None:
        return cookie
    import json  # only with TLS

    fields = {
        "cookie": cookie,
        "authority": credentials.authority,
        "certificate": credentials.certificate,
        "key": credentials.key,
    }
    return json.dumps(fields).ljust(MAX_CHARACTERS + 1)


def parse_secret_line(line: str) -> tuple[str, Credentials | None]:
    """Return the cookie, and what TLS needs if the line has that.

    >>> parse_secret_line(secret_line("a", Credentials("b", "c", "d")))
    ('a', Credentials(...))

    Raises ValueError for a line that is neither; it does not repeat the line, for it may be a secret.
    """
    if len(line) <= MAX_CHARACTERS:
        return line, None
    import json  # only with TLS

    try:
        fields = json.loads(line)
    except ValueError:
        fields = None
    if not isinstance(fields, dict) or sorted(fields) != list(_FIELDS):
        raise ValueError(
            f"{len(line)} characters are too many for a cookie ({MAX_CHARACTERS}), and no line that distpool has made"
        )
    if not all(isinstance(value, str) for value in fields.values()):
        raise ValueError("the fields of a line with certificates must be texts")
    return fields.pop("cookie"), Credentials(**fields)


class _Own:
    """The credentials of this process; written once, before it listens or dials."""

    credentials: Credentials | None = None


def learn_secrets(line: str) -> str:
    """Take what a worker was told: keep its credentials, for all connections of this process, and return the cookie.

    Raises ValueError as ``parse_secret_line`` does.
    """
    cookie, _Own.credentials = parse_secret_line(line)
    return cookie


def own_credentials() -> Credentials | None:
    """Return the credentials that this process was given; None when its connections are not encrypted."""
    return _Own.credentials
