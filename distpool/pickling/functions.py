"""Functions and classes by value: taken apart at the sender, put together at the receiver.

Used by the pickler in whatever thread pickles or loads. Owns the receiver's namespaces for modules that cannot be
imported, and a cache of code objects on either side.

    sender                                         receiver
    function  -> code (marshalled once), name,     code (the same object for the same bytes)
                 cells, state                      function with globals of ITS OWN __main__
    globals   -> not here: the names that the      assigned before the function is loaded
                 code mentions are noted in the
                 pickler, and travel beside the
                 body (see `globals_`)
    class     -> cloudpickle's class machinery     the same class object whenever it comes again

cloudpickle would give each unpickled function a private copy of its globals; here a lambda must see the names that
``everywhere`` defined in the worker's ``__main__``, and leave state there. Hence our own reducer for functions. Both
ends run the same minor version of Python (the handshake checks), so `marshal` serves for code, some twenty times
faster.
"""

from __future__ import annotations

import builtins
import marshal
import sys
import weakref
from functools import partial
from types import CellType, CodeType, FunctionType, ModuleType

from distpool.light import TYPE_CHECKING, Any, Final, NamedTuple

from .gathering import is_filled
from .importable import namespace_of

if TYPE_CHECKING:
    from .gathering import Gathering

_CODES_LIMIT: Final = 512  # code objects remembered at the receiver; arbitrary, a few megabytes at most

# Names that belong to a module as such: the receiver has its own.
_OWN_NAMES: Final = frozenset({"__builtins__", "__name__", "__spec__", "__loader__", "__annotations__", "__path__"})

_codes: dict[bytes, CodeType] = {}  # receiver: the same lambda sent again keeps its (specialised) code object
_made: dict[str, ModuleType] = {}  # receiver: modules that exist only because their functions came by value
# Classes born here that were sent away (a return never overwrites them), and classes that came from elsewhere.
_native: weakref.WeakSet[type] = weakref.WeakSet()
_received: weakref.WeakSet[type] = weakref.WeakSet()


class CodeFacts(NamedTuple):
    """What is worth knowing about a code object, found once."""

    ref: weakref.ref[CodeType]
    packed: bytes | None  # None: it holds constants that marshal does not know
    names: tuple[str, ...]  # globals it mentions, those of nested code included
    attributes: frozenset[str]  # every name in it, to guess which submodules it reaches
    imports_relatively: bool


_facts: dict[int, CodeFacts] = {}  # by id of the code object; dropped when that dies


def code_facts(code: CodeType) -> CodeFacts:
    """The facts about this code object (hashing code objects compares them by value, hence the key by id)."""
    facts = _facts.get(id(code))
    if facts is not None and facts.ref() is code:
        return facts
    key = id(code)
    ref = weakref.ref(code, lambda _: _facts.pop(key, None))
    try:
        packed = marshal.dumps(code)
    except ValueError:
        packed = None
    names: dict[str, None] = {}  # a dict keeps the order, so that equal functions give equal bytes
    attributes: set[str] = set()
    relative = _walk(code, names, attributes)
    facts = CodeFacts(ref, packed, tuple(names), frozenset(attributes), relative)
    _facts[key] = facts
    return facts


