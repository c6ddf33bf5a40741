"""Run build steps, each in a root of its own, and see what each has written.

    python examples/build_tool.py

Every step gets the system read-only, its sources read-only, a directory for its output and nothing else: no network, no
home directory, no environment but what it is given. A step that reads what it did not declare fails, so a build that
passes has declared all of its inputs. Works as root and as an ordinary user.
"""

from __future__ import annotations

import hashlib
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import isolate


@dataclass(frozen=True)
class Step:
    """One command, what it may read, and what it makes."""

    name: str
    command: tuple[str, ...]
    inputs: tuple[Path, ...]
    environment: dict[str, str] = field(default_factory=dict)


class Failed(Exception):
    """A step did not do what it should."""


def build(step: Step, out: Path) -> dict[str, str]:
    """Carry a step out; names of the files that it made, with their digests."""
    out.mkdir(parents=True)
    box = isolate.presets.untrusted(
        *(isolate.Bind(path, f"/src/{path.name}") for path in step.inputs),
        isolate.Bind(out, "/out", read_only=False),
    )
    environment = {"PATH": "/usr/bin:/bin", "SOURCE_DATE_EPOCH": "0", **step.environment}
    result = box.run(list(step.command), cwd="/out", env=environment, timeout=60, text=True, stderr=isolate.STDOUT)
    if not result.ok:
        raise Failed(f"{step.name}: {result.verdict} {result.returncode}\n{result.stdout}")
    made = (path for path in sorted(out.rglob("*")) if path.is_file() and not path.is_symlink())
    return {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest()[:12] for path in made}


def main() -> int:
    """Two steps that are right, and one that reads what it did not declare."""
    with tempfile.TemporaryDirectory() as name:
        top = Path(name)
        top.chmod(0o755)
        words, script, notes = top / "words.txt", top / "count.py", top / "notes.txt"
        words.write_text("one two three two\n")
        notes.write_text("not declared\n")
        script.write_text("import sys\nfor word in sorted(set(open(sys.argv[1]).read().split())):\n    print(word)\n")
        for path in (words, script, notes):
            path.chmod(0o644)
        sort = Step("sort", ("sh", "-c", "python3 /src/count.py /src/words.txt > sorted.txt"), (words, script))
        print("sort     ", build(sort, top / "out/sort"))
        count = Step("count", ("sh", "-c", "wc -l < /src/sorted.txt > n"), (top / "out/sort/sorted.txt",))
        print("count    ", build(count, top / "out/count"))
        again = build(sort, top / "out/again")
        print("same     ", again)
        try:
            build(Step("undeclared", ("cat", "/src/notes.txt"), (words,)), top / "out/undeclared")
        except Failed as error:
            print("refused  ", str(error).splitlines()[-1])
            return 0
    return 1


if __name__ == "__main__":
    sys.exit(main())
