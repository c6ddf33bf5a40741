"""What is generated from the table of options: the overview, completion, the man page."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from isolate.tools.cli import main
from isolate.tools.cli.listing import SHELLS, completion, man_page
from isolate.tools.cli.options import parser


def test_without_arguments_it_shows_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    shown = capsys.readouterr().out
    for command in ("run", "shell", "explain", "doctor", "profile", "image", "net", "completion"):
        assert f"\n  {command} " in shown
    assert "isolate run -- python3" in shown
    examples = [line.split("  ")[1] for line in shown.partition("examples:\n")[2].splitlines()]
    for example in examples:  # each can be parsed
        words = [word.strip("'") for word in example.split()[1:]]
        parser().parse_args(words[: words.index("--")] if "--" in words else words)


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["ru"], {"run"}),
        (["run", "--time"], {"--timeout"}),
        (["run", "--seccomp", "d"], {"default"}),
        (["profile", "c"], {"check", "convert"}),
        (["profile", "convert", "--to", ""], {"toml", "json"}),
        (["profile", "check", "--j"], {"--json"}),
        (["run", "--", "--time"], set()),
    ],
)
def test_bash_completes(words: list[str], found: set[str]) -> None:
    quoted = " ".join(f"'{word}'" for word in ["isolate", *words])
    script = f"{completion(parser(), 'bash')}\nCOMP_WORDS=({quoted}); COMP_CWORD={len(words)}; _isolate; "
    done = subprocess.run(
        ["bash", "-c", script + 'printf "%s\\n" "${COMPREPLY[@]}"'], capture_output=True, text=True, check=True
    )
    assert (set(done.stdout.split()), done.stderr) == (found, "")


@pytest.mark.parametrize("shell", sorted(SHELLS))
def test_every_option_of_every_command_is_in_the_script(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    for option in ("timeout", "cpu-time", "ro-bind", "syntax", "profile"):
        assert option in script
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not here to read the script")
    subprocess.run([shell, "-n"], input=script, text=True, check=True)


def test_the_man_page(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["man"]) == 0
    page = capsys.readouterr().out
    assert page == man_page(parser())
    assert r"\fB\-\-timeout\fR \fISECONDS\fR" in page
    groff = shutil.which("groff")
    if groff is None:
        pytest.skip("groff is not here to set the page")
    done = subprocess.run([groff, "-man", "-ww", "-Tutf8"], input=page, capture_output=True, text=True, check=True)
    assert done.stderr == ""
