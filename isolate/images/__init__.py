"""Layers and images as values, a store of them on disk, and registries: no daemon, no database.

:class:`Layer`, :class:`Image`, :class:`Config` and :class:`Reference` are frozen values that never touch a disk or the
network; :class:`Store` and :class:`Registry` have the state. Names are imported when they are first used.
"""

from isolate.kernel import lazy as _lazy

TYPE_CHECKING = False  # as in typing
if TYPE_CHECKING:
    from isolate.images.bounds import Bounds as Bounds
    from isolate.images.checking import Fault as Fault
    from isolate.images.collecting import Collected as Collected
    from isolate.images.config import Config as Config
    from isolate.images.config import Health as Health
    from isolate.images.contained import get_archive as get_archive
    from isolate.images.contained import put_archive as put_archive
    from isolate.images.errors import AmbiguousError as AmbiguousError
    from isolate.images.errors import DigestError as DigestError
    from isolate.images.errors import ImageError as ImageError
    from isolate.images.errors import LayerError as LayerError
    from isolate.images.errors import RegistryError as RegistryError
    from isolate.images.errors import SignatureError as SignatureError
    from isolate.images.errors import StoreError as StoreError
    from isolate.images.facts import Fact as Fact
    from isolate.images.facts import Facts as Facts
    from isolate.images.image import History as History
    from isolate.images.image import Image as Image
    from isolate.images.layer import Layer as Layer
    from isolate.images.pack.change import Change as Change
    from isolate.images.pack.change import Changes as Changes
    from isolate.images.platform import Platform as Platform
    from isolate.images.progress import Progress as Progress
    from isolate.images.push import Sent as Sent
    from isolate.images.reference import Reference as Reference
    from isolate.images.registry import Registry as Registry
    from isolate.images.root import ImageRoot as ImageRoot
    from isolate.images.store import Store as Store
    from isolate.images.unpack.start import Extracted as Extracted
    from isolate.images.unpack.start import extract as extract
    from isolate.images.upper import Upper as Upper

# The module of each name: one line a module.
_HOMES = {
    "bounds": "Bounds",
    "checking": "Fault",
    "collecting": "Collected",
    "config": "Config Health",
    "contained": "get_archive put_archive",
    "errors": "AmbiguousError DigestError ImageError LayerError RegistryError SignatureError StoreError",
    "unpack.start": "Extracted extract",
    "facts": "Fact Facts",
    "image": "History Image",
    "layer": "Layer",
    "pack.change": "Change Changes",
    "platform": "Platform",
    "progress": "Progress",
    "push": "Sent",
    "reference": "Reference",
    "registry": "Registry",
    "root": "ImageRoot",
    "store": "Store",
    "upper": "Upper",
}

__all__ = _lazy.names(_HOMES)
__getattr__, __dir__ = _lazy.face(__name__, _HOMES)
