"""Torch tensors that have no bytes of their own: why, and what to store instead."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mldb.errors import InvalidTypeError

if TYPE_CHECKING:
    import torch


def no_bytes(tensor: torch.Tensor, reason: str = "") -> InvalidTypeError:
    """Return the error for *tensor*, of which torch gave no bytes; *reason* is what torch said."""
    kind = type(tensor).__name__
    advice = _advice(tensor)
    if advice:
        return InvalidTypeError(f"a {kind} gave no bytes: {advice}")
    said = f" ({reason.splitlines()[0][:200].rstrip('.')})" if reason else ""
    return InvalidTypeError(
        f"a {kind} on device {tensor.device} gave no bytes{said}. Pass a plain tensor that holds "
        "its data."
    )


def _advice(tensor: torch.Tensor) -> str:
    import torch

    if torch.nn.parameter.is_lazy(tensor):
        return (
            "it has no shape yet, as its lazy module has seen no data. Call the module with a "
            "first batch, then store it."
        )
    if hasattr(tensor, "full_tensor"):
        return (
            "it is spread over processes. Pass tensor.full_tensor(), which every rank calls and "
            "which gathers all of it (its local tensor is one shard alone), or write it with "
            "torch.distributed.checkpoint."
        )
    if hasattr(tensor, "get_mask"):
        return "it would lose its mask. Store tensor.get_data() and tensor.get_mask() by two names."
    if tensor.is_nested:
        if tensor.layout is torch.strided:
            return "each part has a shape of its own. Store each part of tensor.unbind() by a name."
        return (
            "each part has a shape of its own. Store tensor.values() and tensor.offsets() by two "
            "names."
        )
    if tensor.is_meta:
        return (
            "it is on the device meta, where tensors have a shape and no data. Make it real first: "
            "module.to_empty(device=...), then load or initialise its values."
        )
    return ""
