"""The segmented log: frames, segments, index, manifest, recovery. It knows nothing of tensors.

``FORMAT.md`` in this folder is the authority on every byte written here.
"""
