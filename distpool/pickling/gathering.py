"""What is gathered while a message is being made, beside the bytes of the pickle.

Used by whoever makes a message, by the rules for types, and by remote references that are being pickled, each in the
thread that pickles. Two lives: what a thread is doing (`sending_to`), and what one pickle has met (`Gathering`), of
which the packer is one::

    sending_to    how deep in making messages, for which process, the references in them    outermost message
    Mentioned     globals that by-value code needs: they travel beside the body             all pickles of a message
    Gathering     stand-ins for cells and namespaces, so that what shares one shares it     one pickle
                  after the journey, too
"""

from __future__ import annotations

import _thread
from collections.abc import Sequence
from types import CellType, FunctionType

from distpool.light import Any


class Context(_thread._local):
    """What a thread is doing: how deep in making messages, and for which process (0: not known)."""

    depth = 0
    pid = 0
    refs: list[Any] | None = None  # what remote references in the message have left (claims)


sending_to = Context()


def note_ref(claim: Any) -> None:
    """A remote reference is being pickled: its claim goes along with the message."""
    if sending_to.refs is None:
        sending_to.refs = []
    sending_to.refs.append(claim)


def in_message() -> bool:
    """Is this thread pickling for a distpool message now? Remote references refuse to be pickled otherwise."""
    return sending_to.depth > 0


class Mentioned(dict[str, object]):
    """Names of ``__main__`` (or ``module:name``) that by-value code mentions, and their values.

    ``guessed`` are those of a whole module that goes by value: nobody knows which of them the code will use.
    """

    def __init__(self) -> None:
        super().__init__()
        self.guessed: set[str] = set()


class UnsendableGlobal(TypeError):
    """A global that by-value code mentions cannot be pickled; a plain TypeError to users."""


class Gathering:
    """What one pickle has met: the rules for types write it down, and ask for it."""

    # Set on each instance; class-level values keep the packer's constructor in C.
    foreign = False  # opening the pickle may run code of packages that nobody here knows
    alone = False  # leave out causes, contexts and tracebacks of exceptions
    mentioned: Mentioned  # shared by the pickles of one message
    replaced: dict[int, BaseException]  # exceptions that cannot travel, by id, with what stands in for them
    cells: dict[int, Cell] | None = None
    filled: set[int] | None = None
    privates: dict[int, dict[str, Any]] | None = None

    def mention(self, where: str, namespace: dict[str, Any], names: Sequence[str]) -> None:
        """Note that code sent by value needs these names of its module; ones that do not exist are left alone."""
        prefix = "" if where == "main" else where.partition(":")[2] + ":"
        for name in names:
            if name in namespace:
                self.mentioned.setdefault(prefix + name, namespace[name])
                self.mentioned.guessed.discard(prefix + name)

    def guess(self, where: str, namespace: dict[str, Any], names: Sequence[str]) -> None:
        """``mention``, of names that may or may not be needed: those that cannot travel are left out."""
        before = self.mentioned.keys() - self.mentioned.guessed
        self.mention(where, namespace, names)
        self.mentioned.guessed |= self.mentioned.keys() - before

    def cell(self, cell: CellType) -> Cell:
        """The one stand-in for this cell in this pickle."""
        if self.cells is None:
            self.cells, self.filled = {}, set()
        return self.cells.setdefault(id(cell), Cell(cell))

    def new_fillings(self, function: FunctionType) -> list[tuple[Cell, tuple[Any]]]:
        """Cells of this function that no other function of this pickle has filled yet, with their contents."""
        fillings = []
        for cell in function.__closure__ or ():
            contents = fill_of(cell)
            if contents is not None and self.filled is not None and id(cell) not in self.filled:
                self.filled.add(id(cell))
                fillings.append((self.cell(cell), contents))
        return fillings

    def private_namespace(self, namespace: dict[str, Any]) -> dict[str, Any]:
        """The dict that stands for a namespace without a module; functions that share one go on sharing it."""
        if self.privates is None:
            self.privates = {}
        if id(namespace) not in self.privates:
            kept = ("__name__", "__package__", "__path__", "__file__")
            self.privates[id(namespace)] = {name: namespace[name] for name in kept if name in namespace}
        return self.privates[id(namespace)]

    def whole_cell(self, cell: CellType) -> Any:
        """A cell met outside a closure."""
        contents = fill_of(cell)
        return make_filled_cell, () if contents is None else contents


# -- cells of closures


class Cell:
    """Stands for a closure's cell while pickling: made empty at the receiver, and one cell there for one cell here.

    Filling it is left to the state of the first function that has it, which comes after that function exists: so
    functions may refer to themselves and to each other, and those that share a cell still share it afterwards.
    """

    __slots__ = ("cell",)

    def __init__(self, cell: CellType) -> None:
        self.cell = cell  # keeps it alive, so that its id is not used for another one

    def __reduce__(self) -> tuple[Any, tuple[()]]:
        return make_cell, ()


def is_filled(cell: CellType) -> bool:
    """Has this cell contents? One of a name that is not assigned yet has none."""
    try:
        _ = cell.cell_contents
    except ValueError:
        return False
    return True


def fill_of(cell: CellType) -> tuple[Any] | None:
    """The contents of a cell as a tuple of one; None when it is empty."""
    return (cell.cell_contents,) if is_filled(cell) else None


def make_cell() -> CellType:
    """An empty cell."""
    return CellType()


def make_filled_cell(*contents: Any) -> CellType:
    """A cell with its contents."""
    return CellType(*contents)
