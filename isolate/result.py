"""The former home of :class:`isolate.Result`: pickles made by version 0.1 name it."""

from isolate.sandbox.result import Result as Result
from isolate.sandbox.result import Verdict as Verdict
