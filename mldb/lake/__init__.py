"""The splat lake: embeddings as an event stream, sampled, augmented and streamed into training.

``lake.py`` is the face (``db.lake()``); ``ingest.py`` turns rows into blocks, ``rows.py`` reads
them; ``order.py``, ``sampling.py`` and ``weights.py`` decide which rows a batch holds, ``graph.py``
and ``gate.py`` know neighbours; ``dataset.py`` and ``loader.py`` feed PyTorch. Blocks and removals
as of a commit are folded in ``mldb.lake.projection``.
"""
