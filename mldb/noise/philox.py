"""The counter generator: noise as a pure function of seed, pass, row, augmentation and step.

Philox4x32-10 (Salmon, Moraes, Dror, Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3"). One
call turns a counter of four 32-bit words and a key of two into four words. The counter is made of
what names a number, so nothing is drawn twice and nothing depends on batches, devices or workers.

Layout 2, a stored promise (the seed of a stream over a lake is that of ``mldb.noise.streams``)::

    key     word 0   seed, low 32 bits          word 1   seed, high 32 bits
    counter word 0   block | step << 16         word 1   pass
            word 2   row, low 32 bits           word 3   row >> 32 | augmentation << 16

    block 0 .. 0xFFEF   components 4 * block .. 4 * block + 3 of the normals of the step
    block 0xFFF0 + t    try t of the gamma draw of the subspace form (mldb.gpu.subspace), t < 8
    block 0xFFFF        word 0: the uniform by which MALA accepts or rejects the step
    step  | 0x8000      the subspace form; its numbers are never those of the direct form
    row                 48 bits: the id of a row, or the position of a draw with replacement

Words become numbers by float32 operations that every device repeats in this order. Each line below
is one operation rounded to nearest, never a fused multiply-add, so that the bits agree wherever
division and square root are rounded correctly. Integer operations are modulo 2^32.

Uniform of a word v, in (0, 1)::

    u = (float(v >> 9) + 0.5) * 2^-23                  exact; from 2^-24 to 1 - 2^-24

Normals (Box and Muller 1958): word 0 gives the radius and word 1 the angle of components 0 and 1;
words 2 and 3 do the same for components 2 and 3. With v the radius word and w the angle word::

    i = bits(uniform(v)) + 0x004AFB0D                  u = m * 2^e, m in [sqrt(1/2), sqrt(2))
    e = float(int(i >> 23) - 127)
    m = float_of_bits((i & 0x007FFFFF) + 0x3F3504F3)
    s = (m - 1) / (m + 1)                              ln m = 2 atanh(s), |s| < 0.172
    z = s * s
    p = z * (1/9);  p = z * (1/7 + p);  p = z * (1/5 + p);  p = z * (1/3 + p)
    l = s + s;      l = l + l * p;      l = e * ln(2) + l
    r = sqrt(-2 * l)

    a = (float(int(w << 2) >> 9) + 0.5) * (pi / 2^24)  the shift keeps the sign; |a| <= pi / 4
    z = a * a
    c = z * (1/40320);    c = z * (c - 1/720);    c = z * (c + 1/24);   c = z * (c - 1/2)
    c = c + 1                                          cos a
    t = z * (1/362880);   t = z * (t - 1/5040);   t = z * (t + 1/120);  t = z * (t - 1/6)
    t = a + a * t                                      sin a

The angle is a + q * pi / 2, where q = w >> 30 is the quadrant::

    x = t if bit 30 of w else c;   x = -x if bit 31 of w differs from bit 30
    y = c if bit 30 of w else t;   y = -y if bit 31 of w
    components = r * x, r * y                          at most 5.77 in size

Constants are rounded to float32 once. The error against exact arithmetic is below 1e-6.
"""

from __future__ import annotations

from math import log, pi
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from mldb.arrays import Floats
from mldb.noise.keys import Keys

LAYOUT_VERSION: Final = 2
"""Kept with every loader state and generated row; another counter layout gets another number."""

SUBSPACE_STEP: Final = 0x8000
"""Set in the step of the subspace form, whose noise is not that of the direct form."""

GAMMA_BLOCK: Final = 0xFFF0
GAMMA_TRIES: Final = 8
ACCEPT_BLOCK: Final = 0xFFFF
DIM_MAX: Final = 4 * GAMMA_BLOCK
"""Most components of one row: what the blocks below the reserved ones give."""

Words: TypeAlias = npt.NDArray[np.uint32]

MULTIPLIERS: Final = (0xD2511F53, 0xCD9E8D57)
WEYL: Final = (0x9E3779B9, 0xBB67AE85)
PHILOX_ROUNDS: Final = 10

# Adding the difference moves the border of the exponent from 1 to sqrt(1/2).
SQRT_HALF_BITS: Final = 0x3F3504F3
EXPONENT_SHIFT: Final = 0x3F800000 - SQRT_HALF_BITS
ATANH: Final = (1 / 9, 1 / 7, 1 / 5, 1 / 3)
LN2: Final = log(2)
COSINE: Final = (1 / 40320, -1 / 720, 1 / 24, -1 / 2)
SINE: Final = (1 / 362880, -1 / 5040, 1 / 120, -1 / 6)
ANGLE: Final = pi / 2**24

_LOW: Final = np.uint64(0xFFFFFFFF)
_HALF: Final = np.uint64(32)


def philox(counter: Words, key: tuple[int, int]) -> Words:
    """Return Philox4x32-10 of counters u32 [..., 4] under one key of two 32-bit words."""
    c0, c1, c2, c3 = (counter[..., i].astype(np.uint64) for i in range(4))
    for number in range(PHILOX_ROUNDS):
        first = c0 * np.uint64(MULTIPLIERS[0])
        second = c2 * np.uint64(MULTIPLIERS[1])
        c0 = (second >> _HALF) ^ c1 ^ _round_key(key, 0, number)
        c2 = (first >> _HALF) ^ c3 ^ _round_key(key, 1, number)
        c1, c3 = second & _LOW, first & _LOW
    return np.stack([c0, c1, c2, c3], axis=-1).astype(np.uint32)


