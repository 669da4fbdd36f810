"""The counter generator and the isotropic step as machine code, by numba.

``pip install mldb[lake]`` brings numba; without it there are no kernels. The words and normals are
bit for bit those of ``mldb.noise.philox``: numba fuses and reorders nothing unless told to. Only
the sums of ``dot_kernel`` may be reordered by the compiler. It does so once, so that they depend on
the processor, and never on a batch or a thread.

Nothing is compiled at import. :func:`load_kernels` does it once per process and says how long it
took: two to four seconds, for nothing is kept on disk. Kernels free the interpreter lock and take a
range of rows, so threads share a batch; a row's result does not depend on the range.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Final, Protocol, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from mldb.noise.compiling import compile_lock
from mldb.noise.keys import Keys
from mldb.noise.philox import (
    ANGLE,
    ATANH,
    COSINE,
    EXPONENT_SHIFT,
    LN2,
    MULTIPLIERS,
    PHILOX_ROUNDS,
    SINE,
    SQRT_HALF_BITS,
    WEYL,
    seed_key,
)

F = TypeVar("F", bound=Callable[..., Any])

Floats1: TypeAlias = npt.NDArray[np.float32]
Words1: TypeAlias = npt.NDArray[np.uint32]
Word: TypeAlias = Any
"""An unsigned integer in a register; inside kernels NumPy's scalar types fix the width."""
Real: TypeAlias = Any
"""A float32 in a register."""

# Kernels see these as compile-time constants of a fixed width; plain ints would turn into int64.
_M0, _M1 = (np.uint64(value) for value in MULTIPLIERS)
_W0, _W1 = (np.uint64(value) for value in WEYL)
_LOW, _16, _32 = np.uint64(0xFFFFFFFF), np.uint64(16), np.uint64(32)
_1, _2, _9, _23 = np.uint32(1), np.uint32(2), np.uint32(9), np.uint32(23)
_BIT30, _BIT31, _ZERO = np.uint32(1 << 30), np.uint32(1 << 31), np.uint32(0)
_FRACTION, _SQRT_HALF = np.uint32(0x007FFFFF), np.uint32(SQRT_HALF_BITS)
_SHIFT, _BIAS, _I9 = np.uint32(EXPONENT_SHIFT), np.int32(127), np.int32(9)
_HALF, _ONE, _MINUS_TWO = np.float32(0.5), np.float32(1), np.float32(-2)
_UNIT, _LN2, _ANGLE = np.float32(2**-23), np.float32(LN2), np.float32(ANGLE)
_A9, _A7, _A5, _A3 = (np.float32(value) for value in ATANH)
_C8, _C6, _C4, _C2 = (np.float32(value) for value in COSINE)
_S9, _S7, _S5, _S3 = (np.float32(value) for value in SINE)
TINY_FLOAT32: Final = np.float32(1e-30)


class Jit(Protocol):
    """What makes a kernel of a function."""

    def __call__(self, function: F) -> F:
        """Return the kernel."""


@dataclass(frozen=True, slots=True)
class Compiler:
    """numba, and the ways in which this package uses it.

    ``exact`` keeps every rounding, ``sums`` may reorder and fuse the additions of a sum; both are
    for kernels that kernels call, ``entry`` is ``exact`` for those that Python calls. Division by
    zero gives infinity as on every device, because the check for it would forbid vector code.
    """

    numba: Any
    exact: Jit
    sums: Jit
    entry: Jit

    @staticmethod
    def find() -> Compiler:
        """Import numba. Raises ImportError where it is not installed."""
        numba = importlib.import_module("numba")
        common = {"nogil": True, "error_model": "numpy", "cache": False, "no_cfunc_wrapper": True}
        inner = common | {"no_cpython_wrapper": True}
        return Compiler(
            numba,
            numba.njit(**inner),
            numba.njit(**inner, fastmath={"reassoc", "contract", "nsz"}),
            numba.njit(**common),
        )

    def bitcast(self, source: str, target: str, width: str) -> Callable[[Any], Any]:
        """Return the kernel that reads the bits of one 32-bit type as another."""
        types = self.numba.types
        ir = importlib.import_module("llvmlite.ir")
        llvm = ir.FloatType() if width == "float" else ir.IntType(32)

        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return builder.bitcast(args[0], llvm)

        def cast(typing_context: Any, value: Any) -> Any:
            return getattr(types, target)(getattr(types, source)), generate

        made: Callable[[Any], Any] = self.numba.extending.intrinsic(cast)
        return made


