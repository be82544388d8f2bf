"""Fails while it is imported."""

raise RuntimeError("the gears do not mesh")
