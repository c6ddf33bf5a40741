# What checkers may know of the compiled extension; isolate.engine.native gives it types.
from typing import Any

ffi: Any
lib: Any
