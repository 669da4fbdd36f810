"""The subspace form as machine code: the parts of ``mldb.gpu.subspace``, one row at a time.

A row's neighbours are copied side by side once (40 KiB for 16 of 640 dimensions) and read three
times: for the Gram matrix, for the products with the final normal, and for the sum at the end.
Vectors of the span are padded to a multiple of four with zero rows, which add nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from mldb.gpu.subspace import PIVOT_MIN
from mldb.noise.philox import GAMMA_BLOCK, GAMMA_TRIES, SUBSPACE_STEP
from mldb.noise.philox_compiled import Compiler, Floats1, Jit, Kernels, Real

Kernel: TypeAlias = Callable[..., Any]
Matrix: TypeAlias = npt.NDArray[np.float32]

_ZERO, _HALF, _ONE, _TWO = np.float32(0), np.float32(0.5), np.float32(1), np.float32(2)
_NINE, _THIRD, _TINY = np.float32(9), np.float32(1 / 3), np.float32(1e-30)
_PIVOT_MIN: Final = np.float32(PIVOT_MIN)
_LOW, _16, _32 = np.uint64(0xFFFFFFFF), np.uint64(16), np.uint64(32)


def chain_blocks(steps: int, neighbours: int, dim: int) -> npt.NDArray[np.uint32]:
    """Return the first counter words u32 of all noise of a chain, in the order of use.

    Per step the blocks of K + 2 normals and the first try of the gamma draw; then the final normal.
    """
    own = np.append(np.arange(-(-(neighbours + 2) // 4)), GAMMA_BLOCK)
    numbers = (np.arange(steps + 1) | SUBSPACE_STEP) << 16
    inside = (numbers[:steps, None] | own).ravel()
    return np.concatenate([inside, numbers[steps] | np.arange(-(-dim // 4))]).astype(np.uint32)


def gram_kernel(compiler: Compiler) -> Kernel:
    """Return the kernel of the Gram matrix (lower part) of (x, M) and the products with n."""

    @compiler.sums
    def dots(
        a: Floats1, b: Floats1, c: Floats1, e: Floats1, p: Floats1, q: Floats1, n: int
    ) -> tuple[Real, ...]:
        ap = bp = cp = ep = aq = bq = cq = eq = np.float32(0)
        for k in range(n):
            ap += a[k] * p[k]
            bp += b[k] * p[k]
            cp += c[k] * p[k]
            ep += e[k] * p[k]
            aq += a[k] * q[k]
            bq += b[k] * q[k]
            cq += c[k] * q[k]
            eq += e[k] * q[k]
        return ap, bp, cp, ep, aq, bq, cq, eq

    @compiler.exact
    def gram(m: Matrix, x: Floats1, n: Floats1, out: Matrix, t: Floats1) -> None:
        dim = m.shape[1]
        for i in range(0, m.shape[0], 4):
            a, b, c, e = m[i], m[i + 1], m[i + 2], m[i + 3]
            # Four rows against two: each value that is loaded serves several products. Last come
            # the row itself and the final normal.
            for j in range(0, i + 6, 2):
                inside = j < i + 4
                p = m[j] if inside else x
                q = m[j + 1] if inside else n
                values = dots(a, b, c, e, p, q, dim)
                for k in range(4):
                    out[i + k + 1, j + 1 if inside else 0] = values[k]
                    if inside:
                        out[i + k + 1, j + 2] = values[k + 4]
                    else:
                        t[i + k + 1] = values[k + 4]

    return gram


def factor_kernel(jit: Jit) -> Kernel:
    """Return the kernel of the Cholesky factor, in place; it counts the pivots that were kept."""

    @jit
    def factorise(gram: Matrix, turned: Matrix, inverse: Floats1, count: int) -> int:
        held = 0
        for j in range(count):
            pivot = gram[j, j]
            for k in range(j):
                pivot -= gram[j, k] * gram[j, k]
            scale = _ZERO
            if pivot > _PIVOT_MIN:
                scale = _ONE / np.sqrt(pivot)
                held += 1
            inverse[j] = scale
            gram[j, j] = pivot * scale
            for i in range(j + 1, count):
                value = gram[i, j]
                for k in range(j):
                    value -= gram[i, k] * gram[j, k]
                gram[i, j] = value * scale
        for j in range(count):
            for i in range(j, count):
                turned[j, i] = gram[i, j]
        return held

    return factorise


def chi_square_kernel(kernels: Kernels) -> Kernel:
    """Return the kernel of one chi-square number.

    The words of the first try are among the noise of the row: ``normal`` and ``word``. Further ones
    are made here, one row in three thousand.
    """
    philox, pair, uniform = kernels.philox, kernels.pair, kernels.uniform

    @kernels.compiler.exact
    def chi_square(
        freedom: Real, normal: Real, word: Any, step: Any, stream: Any, row: Any, augmentation: Any
    ) -> Real:
        d = freedom * _HALF - _THIRD
        c = _ONE / np.sqrt(_NINE * d)
        cube = _ONE
        for number in range(GAMMA_TRIES):
            if number > 0:
                first = np.uint64(step | np.uint32(GAMMA_BLOCK + number))
                high = (row >> _32) | (augmentation << _16)
                words = philox(first, stream[0], row & _LOW, high, stream[1], stream[2])
                normal, _ = pair(np.uint32(words[0]), np.uint32(words[1]))
                word = np.uint32(words[2])
            base = _ONE + c * normal
            cube = base * base * base if base > _ZERO else _TINY
            bound = normal * normal * _HALF + d * (_ONE - cube + np.log(cube))
            if base > _ZERO and np.log(uniform(word)) < bound:
                break
        return _TWO * d * cube

    return chi_square


def pull_kernel(jit: Jit) -> Kernel:
    """Return the kernel that turns K cosines into pulls, in place, and returns the energy."""

    @jit
    def pulls(cosines: Floats1, kappa: Floats1, log_weight: Floats1) -> Real:
        count = len(kappa)
        top = np.float32(-np.inf)
        for j in range(count):
            cosines[j] = log_weight[j] + kappa[j] * (cosines[j] - _ONE)
            top = max(top, cosines[j])
        total = _ZERO
        for j in range(count):
            cosines[j] = np.exp(cosines[j] - top)
            total += cosines[j]
        for j in range(count):
            cosines[j] *= kappa[j] / total
        return -(top + np.log(total))

    return pulls


def move_kernel(jit: Jit, pulls: Kernel) -> Kernel:
    """Return the kernel of one step: c [m] in place, r returned. ``work`` is float32 [3, m]."""

    @jit
    def move(
        c: Floats1, r: Real, factor: Matrix, turned: Matrix, inverse: Floats1,
        kappa: Floats1, log_weight: Floats1, noise: Floats1, chi: Real,
        eps: Real, spread: Real, work: Matrix,
    ) -> Real:  # fmt: skip
        count = len(c)
        cosines, g, v = work[0], work[1], work[2]
        for i in range(count):
            cosines[i] = _ZERO
            g[i] = _ZERO
        # Column by column, so that the inner loop is vector code without reordering a sum.
        for k in range(count):
            for i in range(count):
                cosines[i] += c[k] * turned[k, i]
        pulls(cosines[1:], kappa, log_weight)
        for j in range(1, count):
            for k in range(j + 1):
                g[k] -= cosines[j] * factor[j, k]
        slope, eta = _ZERO, noise[count]
        p = r * eta
        for k in range(count):
            v[k] = noise[k] if inverse[k] > _ZERO else _ZERO
            slope += c[k] * g[k]
            p += c[k] * v[k]
        w = spread * (eta - r * p) + eps * r * slope
        off = spread * spread * chi
        square = w * w + off
        for k in range(count):
            v[k] = spread * (v[k] - c[k] * p) - eps * (g[k] - c[k] * slope)
            square += v[k] * v[k]
        size = np.sqrt(square)
        cosine = np.cos(size)
        quotient = np.sin(size) / size if size > _ZERO else _ONE
        along = cosine * r + quotient * w
        square = along * along + quotient * quotient * off
        r = np.sqrt(square)
        for k in range(count):
            c[k] = cosine * c[k] + quotient * v[k]
            square += c[k] * c[k]
        scale = _ONE / np.sqrt(square)
        for k in range(count):
            c[k] *= scale
        return r * scale

    return move


def solve_kernel(jit: Jit) -> Kernel:
    """Return the kernel of part 3: t [m] and c [m] become the weights of V in c; h is returned."""

    @jit
    def solve(
        factor: Matrix,
        turned: Matrix,
        inverse: Floats1,
        t: Floats1,
        c: Floats1,
        r: Real,
        size: Real,
    ) -> Real:
        count = len(c)
        for j in range(count):
            t[j] *= inverse[j]
            for i in range(j + 1, count):
                t[i] -= t[j] * turned[j, i]
            size -= t[j] * t[j]
        h = r / np.sqrt(size)
        for j in range(count - 1, -1, -1):
            c[j] -= h * t[j]
        for j in range(count - 1, -1, -1):
            c[j] *= inverse[j]
            for i in range(j):
                c[i] -= c[j] * factor[j, i]
        return h

    return solve


def lift_kernel(kernels: Kernels, add: Kernel) -> Kernel:
    """Return the kernel that sums the rows of V by their weights c, and n by h, to length 1."""
    dot = kernels.dot

    @kernels.compiler.exact
    def lift(c: Floats1, h: Real, x: Floats1, n: Floats1, m: Matrix, out: Floats1) -> None:
        dim, neighbours = len(x), len(c) - 1
        for k in range(dim):
            out[k] = c[0] * x[k] + h * n[k]
        for j in range(0, len(m), 4):
            w1 = c[j + 2] if j + 1 < neighbours else _ZERO
            w2 = c[j + 3] if j + 2 < neighbours else _ZERO
            w3 = c[j + 4] if j + 3 < neighbours else _ZERO
            add(out, c[j + 1], m[j], w1, m[j + 1], w2, m[j + 2], w3, m[j + 3], dim)
        scale = _ONE / np.sqrt(dot(out, out, dim))
        for k in range(dim):
            out[k] *= scale

    return lift


def subspace_kernel(kernels: Kernels, pulls: Kernel, add: Kernel) -> Kernel:
    """Return the kernel that runs rows start .. stop of a batch; ``add`` sums weighted rows."""
    jit, noise, dot = kernels.compiler.exact, kernels.noise, kernels.dot
    gram, factorise = gram_kernel(kernels.compiler), factor_kernel(jit)
    chi_square, move, solve = chi_square_kernel(kernels), move_kernel(jit, pulls), solve_kernel(jit)
    lift = lift_kernel(kernels, add)

    @kernels.compiler.entry
    def subspace(
        blocks: Any, stream: Any, rows: Any, augs: Any, start: int, stop: int,
        x: Any, table: Any, index: Any, kappa: Any, log_weight: Any,
        steps: int, eps: Real, spread: Real, squares: Floats1, out: Any,
    ) -> None:  # fmt: skip
        dim, neighbours = x.shape[1], index.shape[1]
        count, padded = neighbours + 1, (neighbours + 3) // 4 * 4
        own = (neighbours + 5) // 4  # blocks of the normals of a step
        words, line = np.empty((4, len(blocks)), np.uint32), np.empty(4 * len(blocks), np.float32)
        m, work = np.zeros((padded, dim), np.float32), np.empty((3, count), np.float32)
        factor = np.zeros((padded + 1, padded + 1), np.float32)
        turned = np.zeros((count, count), np.float32)
        t, inverse = np.empty(padded + 1, np.float32), np.empty(count, np.float32)
        c = np.empty(count, np.float32)
        for i in range(start, stop):
            augmentation = np.uint64(augs[i])
            noise(blocks, stream, rows[i], augmentation, words, line)
            n = line[4 * steps * (own + 1) :]
            for j in range(neighbours):
                source, target = table[index[i, j]], m[j]
                for k in range(dim):
                    target[k] = source[k]
            gram(m, x[i], n, factor, t)
            squares[i] = factor[0, 0] = dot(x[i], x[i], dim)
            t[0] = dot(x[i], n, dim)
            freedom = np.float32(dim - 1 - factorise(factor, turned, inverse, count))
            for k in range(count):
                c[k] = factor[0, k] if k == 0 else _ZERO
            r = _ZERO
            for step in range(steps):
                at = step * (own + 1)
                normal, word = line[4 * (at + own)], words[2, at + own]
                chi = chi_square(freedom, normal, word, blocks[at], stream, rows[i], augmentation)
                r = move(
                    c, r, factor, turned, inverse, kappa[i], log_weight[i], line[4 * at :], chi,
                    eps, spread, work,
                )  # fmt: skip
            h = solve(factor, turned, inverse, t, c, r, dot(n, n, dim))
            lift(c, h, x[i], n, m, out[i])

    return subspace
