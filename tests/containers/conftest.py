"""What a test of containers may not leave behind: as the engine's tests."""

from __future__ import annotations

from tests.engine.conftest import clean as clean
from tests.engine.conftest import warm as warm
