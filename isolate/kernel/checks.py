"""One reader of the values that users give: integers, numbers, sizes, words, paths, keywords.

Each function takes what the value is called, for the error, and returns the value as the library uses it. All errors
have one form: ``<name> must be <what>, not <what was given>``. ``bool`` is refused where a number belongs, since
``pids=True`` is a mistake. Sizes have one grammar everywhere.
"""

from __future__ import annotations

from typing import Any, Final, ParamSpec, TypeVar

from isolate.kernel.paths import encoded

TYPE_CHECKING = False  # as in typing: every start imports this module
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from typing import TypeGuard

__all__ = [
    "absolute",
    "choice",
    "fields",
    "flag",
    "inside",
    "integer",
    "is_int",
    "is_number",
    "keywords",
    "known_keywords",
    "limit",
    "nearest",
    "number",
    "of_type",
    "rate",
    "size",
    "text",
]

T = TypeVar("T")
_P = ParamSpec("_P")
_R = TypeVar("_R")

_FACTORS: Final = {"k": 10**3, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_UNITS: Final = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40, "P": 50}
#: The range of a signed 64-bit number.
LARGEST: Final = (1 << 63) - 1
#: The words for "no limit", each of which is understood everywhere: cgroup v2 writes "max", setrlimit(2) "unlimited".
UNLIMITED: Final = ("max", "unlimited")


def nearest(word: object, known: Iterable[str]) -> str:
    """``"; did you mean 'overlay'?"``, or nothing where no known word is near."""
    import difflib  # loaded late: only an error needs it

    words = list(known)
    folded = {each.lower(): each for each in words}
    wanted = str(word).lower()
    begun = [each for each in folded if len(wanted) > 2 and each.startswith(wanted)]  # mem, of memory
    near = begun[:1] or difflib.get_close_matches(wanted, list(folded), n=1)
    return f"; did you mean {folded[near[0]]!r}?" if near else ""


def is_int(value: object) -> TypeGuard[int]:
    """Whether a value is an int. ``bool`` is none: ``pids=True`` is a mistake, and not a limit of one."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> TypeGuard[float]:
    """Whether a value is an int or a float; ``bool`` is neither."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def of_type(name: str, value: object, kind: type[T], wanted: str) -> T:
    """The value, which must be of that type; ``wanted`` says it in words: ``"a str"``."""
    if not isinstance(value, kind) or (isinstance(value, bool) and kind not in (bool, object)):
        hint = f"; did you mean {value.__name__}()?" if isinstance(value, type) and issubclass(value, kind) else ""
        raise TypeError(f"{name} must be {wanted}, not {value!r}{hint}")
    return value


def flag(name: str, value: object) -> bool:
    """True or False."""
    return of_type(name, value, bool, "True or False")


def integer(name: str, value: object, low: int, high: int = LARGEST) -> int:
    """An int within a range, both ends included."""
    found = of_type(name, value, int, "an int")
    if not low <= found <= high:
        raise ValueError(f"{name} must be {_range(low, high)}, not {found}")
    return found


def number(name: str, value: object, low: float, high: float) -> float:
    """An int or a float within a range, both ends included; never NaN."""
    if not is_number(value):
        raise TypeError(f"{name} must be a number, not {value!r}")
    if not low <= value <= high:  # false for NaN, too
        raise ValueError(f"{name} must be a number from {low:g} to {high:g}, not {value!r}")
    return float(value)


def _range(low: int, high: int) -> str:
    return f"an int of at least {low}" if high == LARGEST else f"an int from {low} to {high}"


def size(name: str, value: object, low: int = 0, high: int = LARGEST) -> int:
    """Bytes: an int, or a str such as ``"64K"``, ``"256M"``, ``"1.5GiB"`` (powers of 1024; ``B`` or ``iB`` may follow).

    A fraction that is no whole number of bytes is rounded down.
    """
    if isinstance(value, str):
        found = _bytes(name, value)
    elif not is_int(value):
        raise TypeError(f"{name} must be an int of bytes, or a str such as '256M', not {value!r}")
    else:
        found = value
    if not low <= found <= high:
        most = "" if high == LARGEST else f" and at most {high}"
        hint = f"; did you mean '{value}M'?" if isinstance(value, int) and 0 < value < low <= value << 20 else ""
        raise ValueError(f"{name} must be at least {low}{most} bytes, not {value!r}{hint}")
    return found


def limit(name: str, value: object, low: int = 0, high: int = LARGEST) -> int | None:
    """A size; None for ``"max"`` or ``"unlimited"``."""
    if isinstance(value, str) and value.strip().lower() in UNLIMITED:
        return None
    return size(name, value, low, high)


def rate(name: str, value: object) -> int:
    """Bits a second: an int, or ``"20M"``, ``"20Mbit"``, ``"1.5Gbit"``, in powers of ten as networks have them."""
    wanted = "must be a rate from 8000 bits per second to 1T, such as 20_000_000, '20M' or '1.5Gbit'"
    if not (is_int(value) or isinstance(value, str)):
        raise TypeError(f"{name} {wanted}, not {value!r}")
    found = value
    if isinstance(found, str):
        digits = found.strip()
        for ending in ("bit/s", "bitps", "bit"):
            digits = digits.removesuffix(ending)
        factor = _FACTORS.get(digits[-1:])
        digits = digits if factor is None else digits[:-1].rstrip(" ")
        whole, point, rest = digits.partition(".")
        if not whole.isdecimal() or not digits.isascii() or (point and not rest.isdecimal()) or len(digits) > 20:
            raise ValueError(f"{name} {wanted}, not {value!r}")
        found = int(float(digits) * (factor or 1))
    if not 8_000 <= found <= 10**12:
        raise ValueError(f"{name} {wanted}, not {value!r}")
    return found


