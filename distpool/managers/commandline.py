"""The command lines by which workers are started on other machines, as data: nothing here runs anything.

Used by the SSH manager; tests read what it makes. A login is ``ssh FLAGS HOST COMMAND``, and COMMAND is one text that
the login shell of the other side takes apart, so everything in it is quoted for that family of shells::

    posix    sh -l -c 'cd DIR && export NAME=VALUE && exec PYTHON -m distpool --worker ...'
    csh      ... test -x DIR/. && cd DIR && setenv NAME VALUE && exec PYTHON -m distpool --worker ...
    wincmd   pushd "DIR" && set "NAME=VALUE" && PYTHON -m distpool --worker ...

The secret is in none of them, unless the user asks for it (``cmdline_cookie``): it goes by standard input.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping, Sequence

from distpool.light import Final, NamedTuple
from distpool.managers.interpreter import words
from distpool.managers.machines import Machine
from distpool.vanishing import host_timeout

# No terminal, no X11, no agent for the other side, and no forwardings that the user's configuration asks for: a second
# login to a host would find their ports taken. Julia's flags.
SSH_FLAGS: Final = ("-T", "-x", "-a", "-o", "ClearAllForwardings=yes")
# Behind the user's flags, because ssh takes the first value that it finds: a login that would ask for a password has no
# terminal to ask on, and must fail instead of waiting; a host that vanished without a word is noticed in time.
SSH_DEFAULTS: Final = ("-o", "BatchMode=yes", "-o", "ServerAliveCountMax=3")

_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z_0-9]*")
# Windows takes nearly anything for a name; the signs that its shell would act on are left out.
_WINDOWS_NAME: Final = re.compile(r"[^\s=%!\"&|<>^]([^=%!\"&|<>^\r\n]*[^\s=%!\"&|<>^])?")


class RemoteStart(NamedTuple):
    """What shall run on the other side, and where."""

    directory: str
    must_exist: bool  # else a machine without that directory starts in the home directory
    env: Mapping[str, str]
    command: Sequence[str]


def ssh_command(
    program: str | Sequence[str], flags: str | Sequence[str], machine: Machine, *more: str, command: str | None = None
) -> list[str]:
    """Return the words that start an ssh client.

    ``flags`` are the user's: a text is split as a shell does. ``more`` are options of ours, before the host.
    """
    port = ("-p", str(machine.port)) if machine.port else ()
    given = shlex.split(flags) if isinstance(flags, str) else [str(flag) for flag in flags]
    call = () if command is None else (command,)
    return [*words(program), *SSH_FLAGS, *given, *port, *SSH_DEFAULTS, *_alive(), *more, machine.login, *call]


def _alive() -> tuple[str, str]:
    """How often ssh asks the other side whether it is there: three times in vain, and it gives up."""
    return "-o", f"ServerAliveInterval={max(1, int(host_timeout() / 3))}"


def worker_command(
    exename: str | Sequence[str], exeflags: str | Sequence[str], *options: str, cookie: str | None = None
) -> list[str]:
    """Return the words that start workers on the other side; ``cookie`` only if it may be seen by everybody there."""
    worker = "--worker" if cookie is None else f"--worker={cookie}"
    return [*words(exename), *words(exeflags), "-m", "distpool", worker, *options]


def remote_command(shell: str, start: RemoteStart) -> str:
    """Return the one text that a login shell of this family is given.

    Raises ValueError for a family that there is not, a name that is none of a variable, and text that cannot be quoted.

    >>> print(remote_command("posix", RemoteStart("/data", True, {"A": "1"}, ["python3", "-m", "distpool"])))
    sh -l -c 'cd -- /data && export A=1 && exec python3 -m distpool'
    """
    if shell not in SHELLS:
        raise ValueError(f"shell={shell!r}: it is {', '.join(repr(name) for name in SHELLS)}")
    pattern = _WINDOWS_NAME if shell == "wincmd" else _NAME
    for name in start.env:
        if not isinstance(name, str) or not pattern.fullmatch(name):
            raise ValueError(f"env: {name!r} is no name of a variable that a {shell} shell can set")
    return SHELLS[shell](start)


def _posix(start: RemoteStart) -> str:
    change = f"cd -- {shlex.quote(start.directory)}"
    if not start.must_exist:
        change = f"{{ {change} 2>/dev/null || :; }}"
    exports = [f"export {name}={shlex.quote(value)}" for name, value in start.env.items()]
    return f"sh -l -c {shlex.quote(' && '.join([change, *exports, f'exec {shlex.join(start.command)}']))}"


def _csh(start: RemoteStart) -> str:
    directory = quote_csh(start.directory)
    exports = [f"setenv {name} {quote_csh(value)}" for name, value in start.env.items()]
    program = "exec " + " ".join(quote_csh(word) for word in start.command)
    if not start.must_exist:
        return "; ".join([f"if ( -d {directory} ) cd {directory}", *exports, program])
    # Where cd fails, tcsh goes on behind ";" and "&&", and with "exit" as well.
    can_enter = f"test -x {quote_csh(start.directory + '/.')}"
    complaint = f"( {can_enter} || echo cd: no directory that can be entered: {directory} )"
    return " && ".join([complaint, can_enter, f"cd {directory}", *exports, program])


def quote_csh(text: str) -> str:
    """Quote one word for csh: between single quotes an exclamation mark and a line end still need a backslash.

    >>> print(quote_csh("it is new!"))
    'it is new\\!'
    """
    if text and re.fullmatch(r"[A-Za-z0-9_@%+=:,./-]+", text):
        return text
    return "'" + text.replace("'", "'\\''").replace("!", "\\!").replace("\n", "\\\n") + "'"


def _wincmd(start: RemoteStart) -> str:
    change = [f"pushd {quote_wincmd(start.directory)}"] if start.must_exist else []  # ours is no path there
    exports = [f"set {quote_wincmd(f'{name}={value}')}" for name, value in start.env.items()]
    command = " ".join(word if _is_plain_for_wincmd(word) else quote_wincmd(word) for word in start.command)
    return " && ".join([*change, *exports, command])


def _is_plain_for_wincmd(word: str) -> bool:
    return re.fullmatch(r"[A-Za-z0-9_+=:,./\\-]+", word) is not None


def quote_wincmd(text: str) -> str:
    """Quote one word for cmd.exe; ValueError for signs that it acts on even between quotes.

    >>> print(quote_wincmd("C:\\\\Program Files"))
    "C:\\Program Files"
    """
    bad = next((sign for sign in '"%!\r\n' if sign in text), None)
    if bad is not None:
        raise ValueError(f"shell='wincmd': {text!r} has {bad!r} in it, which cannot be quoted for cmd.exe")
    return f'"{text}"'


SHELLS: Final[dict[str, Callable[[RemoteStart], str]]] = {"posix": _posix, "csh": _csh, "wincmd": _wincmd}