def philox_kernel(jit: Jit) -> Callable[..., tuple[Word, Word, Word, Word]]:
    """Return the kernel of one call of Philox4x32-10; all words are uint64 below 2^32."""

    @jit
    def philox(
        a: Word, b: Word, c: Word, d: Word, k0: Word, k1: Word
    ) -> tuple[Word, Word, Word, Word]:
        for _ in range(PHILOX_ROUNDS):
            first, second = (a & _LOW) * _M0, (c & _LOW) * _M1
            a, b = (second >> _32) ^ b ^ k0, second & _LOW
            c, d = (first >> _32) ^ d ^ k1, first & _LOW
            k0, k1 = (k0 + _W0) & _LOW, (k1 + _W1) & _LOW
        return a, b, c, d

    return philox


def uniform_kernel(jit: Jit) -> Callable[[Word], Real]:
    """Return the kernel that makes a uniform in (0, 1) of a uint32."""

    @jit
    def uniform(v: Word) -> Real:
        return (np.float32(np.int32(v >> _9)) + _HALF) * _UNIT

    return uniform


def pair_kernel(
    compiler: Compiler, uniform: Callable[[Word], Real]
) -> Callable[[Word, Word], tuple[Real, Real]]:
    """Return the kernel that makes two normals of a radius word and an angle word, uint32."""
    bits_of = compiler.bitcast("float32", "uint32", "int")
    float_of = compiler.bitcast("uint32", "float32", "float")

    @compiler.exact
    def pair(v: Word, w: Word) -> tuple[Real, Real]:
        bits = np.uint32(bits_of(uniform(v)) + _SHIFT)
        exponent = np.float32(np.int32(np.int32(np.uint32(bits >> _23)) - _BIAS))
        m = float_of(np.uint32(np.uint32(bits & _FRACTION) + _SQRT_HALF))
        s = (m - _ONE) / (m + _ONE)
        z = s * s
        p = z * (_A3 + z * (_A5 + z * (_A7 + z * _A9)))
        twice = s + s
        radius = np.sqrt(_MINUS_TWO * (exponent * _LN2 + (twice + twice * p)))
        a = (np.float32(np.int32(np.int32(np.uint32(w << _2)) >> _I9)) + _HALF) * _ANGLE
        z = a * a
        c = z * (_C2 + z * (_C4 + z * (_C6 + z * _C8))) + _ONE
        t = a + a * (z * (_S3 + z * (_S5 + z * (_S7 + z * _S9))))
        odd = (w & _BIT30) != _ZERO
        x = t if odd else c
        y = c if odd else t
        # Branches on the sign would keep the loops around this from becoming vector code.
        x = float_of(np.uint32(bits_of(x) ^ np.uint32((w ^ np.uint32(w << _1)) & _BIT31)))
        y = float_of(np.uint32(bits_of(y) ^ np.uint32(w & _BIT31)))
        return radius * x, radius * y

    return pair


def dot_kernel(compiler: Compiler) -> Callable[[Floats1, Floats1, int], Real]:
    """Return the kernel of the product of two vectors of n float32."""

    @compiler.sums
    def dot(a: Floats1, b: Floats1, n: int) -> Real:
        total = np.float32(0)
        for k in range(n):
            total += a[k] * b[k]
        return total

    return dot


def noise_kernel(
    jit: Jit,
    philox: Callable[..., tuple[Word, Word, Word, Word]],
    pair: Callable[[Word, Word], tuple[Real, Real]],
) -> Callable[..., None]:
    """Return the kernel that fills words u32 [4, n] and normals [4 n] of one row from its keys.

    ``blocks`` u32 [n] are first counter words, ``stream`` u64 [3] is (pass, key 0, key 1).
    """

    @jit
    def noise(
        blocks: Words1, stream: Any, row: Word, augmentation: Word, words: Any, out: Floats1
    ) -> None:
        passed, k0, k1 = stream[0], stream[1], stream[2]
        low, high = row & _LOW, (row >> _32) | (augmentation << _16)
        for i in range(len(blocks)):
            a, b, c, d = philox(np.uint64(blocks[i]), passed, low, high, k0, k1)
            words[0, i] = np.uint32(a)
            words[1, i] = np.uint32(b)
            words[2, i] = np.uint32(c)
            words[3, i] = np.uint32(d)
        for i in range(len(blocks)):
            x, y = pair(words[0, i], words[1, i])
            out[4 * i] = x
            out[4 * i + 1] = y
            x, y = pair(words[2, i], words[3, i])
            out[4 * i + 2] = x
            out[4 * i + 3] = y

    return noise


