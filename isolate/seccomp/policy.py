"""``Seccomp``: a policy for system calls, as a value; compiled to a filter, explained, and put in force by a
sandbox."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from isolate.kernel import syscalls
from isolate.kernel.checks import keywords
from isolate.thread.entering import Irreversible

from .actions import Action

if TYPE_CHECKING:
    from isolate.engine.plan import Context, Step

    from .notify import Handler
    from .rules import Rule
    from .value import Answer

__all__ = ["Seccomp"]

# linux/seccomp.h
SECCOMP_FILTER_FLAG_LOG = 2
SECCOMP_FILTER_FLAG_SPEC_ALLOW = 4


@keywords
@dataclass(frozen=True, init=False, repr=False)
class Seccomp(Irreversible):
    """A policy for system calls: the calls that a program may make, with their arguments, and the answer to all others.

        Seccomp(allow("@basic-io", "@memory"), deny("socket", when=arg32(0) != AF_UNIX), otherwise="EPERM")

    Rules are tried from the last to the first: what is added later wins. ``policy + rule`` and ``policy + policy`` add,
    ``policy - "ptrace"`` takes every rule about a call away. Policies compare, hash, and print as the code that makes
    them.

    - ``otherwise``: the answer where no rule matches: an Action or its word ("EPERM", "kill", "allow", "log").
    - ``unknown``: the answer to numbers that the tables do not know or that are later than the running kernel. Left out
      it is ENOSYS where ``otherwise`` is an errno, so that libraries fall back to older calls, and else ``otherwise``.
    - ``foreign``: the answer to calls through an ABI that the policy does not cover: i386 and x32 on x86-64, arm on
      AArch64. Left out: the process is killed.
    - ``compat``: such ABIs that the same rules cover: ``compat=("i386",)``.
    - ``log``: actions but allow go to the audit log (SECCOMP_FILTER_FLAG_LOG, Linux 4.14).
    - ``notify``: handlers in Python that decide calls while the program waits, by name of call or set; they come before
      every rule; see ``isolate.seccomp.notify``. ``notify_timeout`` is in seconds: a call whose handler takes longer
      fails with ETIMEDOUT.
    - ``spec_allow``: leave Speculative Store Bypass on (SECCOMP_FILTER_FLAG_SPEC_ALLOW, Linux 4.17).

    If the arguments of ``clone`` are filtered, ``clone3`` answers ENOSYS unless a rule names it, because its flags are
    in memory where no filter sees them. The same holds for ``openat2`` with ``openat``, ``socketcall`` and ``ipc`` on
    i386, and io_uring.

    As a part of a sandbox it is installed last, just before the program is executed, and needs ``no_new_privs`` or
    CAP_SYS_ADMIN; the exec itself passes the filter, so a policy must allow ``execve`` or ``execveat``. Several
    policies stack: for each call the kernel takes the strictest answer. There is no way back: a filter holds for the
    process and all its children until they end. Refused: values of the wrong type (TypeError), impossible or unknown
    ones (ValueError). Needs Linux 3.17; see seccomp(2).

    :param rules: what :func:`~isolate.seccomp.allow`, ``deny`` and ``rule`` return; later ones win.
    :param otherwise: answer where no rule matches.
    :param unknown: answer to calls that the tables or this kernel do not know.
    :param foreign: answer to calls of another ABI.
    :param compat: further ABIs that the rules cover.
    :param log: refused calls go to the audit log.
    :param spec_allow: leave Speculative Store Bypass on.
    :param notify: handlers in Python, by call or set.
    :param notify_timeout: seconds that a handler may take.

    >>> from isolate.seccomp import deny
    >>> box = Sandbox(Seccomp.default() + deny("mkdirat", "mkdir"))
    >>> box.run(["mkdir", "/tmp/never"]).ok
    False
    """

    rules: tuple[Rule, ...]
    otherwise: Action
    unknown: Action | None
    foreign: Action
    compat: tuple[str, ...]
    log: bool
    spec_allow: bool
    #: A ready program (``from_bpf``); such a policy has no rules.
    ready: bytes | None
    #: Handlers by name of call.
    notify: tuple[tuple[str, Handler], ...]
    notify_timeout: float

    #: Filters stack, so a sandbox takes several.
    repeatable: ClassVar[bool] = True

    def __init__(
        self,
        *rules: Rule | Iterable[Rule],
        otherwise: Action | str = "EPERM",
        unknown: Action | str | None = None,
        foreign: Action | str = "kill",
        compat: str | Iterable[str] = (),
        log: bool = False,
        spec_allow: bool = False,
        notify: Mapping[str, Handler] | None = None,
        notify_timeout: float = 5.0,
    ) -> None:
        if notify is not None and not isinstance(notify, Mapping):
            raise TypeError(f"notify must be a mapping of system calls to handlers, not {notify!r}")
        flat: list[Rule] = []
        for rule in rules:
            flat += _rules(rule)
        abis = {syscalls.canonical_arch(abi) for abi in ((compat,) if isinstance(compat, str) else compat)}
        if not abis <= {"i386", "x32", "arm"}:
            raise ValueError(f"compat takes i386, x32 and arm, not {', '.join(sorted(abis - {'i386', 'x32', 'arm'}))}")
        _set(self, "rules", tuple(flat))
        _set(self, "otherwise", Action.of(otherwise))
        _set(self, "unknown", None if unknown is None else Action.of(unknown))
        _set(self, "foreign", Action.of(foreign))
        _set(self, "compat", tuple(sorted(abis)))
        _set(self, "log", bool(log))
        _set(self, "spec_allow", bool(spec_allow))
        _set(self, "ready", None)
        handlers = _handlers(notify or {})
        if not notify_timeout > 0:
            raise ValueError(f"notify_timeout is a positive number of seconds, not {notify_timeout!r}")
        if handlers:
            from .rules import Rule

            _set(self, "rules", (*self.rules, Rule(Action.NOTIFY, tuple(name for name, _ in handlers))))
        _set(self, "notify", handlers)
        _set(self, "notify_timeout", float(notify_timeout))

    # ---- ready-made -------------------------------------------------------------------------------------------------

    @classmethod
    def none(cls) -> Seccomp:
        """No filter at all, not even the small one that every sandbox has by default (it refuses user namespaces).

        A program inside can make every call that its capabilities and namespaces allow. For a program that installs a
        filter of its own, or that must gain privileges by exec where the caller has no CAP_SYS_ADMIN to install one
        (``NoNewPrivs(False)``). It stands alone: beside another policy it is a ValueError.
        """
        policy = cls()
        _set(policy, "ready", b"")
        return policy

    @property
    def restricts(self) -> bool:
        """Whether there is a filter to install."""
        return self.ready != b""

    @classmethod
    def default(cls) -> Seccomp:
        """For programs of every kind, as strict as Docker's default at least, and stricter where kernels were broken
        through: no new user namespaces, no io_uring, no keyrings, sockets of four families; see
        ``isolate.seccomp.profiles.default``."""
        from .profiles import default

        found = _ready.get("default")
        if found is None:
            found = _ready["default"] = cls(default())
        return found

    @classmethod
    def strict(cls, otherwise: Action | str = "EPERM") -> Seccomp:
        """For pure computation: what an interpreter or a compiled program needs to start, compute, read files, write to
        what is open already, and end; see ``isolate.seccomp.profiles.strict``."""
        from .profiles import strict

        return cls(strict(), otherwise=otherwise)

    @classmethod
    def from_bpf(cls, program: bytes, *, log: bool = False, spec_allow: bool = False) -> Seccomp:
        """A ready BPF program: an array of ``struct sock_filter``, as libseccomp's ``seccomp_export_bpf`` writes it.

        It is checked as the kernel checks it; ValueError (InvalidProgram) says which instruction is wrong.
        """
        from .simulator import check

        check(bytes(program))
        policy = cls(log=log, spec_allow=spec_allow)
        _set(policy, "ready", bytes(program))
        return policy

    @classmethod
    def from_oci(
        cls,
        profile: Mapping[str, Any] | str | bytes,
        *,
        capabilities: Iterable[str] = (),
        arch: str | None = None,
        kernel: tuple[int, int] | None = None,
    ) -> Seccomp:
        """From an OCI runtime's ``linux.seccomp`` or a profile as Docker and Podman write them: a dict, or JSON text.

        Docker's ``includes`` and ``excludes`` are decided for these capabilities, this architecture (default: native)
        and this kernel (default: the running one). ValueError for fields and values that are unknown.
        """
        from .oci import from_oci

        found = from_oci(profile, capabilities=capabilities, arch=arch, kernel=kernel)
        return cls(found.pop("rules"), **found)

    def to_oci(self) -> dict[str, Any]:
        """The policy as OCI ``linux.seccomp``. ValueError for what that cannot say."""
        from .oci import to_oci

        return to_oci(self)

    # ---- questions --------------------------------------------------------------------------------------------------

    @property
    def unknown_action(self) -> Action:
        """The answer to numbers that are unknown: ``unknown``, or what follows from ``otherwise``."""
        if self.unknown is not None:
            return self.unknown
        return Action.ENOSYS if self.otherwise.kind == "errno" else self.otherwise

    def answer(
        self, name: str | int, *args: int, arch: str | None = None, kernel: tuple[int, int] | None = None
    ) -> Answer:
        """The answer of the rules to a call, and the rule that decides. ``name`` may be the kernel's number."""
        from . import decide

        if self.ready is not None:
            raise ValueError("a ready program has no rules; use simulate()")
        arch = syscalls.native_arch() if arch is None else syscalls.canonical_arch(arch)
        if isinstance(name, str):
            syscalls.number(name, arch)
            found: str | None = name
        else:
            found = syscalls.name(name, arch)
        if len(args) > 6:
            raise ValueError(f"a system call has at most 6 arguments, not {len(args)}")
        values = tuple(value & 0xFFFFFFFFFFFFFFFF for value in args)
        return decide.answer(self, found, values, arch, kernel or decide.running_kernel())

    def simulate(
        self, name: str | int, *args: int, arch: str | None = None, kernel: tuple[int, int] | None = None
    ) -> Action:
        """The answer of the compiled filter, run in Python on the arguments."""
        from .simulator import simulate

        if not self.restricts:
            return Action.ALLOW
        arch = syscalls.native_arch() if arch is None else syscalls.canonical_arch(arch)
        number = syscalls.number(name, arch) if isinstance(name, str) else name
        native = {"i386": "x86_64", "x32": "x86_64", "arm": "aarch64"}.get(arch, arch)
        return simulate(self.program(native, kernel), arch, number, args)

    def refuses_user_namespaces(self) -> bool:
        """Whether nothing under this filter can make a user namespace, through whatever ABI of this machine."""
        found: bool | None = self.__dict__.get("_refuses_user_namespaces")
        if found is None:
            from .bpf import FAMILIES

            new_user = 0x10000000
            arch = syscalls.native_arch()
            answers = [
                self.simulate(name, *args, arch=abi)
                for abi in (arch, *FAMILIES[arch])
                for name, *args in (("unshare", new_user), ("clone", new_user), ("clone3",))
                if name in syscalls.table(abi)
            ]
            found = not any(answer.makes_call or answer.kind in ("notify", "trace") for answer in answers)
            self.__dict__["_refuses_user_namespaces"] = found
        return found

    @property
    def may_kill(self) -> bool:
        """Whether it has an answer that ends a process: then a result can say so (:attr:`isolate.Verdict.SECCOMP`)."""
        from .simulator import can_kill

        return can_kill(self.program())

    def program(self, arch: str | None = None, kernel: tuple[int, int] | None = None) -> bytes:
        """The compiled filter: ``struct sock_filter`` after ``struct sock_filter``. The same policy gives the same
        bytes.

        Kept after the first time. ``kernel`` (default: the running one) decides only which calls are too new and so
        answer ENOSYS. Raises ProgramTooLarge (a ValueError) above 4,096 instructions.
        """
        if self.ready is not None:
            return self.ready
        from . import compiler, decide

        arch = syscalls.native_arch() if arch is None else syscalls.canonical_arch(arch)
        kernel = kernel or decide.running_kernel()
        cache: dict[object, bytes] = self.__dict__.setdefault("_programs", {})
        found = cache.get((arch, kernel))
        if found is None:
            # Policies that are equal share what was compiled, however often they are made.
            found = _shared.get((self, arch, kernel))
            if found is None:
                found = compiler.build(decide.decisions(self, arch, kernel), self.foreign.value)
                if len(_shared) >= 64:
                    _shared.clear()
                if not self.notify:  # whose supervisor ends with it
                    _shared[self, arch, kernel] = found
            cache[arch, kernel] = found
        return found

    def disassemble(self, arch: str | None = None) -> str:
        """The compiled filter as text."""
        from .simulator import disassemble

        return disassemble(self.program(arch), arch)

    def explain(self, name: str, *args: int, arch: str | None = None) -> str:
        """The answer of the policy to a call, and the rule that gives it, in words.

        Without arguments every rule that speaks of the call is shown, in the order in which they are tried.
        """
        from .explain import explain

        return explain(self, name, args, arch)

    # ---- arithmetic -------------------------------------------------------------------------------------------------

    def __add__(self, other: object) -> Seccomp:
        """The policy with more rules, which win over the ones before. Another policy must agree on the rest."""
        from .rules import Rule

        if isinstance(other, Rule):
            return self._with((*self._own_rules(), other))
        if isinstance(other, Seccomp):
            mine, theirs = self._own_rules(), other._own_rules()
            for field in ("otherwise", "unknown", "foreign", "log", "spec_allow"):
                if getattr(self, field) != getattr(other, field):
                    raise ValueError(
                        f"the policies differ in {field}: {getattr(self, field)!r} and {getattr(other, field)!r}; "
                        "add the other's rules one by one, or list both policies as parts: the kernel then takes the "
                        "stricter answer"
                    )
            return self._with(mine + theirs, compat=tuple(sorted({*self.compat, *other.compat})))
        return NotImplemented

    def __sub__(self, names: object) -> Seccomp:
        """The policy with no rule about these calls: a name, a set's name (``"@clock"``), or several."""
        if isinstance(names, str):
            names = (names,)
        if not isinstance(names, Iterable):
            return NotImplemented
        from .rules import Rule

        removed = Rule(Action.ALLOW, tuple(names)).calls
        left = (rule.without(removed) for rule in self._own_rules())
        return self._with(tuple(rule for rule in left if rule is not None))

    def _own_rules(self) -> tuple[Rule, ...]:
        if self.notify:
            raise TypeError(
                "a policy with handlers does not add: put the handlers into a policy of their own, beside it"
            )
        if self.ready is not None:
            raise TypeError("a ready program cannot be added to or taken from")
        return self.rules

    def _with(self, rules: tuple[Rule, ...], compat: tuple[str, ...] | None = None) -> Seccomp:
        return Seccomp(
            rules,
            otherwise=self.otherwise,
            unknown=self.unknown,
            foreign=self.foreign,
            compat=self.compat if compat is None else compat,
            log=self.log,
            spec_allow=self.spec_allow,
        )

    def extends(self, other: Seccomp) -> bool:
        """Whether it is another policy with more rules added: ``policy + rule`` extends ``policy``."""
        fields = ("otherwise", "unknown", "foreign", "log", "spec_allow", "ready")
        same = all(getattr(self, name) == getattr(other, name) for name in fields)
        return same and set(self.compat) >= set(other.compat) and self.rules[: len(other.rules)] == other.rules

    def __hash__(self) -> int:
        found = self.__dict__.get("_hash")
        if found is None:
            found = hash(
                (
                    self.rules,
                    self.otherwise,
                    self.unknown,
                    self.foreign,
                    self.compat,
                    self.flags,
                    self.ready,
                    self.notify,
                )
            )
            _set(self, "_hash", found)
        return int(found)

    def __repr__(self) -> str:
        words = [repr(rule) for rule in (self.rules[:-1] if self.notify else self.rules)]
        if not self.restricts:
            return "Seccomp.none()"
        if self.ready is not None:
            words = [repr(self.ready)]
        elif self.otherwise != Action.EPERM or not words:
            words.append(
                f"otherwise={self.otherwise.word!r}" if _plain(self.otherwise) else f"otherwise={self.otherwise!r}"
            )
        if self.unknown is not None:
            words.append(f"unknown={self.unknown!r}")
        if self.foreign != Action.KILL_PROCESS:
            words.append(f"foreign={self.foreign!r}")
        if self.compat:
            words.append(f"compat={self.compat!r}")
        if self.notify:
            words.append(f"notify={dict(self.notify)!r}, notify_timeout={self.notify_timeout}")
        words += [f"{name}=True" for name in ("log", "spec_allow") if getattr(self, name)]
        name = "Seccomp.from_bpf" if self.ready is not None else "Seccomp"
        text = ", ".join(words)
        return f"{name}({text})" if len(text) < 80 else f"{name}(\n    " + ",\n    ".join(words) + ",\n)"

    # ---- as a part --------------------------------------------------------------------------------------------------

    @property
    def flags(self) -> int:
        """The flags for seccomp(2)."""
        return SECCOMP_FILTER_FLAG_LOG * self.log | SECCOMP_FILTER_FLAG_SPEC_ALLOW * self.spec_allow

    def steps(self, context: Context) -> Iterable[Step]:
        """One step installs the filter. With handlers, two more steps receive the notifications. If a filter may kill
        and the audit log can be read, one more step tells the pid that the log has for the program.

        If there are several policies, the first one yields the steps of all, in an order that works: policies with
        handlers first, and last the one that refuses ``seccomp`` itself, because no filter can be installed after it.
        """
        from .install import in_order, steps_of, tell_pid

        if context.shared.setdefault("seccomp", self) is not self:
            return []
        policies = [part for part in context.parts if isinstance(part, Seccomp)]
        if not all(policy.restricts for policy in policies):
            if len(policies) > 1:
                raise ValueError("Seccomp.none() says that there is no filter, and another policy is one")
            return []
        policies = in_order(policies, executes=context.executes)
        told = list(tell_pid(policies)) if context.executes else []
        return told + [step for policy in policies for step in steps_of(policy, context)]


