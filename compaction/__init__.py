"""Compaction of the log: retention, plan, rewrite, install; and ``soc``, which merges splats.

What only events can tell (which keys belong to the store, what a descriptor says) is passed in.
"""
