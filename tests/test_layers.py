"""The shape of the code: imports point down, names that are private stay at home, modules have a readable size."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import isolate

PACKAGE = Path(isolate.__file__).parent
TABLES = {"isolate.kernel.syscall_table"}  # generated: data, not something to read

# Each imports only what stands below it. Two nouns stand side by side: an import between them is judged by the graph.
FACE = {"__init__", "__main__", "plan", "syscalls", "result"}
NOUNS = {"namespaces", "capabilities", "seccomp", "cgroups", "mounts", "landlock", "attributes", "network"}
BELOW = [{"errors", "_native"}, {"kernel"}, {"engine"}, {"thread"}, {"diagnosis"}]
# Images stand above the sandbox: archives are unpacked in one.
LAYERS = [*BELOW, NOUNS, {"sandbox"}, {"images"}, {"build"}, {"presets"}, {"tools"}, FACE]


def modules() -> dict[str, Path]:
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = ("isolate", *path.relative_to(PACKAGE).with_suffix("").parts)
        found[".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 2 else parts)] = path
    return found


MODULES = modules()


def subject(module: str) -> str:
    """The first word below the package: ``isolate.cgroups.v1`` is of ``cgroups``."""
    words = module.split(".")
    return words[1] if len(words) > 1 else "__init__"


def layer(module: str) -> int:
    return next(index for index, names in enumerate(LAYERS) if subject(module) in names)


def imports(tree: ast.AST, module: str) -> list[tuple[str, str, int]]:
    """(module, name, line) of each import: at the top, in functions, and for type checkers alone."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, "", node.lineno) for alias in node.names if alias.name.split(".")[0] == "isolate"]
        elif isinstance(node, ast.ImportFrom):
            source = node.module or ""
            if node.level:
                up = node.level - (MODULES[module].name == "__init__.py")
                source = ".".join([*module.split(".")[: -up or None], *source.split(".")]).rstrip(".")
            if source.split(".")[0] == "isolate":
                for alias in node.names:
                    whole = f"{source}.{alias.name}"
                    # The extension is a module, too: to import it is not to import the face.
                    is_module = whole in MODULES or whole == "isolate._native"
                    found.append((whole, "", node.lineno) if is_module else (source, alias.name, node.lineno))
    return found


def each_import() -> list[tuple[str, str, str, int]]:
    return [(module, *row) for module, path in MODULES.items() for row in imports(ast.parse(path.read_text()), module)]


EVERY = each_import()


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """The strongly connected components of more than one node (Tarjan): within each, everything imports everything."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in sorted(graph[node]):
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            component = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(component) > 1:
                found.append(sorted(component))

    for node in graph:
        if node not in index:
            visit(node)
    return found


def test_imports_are_found() -> None:
    """The walk sees what it is to judge: at the top, within functions, and what is for type checkers alone."""
    tree = ast.parse(
        "from isolate.engine.plan import Step\nif TYPE_CHECKING:\n    from isolate.sandbox.box import Sandbox\n"
        "def f():\n    import isolate.sandbox.process\n    from isolate import _native\n"
    )
    assert sorted(imports(tree, "isolate.x"), key=lambda row: row[2]) == [
        ("isolate.engine.plan", "Step", 1),
        ("isolate.sandbox.box", "Sandbox", 3),
        ("isolate.sandbox.process", "", 5),
        ("isolate._native", "", 6),
    ]


def test_circles_are_found() -> None:
    graph = {"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set(), "e": {"a", "f"}, "f": {"e"}}
    assert circles(graph) == [["b", "c"], ["e", "f"]]


def test_one_of_each_layer() -> None:
    one_of_each = (
        "errors",
        "kernel.paths",
        "engine.tape",
        "thread.blocks",
        "diagnosis.host",
        "mounts.bind",
        "sandbox.box",
    )
    assert [layer(f"isolate.{name}") for name in one_of_each] == list(range(7))


def test_imports_point_down() -> None:
    wrong = [
        f"{module}:{line} imports {imported} from above"
        for module, imported, name, line in EVERY
        if imported != "isolate" and layer(imported) > layer(module)
    ]
    assert wrong == []


def test_only_what_a_person_touches_imports_the_package_itself() -> None:
    """``from isolate import X`` below would run the whole package's imports and hide which module is meant."""
    wrong = [
        f"{module}:{line}: from isolate import {name}"
        for module, imported, name, line in EVERY
        if imported == "isolate" and layer(module) < len(LAYERS) - 2
    ]
    assert wrong == []


def test_nouns_keep_their_internals_to_themselves() -> None:
    wrong = [
        f"{module}:{line}: {imported} {name}"
        for module, imported, name, line in EVERY
        if subject(module) != subject(imported)
        and (name.startswith("_") or any(part.startswith("_") for part in imported.split(".")[2:]))
    ]
    assert wrong == []


def test_no_circles() -> None:
    """No module imports, by way of others, itself: also not in a function, and not for type checkers alone."""
    graph: dict[str, set[str]] = {module: set() for module in MODULES}
    for module, imported, _, _ in EVERY:
        if imported in graph and imported != module:
            graph[module].add(imported)
    assert circles(graph) == []


def test_the_picture_of_the_layers_is_theirs() -> None:
    page = (Path(__file__).parents[1] / "docs" / "design.rst").read_text()
    drawn = page.split("the one that it checks::\n")[1].strip("\n").split("\n\n")[0].splitlines()
    names = [set(line.strip().split("   ")[0].split()) for line in drawn]
    assert names == [set(layer) for layer in reversed(LAYERS)]


