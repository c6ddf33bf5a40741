"""The engine: parts become steps, steps a plan, a plan a tape, and the launcher runs it."""
