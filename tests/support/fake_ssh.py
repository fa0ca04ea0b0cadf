"""A stand-in for ssh that needs no server: it notes the words it was called with and runs the command on this machine.

For tests of what is asked of ssh and of what goes through its standard streams; a real server is in ``support.sshd``.
"""

from __future__ import annotations

from pathlib import Path

_SCRIPT = """\
#!/bin/sh
{{ printf '%s\\n' "$@"; echo; }} >> '{log}'
for command; do :; done
{before}
exec sh -c "$command"
"""


class FakeSsh:
    """The program, and with which words it was started."""

    def __init__(self, folder: Path, before: str = "", name: str = "ssh") -> None:
        self._log = folder / f"{name}.log"
        self.program = folder / name
        self.program.write_text(_SCRIPT.format(log=self._log, before=before))
        self.program.chmod(0o755)

    @property
    def calls(self) -> list[list[str]]:
        """The words of each start."""
        text = self._log.read_text() if self._log.exists() else ""
        return [call.split("\n") for call in text.split("\n\n") if call]
