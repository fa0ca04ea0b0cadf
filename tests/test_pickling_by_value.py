"""Code and globals of ``__main__`` between two real processes (the room `pickling`, without the rest of distpool).

Each scenario is a program of its own, so that ``__main__`` is what it is for users. It talks to a second process that
opens payloads, calls, and answers, with nothing but the functions under test on either side.
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

PEER = '''
"""The second process, and the scenario's end of the pipe to it."""
import pickle, struct, subprocess, sys
from distpool import pickling

def read(file):
    head = file.read(8)
    return pickle.loads(file.read(struct.unpack("<Q", head)[0])) if len(head) == 8 else None

def write(file, message):
    data = pickle.dumps(message)
    file.write(struct.pack("<Q", len(data)) + data)
    file.flush()

def writable(buffers):
    return [memoryview(bytearray(each)) for each in buffers]

class Peer:
    def __init__(self, name="peer"):
        command = [sys.executable, "-c", "import peer; peer.serve()"]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.sent = pickling.SentGlobals()
        self.shipped = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()

    def call(self, f, *args, **kwargs):
        parcel = pickling.dump((f, args, kwargs))
        flags, body, buffers = pickling.wrap(parcel, self.sent)
        self.shipped = sorted(name for name, *_ in pickle.loads(body[8:])) if flags else []
        write(self.process.stdin, (flags, body, [bytes(each) for each in buffers]))
        ok, flags, body, buffers = read(self.process.stdout)
        if ok:
            return pickling.load(*pickling.peel(flags, body, writable(buffers), self.sent))
        captured = pickling.load_exception(body, writable(buffers))
        self.text = captured.traceback
        raise captured.ex

def serve():
    back = pickling.SentGlobals()
    output, sys.stdout = sys.stdout.buffer, sys.stderr
    while (message := read(sys.stdin.buffer)) is not None:
        flags, body, buffers = message
        try:
            f, args, kwargs = pickling.load(*pickling.peel(flags, body, writable(buffers), back))
            flags, body, buffers = pickling.wrap(pickling.dump(f(*args, **kwargs)), back)
            ok = True
        except BaseException as error:
            parcel = pickling.dump_exception(error)
            ok, flags, body, buffers = False, 0, parcel.body, parcel.buffers
        write(output, (ok, flags, body, [bytes(each) for each in buffers]))
