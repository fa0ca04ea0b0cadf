"""Texts of machines, the command lines made of them, and what comes back: all that the SSH manager does without I/O."""

from __future__ import annotations

import subprocess
from pathlib import Path

import hypothesis
import pytest
from hypothesis import strategies as st

from distpool.errors import LaunchWorkerError
from distpool.managers.commandline import (
    SSH_FLAGS,
    RemoteStart,
    quote_csh,
    remote_command,
    ssh_command,
    worker_command,
)
from distpool.managers.machines import Bind, counted, parse_bind, parse_machine, parse_machine_file, read_machine_file
from distpool.managers.reports import VERSION, Ended, Header, Printed, Reports, ended, orders_in, printed, signal_order
from distpool.managers.startup import MAX_BYTES, MAX_LINES

# Anything a user may put into a directory or a variable; no null, which no system can hand over.
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=30)


# -- the grammar -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "login", "port", "bind"),
    [
        ("h", "h", None, None),
        ("joe@h", "joe@h", None, None),
        ("joe@corp@h:22", "joe@corp@h", 22, None),  # the last @ counts, as in ssh
        ("[2001:db8::1]:443", "2001:db8::1", 443, None),
        ("joe@[::1]", "joe@::1", None, None),
        ("  h   10.0.0.7 ", "h", None, Bind("10.0.0.7")),
        ("h:1 10.0.0.7:9000", "h", 1, Bind("10.0.0.7", 9000)),
        ("h 10.0.0.7:[9000]", "h", None, Bind("10.0.0.7", 9000, is_hint=True)),
        ("h ::1", "h", None, Bind("::1")),
        ("h [::1]:[80]", "h", None, Bind("::1", 80, is_hint=True)),
    ],
)
def test_machines_are_taken_apart(spec: str, login: str, port: int | None, bind: Bind | None) -> None:
    """Who logs in where, by which port, and where workers shall listen."""
    machine = parse_machine(spec)
    assert (machine.login, machine.port, machine.bind) == (login, port, bind)


@pytest.mark.parametrize(
    "spec",
    [
        "",
        "  ",
        "a b c",
        "2*h",
        "h*2",
        "@h",
        "joe@",
        "1:2:3",
        "h:",
        "h:x",
        "h:²",
        "[::1",
        "[]:1",
        "[::1]x",
        "h :9",
        "h 1.1.1.1:0",
    ],
)
def test_texts_that_are_no_machine(spec: str) -> None:
    """Refused, with the text in the message."""
    with pytest.raises(ValueError, match=r"is no machine|colon|port|address") as caught:
        parse_machine(spec)
    assert spec.split(" ")[-1] in str(caught.value)


@pytest.mark.parametrize("spec", ["-oProxyCommand=touch", "joe@-oProxyCommand=touch", "-l@h"])
def test_a_host_cannot_be_an_option(spec: str) -> None:
    """What ssh would take for an option, and run a program for, is no host."""
    with pytest.raises(ValueError, match="dash"):
        parse_machine(spec)


@pytest.mark.parametrize(
    ("machines", "error"),
    [
        ([5], TypeError),
        ([None], TypeError),
        ([("h", 0)], ValueError),
        ([("h", -1)], ValueError),
        ([("h", "two")], TypeError),
        ([("h", True)], TypeError),
        ([("h", 1.5)], TypeError),
        ([("h", 1, 2)], TypeError),
    ],
)
def test_bad_counts(machines: list[object], error: type[Exception]) -> None:
    """Refused where they are written, not when ssh runs."""
    with pytest.raises(error):
        counted(machines)  # type: ignore[arg-type]  # the point of it


def test_counts_add_up() -> None:
    """Blanks do not make another machine; "auto" replaces a number, a number replaces "auto"."""
    assert counted(["h", ("h", 2), " h ", "g"]) == {"h": 4, "g": 1}
    assert counted([("h", 2), ("h", "auto")]) == {"h": "auto"}
    assert counted([("h", "auto"), ("h", 2)]) == {"h": 2}
    assert counted([]) == {}


