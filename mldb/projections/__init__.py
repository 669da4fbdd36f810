"""Projections: state folded from events, answered from the log's index.

Each module is the fold of one event family. The index keeps the newest entry per key and commit,
which is what the fold of a last-wins event family is; so a projection is a question to the index
and has no state of its own to save or lose. ``tests/test_projections.py`` folds the events
themselves and compares.
"""
