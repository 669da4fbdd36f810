"""Consolidation of a lake: rows to the pure algorithm, its merges to the log, and back.

``settings`` says how; ``plan`` runs ``mldb.compaction.soc`` on a state, ``store`` makes a commit of
what it merges, ``run`` does both; ``undo`` takes one back. ``told`` reads what commits said:
sources, stress, arrivals.
"""
