"""torch.distributed.checkpoint over an mldb store: for torch 2.13.

::

    import torch.distributed.checkpoint as dcp
    from mldb.adapters.dcp import StorageReader, StorageWriter

    dcp.save(state, checkpoint_id="step-100", storage_writer=StorageWriter("run.mldb", epoch=3))
    dcp.load(state, checkpoint_id="step-100", storage_reader=StorageReader("run.mldb"))

All ranks of a save run on one machine. They write side by side into one file, and
the coordinator publishes it by one commit: a checkpoint is whole, or absent. It is one as any other
(``db.checkpoints()``, ``as_of``, tags, retention), and loads under any number of ranks.

A tensor is stored whole under its fully qualified name, ``db["model.layer.weight"]``, wherever the
parts of the ranks are long runs of its bytes: all of FSDP2, and what is split along the first axis.
Others are stored in parts, ``model.layer.weight/0.128``, named by where they start. Names that are
too long end in a digest. ``db.load`` and ``db.state_dict`` take the nested state, where a tensor in
parts is a dict of them.

What is no tensor (numbers, texts, None, lists, tuples, dicts, NumPy scalars, ``BytesIO``) is stored
as plain values of at most 64 MiB in all. Nothing is pickled or unpickled, with the default planners
of torch as well: they are asked for the objects, not for their pickles. Sparse tensors, and
tensors inside of tuples, are refused by name.
"""

from mldb.adapters.dcp.reader import StorageReader, list_checkpoints
from mldb.adapters.dcp.writer import StorageWriter

__all__ = ["StorageReader", "StorageWriter", "list_checkpoints"]
