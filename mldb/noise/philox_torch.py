"""The counter generator in torch operations: for CUDA, and on the CPU where numba is missing.

torch has no unsigned 32-bit arithmetic, so words are kept in int64 and cut to 32 bits where bits
above could be seen. A product of two words wraps modulo 2^64, which leaves both halves right. The
operations of ``mldb.noise.philox`` are done one by one, each rounded by itself, in float32; nothing
is compiled or fused. Words and normals are those of NumPy, bit for bit on the CPU.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mldb.noise.keys import Keys
from mldb.noise.philox import (
    ACCEPT_BLOCK,
    ANGLE,
    ATANH,
    COSINE,
    EXPONENT_SHIFT,
    GAMMA_BLOCK,
    LN2,
    MULTIPLIERS,
    PHILOX_ROUNDS,
    SINE,
    SQRT_HALF_BITS,
    WEYL,
    seed_key,
)

if TYPE_CHECKING:
    import torch

MASK = 0xFFFFFFFF
_SIGN = 1 << 31


class TorchDraws:
    """The noise of a batch as tensors of one device; the keys are moved there once."""

    def __init__(self, keys: Keys, device: torch.device) -> None:
        import torch

        self._key = seed_key(keys.seed)
        self._pass = keys.pass_number
        # Row ids have 48 bits and augmentations 16: as int64 both are exact.
        rows = torch.from_numpy(keys.rows.astype(np.int64)).to(device)
        augmentations = torch.from_numpy(keys.augmentations.astype(np.int64)).to(device)
        self._low = (rows & MASK)[:, None]
        self._high = ((rows >> 32) | (augmentations << 16))[:, None]

    def words(self, step: int, blocks: int, *, first: int = 0) -> tuple[torch.Tensor, ...]:
        """Return the four noise words of blocks ``first`` .., each int64 [B, blocks]."""
        import torch

        numbers = torch.arange(first, first + blocks, device=self._low.device) | step << 16
        zero = torch.zeros_like(self._low)
        return _philox((numbers + zero, zero + self._pass, self._low, self._high), self._key)

    def normals(self, step: int, dim: int) -> torch.Tensor:
        """Return the standard normals float32 [B, dim] of a step."""
        import torch

        w0, w1, w2, w3 = self.words(step, -(-dim // 4))
        parts = torch.stack([*_box_muller(w0, w1), *_box_muller(w2, w3)], -1)
        return parts.reshape(len(parts), -1)[:, :dim].contiguous()

    def uniforms(self, step: int) -> torch.Tensor:
        """Return the uniforms float32 [B] by which MALA accepts or rejects a step."""
        return _uniforms(self.words(step, 1, first=ACCEPT_BLOCK)[0][:, 0])

    def trial(self, step: int, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the normal and the uniform, float32 [B], of a try of the gamma draw."""
        w0, w1, w2, _ = (word[:, 0] for word in self.words(step, 1, first=GAMMA_BLOCK + number))
        return _box_muller(w0, w1)[0], _uniforms(w2)


def _philox(counter: tuple[torch.Tensor, ...], key: tuple[int, int]) -> tuple[torch.Tensor, ...]:
    """Return Philox4x32-10 of four int64 tensors of words; they broadcast with each other."""
    a, b, c, d = counter
    for number in range(PHILOX_ROUNDS):
        k0, k1 = ((key[i] + number * WEYL[i]) & MASK for i in range(2))
        first, second = a * MULTIPLIERS[0], c * MULTIPLIERS[1]
        # The shift keeps the sign, so the upper half needs the mask as well.
        a, b = ((second >> 32) & MASK) ^ b ^ k0, second & MASK
        c, d = ((first >> 32) & MASK) ^ d ^ k1, first & MASK
    return a, b, c, d


def _uniforms(word: torch.Tensor) -> torch.Tensor:
    """Return float32 uniforms in (0, 1) of words."""
    import torch

    return ((word >> 9).to(torch.float32) + 0.5) * 2**-23


def _box_muller(radius_word: torch.Tensor, angle_word: torch.Tensor) -> tuple[Any, Any]:
    """Return two float32 normals per pair of words."""
    import torch

    radius = _radius(radius_word)
    # The upper half of the words is negative once the two top bits are gone.
    shifted = (((angle_word << 2) & MASK) ^ _SIGN) - _SIGN
    angle = ((shifted >> 9).to(torch.float32) + 0.5) * ANGLE
    square = angle * angle
    cosine = _series(square, COSINE) + 1
    sine = angle + angle * _series(square, SINE)
    odd, low = (angle_word >> 30 & 1) != 0, (angle_word >> 31) != 0
    x, y = torch.where(odd, sine, cosine), torch.where(odd, cosine, sine)
    return radius * torch.where(odd != low, -x, x), radius * torch.where(low, -y, y)


def _radius(word: torch.Tensor) -> torch.Tensor:
    import torch

    bits = _uniforms(word).view(torch.int32) + EXPONENT_SHIFT
    exponent = ((bits >> 23) - 127).to(torch.float32)
    mantissa = ((bits & 0x007FFFFF) + SQRT_HALF_BITS).view(torch.float32)
    s = (mantissa - 1) / (mantissa + 1)
    twice = s + s
    square = -2 * (exponent * LN2 + (twice + twice * _series(s * s, ATANH)))
    # torch's float32 root on the CPU is off by one unit in a sixth of all cases. Rounded from
    # float64 it is right: 53 bits are more than twice 24.
    radius: torch.Tensor = square.to(torch.float64).sqrt().to(torch.float32)
    return radius


def _series(z: Any, coefficients: tuple[float, ...]) -> Any:
    total = z * coefficients[0]
    for coefficient in coefficients[1:]:
        total = z * (total + coefficient)
    return total
