"""The root of a sandbox, and what is mounted in it."""

from isolate.mounts.bind import Bind as Bind
from isolate.mounts.root import Root as Root
from isolate.mounts.tmpfs import Tmpfs as Tmpfs
