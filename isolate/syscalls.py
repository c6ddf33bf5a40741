"""Names and numbers of system calls, for this architecture and others.

The code is in :mod:`isolate.kernel.syscalls`.
"""

from isolate.kernel.syscalls import ARCHITECTURES as ARCHITECTURES
from isolate.kernel.syscalls import X32_BIT as X32_BIT
from isolate.kernel.syscalls import UnknownSyscall as UnknownSyscall
from isolate.kernel.syscalls import canonical_arch as canonical_arch
from isolate.kernel.syscalls import known as known
from isolate.kernel.syscalls import name as name
from isolate.kernel.syscalls import names as names
from isolate.kernel.syscalls import native_arch as native_arch
from isolate.kernel.syscalls import number as number
from isolate.kernel.syscalls import since as since
from isolate.kernel.syscalls import spellings as spellings
from isolate.kernel.syscalls import table as table
