"""Linux isolation primitives that compose: namespaces, cgroups, mounts, capabilities, seccomp, Landlock, rlimits.

>>> from isolate import Sandbox, UserNamespace, PidNamespace
>>> Sandbox(UserNamespace(), PidNamespace()).run(["id", "-u"]).stdout
b'0\\n'

Names are imported when they are first used, so ``import isolate`` costs almost nothing.
"""

from isolate.kernel import lazy as _lazy

TYPE_CHECKING = False  # as in typing, whose import would cost more than all of this
if TYPE_CHECKING:
    from isolate import errors as errors
    from isolate import images as images
    from isolate import presets as presets
    from isolate.attributes.credentials import Credentials as Credentials
    from isolate.attributes.privileges import NoNewPrivs as NoNewPrivs
    from isolate.attributes.privileges import SessionKeyring as SessionKeyring
    from isolate.attributes.privileges import SetIdFiles as SetIdFiles
    from isolate.attributes.rlimits import Rlimits as Rlimits
    from isolate.attributes.scheduling import Scheduling as Scheduling
    from isolate.capabilities.caps import Cap as Cap
    from isolate.capabilities.caps import SecureBits as SecureBits
    from isolate.capabilities.part import Capabilities as Capabilities
    from isolate.cgroups import Cgroup as Cgroup
    from isolate.cgroups import CgroupPool as CgroupPool
    from isolate.cgroups import Limits as Limits
    from isolate.engine.plan import Context as Context
    from isolate.engine.plan import Part as Part
    from isolate.engine.plan import Phase as Phase
    from isolate.engine.plan import Step as Step
    from isolate.errors import ConflictError as ConflictError
    from isolate.errors import IrreversibleError as IrreversibleError
    from isolate.errors import IsolateError as IsolateError
    from isolate.errors import ProgramError as ProgramError
    from isolate.errors import RestoreError as RestoreError
    from isolate.errors import SetupError as SetupError
    from isolate.errors import ThreadedError as ThreadedError
    from isolate.errors import UnsupportedError as UnsupportedError
    from isolate.landlock.part import Landlock as Landlock
    from isolate.mounts import Bind as Bind
    from isolate.mounts import CgroupFs as CgroupFs
    from isolate.mounts import Dev as Dev
    from isolate.mounts import Device as Device
    from isolate.mounts import Dir as Dir
    from isolate.mounts import Etc as Etc
    from isolate.mounts import File as File
    from isolate.mounts import FileSystem as FileSystem
    from isolate.mounts import Mask as Mask
    from isolate.mounts import Mqueue as Mqueue
    from isolate.mounts import Overlay as Overlay
    from isolate.mounts import Proc as Proc
    from isolate.mounts import ReadOnly as ReadOnly
    from isolate.mounts import Root as Root
    from isolate.mounts import Symlink as Symlink
    from isolate.mounts import Sys as Sys
    from isolate.mounts import Tmpfs as Tmpfs
    from isolate.namespaces.ids import IdMap as IdMap
    from isolate.namespaces.ids import IdRange as IdRange
    from isolate.namespaces.part import CgroupNamespace as CgroupNamespace
    from isolate.namespaces.part import IpcNamespace as IpcNamespace
    from isolate.namespaces.part import MountNamespace as MountNamespace
    from isolate.namespaces.part import NetNamespace as NetNamespace
    from isolate.namespaces.part import PidNamespace as PidNamespace
    from isolate.namespaces.part import TimeNamespace as TimeNamespace
    from isolate.namespaces.part import UserNamespace as UserNamespace
    from isolate.namespaces.part import UtsNamespace as UtsNamespace
    from isolate.namespaces.sysctl import Sysctl as Sysctl
    from isolate.sandbox.aprocess import AsyncProcess as AsyncProcess
    from isolate.sandbox.attach import Attached as Attached
    from isolate.sandbox.attach import attach as attach
    from isolate.sandbox.box import Sandbox as Sandbox
    from isolate.sandbox.containers.container import Container as Container
    from isolate.sandbox.containers.detached import reopen as reopen
    from isolate.sandbox.expired import TimeoutExpired as TimeoutExpired
    from isolate.sandbox.host_program import HostProgram as HostProgram
    from isolate.sandbox.learn import Learned as Learned
    from isolate.sandbox.learn import learn as learn
    from isolate.sandbox.pool import Pool as Pool
    from isolate.sandbox.prepared import Prepared as Prepared
    from isolate.sandbox.process import Process as Process
    from isolate.sandbox.result import Result as Result
    from isolate.sandbox.result import Verdict as Verdict
    from isolate.sandbox.surroundings import Surroundings as Surroundings
    from isolate.sandbox.workspace import Workspace as Workspace
    from isolate.seccomp import Seccomp as Seccomp
    from isolate.thread import Change as Change
    from isolate.thread import Irreversible as Irreversible
    from isolate.thread import Reversible as Reversible
    from isolate.thread import in_thread as in_thread

__version__ = "0.1.0"

PIPE, STDOUT, DEVNULL = -1, -2, -3  # as in subprocess

# The module of each name.
_HOMES = {
    "sandbox.aprocess": "AsyncProcess",
    "sandbox.attach": "Attached attach",
    "capabilities.caps": "Cap SecureBits",
    "capabilities.part": "Capabilities",
    "cgroups": "Cgroup CgroupPool Limits",
    "attributes.credentials": "Credentials",
    "errors": "ConflictError IrreversibleError IsolateError ProgramError RestoreError SetupError ThreadedError"
    " UnsupportedError",
    "thread": "Change Irreversible Reversible in_thread",
    "namespaces.ids": "IdMap IdRange",
    "landlock.part": "Landlock",
    "mounts": "Bind CgroupFs Dev Device Dir Etc File FileSystem Mask Mqueue Overlay Proc ReadOnly Root Symlink Sys"
    " Tmpfs",
    "namespaces.part": "CgroupNamespace IpcNamespace MountNamespace NetNamespace PidNamespace TimeNamespace"
    " UserNamespace UtsNamespace",
    "engine.plan": "Context Part Phase Step",
    "sandbox.learn": "Learned learn",
    "namespaces.sysctl": "Sysctl",
    "sandbox.host_program": "HostProgram",
    "sandbox.pool": "Pool",
    "attributes.privileges": "NoNewPrivs SessionKeyring SetIdFiles",
    "sandbox.prepared": "Prepared",
    "sandbox.expired": "TimeoutExpired",
    "sandbox.process": "Process",
    "sandbox.result": "Result Verdict",
    "sandbox.surroundings": "Surroundings",
    "attributes.rlimits": "Rlimits",
    "sandbox.box": "Sandbox",
    "sandbox.containers.container": "Container",
    "sandbox.containers.detached": "reopen",
    "attributes.scheduling": "Scheduling",
    "sandbox.workspace": "Workspace",
    "seccomp": "Seccomp",
}
# Modules and packages that a program reaches as attributes.
_PACKAGES = "attributes capabilities cgroups errors images landlock mounts namespaces network plan presets sandbox"
_MODULES = frozenset([*_PACKAGES.split(), "build", "seccomp", "syscalls", "thread", "tools"])

__all__ = ["DEVNULL", "PIPE", "STDOUT", "__version__", *_lazy.names(_HOMES), "images", "presets"]
__getattr__, __dir__ = _lazy.face(__name__, _HOMES, _MODULES)
