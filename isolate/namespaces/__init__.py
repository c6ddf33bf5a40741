"""Namespaces: one part for each kind, id maps, and handles that keep one open."""

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
