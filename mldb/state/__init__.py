"""Nested training states: taken apart, put together, checkpointed, loaded."""
