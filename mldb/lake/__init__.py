"""The splat lake: embeddings as an event stream, sampled, augmented and streamed into training.

``lake.py`` is the face (``db.lake()``), ``surface.py`` what it shares with a lake at a commit.
``write/`` turns rows into blocks, ``projection.py`` folds blocks and removals as of a commit,
``rows/`` reads them; ``order/`` decides which rows a batch holds, ``augment/`` moves them, and
``stream/`` feeds PyTorch. ``consolidation/`` merges near-copies and takes merges back. ``m2m.py``
is the original interface.
"""
