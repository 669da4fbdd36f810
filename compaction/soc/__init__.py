"""Consolidation of splats by self-organised criticality: rows in, merges out, nothing stored.

``rows`` has what goes in, ``merging`` the law of a merge and its certificate, ``active`` what is
known of the splats while a pass runs. ``sweep`` is the batch: each site until nothing merges.
``sandpile`` is stress on a graph, and ``scheduler`` couples it with merging: compaction where mass
arrives. ``avalanches`` has the statistics of both, ``report`` what a caller is told.

The neighbours of rows come in as a function (``active.Search``). All is seeded and deterministic:
no order depends on threads, hash seeds or memory.
"""