def _round_key(key: tuple[int, int], word: int, number: int) -> np.uint64:
    return np.uint64((key[word] + number * WEYL[word]) & 0xFFFFFFFF)


def seed_key(seed: int) -> tuple[int, int]:
    """Return the two words of a 64-bit seed, low one first."""
    return seed & 0xFFFFFFFF, seed >> 32


def counters(keys: Keys, step: int, blocks: int, *, first: int = 0) -> Words:
    """Return the counters u32 [B, blocks, 4] of blocks ``first`` .. of one step."""
    rows = keys.rows.astype(np.uint64)
    counter = np.empty((len(keys), blocks, 4), np.uint32)
    counter[:, :, 0] = np.arange(first, first + blocks, dtype=np.uint32) | np.uint32(step << 16)
    counter[:, :, 1] = keys.pass_number
    counter[:, :, 2] = (rows & _LOW)[:, None]
    high = (rows >> _HALF) | keys.augmentations.astype(np.uint64) << np.uint64(16)
    counter[:, :, 3] = high[:, None]
    return counter


def words(keys: Keys, step: int, blocks: int, *, first: int = 0) -> Words:
    """Return the noise words u32 [B, blocks, 4] of blocks ``first`` .. of one step."""
    return philox(counters(keys, step, blocks, first=first), seed_key(keys.seed))


def uniforms(raw: Words) -> npt.NDArray[np.float32]:
    """Return float32 uniforms in (0, 1), one per word; exact, so the same on every device."""
    return ((raw >> np.uint32(9)).astype(np.float32) + np.float32(0.5)) * np.float32(2**-23)


def normals(keys: Keys, step: int, dim: int) -> npt.NDArray[np.float32]:
    """Return the float32 standard normals [B, dim] of one step."""
    blocks = -(-dim // 4)
    return np.ascontiguousarray(
        box_muller(words(keys, step, blocks)).reshape(len(keys), 4 * blocks)[:, :dim]
    )


def box_muller(raw: Words) -> npt.NDArray[np.float32]:
    """Return float32 normals [..., 4] of words [..., 4], by the operations written above."""
    radius = _radius(raw[..., 0::2])
    x, y = _point_on_circle(raw[..., 1::2])
    return np.stack([radius * x, radius * y], axis=-1).reshape(raw.shape)


def _radius(raw: Words) -> npt.NDArray[np.float32]:
    one, two = np.float32(1), np.float32(2)
    bits = uniforms(raw).view(np.uint32) + np.uint32(EXPONENT_SHIFT)
    exponent = ((bits >> np.uint32(23)).astype(np.int32) - np.int32(127)).astype(np.float32)
    mantissa = ((bits & np.uint32(0x007FFFFF)) + np.uint32(SQRT_HALF_BITS)).view(np.float32)
    s = (mantissa - one) / (mantissa + one)
    twice = s + s
    logarithm = exponent * np.float32(LN2) + (twice + twice * _series(s * s, ATANH))
    radius: npt.NDArray[np.float32] = np.sqrt(-two * logarithm)
    return radius


def _point_on_circle(raw: Words) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    angle = _quadrant_angle(raw)
    square = angle * angle
    cosine = _series(square, COSINE) + np.float32(1)
    sine = angle + angle * _series(square, SINE)
    odd = raw & np.uint32(1 << 30) != 0
    low = raw & np.uint32(1 << 31) != 0
    x, y = np.where(odd, sine, cosine), np.where(odd, cosine, sine)
    return np.where(odd != low, -x, x), np.where(low, -y, y)


def _quadrant_angle(raw: Words) -> npt.NDArray[np.float32]:
    signed = (raw << np.uint32(2)).view(np.int32) >> np.int32(9)
    return (signed.astype(np.float32) + np.float32(0.5)) * np.float32(ANGLE)


def _series(z: Floats, coefficients: tuple[float, ...]) -> Any:
    """Return z (a3 + z (a2 + z (a1 + z a0))) for coefficients (a0, a1, a2, a3), in float32."""
    total = z * np.float32(coefficients[0])
    for coefficient in coefficients[1:]:
        total = z * (total + np.float32(coefficient))
    return total


def normals_float64(keys: Keys, step: int, dim: int) -> npt.NDArray[np.float64]:
    """Return the same normals [B, dim] by float64 library functions: what the float32 ones miss."""
    blocks = -(-dim // 4)
    raw = words(keys, step, blocks)
    radius = np.sqrt(-2 * np.log(uniforms(raw[..., 0::2]).astype(np.float64)))
    turn = raw[..., 1::2]
    signed = (turn << np.uint32(2)).view(np.int32) >> np.int32(9)
    angle = (signed + 0.5) * ANGLE + (turn >> np.uint32(30)) * (pi / 2)
    points = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1)
    return np.ascontiguousarray(points.reshape(len(keys), 4 * blocks)[:, :dim])


def accept_uniforms(keys: Keys, step: int) -> npt.NDArray[np.float32]:
    """Return the uniforms [B] by which MALA accepts or rejects one step."""
    return uniforms(words(keys, step, 1, first=ACCEPT_BLOCK)[:, 0, 0])
