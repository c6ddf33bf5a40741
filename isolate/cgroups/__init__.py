"""Control groups: limits, accounting and control, on v2, v1 and hybrid hosts."""

from __future__ import annotations

from isolate.cgroups.devices import Device as Device
from isolate.cgroups.events import Event as Event
from isolate.cgroups.group import Cgroup as Cgroup
from isolate.cgroups.limits import Limits as Limits
from isolate.cgroups.pool import CgroupPool as CgroupPool
from isolate.cgroups.stats import IoStats as IoStats
from isolate.cgroups.stats import Pressure as Pressure
from isolate.cgroups.stats import Stats as Stats
