"""Landlock: rights on files, network and scopes that a process gives up for itself."""

from isolate.landlock.part import FsAccess as FsAccess
from isolate.landlock.part import Landlock as Landlock
from isolate.landlock.part import PathRule as PathRule
from isolate.landlock.part import landlock_abi as landlock_abi
