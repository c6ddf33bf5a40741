"""Landlock: rights on files, network and scopes that a process gives up for itself."""

from isolate.landlock.part import Landlock as Landlock
from isolate.landlock.part import landlock_abi as landlock_abi
from isolate.landlock.rights import FsAccess as FsAccess
from isolate.landlock.rights import PathRule as PathRule
