"""One mechanism for each thing: what a second one would look like is not in the code."""

from __future__ import annotations

import ast
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import isolate
from isolate.engine.plan import Plan
from isolate.kernel import checks, namespaces
from isolate.sandbox import arun, process, run, starting, words

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKAGE = Path(isolate.__file__).parent
TREES = {str(path.relative_to(PACKAGE)): ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))}


def nodes(*kinds: type[ast.AST]) -> Iterator[tuple[str, ast.AST]]:
    for name, tree in TREES.items():
        yield from ((name, node) for node in ast.walk(tree) if isinstance(node, kinds))


def called(node: ast.AST) -> str:
    if not isinstance(node, ast.Call):
        return ""
    return node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")


# ---- ops -------------------------------------------------------------------------------------------------------------


def comparing_nothing(node: ast.AST) -> bool:
    return called(node) == "Test" and isinstance(node, ast.Call) and isinstance(node.args[0], ast.Constant)


def test_a_jump_is_a_jump() -> None:
    """``Jump`` and ``Fail`` say what a comparison of two constants would only mean."""
    assert comparing_nothing(ast.parse("Test(0, 1, label=end)", mode="eval").body)
    assert [f"{name}:{node.lineno}" for name, node in nodes(ast.Call) if comparing_nothing(node)] == []  # type: ignore[attr-defined]


# ---- sentences -------------------------------------------------------------------------------------------------------


def second_form(node: ast.AST) -> bool:
    """Whether an error says "an int is wanted", and not "size must be an int"."""
    words = "".join(str(each.value) for each in ast.walk(node) if isinstance(each, ast.Constant))
    return isinstance(node, ast.Raise) and any(form in words for form in (" is wanted", " are wanted"))


def test_refused_values_have_one_sentence() -> None:
    """``<name> must be <what>, not <what was given>``."""
    assert second_form(ast.parse("raise TypeError(f'size: an int is wanted, not {size!r}')").body[0])
    assert [f"{name}:{node.lineno}" for name, node in nodes(ast.Raise) if second_form(node)] == []  # type: ignore[attr-defined]


# ---- kinds of namespaces ---------------------------------------------------------------------------------------------

_NAMES = {kind.file for kind in namespaces.KINDS} | {kind.word for kind in namespaces.KINDS}
_FLAGS = {int(kind.flag) for kind in namespaces.KINDS}


def tells_kinds(node: ast.AST) -> bool:
    """Whether a literal has the kernel's names of five kinds, or the flags of five."""
    keys = node.keys if isinstance(node, ast.Dict) else getattr(node, "elts", [])
    values = node.values if isinstance(node, ast.Dict) else []
    words = [each.value for each in (*keys, *values) if isinstance(each, ast.Constant)]
    flags = [each.id for each in keys if isinstance(each, ast.Name) and each.id.startswith("CLONE_NEW")]
    return len(set(words) & _NAMES) > 4 or len(set(words) & _FLAGS) > 4 or len(flags) > 4


def test_one_table_of_the_kinds_of_namespaces() -> None:
    for second in (
        '{0x20000: "mnt", 0x4000000: "uts", 0x8000000: "ipc", 1: "user", 2: "time"}',
        '("cgroup", "ipc", "mnt", "net", "pid", "time", "uts")',
        "{0x20000, 0x80, 0x4000000, 0x8000000, 0x10000000}",
    ):
        assert tells_kinds(ast.parse(second, mode="eval").body)
    found = {name for name, node in nodes(ast.Dict, ast.Tuple, ast.List, ast.Set) if tells_kinds(node)}
    # Rows of the doctor's output, with a sentence for each; and where the flags themselves are defined.
    assert found <= {"tools/doctor/attempts.py", "kernel/constants.py"}


def test_the_table_is_the_kernels() -> None:
    """Each kind that this kernel has is in the table, and its files bear these names."""
    here = {path.name for path in Path("/proc/self/ns").iterdir()}
    told = {kind.file for kind in namespaces.KINDS} | {kind.for_children for kind in namespaces.KINDS}
    assert here <= told
    limits = {path.name for path in Path("/proc/sys/user").glob("max_*_namespaces")}
    assert limits <= {f"max_{kind.limit}" for kind in namespaces.KINDS}
    for kind in namespaces.KINDS:
        assert namespaces.by_flag(kind.flag) is namespaces.by_file(kind.file) is namespaces.by_word(kind.word) is kind


# ---- data instead of recognition -------------------------------------------------------------------------------------


def by_name(node: ast.AST) -> bool:
    """``step.text.startswith(…)``, ``"…" in error.step``, ``type(part).__name__ == "…"``: told by words for people."""

    def is_told(value: ast.AST) -> bool:
        return isinstance(value, ast.Attribute) and (
            (value.attr == "__name__" and called(value.value) == "type")
            or (value.attr == "text" and isinstance(value.value, ast.Name) and "step" in value.value.id)
            or (value.attr == "step" and isinstance(value.value, ast.Name) and value.value.id in ("error", "failure"))
        )

    if isinstance(node, ast.Compare):
        sides = [node.left, *node.comparators]
        return any(map(is_told, sides)) and any(isinstance(side, (ast.Constant, ast.Tuple)) for side in sides)
    method = node.func if isinstance(node, ast.Call) else None
    return isinstance(method, ast.Attribute) and method.attr in ("startswith", "endswith") and is_told(method.value)