'''

Scenario = Callable[[str], None]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Where scenarios run; both of their processes can import `peer` from it, and nothing else of it."""
    library = tmp_path / "library"
    library.mkdir()
    (library / "peer.py").write_text(PEER)
    (library / "importable.py").write_text(
        "import math\ndef twice(x):\n    return 2 * x\nfactory = lambda n: lambda: n\n"
    )
    return tmp_path


def environment(directory: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(directory / "library")])}


def execute(directory: Path, command: list[str], source: str | None = None) -> None:
    done = subprocess.run(
        [sys.executable, *command],
        input=source,
        env=environment(directory),
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def scenario(directory: Path) -> Scenario:
    """Run the lines of a program; `p` in it is a fresh second process."""

    def run(lines: str) -> None:
        body = textwrap.indent(textwrap.dedent(lines), "    ")
        prelude, marker, rest = body.partition("    # --\n")
        if not marker:
            prelude, rest = "", body
        program = directory / "program.py"
        head = "from peer import Peer, pickling\nimport sys\n" + textwrap.dedent(prelude)
        program.write_text(f"{head}\nwith Peer() as p:\n{rest}\n")
        execute(directory, [str(program)])

    return run


# ------------------------------------------------------------------------------------------------ globals


@pytest.mark.case("C131")
def test_numbers_are_sent_again_with_each_new_value(scenario: Scenario) -> None:
    """C131: reassigned numbers arrive, and the name exists in the other process's main module."""
    scenario("""
    for v1 in range(1, 6):
        assert p.call(lambda: v1) == v1
    assert p.call(eval, "__import__('__main__').v1") == 5
    """)


@pytest.mark.case("C132")
def test_mutated_globals_are_sent_again(scenario: Scenario) -> None:
    """C132: a list changed in place arrives changed; two names bound to one object both arrive."""
    scenario("""
    v2 = [0]
    for i in range(5):
        v2[0] = i
        assert p.call(lambda: v2) == [i]
        assert p.shipped == ["v2"]
    v3 = v4 = [1, 2]
    assert p.call(lambda: v3) == p.call(lambda: v4) == [1, 2]
    assert p.call(lambda: v3 is v4) is False
    """)


@pytest.mark.case("C133")
def test_importable_things_as_globals(scenario: Scenario) -> None:
    """C133 (first half): types, modules and importable functions bound to names arrive by import."""
    scenario("""
    import collections, math, importable, os.path, concurrent.futures, xml.etree
    import xml.etree.ElementTree
    Counter = collections.Counter
    # --
    assert p.call(lambda: (Counter("aab")["a"], math.floor(2.5), importable.twice(4))) == (2, 2, 8)
    assert p.call(lambda: os.path.basename("a/b")) == "b"
    assert p.call(lambda: concurrent.futures.ThreadPoolExecutor.__name__) == "ThreadPoolExecutor"
    assert p.call(lambda: xml.etree.ElementTree.fromstring("<a/>").tag) == "a"
    """)


@pytest.mark.case("C133")
def test_global_that_cannot_travel_is_named(scenario: Scenario) -> None:
    """C133 (second half): the error at the call names the global and where in it the fault lies."""
    scenario("""
    import threading
    guard = threading.Lock()
    settings = {"deep": [1, {"lock": guard}]}
    def helper(): return settings
    # --
    for code, needle in [(lambda: guard, "'guard'"), (lambda: helper(), "'settings'")]:
        try:
            p.call(code)
        except TypeError as error:
            assert needle in str(error) and "_thread.lock" in str(error), error
        else:
            raise AssertionError(needle)
    try:
        p.call(lambda: helper())
    except TypeError as error:
        assert '["deep"][1]["lock"]' in str(error), error
    """)


@pytest.mark.case("C134", "C135")
def test_identity_counts(scenario: Scenario) -> None:
    """C134, C135: an equal but new object replaces the other one; a name may go a, b, a."""
    scenario("""
    v = [1, 2]
    read = lambda: v
    assert p.call(read) == [1, 2]
    assert p.call(lambda: v.append(3)) is None      # changes the copy over there, nothing here
    assert p.shipped == [] and p.call(read) == [1, 2, 3]
    v = [1, 2]
    assert p.call(read) == [1, 2] and p.shipped == ["v"]
    for text in ["a", "b", "a"]:
        v = text
        assert p.call(read) == text
    """)


@pytest.mark.case("C136")
def test_unchanged_globals_are_sent_once(scenario: Scenario) -> None:
    """C136: five calls without change transfer once, with changes five times; three mentions in one call once."""
    scenario("""
    class Counted:
        def __init__(self): self.content = 0
        def __setstate__(self, state):
            import builtins
            builtins.arrivals = getattr(builtins, "arrivals", 0) + 1
            self.__dict__ = state
    counted = Counted()
    arrivals = "__import__('builtins').arrivals"
    # --
    for _ in range(5):
        p.call(lambda: counted.content)
    assert p.call(eval, arrivals) == 1
    for i in range(5):
        counted.content = i + 1
        assert p.call(lambda: counted.content) == i + 1
    assert p.call(eval, arrivals) == 6
    other = Counted()
    p.call(lambda: (other.content, other.content, [other.content for _ in range(2)]))
    assert p.call(eval, arrivals) == 7
    """)


@pytest.mark.case("C137")
def test_global_functions_use_global_functions(scenario: Scenario) -> None:
    """C137: what the globals mention travels too, however deep."""
    scenario("""
    base = 10
    f1 = lambda x: x + base
    f2 = lambda x: f1(x)
    # --
    assert p.call(f2, 1) == 11 and p.shipped == ["base", "f1"]
    assert p.call(lambda v: f2(v), 2) == 12 and p.shipped == ["f2"]
    assert p.call(f2, 1) == 11 and p.shipped == []
    base = 20
    assert p.call(f2, 1) == 21
    """)


@pytest.mark.case("C138")
def test_locals_stay_out_of_main(scenario: Scenario) -> None:
    """C138: captured local variables arrive, and leave no name in the other main module."""
    scenario("""
    def outer():
        local_value, helper = [1, 2], (lambda x: x + 1)
        return lambda: [helper(each) for each in local_value]
    # --
    assert p.call(outer()) == [2, 3]
    names = p.call(eval, "sorted(vars(__import__('__main__')))")
    assert not {"local_value", "helper", "outer"} & set(names), names
    """)


@pytest.mark.case("C139", "C140")
def test_names_that_only_the_other_process_has(scenario: Scenario) -> None:
    """C139, C140: names unknown here are left alone there; state in them persists between calls."""
    scenario("""
    p.call(exec, "import __main__; __main__.only_there = 3; __main__.count = 0")
    assert p.call(lambda: only_there) == 3
    def increment():
        global count
        count += 1
        return count
    assert [p.call(increment) for _ in range(3)] == [1, 2, 3]
    try:
        p.call(lambda: nowhere)
    except NameError as error:
        assert "nowhere" in str(error)
    else:
        raise AssertionError
    """)


def test_placeholder_does_not_overwrite_what_was_computed_there(scenario: Scenario) -> None:
    """An initializer that sets a global works, although the name is bound to None here."""
    scenario("""
    model = None
    def load():
        global model
        model = "loaded"
    def use(): return model
    # --
    p.call(load)
    assert p.call(use) == "loaded" and model is None
    model = "newer"
    assert p.call(use) == "newer"
    """)


@pytest.mark.case("C141")
def test_nothing_flows_back(scenario: Scenario) -> None:
    """C141: three processes, three values."""
    scenario("""
    with Peer() as q:
        A = 1
        assert p.call(lambda: A) == 1
        A = 2
        assert q.call(lambda: A) == 2
        A = None
        assert p.call(eval, "__import__('__main__').A") == 1
        assert q.call(eval, "__import__('__main__').A") == 2 and A is None
    """)


def test_returned_functions_do_not_bring_old_globals_back(scenario: Scenario) -> None:
    """A name received on a connection is not sent back on it while nobody changed it there."""
    scenario("""
    x = 1
    def make(): return lambda: x
    # --
    f = p.call(make)
    x = 2
    g = p.call(make)
    assert (x, f(), g()) == (2, 2, 2)
    x = 3
    assert f() == 3
    """)


@pytest.mark.case("C144")
def test_redefinition_takes_effect(scenario: Scenario) -> None:
    """C144: the code of the caller runs, also for functions and classes that others mention."""
    scenario("""
    def work(): return helper(), Kind().name
    def helper(): return 1
    class Kind: name = "old"
    # --
    assert p.call(work) == (1, "old") and p.shipped == ["Kind", "helper"]
    assert p.call(work) == (1, "old") and p.shipped == []
    def helper(): return 2
    class Kind: name = "new"
    assert p.call(work) == (2, "new")
    """)


@pytest.mark.case("C146")
def test_from_worker_to_worker(scenario: Scenario) -> None:
    """C146: a function that came by value goes on by value, with the globals of the process it came to."""
    scenario("""
    def deep(): return (where, sys.argv)
    def hop():
        global where
        where = "second"
        with Peer() as q:
            return q.call(deep), q.call(lambda: where)
    where = "first"
    # --
    assert p.call(hop)[1] == "second" and p.call(hop)[0][0] == "second"
    assert where == "first"
    """)


# ------------------------------------------------------------------------------------------------ code


def test_kinds_of_functions(scenario: Scenario) -> None:
    """Defaults, attributes, closures, recursion, generators, partials, decorators, methods."""
    scenario("""
    import asyncio, functools
    def full(a, /, b=[1], *, c={"k": 2}) -> "text":
        "the doc"
        return a, b, c
    full.mark = "attribute"
    def fact(n): return n * fact(n - 1) if n else 1
    def even(n): return True if n == 0 else odd(n - 1)
    def odd(n): return False if n == 0 else even(n - 1)
    def local_recursion():
        def a(n): return n and b(n - 1)
        def b(n): return n and a(n - 1)
        def counter():
            total = 0
            def add(n):
                nonlocal total
                total += n
            def get(): return total
            return add, get
        return a, counter()
    def logged(f):
        @functools.wraps(f)
        def inner(*args): return ("logged", f(*args))
        return inner
    @logged
    def decorated(x): "mine"; return x
    @functools.lru_cache(maxsize=7)
    def cached(x): return [x]
    def numbers(n):
        for i in range(n): yield i
    async def later(x): return x
    def awaited(x): return asyncio.run(later(x))
    def describe(f): return f.__name__, f.__qualname__, f.__module__, f.__doc__, f.__annotations__, f.__dict__
    def use_pair(pair): pair[0](5); pair[0](6); return pair[1]()
    class Box:
        def __init__(self, v): self.v = v
        def get(self, k=0): return self.v + k
        @staticmethod
        def st(x): return x
        @classmethod
        def cl(cls): return cls.__name__
    # --
    assert p.call(full, 1) == (1, [1], {"k": 2})
    assert p.call(describe, full) == describe(full)
    assert p.call(fact, 5) == 120 and p.call(even, 7) is False
    a, pair = local_recursion()
    assert p.call(a, 3) == 0
    assert p.call(use_pair, pair) == 11       # two closures over one variable still share it
    assert p.call(decorated, 1) == ("logged", 1)
    assert p.call(describe, decorated)[:4] == ("decorated", "decorated", "__main__", "mine")
    assert p.call(cached, 1) == [1]
    assert p.call(lambda: (cached(1) is cached(1), cached.cache_parameters()["maxsize"])) == (True, 7)
    assert p.call(lambda n: list(numbers(n)), 3) == [0, 1, 2] and p.call(awaited, 4) == 4
    assert p.call(functools.partial(full, 9, c=0)) == (9, [1], 0)
    assert p.call(Box(3).get, k=2) == 5 and p.call(Box.st, 1) == 1 and p.call(Box.cl) == "Box"
    assert p.call(Box.get, Box(1)) == 1
    Box.extra = lambda self: self.v * 2
    assert p.call(Box(4).extra) == 8
    """)


def test_kinds_of_classes(scenario: Scenario) -> None:
    """Inheritance, super, dataclasses, enums, named tuples, abstract and generic classes, and their instances."""
    scenario("""
    import abc, collections, dataclasses, enum, typing
    factor = 3
    class Base:
        def __init__(self, v): self.v = v
        def value(self): return self.v
    class Derived(Base):
        __slots__ = ("w",)
        def value(self): return super().value() * factor
        @property
        def double(self): return self.v * 2
    @dataclasses.dataclass(order=True)
    class Point:
        x: int
        y: list = dataclasses.field(default_factory=list)
    @dataclasses.dataclass(frozen=True)
    class Frozen:
        x: int = 1
    class Colour(enum.Enum):
        RED = 1
        BLUE = "b"
    class Flag(enum.IntFlag):
        A = 1
        B = 2
    Pair = collections.namedtuple("Pair", "a b")
    class Typed(typing.NamedTuple):
        a: int
        b: str = "x"
    class Shape(abc.ABC):
        @abc.abstractmethod
        def area(self): ...
    class Square(Shape):
        def area(self): return 4
    T = typing.TypeVar("T")
    class Stack(typing.Generic[T]):
        def push(self, x: T) -> T: return x
    UserId = typing.NewType("UserId", int)
    def same(x): return x
    # --
    d = Derived(2); d.w = 5
    assert p.call(lambda o: (o.value(), o.double, o.w, isinstance(o, Base)), d) == (6, 4, 5, True)
    values = [Point(1, [2]), Frozen(2), Colour.RED, Flag.A | Flag.B, Pair(1, 2), Typed(1), {Colour.BLUE: Frozen()}]
    back = p.call(same, values)
    assert back == values
    assert [type(each) for each in back] == [type(each) for each in values]
    assert back[2] is Colour.RED
    assert p.call(lambda: Point(3) < Point(4)) and p.call(lambda: Colour["RED"]) is Colour.RED
    assert p.call(lambda: dataclasses.fields(Point)[0].default is dataclasses.MISSING)
    assert p.call(lambda: dataclasses.replace(Frozen(4), x=5)) == Frozen(5)
    assert p.call(Square().area) == 4 and isinstance(p.call(Square), Shape)
    assert p.call(Stack().push, 1) == 1 and p.call(lambda: UserId(3)) == 3
    assert isinstance(p.call(same, Square()), Square)
    """)


def test_class_state_is_not_overwritten_by_a_return(scenario: Scenario) -> None:
    """A class is the property of the process it was born in; elsewhere it follows the sender, as one object."""
    scenario("""
    registered = []
    class Base:
        def __init_subclass__(cls): registered.append(cls.__name__)
    class Counter(Base):
        count = 0
    def bump(instance):
        Counter.count += 1
        return instance
    # --
    Counter.count = 5
    instance = p.call(bump, Counter())
    assert type(instance) is Counter and Counter.count == 5 and registered == ["Counter"]
    Counter.label = "added later"
    assert p.call(lambda: Counter.label) == "added later"
    """)


def test_class_defined_there_comes_here(scenario: Scenario) -> None:
    """Instances of classes that exist only in the other process arrive with their class, and go back to it."""
    scenario("""
    def define():
        import __main__
        exec("class There:\\n    def who(self): return 'there'", vars(__main__))
        return __main__.There()
    # --
    there = p.call(define)
    assert there.who() == "there"
    assert p.call(lambda o: type(o) is sys.modules["__main__"].There, there)
    """)


def test_functions_of_modules_nobody_can_import(scenario: Scenario) -> None:
    """Modules made by hand, or loaded from outside the path: by value, with one namespace for each module."""
    scenario("""
    import importlib.util, pathlib, types
    lines = ["n = 5", "def get(): return n", "def put(v):", "    global n", "    n = v", "class K: pass"]
    pathlib.Path("plugin.py").write_text(chr(10).join(lines))
    spec = importlib.util.spec_from_file_location("plugin", "plugin.py")
    plugin = importlib.util.module_from_spec(spec)
    sys.modules["plugin"] = plugin
    spec.loader.exec_module(plugin)
    sys.path.remove(sys.path[0])        # the directory of this program
    made = types.ModuleType("made")
    exec("k = 1\\ndef up():\\n    global k\\n    k += 1\\n    return k\\ndef look():\\n    return k", made.__dict__)
    bare = {}
    exec("z = 4\\ndef f(): return g() + z\\ndef g(): return 1", bare)
    # --
    assert p.call(plugin.get) == 5
    p.call(plugin.put, 6)
    assert p.call(plugin.get) == 6 and plugin.n == 5
    assert type(p.call(plugin.K)) is plugin.K
    assert p.call(lambda: plugin.get()) == 6
    assert p.call(made.up) == 2 and p.call(made.look) == 2 and made.k == 1
    assert p.call(bare["f"]) == 5
    assert p.call(eval, "'plugin' in __import__('sys').modules") is False
    """)


def test_lambdas_of_importable_modules_use_the_module_there(scenario: Scenario) -> None:
    """Nested functions and lambdas of an importable module see its globals at the receiver, not copies."""
    scenario("""
    import importable
    # --
    assert p.call(importable.factory(3)) == 3
    assert p.call(lambda f: f.__globals__ is sys.modules["importable"].__dict__, importable.factory(1))
    """)


def test_code_object_is_kept_at_the_receiver(scenario: Scenario) -> None:
    """The same lambda sent again has the same code object there, so that the interpreter's specialisation pays."""
    scenario("""
    f = lambda: 1
    def identity_of_code(g): return id(g.__code__)
    # --
    assert p.call(identity_of_code, f) == p.call(identity_of_code, f)
    """)


@pytest.mark.parametrize("way", ["-c", "stdin", "-m"])
def test_programs_without_a_file(directory: Path, way: str) -> None:
    """``python -c``, a program from standard input, and ``python -m package.module`` with relative imports."""
    program = textwrap.dedent("""
        from peer import Peer
        scale = 2
        class Box:
            def __init__(self, v): self.v = v
        def work(x): return Box(x * scale)
        with Peer() as p:
            assert p.call(work, 4).v == 8 and type(p.call(work, 1)) is Box
    """)
    if way == "-c":
        execute(directory, ["-c", program])
    elif way == "stdin":
        execute(directory, ["-"], program)
    else:
        package = directory / "library" / "package"
        package.mkdir()
        (package / "__init__.py").write_text("")
        (package / "sibling.py").write_text("def seven():\n    return 7\n")
        relative = "def local():\n    from .sibling import seven\n    return seven()\n"
        (package / "program.py").write_text(relative + program + "    assert p.call(local) == 7\n")
        execute(directory, ["-m", "package.program"])


# ------------------------------------------------------------------------------------------------ failures


@pytest.mark.case("C080", "C083")
def test_exceptions_of_main_with_their_traceback(scenario: Scenario) -> None:
    """C080, C083: the failing function is the innermost frame; classes of either main module arrive as themselves."""
    scenario("""
    import traceback
    class Two(Exception):
        def __init__(self, a, b):
            super().__init__(f"{a} and {b}")
            self.a, self.b = a, b
    def foo():
        try:
            1 / 0
        except ZeroDivisionError as error:
            raise Two(1, 2) from error
    def define():
        import __main__
        exec("class Theirs(Exception): pass", vars(__main__))
        raise __main__.Theirs("only there")
    # --
    try:
        p.call(foo)
    except Two as error:
        assert (error.a, error.b, str(error)) == (1, 2, "1 and 2")
        assert isinstance(error.__cause__, ZeroDivisionError)
        frames = traceback.extract_tb(error.__traceback__)
        assert frames[-1].name == "foo" and frames[-1].filename.endswith("program.py"), frames
        assert "Two: 1 and 2" in p.text and "ZeroDivisionError" in p.text
    try:
        p.call(define)
    except Exception as error:
        assert type(error).__name__ == "Theirs" and str(error) == "only there"
    else:
        raise AssertionError
    """)


def test_numpy_like_buffers_arrive_writable(scenario: Scenario) -> None:
    """Large arrays travel beside the pickle and can be written to, unless they could not here."""
    pytest.importorskip("numpy")
    scenario("""
    import numpy
    big = numpy.arange(10_000.0)
    fixed = numpy.arange(10_000.0); fixed.flags.writeable = False
    def write(array):
        array[0] = 7
        return array
    # --
    back = p.call(write, big)
    assert back[0] == 7 and big[0] == 0 and back.flags.writeable
    assert p.call(lambda a: a.flags.writeable, fixed) is False
    assert p.call(lambda: big.sum()) == big.sum()
    big[1] = 100
    assert p.call(lambda: big[1]) == 100
    """)
