"""The public names for writers of parts: steps, phases and ops.

The code is in :mod:`isolate.engine.plan` and :mod:`isolate.engine.ops`.
"""

from isolate.engine.ops import CHILD as CHILD
from isolate.engine.ops import COUNTER as COUNTER
from isolate.engine.ops import CWD as CWD
from isolate.engine.ops import LAUNCHER as LAUNCHER
from isolate.engine.ops import SELF as SELF
from isolate.engine.ops import Address as Address
from isolate.engine.ops import Argument as Argument
from isolate.engine.ops import Buffer as Buffer
from isolate.engine.ops import Call as Call
from isolate.engine.ops import Cover as Cover
from isolate.engine.ops import Engine as Engine
from isolate.engine.ops import Fail as Fail
from isolate.engine.ops import Jump as Jump
from isolate.engine.ops import Label as Label
from isolate.engine.ops import Line as Line
from isolate.engine.ops import Load as Load
from isolate.engine.ops import MapOfIds as MapOfIds
from isolate.engine.ops import Op as Op
from isolate.engine.ops import Register as Register
from isolate.engine.ops import RemoveTree as RemoveTree
from isolate.engine.ops import RunHost as RunHost
from isolate.engine.ops import Slot as Slot
from isolate.engine.ops import Store as Store
from isolate.engine.ops import Target as Target
from isolate.engine.ops import Test as Test
from isolate.engine.ops import Thaw as Thaw
from isolate.engine.ops import call as call
from isolate.engine.plan import Context as Context
from isolate.engine.plan import Ground as Ground
from isolate.engine.plan import Guide as Guide
from isolate.engine.plan import Lender as Lender
from isolate.engine.plan import Lent as Lent
from isolate.engine.plan import Part as Part
from isolate.engine.plan import Phase as Phase
from isolate.engine.plan import Plan as Plan
from isolate.engine.plan import Section as Section
from isolate.engine.plan import Step as Step
from isolate.engine.plan import complete as complete
