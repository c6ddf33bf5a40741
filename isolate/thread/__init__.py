"""Parts in force on the calling thread: ``with part:``, ``part.enter()``, ``in_thread``.

Each kernel subsystem has a module here: how its part is put in force on one thread, and taken back. All system calls
are raw ones on the calling thread; libc's, which change every thread of the process, are never used.
"""

from isolate.thread.change import Change as Change
from isolate.thread.disposable import in_thread as in_thread
from isolate.thread.entering import Enterable as Enterable
from isolate.thread.entering import Irreversible as Irreversible
from isolate.thread.entering import Reversible as Reversible
