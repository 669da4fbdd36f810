"""Replay: write a store anew from its events, up to a moment, of some names, with other values.

``mldb.replay`` is :func:`mldb.tools.replay.replay.replay`. Two ways lead there. Where nothing is
filtered whole segments go over, frame by frame checked, under new footers (``whole.py``). Otherwise
each commit is taken apart and put together again (``rewriting.py``). Both write through
:class:`mldb.log.rebuild.StoreBuilder`, which makes the target a store at the very end; what tells
an unfinished one, and how it is continued, is in ``unfinished.py``. ``comparing.py`` proves that
the target is what it should be.
"""
