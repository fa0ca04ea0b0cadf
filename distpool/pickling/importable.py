"""Can the receiver import this? The question that decides between "by name" and "by value".

Used by the other rooms of pickling, in whatever thread pickles. Owns two caches: the verdict for each module, and the
functions and classes known to go by name. Both hold plain dicts whose single operations are atomic, so no lock: the
worst that two threads can do is find the same verdict twice.

A function or class goes by name when its module is one that a fresh interpreter with our ``sys.path`` would find at the
same place, and the name there leads to this very object. All else goes by value: ``__main__``, lambdas, things made
inside functions, modules that were put together by hand or loaded from a file that is not on the path. While processes
on other machines belong to the cluster, whose files are not ours, only libraries go by name: what is installed.
"""

from __future__ import annotations

import sys
import weakref
from types import FunctionType, ModuleType

from distpool.light import Any, Final

MAIN_NAMES: Final = frozenset({"__main__", "__mp_main__"})  # the second is multiprocessing's name for the same thing

# Opening a pickle that names only these runs no strange code. A short table on purpose: packages whose reconstruction
# functions are known to be harmless and common enough for the difference (packing items together) to matter.
WELL_BEHAVED: Final = frozenset(sys.stdlib_module_names) | {
    "dateutil", "distpool", "numpy", "pandas", "polars", "pyarrow", "pytz", "scipy", "sympy", "tblib",
}  # fmt: skip

_CACHE_LIMIT: Final = 4096  # arbitrary; more than any program has functions in flight, small enough never to matter

_by_name: dict[object, bool] = {}  # function or class that goes by name -> is it foreign (not well-behaved)
# Name of a module -> the module, the verdict, and sys.path at the time.
_modules: dict[str, tuple[weakref.ref[ModuleType], bool, tuple[str, ...]]] = {}


def is_foreign_name(module_name: object) -> bool:
    """Does this module lie outside the packages whose pickles open harmlessly?"""
    return not isinstance(module_name, str) or module_name.partition(".")[0] not in WELL_BEHAVED


def goes_by_name(obj: Any) -> bool:
    """Will the receiver find this very object by importing its module?"""
    if obj in _by_name:
        return True
    name = getattr(obj, "__qualname__", None) or getattr(obj, "__name__", None)
    module_name = getattr(obj, "__module__", None)
    if not isinstance(name, str) or not isinstance(module_name, str) or module_name in MAIN_NAMES:
        return False
    module = sys.modules.get(module_name)
    if module is None or _look_up(module, name) is not obj or not travels(module_name, module):
        return False
    if len(_by_name) >= _CACHE_LIMIT:
        _by_name.clear()  # reloaded modules would otherwise keep their old functions alive here for ever
    _by_name[obj] = is_foreign_name(module_name)
    return True


def foreign_if_known(obj: Any) -> bool | None:
    """For an object known to go by name: is it foreign? None: not known (ask `goes_by_name`)."""
    return _by_name.get(obj)


# Memberships of this process in clusters that have processes on other machines. Almost always empty.
_spread: weakref.WeakSet[object] = weakref.WeakSet()

known_functions = _by_name.get  # the same, without the cost of a Python call, for the one hot path


def forget_names() -> None:
    """Drop what is known: a module was reloaded, or a function in one was replaced."""
    _by_name.clear()
    _modules.clear()


def note_spread(membership: object, is_spread: bool) -> None:
    """Take note of whether a cluster of this process has processes on other machines, which do not share our files."""
    was_spread = bool(_spread)
    if is_spread:
        _spread.add(membership)
    else:
        _spread.discard(membership)
    if was_spread != bool(_spread):
        forget_names()


def _look_up(module: object, qualname: str) -> object:
    """What the receiver will get for this dotted name; None for anything inside a function."""
    found: Any = module
    for part in qualname.split("."):
        try:
            found = getattr(found, part)
        except Exception:  # lazy modules run code of their own here; whatever it raises means "not found"
            return None
    return found


def travels(name: str, module: ModuleType) -> bool:
    """Would a fresh interpreter with our ``sys.path`` import this module, from the same place?"""
    top = name.partition(".")[0]
    if top in sys.stdlib_module_names or top == "distpool":  # the handshake sees to that
        return True
    known = _modules.get(name)
    if known is not None and known[0]() is module and (known[1] or known[2] == tuple(sys.path)):
        return known[1]
    verdict = _would_be_found(name, module) and not (_spread and _is_file_of_the_users(module))
    if isinstance(module, ModuleType):  # stand-ins in sys.modules may not allow a weak reference
        _modules[name] = (weakref.ref(module), verdict, tuple(sys.path))
    return verdict


def _would_be_found(name: str, module: ModuleType) -> bool:
    if name in MAIN_NAMES or _registered_by_value(name):
        return False
    spec = getattr(module, "__spec__", None)
    parent_name = name.rpartition(".")[0]
    if not parent_name:
        return spec is not None and _found_at_same_place(name, spec, None)
    parent = sys.modules.get(parent_name)
    if parent is None or not travels(parent_name, parent):
        return False
    search = getattr(parent, "__path__", None)
    if spec is None or search is None:
        return True  # importing the parent makes it (submodules that extension modules register themselves)
    return _found_at_same_place(name, spec, search)


def _is_file_of_the_users(module: ModuleType) -> bool:
    """Not installed, or installed as a link to a folder of the user's: other machines need not have it."""
    path = getattr(module, "__file__", None)
    return isinstance(path, str) and "site-packages" not in path and "dist-packages" not in path


def _registered_by_value(name: str) -> bool:
    """Did the user ask cloudpickle to send this module by value? Then we do too."""
    cloudpickle: Any = sys.modules.get("cloudpickle")
    if cloudpickle is None:
        return False  # nobody can have registered anything
    asked = cloudpickle.list_registry_pickle_by_value()
    return any(name == each or name.startswith(each + ".") for each in asked)


def _found_at_same_place(name: str, spec: Any, search: Any) -> bool:
    for finder in list(sys.meta_path):
        try:
            found = finder.find_spec(name, search)
        except Exception:  # a finder that cannot answer is one the import system would not get far with either
            continue
        if found is not None:
            return _same_origin(getattr(found, "origin", None), getattr(spec, "origin", None))
    return False


def _same_origin(one: str | None, other: str | None) -> bool:
    if one is None or one == other:
        return True  # namespace packages have no origin
    if other is None:
        return False
    from os.path import realpath  # os.path is loaded in every process; this keeps the module's own imports few

    return realpath(one) == realpath(other)


def namespace_of(namespace: dict[str, Any]) -> str | None:
    """Where functions with these globals will find their globals at the receiver.

    ``"main"``: the receiver's own ``__main__``; ``"import:m"``: module m, imported there; ``"made:m"``: one namespace
    kept there for a module m that cannot be imported; None: a private dict that travels with the message (``exec``
    into a bare dict, the inside of named tuples).
    """
    name = namespace.get("__name__")
    if name in MAIN_NAMES or namespace is vars(sys.modules["__main__"]):
        return "main"
    if not isinstance(name, str):
        return None
    module = sys.modules.get(name)
    if module is not None and getattr(module, "__dict__", None) is namespace and travels(name, module):
        return "import:" + name
    return "made:" + name if "__spec__" in namespace else None  # only modules have a __spec__


def is_function(obj: object) -> bool:
    """A function written in Python."""
    return type(obj) is FunctionType
