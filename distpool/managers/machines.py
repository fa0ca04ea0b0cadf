"""How machines are written: ``[user@]host[:port] [bind_addr[:bind_port]]``, alone or with a number of workers.

Used by the SSH manager and by the command line (``--machine-file``). Pure functions, any thread; nothing is looked up.
Julia's grammar, and its successor's hint of a port in brackets.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence

from distpool.light import Final, NamedTuple, TypeAlias

AUTO: Final = "auto"
# How many workers a machine gets; "auto" is one for each core that a process there may use.
Count: TypeAlias = "int | str"
MachineSpec: TypeAlias = "str | tuple[str, Count]"

_GRAMMAR: Final = "[user@]host[:port] [bind_addr[:bind_port]]"
_HINT: Final = re.compile(r"(.+):\[(\d+)\]")  # a port in brackets


class Bind(NamedTuple):
    """Where workers shall listen: an address of their machine, and a port; 0 is any free one."""

    address: str
    port: int = 0
    is_hint: bool = False  # the port is where to begin to look for a free one, and not a must

    def __str__(self) -> str:
        host = f"[{self.address}]" if ":" in self.address and self.port else self.address
        return host + (f":[{self.port}]" if self.is_hint else f":{self.port}" if self.port else "")


class Machine(NamedTuple):
    """One machine, as it was written."""

    spec: str
    host: str  # a name or an address, without brackets
    user: str | None
    port: int | None  # of its ssh server; None: as ssh itself decides
    bind: Bind | None

    @property
    def login(self) -> str:
        """What ssh is told to log in to."""
        return f"{self.user}@{self.host}" if self.user else self.host


def parse_machine(spec: str) -> Machine:
    """Take a machine's text apart; ValueError with the text in it when it is none.

    >>> parse_machine("joe@[2001:db8::1]:443 10.0.0.7:9000")[1:]
    ('2001:db8::1', 'joe', 443, Bind(address='10.0.0.7', port=9000, is_hint=False))
    """
    if not isinstance(spec, str):
        raise TypeError(f"a machine is text such as 'host' or ('host', 4), not {spec!r}")
    login, *rest = spec.split() or [""]
    if not login or len(rest) > 1:
        raise ValueError(f"{spec!r} is no machine: it is written {_GRAMMAR}")
    user, at, place = login.rpartition("@")
    host, port = split_port(place, spec)
    if (at and not user) or not host:
        raise ValueError(f"{spec!r} is no machine: it is written {_GRAMMAR}")
    if "*" in login:
        raise ValueError(f"{spec!r} is no machine: several workers on one are written ('host', 4); 4*host in a file")
    if login.startswith("-") or host.startswith("-"):  # ssh would take it for an option, and some options run programs
        raise ValueError(f"{spec!r} is no machine: neither a user nor a host begins with a dash")
    number = None if port is None else checked_port(port, spec)
    return Machine(spec, host, user or None, number, parse_bind(rest[0]) if rest else None)


def split_port(place: str, spec: str) -> tuple[str, str | None]:
    """Take ``host``, ``host:port``, ``[IPv6]`` or ``[IPv6]:port`` apart; the port as it is written, None without."""
    if place.startswith("["):
        host, closing, port = place[1:].partition("]")
        if not closing or (port and not port.startswith(":")):
            raise ValueError(f"{spec!r}: an IPv6 address is written [ADDRESS] or [ADDRESS]:PORT")
        return host, port[1:] if port else None
    if place.count(":") > 1:
        raise ValueError(f"{spec!r}: more than one colon; an IPv6 address needs brackets, as in [2001:db8::1]:22")
    host, colon, port = place.partition(":")
    return host, port if colon else None


def checked_port(port: str, spec: str) -> int:
    """Return a port's number, 1 to 65535; else ValueError."""
    if not (port.isascii() and port.isdigit() and 0 < int(port) < 1 << 16):
        raise ValueError(f"{spec!r}: a port is a number from 1 to 65535, not {port!r}")
    return int(port)


def parse_bind(text: str) -> Bind:
    """Take ``ADDR``, ``ADDR:PORT`` or ``ADDR:[PORT]`` (a hint) apart; ValueError when it is none of them.

    >>> parse_bind("10.0.0.7"), parse_bind("10.0.0.7:[8000]"), str(parse_bind("[::1]:[8000]"))
    (Bind(address='10.0.0.7', port=0, is_hint=False), Bind(address='10.0.0.7', port=8000, is_hint=True), '[::1]:[8000]')
    """
    hint = _HINT.fullmatch(text)
    place = f"{hint[1]}:{hint[2]}" if hint else text
    if place.count(":") > 1 and not place.startswith("["):  # as with --bind-to, a bare IPv6 address has no port
        return Bind(place)
    host, port = split_port(place, text)
    if not host:
        raise ValueError(f"{text!r} is no address to listen on: it is written ADDR, ADDR:PORT or ADDR:[PORT]")
    return Bind(host, 0 if port is None else checked_port(port, text), hint is not None)


def checked_count(count: object, spec: str) -> Count:
    """Return a number of workers; else ValueError or TypeError."""
    if count == AUTO:
        return AUTO
    if isinstance(count, bool) or not isinstance(count, int):
        raise TypeError(f"({spec!r}, {count!r}): the number of workers is an int or 'auto'")
    if count < 1:
        raise ValueError(f"({spec!r}, {count}): the number of workers is at least 1")
    return count


def counted(machines: Iterable[MachineSpec]) -> dict[str, Count]:
    """Return how many workers each machine gets, in the order of their first mention.

    Mentions of the same text add up; "auto" replaces a number, and a number after it replaces "auto" (Julia's rules).
    Two spellings of one host are two machines.

    >>> counted(["h", ("h", 2), "g", ("g", "auto")])
    {'h': 3, 'g': 'auto'}
    """
    counts: dict[str, Count] = {}
    for entry in machines:
        spec, count = entry if isinstance(entry, (tuple, list)) and len(entry) == 2 else (entry, 1)
        parse_machine(spec)  # says so itself when it is none
        assert isinstance(spec, str)
        key = " ".join(spec.split())
        number, before = checked_count(count, key), counts.get(key)
        if isinstance(number, int) and isinstance(before, int):
            number += before
        counts[key] = number
    return counts


def parse_machine_file(lines: Iterable[str], name: str = "machine file") -> list[MachineSpec]:
    """Read machines, one on each line: ``[count*][user@]host[:port] [bind_addr[:port]]``; blank lines are nothing.

    >>> parse_machine_file(["2*localhost", "", " auto*h "])
    [('localhost', 2), ('h', 'auto')]
    """
    machines: list[MachineSpec] = []
    for number, line in enumerate(lines, start=1):
        before, star, spec = (part.strip() for part in line.rpartition("*"))
        if not spec:
            if star:
                raise ValueError(f"{name}, line {number}: {line.strip()!r} has no machine after the count")
            continue
        try:
            parse_machine(spec)
            machines.append((spec, _written_count(before)) if star else spec)
        except ValueError as error:
            raise ValueError(f"{name}, line {number}: {error}") from None
    return machines


def _written_count(text: str) -> Count:
    if text == AUTO:
        return AUTO
    if not (text.isascii() and text.isdigit() and int(text)):
        raise ValueError(f"the count before * is a positive number or 'auto', not {text!r}")
    return int(text)


def read_machine_file(path: str | os.PathLike[str]) -> Sequence[MachineSpec]:
    """Read the machines of a file; OSError when it cannot be read, ValueError that names a bad line."""
    with open(path, encoding="utf-8") as file:
        return parse_machine_file(file, os.fspath(path))