@hypothesis.given(st.text(max_size=20))
def test_any_text_is_a_bind_address_or_an_error(text: str) -> None:
    """Nothing else comes of it, and what is taken can be written and read again."""
    try:
        bind = parse_bind(text)
    except ValueError:
        return
    if not any(sign.isspace() for sign in text):
        assert parse_bind(str(bind)) == bind


def test_machine_files(tmp_path: Path) -> None:
    """Counts before a star, blank lines are nothing; a bad line is named by its number."""
    path = tmp_path / "machines"
    path.write_text("2*joe@h:22 10.0.0.7:9000\n\n   g\nauto * k\n")
    assert read_machine_file(path) == [("joe@h:22 10.0.0.7:9000", 2), "g", ("k", "auto")]
    for line in ("0*h", "x*h", "-1*h", "2*", "a b c", "h:0"):
        with pytest.raises(ValueError, match="machine file, line 2"):
            parse_machine_file(["g", line])


# -- command lines -----------------------------------------------------------------------------------------------------


def test_the_words_of_a_login() -> None:
    """Our flags, the user's, the port; then what the user's may overrule, the host, the command."""
    machine = parse_machine("joe@h:2222 127.0.0.1")
    words = ssh_command("ssh", "-i 'my key'", machine, "-W", "a:1", command="run")
    assert words[: len(SSH_FLAGS) + 1] == ["ssh", *SSH_FLAGS]
    assert words[len(SSH_FLAGS) + 1 :][:4] == ["-i", "my key", "-p", "2222"]
    assert words[-4:] == ["-W", "a:1", "joe@h", "run"]
    assert "BatchMode=yes" in words[words.index("-p") :]
    assert ssh_command(["nice", "ssh"], [], machine)[:2] == ["nice", "ssh"]


def test_the_secret_is_on_no_command_line() -> None:
    """Unless it was asked for."""
    assert worker_command("python3", "-O", "--host", "2") == [
        "python3",
        "-O",
        "-m",
        "distpool",
        "--worker",
        "--host",
        "2",
    ]
    assert "--worker=abc" in worker_command(["python3"], [], cookie="abc")


@hypothesis.settings(max_examples=25)
@hypothesis.given(TEXT, TEXT)
def test_a_posix_shell_gets_what_was_meant(value: str, word: str) -> None:
    """Whatever is in a value or a word: a real shell hands it over unchanged, through the two shells of a login."""
    start = RemoteStart("/", True, {"A": value}, ["printf", "%s|%s|%s", "-", word])
    command = remote_command("posix", start).replace("exec printf", 'printf "%s|" "$A"; exec printf')
    done = subprocess.run(["sh", "-c", command], capture_output=True, stdin=subprocess.DEVNULL, check=True, timeout=60)
    assert done.stdout.decode() == f"{value}|-|{word}|"


def test_a_directory_may_be_missing_only_if_it_was_not_asked_for() -> None:
    """The driver's own directory is where workers start if the machine has it; one that was given must be there."""
    for must_exist, status in ((True, 1), (False, 0)):
        command = remote_command("posix", RemoteStart("/no/such place", must_exist, {}, ["true"]))
        done = subprocess.run(["sh", "-c", command], capture_output=True, stdin=subprocess.DEVNULL, timeout=60)
        assert (done.returncode != 0) == bool(status)
        assert (b"/no/such place" in done.stderr) == bool(status)


def test_csh_is_quoted_in_its_own_way() -> None:
    """Exclamation marks and line ends need a backslash even between single quotes."""
    assert quote_csh("plain/word-1.2") == "plain/word-1.2"
    assert quote_csh("it's") == "'it'\\''s'"
    assert quote_csh("wow!\nnext") == "'wow\\!\\\nnext'"
    start = RemoteStart("/a b", True, {"A": "x y"}, ["python3", "it's"])
    complaint = "( test -x '/a b/.' || echo cd: no directory that can be entered: '/a b' )"
    assert remote_command("csh", start) == (
        f"{complaint} && test -x '/a b/.' && cd '/a b' && setenv A 'x y' && exec python3 'it'\\''s'"
    )
    assert remote_command("csh", start._replace(must_exist=False)).startswith("if ( -d '/a b' ) cd '/a b'; ")


