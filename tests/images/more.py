"""The same property over many more examples, for the slow lane: everyday runs try a few dozen."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

if TYPE_CHECKING:
    from collections.abc import Callable


def more(test: Any, examples: int, *strategies: st.SearchStrategy[Any]) -> Callable[[], None]:
    """A slow test of the same, with the same examples in each run."""

    @pytest.mark.slow
    @pytest.mark.timeout(1200)
    @settings(
        max_examples=examples, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
    )
    @given(st.tuples(*strategies))
    def many(values: tuple[Any, ...]) -> None:
        test.hypothesis.inner_test(*values)

    return many
