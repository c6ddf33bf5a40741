"""Networks: a switch with members, addresses, names, published ports; and the netlink that makes them."""

from isolate.network.connecting import connect as connect
from isolate.network.domains import Asked as Asked
from isolate.network.domains import Connect as Connect
from isolate.network.domains import Domains as Domains
from isolate.network.handle import Network as Network
from isolate.network.interface import Interface as Interface
from isolate.network.link import Counters as Counters
from isolate.network.place import Connection as Connection
from isolate.network.shared import Shared as Shared
from isolate.network.shared import find as find
from isolate.network.userspace import Userspace as Userspace
from isolate.network.words import Egress as Egress
from isolate.network.words import Ingress as Ingress
from isolate.network.words import Publish as Publish

__all__ = [
    "Asked",
    "Connect",
    "Connection",
    "Counters",
    "Domains",
    "Egress",
    "Ingress",
    "Interface",
    "Network",
    "Publish",
    "Shared",
    "Userspace",
    "connect",
    "find",
]