def test_nothing_is_recognised_by_its_words() -> None:
    for old in (
        'error.step.startswith("execute ")',
        '"oom_score_adj" in step.text',
        'type(part).__name__ == "UserNamespace"',
        'type(part).__name__.endswith("Namespace")',
    ):
        assert by_name(ast.parse(old, mode="eval").body), old
    found = [f"{name}:{node.lineno}" for name, node in nodes(ast.Compare, ast.Call) if by_name(node)]  # type: ignore[attr-defined]
    # Of a Dockerfile's step, text is the file's own.
    assert [place for place in found if not place.startswith("build/")] == []


# ---- a plan is a value -----------------------------------------------------------------------------------------------


def test_nothing_changes_a_plan() -> None:
    plan = Plan([isolate.NoNewPrivs()], euid=0, egid=0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.steps = ()  # type: ignore[misc]
    less = Plan.of(plan.parts, plan.context, plan.rows[:1])
    assert (len(less.steps), less.owners) == (1, plan.owners[:1])


def test_one_sorter_and_no_second_kind_of_plan() -> None:
    """A plan for a command, a further program or the calling thread is a Plan of other steps: no class of its own."""
    bases = [(name, base) for name, node in nodes(ast.ClassDef) for base in node.bases if isinstance(base, ast.Name)]  # type: ignore[attr-defined]
    assert [name for name, base in bases if base.id in ("Plan", "Context") and "build" not in name] == []
    sorting = [
        f"{name}:{node.lineno}"  # type: ignore[attr-defined]
        for name, node in nodes(ast.Call)
        if called(node) in ("sorted", "sort") and "phase" in ast.unparse(node)
    ]
    # Of a divided plan: which of two processes is first is asked, and nothing put in order.
    assert [place for place in sorting if not place.startswith("engine/dividing")] == []
    assert "sorted" in ast.unparse(TREES["engine/plan.py"])


# ---- one reader of values --------------------------------------------------------------------------------------------


def test_one_guard_against_bool() -> None:
    """``is_int`` and ``is_number``: nobody else asks both for a bool and for a number."""

    def kinds(node: ast.AST) -> set[str]:
        asked = [each for each in ast.walk(node) if called(each) == "isinstance" and isinstance(each, ast.Call)]
        return {name.id for each in asked for name in ast.walk(each.args[1]) if isinstance(name, ast.Name)}

    assert kinds(ast.parse("isinstance(x, bool) or not isinstance(x, int)", mode="eval").body) == {"bool", "int"}
    found = {name for name, node in nodes(ast.BoolOp) if {"bool", "int"} <= kinds(node)}
    assert found <= {"kernel/checks.py"}, found


def test_one_grammar_of_sizes() -> None:
    """Whatever takes a size takes the same words, and nobody else has a table of their units."""
    units = [
        name for name, node in nodes(ast.Dict) if {"K", "M", "G"} <= {getattr(key, "value", None) for key in node.keys}
    ]  # type: ignore[attr-defined]
    assert set(units) <= {"kernel/checks.py"}, units
    for word, size in {"64MiB": 64 << 20, "1.5G": 3 << 29, "8.3M": 8703180, "1048576": 1 << 20}.items():
        assert checks.size("size", word) == size
        isolate.Tmpfs("/tmp", size=word)
        isolate.Limits(memory=word)
        isolate.Rlimits(fsize=word)
        isolate.Root(size=word)
    for none in ("max", "unlimited"):
        isolate.Limits(memory=none)
        isolate.Rlimits(fsize=none)
    for word in ("64 elephants", "1.5.5G", "-1M", ""):
        for make in (
            lambda word=word: isolate.Tmpfs("/tmp", size=word),
            lambda word=word: isolate.Limits(memory=word),
            lambda word=word: isolate.Rlimits(fsize=word),
        ):
            with pytest.raises(ValueError, match="a size such as '256M'"):
                make()  # type: ignore[no-untyped-call]


def test_one_description_of_a_start() -> None:
    """What type checkers are told of the verbs' keywords is what they take, and each has a default."""
    each = set(words.StartOptions.__annotations__)
    assert each | {"text", "encoding"} == set(starting._DEFAULTS)
    for verb, described, overloaded in (
        (run, words.RunOptions, {"input", "text", "encoding"}),
        (arun, words.RunOptions, {"input", "text", "encoding"}),
        (process, words.SpawnOptions, set()),
    ):
        taken = set(starting._DEFAULTS) | set(verb.OWN)
        told = set(described.__annotations__) | each | overloaded
        assert told == taken, (verb.__name__, told ^ taken)
