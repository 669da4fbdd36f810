"""Langevin chains as machine code, by numba: one row at a time, which stays in the cache.

The direct form (ULA and MALA) is here, the subspace form in ``mldb.gpu.cpu.subspace``. The
formulas are those of ``mldb.gpu.dynamics``; read them first. Neighbours are read where they lie.
Sums over dimensions may be reordered by the compiler, once; all else runs in the order written, so
a row's result depends on its arguments and the processor alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import pi, sqrt
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt

from mldb.gpu.cpu.subspace import Kernel, chain_blocks, pull_kernel, subspace_kernel
from mldb.gpu.device import Dynamics, Form
from mldb.noise.compiling import compile_lock
from mldb.noise.keys import Keys
from mldb.noise.philox import ACCEPT_BLOCK
from mldb.noise.philox_compiled import (
    Compiler,
    Floats1,
    Kernels,
    Real,
    first_words,
    kernel_input,
    load_kernels,
    stream_arguments,
)

_ZERO, _ONE, _TWO, _FOUR = np.float32(0), np.float32(1), np.float32(2), np.float32(4)
_PI = np.float32(pi)
_STEP_SHIFT = np.uint32(16)


def add_kernel(compiler: Compiler) -> Kernel:
    """Return the kernel that adds four weighted vectors of n float32 to ``out``."""

    @compiler.sums
    def add(
        out: Floats1, wa: Real, a: Floats1, wb: Real, b: Floats1,
        wc: Real, c: Floats1, we: Real, e: Floats1, n: int,
    ) -> None:  # fmt: skip
        for k in range(n):
            out[k] += wa * a[k] + wb * b[k] + wc * c[k] + we * e[k]

    return add


def dots_kernel(compiler: Compiler) -> Kernel:
    """Return the kernel of the products of four vectors with one."""

    @compiler.sums
    def dots(
        a: Floats1, b: Floats1, c: Floats1, e: Floats1, x: Floats1, n: int
    ) -> tuple[Real, Real, Real, Real]:
        sa = sb = sc = se = np.float32(0)
        for k in range(n):
            sa += a[k] * x[k]
            sb += b[k] * x[k]
            sc += c[k] * x[k]
            se += e[k] * x[k]
        return sa, sb, sc, se

    return dots


def force_kernel(kernels: Kernels, pulls: Kernel, add: Kernel) -> Kernel:
    """Return the kernel of energy (returned) and tangent gradient (in ``gradient``) at x."""
    dots, dot = dots_kernel(kernels.compiler), kernels.dot

    @kernels.compiler.exact
    def forces(
        x: Floats1, table: Any, index: Any, kappa: Any, log_weight: Any,
        pull: Floats1, gradient: Floats1,
    ) -> Real:  # fmt: skip
        dim, count = len(x), len(index)
        whole = count - count % 4
        for j in range(0, whole, 4):
            a, b, c, e = (
                table[index[j]],
                table[index[j + 1]],
                table[index[j + 2]],
                table[index[j + 3]],
            )
            pull[j], pull[j + 1], pull[j + 2], pull[j + 3] = dots(a, b, c, e, x, dim)
        for j in range(whole, count):
            pull[j] = dot(table[index[j]], x, dim)
        energy = pulls(pull, kappa, log_weight)
        for k in range(dim):
            gradient[k] = _ZERO
        for j in range(0, whole, 4):
            a, b, c, e = (
                table[index[j]],
                table[index[j + 1]],
                table[index[j + 2]],
                table[index[j + 3]],
            )
            add(gradient, -pull[j], a, -pull[j + 1], b, -pull[j + 2], c, -pull[j + 3], e, dim)
        for j in range(whole, count):
            row = table[index[j]]
            for k in range(dim):
                gradient[k] -= pull[j] * row[k]
        slope = dot(x, gradient, dim)
        for k in range(dim):
            gradient[k] -= slope * x[k]
        return energy

    return forces


def propose_kernel(kernels: Kernels) -> Kernel:
    """Return the kernel of one geodesic step: v and ``moved`` are filled, |v| is returned."""
    dot = kernels.dot

    @kernels.compiler.exact
    def propose(
        x: Floats1, gradient: Floats1, noise: Floats1, eps: Real, spread: Real,
        v: Floats1, moved: Floats1,
    ) -> Real:  # fmt: skip
        dim = len(x)
        for k in range(dim):
            v[k] = spread * noise[k] - eps * gradient[k]
        share = dot(x, v, dim)
        for k in range(dim):
            v[k] -= share * x[k]
        size = np.sqrt(dot(v, v, dim))
        cosine = np.cos(size)
        quotient = np.sin(size) / size if size > _ZERO else _ONE
        for k in range(dim):
            moved[k] = cosine * x[k] + quotient * v[k]
        scale = _ONE / np.sqrt(dot(moved, moved, dim))
        for k in range(dim):
            moved[k] *= scale
        return size

    return propose


def _direct_kernel(kernels: Kernels, pulls: Kernel, add: Kernel) -> Kernel:
    jit, noise, dot = kernels.compiler.exact, kernels.noise, kernels.dot
    forces, propose = force_kernel(kernels, pulls, add), propose_kernel(kernels)
    uniform = kernels.uniform

    @jit
    def accepts(
        x: Floats1, v: Floats1, size: Real, gradient: Floats1, other: Floats1,
        rise: Real, eps: Real, temperature: Real, u: Real,
    ) -> bool:  # fmt: skip
        dim = len(x)
        turn = size * np.sin(size) * dot(x, other, dim) - np.cos(size) * dot(v, other, dim)
        turn -= dot(v, gradient, dim)
        steep = dot(other, other, dim) - dot(gradient, gradient, dim)
        ratio = -(rise + (_TWO * turn + eps * steep) / _FOUR) / temperature
        return bool(size < _PI and np.log(u) < ratio)

    @kernels.compiler.entry
    def direct(
        blocks: Any, stream: Any, rows: Any, augs: Any, start: int, stop: int,
        x: Any, table: Any, index: Any, kappa: Any, log_weight: Any,
        steps: int, eps: Real, spread: Real, temperature: Real, mala: bool,
        squares: Floats1, out: Any, accepted: Any,
    ) -> None:  # fmt: skip
        dim, last = x.shape[1], len(blocks) - 1
        own = np.empty_like(blocks)
        words, line = np.empty((4, len(blocks)), np.uint32), np.empty(4 * len(blocks), np.float32)
        pull = np.empty(index.shape[1], np.float32)
        here, there = np.empty(dim, np.float32), np.empty(dim, np.float32)
        gradient, other = np.empty(dim, np.float32), np.empty(dim, np.float32)
        v = np.empty(dim, np.float32)
        for i in range(start, stop):
            for k in range(dim):
                there[k] = x[i, k]
            squares[i] = dot(there, there, dim)
            count, energy, size = -1, _ZERO, _ZERO
            # A step ends where the next begins, so that each point is evaluated once.
            for step in range(steps + 1):
                taken = True
                if mala or step < steps:
                    end = forces(there, table, index[i], kappa[i], log_weight[i], pull, other)
                    if mala and step > 0:
                        u = uniform(words[0, last])
                        rise = end - energy
                        taken = accepts(here, v, size, gradient, other, rise, eps, temperature, u)
                    if taken:
                        energy = end
                if taken:
                    here, there = there, here
                    gradient, other = other, gradient
                    count += 1
                if step < steps:
                    for k in range(last + 1):
                        own[k] = blocks[k] | np.uint32(np.uint32(step) << _STEP_SHIFT)
                    noise(own, stream, rows[i], np.uint64(augs[i]), words, line)
                    size = propose(here, gradient, line, eps, spread, v, there)
            accepted[i] = count
            for k in range(dim):
                out[i, k] = here[k]

    return direct


@dataclass(frozen=True, slots=True)
class ChainKernels:
    """The kernels of both forms; each is compiled when ``load_chains`` is first asked for it."""

    direct: Kernel
    subspace: Kernel
    seconds: dict[Form, float]
    """How long each form took to compile."""


_loaded: list[ChainKernels] = []


def load_chains(form: Form) -> ChainKernels | None:
    """Compile the kernel of a form, once per process; None where numba is not installed.

    Any thread may call it; the others wait, and so does a fork. It takes three to six seconds the
    first time. A call inside the one that compiles (in a signal handler) compiles kernels of its
    own.
    """
    kernels = load_kernels()
    if kernels is None:
        return None
    if _loaded and form in _loaded[0].seconds:
        return _loaded[0]
    guard = compile_lock().hold_unless_inside()
    if guard is None:
        return _compiled(_made(kernels), form)
    with guard:
        if not _loaded:
            _loaded.append(_made(kernels))
        return _compiled(_loaded[0], form)


def _made(kernels: Kernels) -> ChainKernels:
    """The kernels of both forms, not compiled yet."""
    pulls, add = pull_kernel(kernels.compiler.exact), add_kernel(kernels.compiler)
    direct = _direct_kernel(kernels, pulls, add)
    return ChainKernels(direct, subspace_kernel(kernels, pulls, add), {})


def _compiled(chains: ChainKernels, form: Form) -> ChainKernels:
    if form not in chains.seconds:
        chains.seconds[form] = _compile(chains, form)
    return chains


def _compile(chains: ChainKernels, form: Form) -> float:
    """Run one row of one step."""
    begin = perf_counter()
    x = np.full((1, 8), sqrt(1 / 8), np.float32)
    keys = Keys(0, 0, np.zeros(1, np.uint64), np.zeros(1, np.uint16))
    ones = np.ones((1, 1), np.float32)
    batch = ChainBatch(keys, x, x, np.zeros((1, 1), np.int32), ones, ones)
    batch.run(chains, Dynamics(1, 0.1, form=form), 0, 1)
    return perf_counter() - begin


class ChainBatch:
    """A batch of chains for the kernels, and where their results go.

    Ranges of rows may be run by several threads at once. The arguments must not change meanwhile.
    """

    def __init__(
        self,
        keys: Keys,
        x: npt.NDArray[np.float32],
        table: npt.NDArray[np.float32],
        index: npt.NDArray[np.int32],
        kappa: npt.NDArray[np.float32],
        log_weight: npt.NDArray[np.float32],
        out: npt.NDArray[np.float32] | None = None,
    ) -> None:
        self.out = np.empty(x.shape, np.float32) if out is None else out
        self.accepted = np.empty(len(x), np.int32)
        self.squares = np.empty(len(x), np.float32)
        self._keys = keys
        self._dim, self._neighbours = int(x.shape[1]), int(index.shape[1])
        self._arrays: tuple[npt.NDArray[Any], ...] = tuple(
            kernel_input(a) for a in (x, table, index, kappa, log_weight)
        )

    def run(self, kernels: ChainKernels, dynamics: Dynamics, start: int, stop: int) -> None:
        """Run the chains of rows ``start`` .. ``stop``; frees the interpreter lock."""
        eps, temperature = np.float32(dynamics.step_size), np.float32(dynamics.temperature)
        spread = np.float32(sqrt(2 * dynamics.step_size * dynamics.temperature))
        dim = self._dim
        if dynamics.form == "subspace":
            blocks = chain_blocks(dynamics.steps, self._neighbours, dim)
            arguments = stream_arguments(self._keys, blocks)
            kernels.subspace(
                *arguments, start, stop, *self._arrays, dynamics.steps, eps, spread,
                self.squares, self.out,
            )  # fmt: skip
            self.accepted[start:stop] = dynamics.steps
            return
        blocks = np.append(first_words(0, dim), np.uint32(ACCEPT_BLOCK))
        kernels.direct(
            *stream_arguments(self._keys, blocks), start, stop, *self._arrays, dynamics.steps, eps,
            spread, temperature, dynamics.method == "mala", self.squares, self.out, self.accepted,
        )  # fmt: skip