_ready: dict[str, Seccomp] = {}  # kept: compiled once
_shared: dict[tuple[Seccomp, str, tuple[int, int]], bytes] = {}


def _set(policy: Seccomp, name: str, value: object) -> None:
    object.__setattr__(policy, name, value)


def _handlers(notify: Mapping[str, Handler]) -> tuple[tuple[str, Handler], ...]:
    found: dict[str, Handler] = {}
    if not notify:
        return ()
    from . import sets  # loaded late: few policies have handlers

    for name, handler in notify.items():
        if not callable(handler):
            raise TypeError(f"the handler of {name!r} cannot be called: {handler!r}")
        for call in sorted(sets.members(name)) if isinstance(name, str) and name.startswith("@") else [name]:
            found[call] = handler
    # The listener leaves the program by sendmsg, when the first filter holds already.
    if "sendmsg" in found:
        raise ValueError("sendmsg cannot have a handler: the library uses it to get at the notifications")
    return tuple(found.items())


def _rules(rules: object) -> list[Rule]:
    from .rules import Rule  # loaded late: the filter that a sandbox has by default has no rules

    found: list[Any] = list(rules) if isinstance(rules, Iterable) and not isinstance(rules, str) else [rules]
    for rule in found:
        if not isinstance(rule, Rule):
            raise TypeError(f"not a rule: {rule!r}; use allow({rule!r}) or deny({rule!r})")
    return found


def _plain(action: Action) -> bool:
    try:
        return Action.of(action.word) == action
    except ValueError:
        return False