def test_what_the_walks_name_is_there() -> None:
    page = (Path(__file__).parents[1] / "docs" / "design.rst").read_text()
    walks = page.split("Three walks\n")[1].split("A part of yours")[0]
    named = re.findall(r"``((?:_native/)?[\w/]+\.(?:py|c))``", walks)
    assert len(named) > 15
    root = PACKAGE.parent if (PACKAGE.parent / "_native").is_dir() else Path(__file__).parents[1]
    assert [n for n in named if not (root / n if n.startswith("_native") else PACKAGE / n).is_file()] == []


def test_few_modules_beside_the_packages() -> None:
    beside = [path.stem for path in PACKAGE.glob("*.py")]
    assert len(beside) <= 8, beside


def test_no_ctypes_anywhere() -> None:
    wrong = [
        f"{module}: {name}"
        for module, path in MODULES.items()
        for node in ast.walk(ast.parse(path.read_text()))
        for name in (
            [a.name for a in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
        if name.split(".")[0] == "ctypes"
    ]
    assert wrong == []


def _lines_of_code(path: Path) -> int:
    """Lines but those of docstrings: lists of parameters and examples make no module harder to find one's way in."""
    text = path.read_text()
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    strings = [
        node.body[0]
        for node in ast.walk(ast.parse(text))
        if isinstance(node, documented) and ast.get_docstring(node, clean=False) is not None
    ]
    return len(text.splitlines()) - sum((string.end_lineno or 0) - string.lineno + 1 for string in strings)


def test_size_of_modules() -> None:
    sizes = {m: _lines_of_code(p) for m, p in MODULES.items() if m not in TABLES}
    long = {m: n for m, n in sizes.items() if n > 400}
    print("longer than 400 lines:", long)
    assert max(sizes.values()) <= 520, long
    assert len(long) <= len(sizes) // 8, long


def test_the_formatter_is_obeyed() -> None:
    """What it is told to skip is a table or the image of a struct, and says so."""
    root = Path(__file__).parents[1]
    skip = "# fmt: " + "skip"
    rows = [
        f"{path.relative_to(root)}:{number}: {line.strip()}"
        for folder in ("isolate", "tests", "benchmarks", "_native", "examples")
        for path in sorted((root / folder).rglob("*.py"))
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if skip in line
    ]
    assert [row for row in rows if not re.search(skip + r"  # \w", row)] == []
    assert len(rows) <= 12, rows


# ---- the public surface ------------------------------------------------------------------------------------------

CONTRACT = """
    Sandbox UserNamespace MountNamespace PidNamespace NetNamespace IpcNamespace UtsNamespace CgroupNamespace
    TimeNamespace Root Bind Tmpfs Overlay Proc Sys Dev Mqueue File Dir Symlink Mask ReadOnly
    Limits Cgroup Capabilities Cap Seccomp Landlock NoNewPrivs Rlimits Credentials Result Verdict Process Part
    IsolateError SetupError UnsupportedError IrreversibleError ThreadedError ConflictError RestoreError
"""


@pytest.mark.parametrize("name", CONTRACT.split())
def test_name_of_the_contract(name: str) -> None:
    assert name in isolate.__all__
    assert getattr(isolate, name).__doc__


def test_everything_public_is_there_and_documented() -> None:
    assert len(set(isolate.__all__)) == len(isolate.__all__)
    for name in isolate.__all__:
        value = getattr(isolate, name)
        assert not name.startswith("_") or name == "__version__"
        if isinstance(value, type) or callable(value):
            assert value.__doc__, name
    assert set(isolate.__all__) <= set(dir(isolate))


def test_the_package_only_re_exports() -> None:
    """No logic in ``__init__``: imports, names, and at most the function that loads them when they are first used."""
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            assert node.name in ("__getattr__", "__dir__"), node.name
        else:
            allowed = (ast.Import, ast.ImportFrom, ast.Assign, ast.AnnAssign, ast.If, ast.Expr)
            assert isinstance(node, allowed), ast.dump(node)


def test_importing_stays_light() -> None:
    """What a program that only says ``import isolate`` would notice in its start-up time is not there."""
    heavy = ["asyncio", "json", "ctypes", "typing_extensions", "cffi", "logging", "urllib", "socketserver", "email"]

    def loaded(name: str) -> set[str]:
        script = f"import subprocess, {name}, sys; print(*[m for m in {heavy} if m in sys.modules])"
        done = subprocess.run([sys.executable, "-I", "-c", script], capture_output=True, text=True, check=True)
        return set(done.stdout.split())

    bare = loaded("sys")  # an environment's own start-up may load some
    assert loaded("json") - bare == {"json"} - bare
    assert loaded("isolate") == bare


def test_a_first_start_loads_what_it_uses_alone() -> None:
    """No namespaces where none is named, and no compiler for the small filter that is there by default."""
    kinds = ["namespaces", "seccomp.compiler", "seccomp.rules", "seccomp.audit", "sandbox.hints", "engine.explain"]

    def loaded(box: str) -> set[str]:
        script = (
            f"import sys, isolate; assert isolate.{box}.run(['true']).ok\n"
            f"print(*[kind for kind in {kinds} if 'isolate.' + kind in sys.modules])"
        )
        done = subprocess.run([sys.executable, "-I", "-c", script], capture_output=True, text=True, check=True)
        return set(done.stdout.split())

    assert loaded("Sandbox()") == set()
    assert loaded("Sandbox(isolate.UserNamespace(), isolate.Seccomp.default())") == set(kinds[:4])
