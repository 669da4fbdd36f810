# Which rows a batch has: the permutation and the draws of mldb/lake/order, bit for bit.
# Several numbers go through each step together, which the compiler makes vectors of.

from libc.stdint cimport int32_t

cdef enum:
    _LANES = 64
    _PHILOX_ROUNDS = 10
    _PHILOX_0 = 0xD2511F53
    _PHILOX_1 = 0xCD9E8D57
    _WEYL_0 = 0x9E3779B9
    _WEYL_1 = 0xBB67AE85
    _FEISTEL_ROUNDS = 8
    _MIX_0 = 0x7FEB352D
    _MIX_1 = 0x846CA68B
    _POSITION_BITS = 48

cdef double _UNIFORM = 2.0 ** -52


cdef struct _Order:
    # A permutation of 0 .. n-1: mldb/lake/order/permutation.py.
    int64_t n
    uint32_t bases[2]
    uint32_t keys[_FEISTEL_ROUNDS]
    bint forward


cdef void _feistel(const _Order *order, uint32_t *high, uint32_t *low) noexcept nogil:
    """All rounds of _LANES numbers, given as two digits each."""
    cdef uint32_t *to
    cdef const uint32_t *by
    cdef uint32_t mixed, other, base, key, back = 0 if order.forward else 0xFFFFFFFF
    cdef int step, turn, i
    for step in range(_FEISTEL_ROUNDS):
        turn = step if order.forward else _FEISTEL_ROUNDS - 1 - step
        to, by = (low, high) if turn & 1 else (high, low)
        base, key = order.bases[turn & 1], order.keys[turn]
        for i in range(_LANES):
            mixed = (by[i] + key) * <uint32_t>_MIX_0
            mixed = (mixed ^ (mixed >> 15)) * <uint32_t>_MIX_1
            mixed = <uint32_t>((<uint64_t>mixed * base) >> 32)
            # Added, or taken off, modulo the base: the smaller of two numbers that wrap.
            mixed = to[i] + (mixed ^ back) - back
            other = mixed - (base ^ back) + back
            to[i] = mixed if mixed < other else other


cdef void _one_round(
    const _Order *order, const int64_t *given, int count, int64_t *out
) noexcept nogil:
    """Send up to _LANES numbers below the product of the bases through the rounds."""
    cdef uint32_t high[_LANES]
    cdef uint32_t low[_LANES]
    cdef int64_t base = order.bases[1], quotient, rest
    cdef double share = 1.0 / <double>base
    cdef int i
    for i in range(count):
        quotient = <int64_t>(<double>given[i] * share)  # off by one at most
        rest = given[i] - quotient * base
        quotient += (rest >= base) - (rest < 0)
        high[i], low[i] = <uint32_t>quotient, <uint32_t>(given[i] - quotient * base)
    for i in range(count, _LANES):
        high[i] = low[i] = 0
    _feistel(order, high, low)
    for i in range(count):
        out[i] = <int64_t>high[i] * base + low[i]


cdef bint _permute(
    const _Order *order, const int64_t *given, Py_ssize_t count, int64_t *out
) noexcept nogil:
    cdef Py_ssize_t start = 0, i
    cdef int part
    while start < count:
        part = <int>min(count - start, <Py_ssize_t>_LANES)
        for i in range(start, start + part):
            if not 0 <= given[i] < order.n:
                return False
        _one_round(order, &given[start], part, &out[start])
        for i in range(start, start + part):
            while out[i] >= order.n:
                _one_round(order, &out[i], 1, &out[i])
        start += part
    return True


def permute(given, out, tuple keys not None, tuple bases not None, int64_t n, bint forward):
    """``Permutation._walk`` of *given* to *out*, i64 [n] both; True, or None for other input."""
    cdef Py_buffer views[2]
    cdef _Order order
    cdef bint done
    cdef int i
    if len(keys) != _FEISTEL_ROUNDS or len(bases) != 2:
        return None
    order.n, order.forward = n, forward
    for i in range(_FEISTEL_ROUNDS):
        order.keys[i] = keys[i]
    order.bases[0], order.bases[1] = bases
    if not 0 < n <= <int64_t>order.bases[0] * order.bases[1] or n >> _POSITION_BITS:
        return None
    if not _take_numbers(given, &views[0], b"l", b"q", PyBUF_SIMPLE):
        return None
    if not _take_numbers(out, &views[1], b"l", b"q", PyBUF_WRITABLE):
        PyBuffer_Release(&views[0])
        return None
    done = views[0].len == views[1].len
    if done:
        with nogil:
            done = _permute(&order, <int64_t *>views[0].buf, views[0].shape[0],
                            <int64_t *>views[1].buf)
    PyBuffer_Release(&views[1])
    PyBuffer_Release(&views[0])
    return True if done else None