def _bytes(name: str, text: str) -> int:
    word = text.strip().upper()
    for ending in ("IB", "B"):
        if word.endswith(ending) and (ending == "B" or word[-3:-2] in _UNITS):
            word = word[: -len(ending)]
            break
    unit = word[-1:] if word[-1:] in _UNITS else ""
    digits = word[: len(word) - len(unit)].strip()
    whole, point, part = digits.partition(".")
    sound = whole.isascii() and whole.isdecimal() and len(digits) <= 40
    if not sound or (point and not (part.isascii() and part.isdecimal())):
        raise ValueError(f"{name} must be a size such as '256M' (K, M, G, T, P: powers of 1024), not {text!r}")
    return (int(whole + part) << _UNITS[unit]) // int(10 ** len(part))


def choice(name: str, value: object, known: Iterable[str]) -> str:
    """One of some words."""
    words = list(known)
    if isinstance(value, str) and value in words:
        return value
    wanted = f"one of {', '.join(map(repr, words))}" if len(words) <= 12 else "a known word"
    kind = ValueError if isinstance(value, str) else TypeError
    raise kind(f"{name} must be {wanted}, not {value!r}{nearest(value, words)}")


def text(name: str, value: object, *, longest: int = 4096) -> str:
    """A str that the kernel can be given: no NUL, no line break, not longer than that many bytes."""
    found = of_type(name, value, str, "a str")
    if "\0" in found or "\n" in found:
        raise ValueError(f"{name} must be a str without NUL and line break, not {found!r}")
    count = len(encoded(found, name))
    if count > longest:
        raise ValueError(f"{name} must have at most {longest} bytes, not {count}")
    return found


def _path(name: str, value: object) -> bytes:
    try:
        path = encoded(value, name)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{name} must be a path (str, bytes or os.PathLike), not {value!r}") from None
    if b"\0" in path:
        raise ValueError(f"{name} must be a path without NUL, not {value!r}")
    if not path:
        raise ValueError(f"{name} must not be empty")
    return path


def absolute(name: str, value: object) -> bytes:
    """An absolute path of the host's."""
    path = _path(name, value)
    if not path.startswith(b"/"):
        raise ValueError(f"{name} must be an absolute path, not {value!r}")
    return path


def inside(name: str, value: object) -> bytes:
    """An absolute path inside a root, without ``..``."""
    path = absolute(name, value)
    if b".." in path.split(b"/"):
        raise ValueError(f"{name} must be a path without '..', not {value!r}")
    return path


_C = TypeVar("_C", bound=type)


def fields(value: object) -> None:
    """Check the fields of a dataclass that are annotated as ``str`` or ``int``, or as one of them or None."""
    import dataclasses

    for field in dataclasses.fields(value):  # type: ignore[arg-type]
        kind, _, none = str(field.type).partition(" | ")
        given = getattr(value, field.name)
        if kind in ("str", "int") and none in ("", "None") and not (none and given is None):
            wanted = f"{'a str' if kind == 'str' else 'an int'}{' or None' if none else ''}"
            of_type(f"{type(value).__name__}: {field.name}", given, str if kind == "str" else int, wanted)


def known_keywords(otherwise: Mapping[str, str]) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
    """A decorator of a function: an unknown keyword is refused with the nearest known one, or with what ``otherwise``
    says of a word that people try."""
    import functools

    def decorate(function: Callable[_P, _R]) -> Callable[_P, _R]:
        code: Any = function.__code__
        names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]

        @functools.wraps(function)
        def checked(*args: _P.args, **given: _P.kwargs) -> _R:
            for name in given:
                if name not in names:
                    hint = f"; {otherwise[name]}" if name in otherwise else nearest(name, names)
                    what = f"{function.__name__}: there is no keyword {name!r}"
                    raise TypeError(what + (hint or f"; it takes {', '.join(names)}"))
            return function(*args, **given)

        return checked

    return decorate


def keywords(cls: _C) -> _C:
    """A class decorator: an unknown keyword of the constructor is refused with the nearest known one.

    A keyword that is annotated as a bool takes True and False alone: ``read_only="no"`` would be true.

    The signature that type checkers and ``help()`` see stays the constructor's own.
    """
    import functools

    made: Callable[..., None] = cls.__init__  # type: ignore[misc]
    flags = {name for name, annotation in made.__annotations__.items() if annotation in ("bool", "bool | None")}

    @functools.wraps(made)
    def __init__(self: object, *args: Any, **given: Any) -> None:
        for name in flags & given.keys():
            if given[name] is not None or made.__annotations__[name] == "bool":
                flag(f"{cls.__name__}: {name}", given[name])
        try:
            made(self, *args, **given)
        except TypeError as error:
            known = made.__code__.co_varnames[1 : made.__code__.co_argcount + made.__code__.co_kwonlyargcount]
            unknown = next((key for key in given if key not in known), None)
            # Only the constructor's own complaint about its keywords: one from inside of it has words of its own.
            if unknown is None or made.__code__.co_flags & 0x08 or "unexpected keyword" not in str(error):
                raise
            hint = nearest(unknown, known) or f"; it takes {', '.join(known)}"
            raise TypeError(f"{cls.__name__}: there is no keyword {unknown!r}{hint}") from None

    setattr(cls, "__init__", __init__)  # noqa: B010 - mypy takes the plain assignment for a mistake
    return cls