def _walk(code: CodeType, names: dict[str, None], attributes: set[str]) -> bool:
    """Collect the global names of one code object and of those inside it; does any import relatively?"""
    import dis  # only senders of by-value functions need it

    relative = False
    loaded: list[str] = []  # a class body reads globals with LOAD_NAME, and its own names too
    stored: set[str] = set()
    before: list[Any] = [None, None]
    for step in dis.get_instructions(code):
        kind = step.opname
        if kind in ("LOAD_GLOBAL", "STORE_GLOBAL", "DELETE_GLOBAL"):
            names[step.argval] = None
        elif kind in ("LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"):
            loaded.append(step.argval)
        elif kind == "STORE_NAME":
            stored.add(step.argval)
        elif kind == "IMPORT_NAME":
            relative = relative or (isinstance(before[0], int) and before[0] > 0)  # level, fromlist, IMPORT_NAME
        before = [before[1], step.argval]
    names.update(dict.fromkeys(name for name in loaded if name not in stored))
    attributes.update(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            relative = _walk(constant, names, attributes) or relative
    return relative


def reduce_function(packer: Gathering, function: FunctionType) -> tuple[Any, ...]:
    """Take a function apart. Its globals are noted in the packer, except for a private namespace."""
    code = function.__code__
    facts = code_facts(code)
    namespace = function.__globals__
    where: Any = namespace_of(namespace)
    state: dict[str, Any] = {}
    if where is None:
        where = packer.private_namespace(namespace)
        state["__globals__"] = {name: namespace[name] for name in facts.names if name in namespace}
    elif where.startswith("import:"):
        # pytest's rewriting of assert binds names that no source text can have; what the receiver imports lacks them.
        added = {name: namespace[name] for name in facts.names if not name.isidentifier() and name in namespace}
        if added:
            state["__globals__"] = added
    else:
        packer.mention(where, namespace, [name for name in facts.names if name not in _OWN_NAMES])
        if facts.imports_relatively:
            packer.mention(where, namespace, ["__package__"])
    cells = function.__closure__
    wrapped = None if cells is None else tuple(packer.cell(cell) for cell in cells)
    _describe(packer, function, state)
    modules = _submodules(function, facts)
    if modules:
        state["modules"] = modules
    packed = code if facts.packed is None else facts.packed
    return make_function, (packed, where, function.__name__, wrapped), state, None, None, set_function_state


def _describe(packer: Gathering, function: FunctionType, state: dict[str, Any]) -> None:
    """Put into `state` whatever a bare ``FunctionType(code, globals)`` would not have by itself."""
    code = function.__code__
    if function.__qualname__ != getattr(code, "co_qualname", None):  # 3.10 has no co_qualname
        state["__qualname__"] = function.__qualname__
    if function.__module__ != function.__globals__.get("__name__"):
        state["__module__"] = function.__module__
    if function.__doc__ != (code.co_consts[0] if code.co_consts else None):
        state["__doc__"] = function.__doc__
    for name in ("__defaults__", "__kwdefaults__", "__dict__"):
        value = getattr(function, name)
        if value:
            state[name] = value
    annotations = _annotations(function)
    if annotations:
        state["__annotations__"] = annotations
    fillings = packer.new_fillings(function)
    if fillings:
        state["cells"] = fillings


def _annotations(function: FunctionType) -> dict[str, Any]:
    try:
        return function.__annotations__
    except Exception:  # 3.14 evaluates them now, and a name may exist only for type checkers
        return {}


def mentioned_names(function: FunctionType) -> tuple[str, ...]:
    """The globals that a function mentions, nested functions included."""
    return tuple(name for name in code_facts(function.__code__).names if name not in _OWN_NAMES)


def shipped_namespace(function: FunctionType) -> dict[str, Any] | None:
    """The function's globals, if those that it mentions are sent along with it; None if the receiver has its own."""
    where = namespace_of(function.__globals__)
    return None if where is None or where.startswith("import:") else function.__globals__


def _submodules(function: FunctionType, facts: CodeFacts) -> tuple[str, ...]:
    """Submodules reached as attributes of a package (``concurrent.futures``): importing the package is not enough."""
    found: list[str] = []
    values = [function.__globals__.get(name) for name in facts.names]
    values += [cell.cell_contents for cell in function.__closure__ or () if is_filled(cell)]
    waiting = [value.__name__ for value in values if isinstance(value, ModuleType) and hasattr(value, "__path__")]
    while waiting:
        package = waiting.pop()
        for name in facts.attributes:
            submodule = f"{package}.{name}"
            if submodule in sys.modules and submodule not in found:
                found.append(submodule)
                waiting.append(submodule)
    return tuple(sorted(found))


# ------------------------------------------------------------------------------------------------ at the receiver


def make_function(code: bytes | CodeType, where: Any, name: str, cells: tuple[CellType, ...] | None) -> FunctionType:
    """Put a function together; what is not in its code comes with `set_function_state`."""
    if isinstance(code, bytes):
        code = _known_code(code)
    return FunctionType(code, _namespace(where), name, None, cells)


def _known_code(packed: bytes) -> CodeType:
    code = _codes.get(packed)
    if code is None:
        if len(_codes) >= _CODES_LIMIT:
            _codes.clear()
        code = _codes[packed] = marshal.loads(packed)
        # Sent on from here, it must give the same bytes: a function global would otherwise look changed.
        key = id(code)
        facts = code_facts(code)
        _facts[key] = facts._replace(packed=packed)
    return code


def _namespace(where: Any) -> dict[str, Any]:
    if isinstance(where, dict):
        where.setdefault("__builtins__", builtins)
        return where
    if where == "main":
        return vars(sys.modules["__main__"])
    kind, _, name = where.partition(":")
    return vars(import_module(name) if kind == "import" else made_module(name))


def set_function_state(function: FunctionType, state: dict[str, Any]) -> None:
    """The second half: attributes, and the contents of cells, which may refer to the function itself."""
    for name, value in state.items():
        if name == "cells":
            for cell, (contents,) in value:
                cell.cell_contents = contents
        elif name == "modules":
            for module in value:
                import_module(module)
        elif name in ("__globals__", "__dict__"):
            getattr(function, name).update(value)
        else:
            setattr(function, name, value)


def import_module(name: str) -> ModuleType:
    """The module of that name, submodules included (``__import__`` returns the top-level package)."""
    __import__(name)
    return sys.modules[name]


def made_module(name: str) -> ModuleType:
    """The one module kept here under this name for functions that came by value.

    Not put into ``sys.modules``: it must not stand in for a real module, and functions of it go on by value.
    """
    return _made.setdefault(name, ModuleType(name))


def main_module() -> ModuleType:
    """This process's ``__main__``."""
    return sys.modules["__main__"]


# ------------------------------------------------------------------------------------------------ classes


def reduce_class(cls: type) -> tuple[Any, ...]:
    """Take a class apart with cloudpickle's machinery; the same class comes back as the same object."""
    machinery = _machinery()

    name = _name_in_types(cls)
    if name is not None:
        return member_of_types, (name,)
    # A private name, hence guarded. The public way leaves classes of modules in sys.modules to be sent by name.
    dynamic = getattr(machinery, "_dynamic_class_reduce", None) or partial(machinery.Pickler.reducer_override, None)
    reduced = dynamic(cls)
    if reduced is NotImplemented:
        raise TypeError(f"class {cls.__qualname__} cannot be sent by value with cloudpickle {machinery.__version__}")
    maker, arguments, state, _, _, setter = reduced
    if cls not in _received:
        _native.add(cls)
    tracker = arguments[-2]  # (..., class_tracker_id, extra) in both makers, classes and enums
    slots = cls.__dict__.get("__slots__")
    if slots is not None and len(arguments) == 6 and not issubclass(cls, tuple):  # NamedTuple sets its own, always ()
        # cloudpickle sets them when it is too late: its copy has a __dict__ and no slots, and objects of it cannot be
        # loaded where the class is the true one.
        arguments[3]["__slots__"] = slots
    return make_class, (tracker, maker, *arguments), (setter, state), None, None, set_class_state


def _machinery() -> Any:
    # tens of milliseconds to import: only for those who send or receive classes by value.
    import cloudpickle.cloudpickle as machinery  # type: ignore[import-untyped]  # it has no types

    return machinery


def make_class(tracker: str, maker: Any, *arguments: Any) -> type:
    """The class that goes by this id here, else a new one.

    cloudpickle would make a throw-away class first each time, and so run ``__init_subclass__`` for every message.
    """
    known: Any = getattr(_machinery(), "_DYNAMIC_CLASS_TRACKER_BY_ID", {}).get(tracker)
    made: type = known if known is not None else maker(*arguments)
    return made


def set_class_state(cls: type, state: tuple[Any, Any]) -> None:
    """Give a received class its methods and attributes; one that was born here keeps its own."""
    if cls in _native:
        return
    _received.add(cls)
    setter, contents = state
    setter(cls, contents)


def _name_in_types(cls: type) -> str | None:
    """Types such as ``types.FunctionType`` say that they live in builtins, and do not."""
    if cls.__module__ != "builtins":
        return None
    import types

    return next((name for name, value in vars(types).items() if value is cls), None)


def member_of_types(name: str) -> Any:
    """A member of the module `types`."""
    import types

    return getattr(types, name)