def test_wincmd_refuses_what_it_cannot_quote() -> None:
    """cmd.exe acts on some signs wherever they stand."""
    start = RemoteStart("C:\\my files", True, {"A(x86)": "1 & 2"}, ["C:\\py thon.exe", "-m", "distpool"])
    expected = 'pushd "C:\\my files" && set "A(x86)=1 & 2" && "C:\\py thon.exe" -m distpool'
    assert remote_command("wincmd", start) == expected
    assert remote_command("wincmd", start._replace(must_exist=False)).startswith("set ")
    for bad in ('say "hi"', "%PATH%", "two\nlines"):
        with pytest.raises(ValueError, match="cannot be quoted"):
            remote_command("wincmd", start._replace(directory=bad))


@pytest.mark.parametrize(
    ("shell", "name"), [("posix", "A B"), ("posix", "1A"), ("csh", "A(x86)"), ("wincmd", "A=B"), ("wincmd", "%A")]
)
def test_names_that_no_variable_has(shell: str, name: str) -> None:
    """Refused: a shell would run what stands in them."""
    with pytest.raises(ValueError, match="env: "):
        remote_command(shell, RemoteStart("/", True, {name: "x"}, ["true"]))


# -- reports -----------------------------------------------------------------------------------------------------------

HEADER = Header(VERSION, "0.1", "cpython 3.11", [("10.0.0.7", 9009), ("::1", 80)])
STREAM = b"Welcome!\r\nno line end" + HEADER.line() + printed(1, b"hi\n", 2) + ended(0, 77, 9) + printed(1, b"", 1)
NEWS = [Printed(1, 2, b"hi\n"), Ended(0, 9), Printed(1, 1, b"")]


@pytest.mark.parametrize("size", [1, 2, 7, len(STREAM)])
def test_reports_may_come_in_any_pieces(size: int) -> None:
    """The banner, the header, each report once and in order."""
    heard = Reports()
    news: list[Printed | Ended] = []
    for place in range(0, len(STREAM), size):
        heard.receive(STREAM[place : place + size])
        news += heard.news()
    assert heard.banner == ["Welcome!", "no line end"]
    assert heard.header == HEADER
    assert news == NEWS


def test_a_login_that_says_too_much() -> None:
    """Lines or bytes without a header are given up before they fill the memory."""
    for data in (b"x\n" * (MAX_LINES + 1), b"x" * (MAX_BYTES + 1)):
        heard = Reports()
        with pytest.raises(LaunchWorkerError, match="printed more than"):
            heard.receive(data)


@pytest.mark.parametrize("text", [b"{}", b"nonsense", b'{"version": 1, "addresses": 5}', b"[1, 2]", b"\xff"])
def test_a_header_that_cannot_be_read(text: bytes) -> None:
    """An error of ours, whatever stands in it."""
    with pytest.raises(LaunchWorkerError, match="not understood"):
        Reports().receive(b"distpool_host:" + text + b"\n")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"distpool": "0.0.9"}, "distpool 0.0.9 there"),
        ({"python": "cpython 3.9"}, "Python cpython 3.9 there"),
        ({"version": 99}, "protocol 99 there"),
        ({}, None),
    ],
)
def test_versions_are_compared(change: dict[str, object], text: str | None) -> None:
    """The first that differs is told, with both values."""
    difference = HEADER._replace(**change).difference(HEADER)  # type: ignore[arg-type]  # fields by name
    assert (difference is None) if text is None else (difference is not None and text in difference)


def test_orders_may_come_in_any_pieces() -> None:
    """Each once, whole."""
    data, incoming, orders = signal_order(3, 2) + signal_order(0, 9), bytearray(), []
    for place in range(len(data)):
        incoming += data[place : place + 1]
        orders += [(number, body[0]) for _, number, body in orders_in(incoming)]
    assert orders == [(3, 2), (0, 9)]
