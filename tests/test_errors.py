"""The family of errors: what each is, what it says, and that it travels whole."""

from __future__ import annotations

import copy
import errno
import multiprocessing
import pickle
import traceback

import pytest

import isolate
from isolate import (
    ConflictError,
    IrreversibleError,
    IsolateError,
    PidNamespace,
    ProgramError,
    RestoreError,
    Sandbox,
    SetupError,
    ThreadedError,
    UnsupportedError,
    Verdict,
)
from isolate.errors import __all__ as family

WHOLE = {
    "part": "Root",
    "syscall": "open_tree",
    "path": "/srv/a b",
    "cause": "it is not there",
    "remedy": "make it",
}


def whole(kind: type[SetupError] = SetupError) -> SetupError:
    return kind(errno.ENOENT, "open the source", **WHOLE)


@pytest.mark.parametrize(
    ("kind", "also"),
    [
        (ConflictError, ValueError),
        (SetupError, OSError),
        (UnsupportedError, SetupError),
        (IrreversibleError, TypeError),
        (ThreadedError, RuntimeError),
        (RestoreError, RuntimeError),
        (ProgramError, IsolateError),
    ],
)
def test_the_family(kind: type[Exception], also: type[Exception]) -> None:
    assert issubclass(kind, IsolateError)
    assert issubclass(kind, also)
    assert kind.__name__ in family
    assert getattr(isolate, kind.__name__) is kind


def test_a_setup_error_says_everything() -> None:
    error = whole()
    assert str(error) == (
        "Root: open the source (open_tree) [/srv/a b]: No such file or directory (errno 2)\n"
        "  cause: it is not there\n"
        "  remedy: make it"
    )
    assert (error.errno, error.strerror, error.filename) == (errno.ENOENT, "No such file or directory", "/srv/a b")
    # An OSError picks subclasses by errno; this one stays what it is.
    assert type(error) is SetupError
    assert not isinstance(error, FileNotFoundError)
    bare = SetupError(errno.EPERM, "do it")
    assert str(bare) == "do it: Operation not permitted (errno 1)"


def test_a_path_that_the_step_names_is_not_said_twice() -> None:
    error = SetupError(errno.EROFS, "mount tmpfs on /tmp", path="/tmp")
    assert str(error).count("/tmp") == 1


@pytest.mark.parametrize("kind", [SetupError, UnsupportedError])
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickled_it_is_whole(kind: type[SetupError], protocol: int) -> None:
    error = whole(kind)
    same = pickle.loads(pickle.dumps(error, protocol))
    assert type(same) is kind
    assert (str(same), same.errno, same.filename, same.args) == (str(error), error.errno, error.filename, error.args)
    assert {name: getattr(same, name) for name in WHOLE} == WHOLE


def test_notes_go_along() -> None:
    error = whole()
    error.__notes__ = ["tried twice"]
    assert pickle.loads(pickle.dumps(error)).__notes__ == ["tried twice"]


def test_copied_it_is_whole() -> None:
    for same in (copy.copy(whole()), copy.deepcopy(whole())):
        assert (type(same), str(same)) == (SetupError, str(whole()))


def test_a_real_one_travels() -> None:
    with pytest.raises(SetupError) as caught:
        Sandbox().run(["no-such-program"])
    same = pickle.loads(pickle.dumps(caught.value))
    assert str(same) == str(caught.value)
    assert (same.part, same.step, same.cause) == (caught.value.part, caught.value.step, caught.value.cause)


def _fails() -> None:
    Sandbox().run(["no-such-program"])


def test_it_comes_out_of_another_process() -> None:
    with multiprocessing.get_context("spawn").Pool(1) as pool, pytest.raises(SetupError) as caught:
        pool.apply(_fails)
    assert caught.value.errno == errno.ENOENT
    assert caught.value.cause is not None
    assert "searched inside" in caught.value.cause


def test_chained_both_are_told() -> None:
    def outer() -> None:
        try:
            Sandbox().run(["no-such-program"])
        except SetupError as error:
            raise LookupError("no solution") from error

    with pytest.raises(LookupError) as caught:
        outer()
    assert isinstance(caught.value.__cause__, SetupError)
    told = "".join(traceback.format_exception(caught.value))
    assert "searched inside" in told
    assert "direct cause" in told
    again = pickle.loads(pickle.dumps(caught.value.__cause__))
    assert str(again) == str(caught.value.__cause__)


def test_a_conflict_is_told_before_anything_starts() -> None:
    with pytest.raises(ConflictError, match="two parts say PidNamespace") as caught:
        Sandbox(PidNamespace(), PidNamespace(init=False))
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_a_program_error_has_the_result() -> None:
    with pytest.raises(ProgramError) as caught:
        Sandbox().run(["sh", "-c", "echo out; exit 3"], check=True)
    error = caught.value
    assert (error.result.verdict, error.result.returncode, error.result.stdout) == (Verdict.EXITED, 3, b"out\n")
    assert "sh ended with EXITED (returncode 3)" in str(error)
    same = pickle.loads(pickle.dumps(error))
    assert (str(same), same.result.stdout) == (str(error), b"out\n")


def test_a_failed_start_leaves_nothing() -> None:
    import os

    box = Sandbox()
    box.run(["true"])
    before = sorted(os.listdir("/proc/self/fd"))
    for _ in range(5):
        with pytest.raises(SetupError):
            box.run(["no-such-program"])
        with pytest.raises(SetupError):
            box.spawn(["no-such-program"])
    assert sorted(os.listdir("/proc/self/fd")) == before