cdef void _philox(uint32_t (*c)[_LANES], uint32_t key_0, uint32_t key_1) noexcept nogil:
    """Philox4x32-10 of _LANES counters in place: mldb/noise/philox.py."""
    cdef uint64_t first, second
    cdef int number, i
    for number in range(_PHILOX_ROUNDS):
        for i in range(_LANES):
            first = <uint64_t>c[0][i] * <uint32_t>_PHILOX_0
            second = <uint64_t>c[2][i] * <uint32_t>_PHILOX_1
            c[0][i] = <uint32_t>(second >> 32) ^ c[1][i] ^ key_0
            c[2][i] = <uint32_t>(first >> 32) ^ c[3][i] ^ key_1
            c[1][i], c[3][i] = <uint32_t>second, <uint32_t>first
        key_0 += <uint32_t>_WEYL_0
        key_1 += <uint32_t>_WEYL_1


cdef inline double _uniform(uint32_t high, uint32_t low) noexcept nogil:
    """As ``wide_uniforms``: exact, so in whatever order it is computed."""
    return (<double><int64_t>((<uint64_t>high << 32 | low) >> 12) + 0.5) * _UNIFORM


cdef struct _Table:
    # An alias table of so many rows: mldb/lake/order/sampling.py.
    Py_ssize_t rows
    const double *keep
    const void *alias
    bint wide  # the aliases are int64, else int32


cdef bint _draw(
    const _Table *table, uint64_t seed, uint32_t pass_number, uint32_t block,
    const int64_t *positions, Py_ssize_t count, int64_t *out,
) noexcept nogil:
    cdef uint32_t c[4][_LANES]
    cdef Py_ssize_t start = 0
    cdef int64_t column, position
    cdef int part, i
    while start < count:
        part = <int>min(count - start, <Py_ssize_t>_LANES)
        for i in range(_LANES):
            position = positions[start + i] if i < part else 0
            if position >> _POSITION_BITS:
                return False
            c[0][i], c[1][i] = block, pass_number
            c[2][i], c[3][i] = <uint32_t>position, <uint32_t>(position >> 32)
        _philox(c, <uint32_t>seed, <uint32_t>(seed >> 32))
        for i in range(part):
            column = <int64_t>(_uniform(c[0][i], c[1][i]) * <double>table.rows)
            if column >= table.rows:
                return False
            if not _uniform(c[2][i], c[3][i]) < table.keep[column]:
                if table.wide:
                    column = (<const int64_t *>table.alias)[column]
                else:
                    column = (<const int32_t *>table.alias)[column]
            out[start + i] = column
        start += part
    return True


def draw_rows(
    positions, out, uint64_t seed, uint32_t pass_number, uint32_t block, keep, alias
):
    """``AliasTable.draw`` of *positions* to *out*, i64 [n]; True, or None for other input.

    *block* is the first word of the counter; *keep* f64 [N], *alias* i32 or i64 [N].
    """
    cdef Py_buffer views[4]
    cdef _Table table
    cdef int taken = 0
    cdef bint done
    try:
        if not _take_numbers(positions, &views[0], b"l", b"q", PyBUF_SIMPLE):
            return None
        taken = 1
        if not _take_numbers(out, &views[1], b"l", b"q", PyBUF_WRITABLE):
            return None
        taken = 2
        if not _take_numbers(keep, &views[2], b"d", b"d", PyBUF_SIMPLE):
            return None
        taken = 3
        table.wide = not _take_numbers(alias, &views[3], b"i", b"i", PyBUF_SIMPLE)
        if table.wide and not _take_numbers(alias, &views[3], b"l", b"q", PyBUF_SIMPLE):
            return None
        taken = 4
        table.rows = views[2].shape[0]
        if views[0].len != views[1].len or views[3].shape[0] != table.rows:
            return None
        table.keep, table.alias = <double *>views[2].buf, views[3].buf
        with nogil:
            done = _draw(&table, seed, pass_number, block, <int64_t *>views[0].buf,
                         views[0].shape[0], <int64_t *>views[1].buf)
        return True if done else None
    finally:
        while taken:
            taken -= 1
            PyBuffer_Release(&views[taken])