def _normals_kernel(jit: Jit, noise: Callable[..., None]) -> Callable[..., None]:
    @jit
    def normals(
        blocks: Words1, stream: Any, rows: Any, augs: Any, start: int, stop: int, out: Any
    ) -> None:
        words = np.empty((4, len(blocks)), np.uint32)
        line = np.empty(4 * len(blocks), np.float32)
        for i in range(start, stop):
            noise(blocks, stream, rows[i], np.uint64(augs[i]), words, line)
            for k in range(out.shape[1]):
                out[i, k] = line[k]

    return normals


def _isotropic_kernel(
    jit: Jit, noise: Callable[..., None], dot: Callable[..., Real]
) -> Callable[..., None]:
    @jit
    def isotropic(
        blocks: Words1, stream: Any, rows: Any, augs: Any, start: int, stop: int,
        x: Any, strength: Real, squares: Floats1, out: Any,
    ) -> None:  # fmt: skip
        dim = x.shape[1]
        words = np.empty((4, len(blocks)), np.uint32)
        line = np.empty(4 * len(blocks), np.float32)
        across = np.sqrt(_ONE - strength * strength)
        for i in range(start, stop):
            noise(blocks, stream, rows[i], np.uint64(augs[i]), words, line)
            square = dot(x[i], x[i], dim)
            squares[i] = square
            share = dot(x[i], line, dim) / square
            for k in range(dim):
                line[k] -= share * x[i, k]
            beside = across / (np.sqrt(dot(line, line, dim)) + TINY_FLOAT32)
            for k in range(dim):
                line[k] = strength * x[i, k] + beside * line[k]
            scale = _ONE / np.sqrt(dot(line, line, dim))
            for k in range(dim):
                out[i, k] = scale * line[k]

    return isotropic


@dataclass(frozen=True, slots=True)
class Kernels:
    """The kernels of this process, their parts, and the seconds it took to compile them.

    ``normals`` is compiled by its first call.
    """

    compiler: Compiler
    philox: Callable[..., tuple[Word, Word, Word, Word]]
    uniform: Callable[[Word], Real]
    pair: Callable[[Word, Word], tuple[Real, Real]]
    noise: Callable[..., None]
    dot: Callable[..., Real]
    normals: Callable[..., None]
    isotropic: Callable[..., None]
    seconds: float


_loaded: list[Kernels | None] = []


def load_kernels() -> Kernels | None:
    """Compile the kernels, once per process; None where numba is not installed.

    Any thread may call it; the others wait, and so does a fork. It takes two to four seconds the
    first time. A call inside the one that compiles (in a signal handler) compiles kernels of its
    own.
    """
    if _loaded:
        return _loaded[0]
    guard = compile_lock().hold_unless_inside()
    if guard is None:
        return _compile()
    with guard:
        if not _loaded:
            _loaded.append(_compile())
        return _loaded[0]


def _compile() -> Kernels | None:
    begin = perf_counter()
    try:
        compiler = Compiler.find()
    except ImportError:
        return None
    jit, philox = compiler.exact, philox_kernel(compiler.exact)
    uniform = uniform_kernel(jit)
    pair = pair_kernel(compiler, uniform)
    noise, dot = noise_kernel(jit, philox, pair), dot_kernel(compiler)
    entry = compiler.entry
    normals, isotropic = _normals_kernel(entry, noise), _isotropic_kernel(entry, noise, dot)
    keys = Keys(0, 0, np.zeros(1, np.uint64), np.zeros(1, np.uint16))
    x = np.full((1, 4), 0.5, np.float32)
    x.flags.writeable = False
    arguments = stream_arguments(keys, first_words(0, 4))
    isotropic(
        *arguments, 0, 1, x, np.float32(0.5), np.empty(1, np.float32), np.empty((1, 4), np.float32)
    )
    seconds = perf_counter() - begin
    return Kernels(compiler, philox, uniform, pair, noise, dot, normals, isotropic, seconds)


def first_words(step: int, dim: int) -> npt.NDArray[np.uint32]:
    """Return the first counter words u32 of the normals of one step."""
    return np.arange(-(-dim // 4), dtype=np.uint32) | np.uint32(step << 16)


def stream_arguments(keys: Keys, blocks: npt.NDArray[np.uint32]) -> tuple[Any, ...]:
    """Return what every kernel takes first: blocks, (pass, key 0, key 1), rows, augmentations."""
    stream = np.array([keys.pass_number, *seed_key(keys.seed)], np.uint64)
    return blocks, stream, kernel_input(keys.rows), kernel_input(keys.augmentations)


def kernel_input(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return a read-only, contiguous, aligned view of an array, or a copy where it is not.

    To numba each of these is another type, and a kernel is compiled anew for other types.
    """
    view = np.require(array, requirements=["C", "A"]).view()
    view.flags.writeable = False
    return view
