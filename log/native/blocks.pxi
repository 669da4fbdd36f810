# Verification of the checksummed blocks of a payload, without the lock of the interpreter.

from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer

cdef struct _Payload:
    const char *data  # its first byte, wherever the bytes that were given begin
    Py_ssize_t low, high  # the bytes of it that were given
    Py_ssize_t size
    int log2
    const uint8_t *checks  # 8 bytes a block, big-endian
    uint8_t *done


cdef bint _fits(const _Payload *at, Py_ssize_t block) noexcept nogil:
    """Whether a block is verified, now or before; False as well where it was not given whole."""
    cdef Py_ssize_t low = block << at.log2
    cdef Py_ssize_t high = min(low + (<Py_ssize_t>1 << at.log2), at.size)
    cdef uint64_t found, stored = 0
    cdef int i
    if at.done[block]:
        return True
    if low < at.low or high > at.high:
        return False
    found = mldb_check64(at.data + low, high - low, 0)
    for i in range(8):
        stored = stored << 8 | at.checks[8 * block + i]
    if found != stored:
        return False
    at.done[block] = 1
    return True


cdef bint _all_fit(const _Payload *at, Py_ssize_t first, Py_ssize_t last) noexcept nogil:
    while first <= last:
        if not _fits(at, first):
            return False
        first += 1
    return True


cdef bint _rows_fit(
    const _Payload *at, const int64_t *rows, Py_ssize_t count, int64_t place, int64_t width,
) noexcept nogil:
    cdef Py_ssize_t i
    cdef int64_t most = (at.size - place) // width
    for i in range(count):
        if not 0 <= rows[i] < most:
            return False
        if not _all_fit(at, (place + rows[i] * width) >> at.log2,
                        (place + (rows[i] + 1) * width - 1) >> at.log2):
            return False
    return True


def verify_blocks(
    data, Py_ssize_t base, Py_ssize_t start, Py_ssize_t stop, int log2, bytes checks not None,
    bytearray done not None, Py_ssize_t first, Py_ssize_t last, rows=None, Py_ssize_t width=0,
):
    """Verify blocks first..last of the payload at bytes start..stop of a file; True when they fit.

    *data* is the file from byte *base* on. With *rows* (i64 [n]) instead the blocks that hold them,
    each *width* bytes of a column that begins *first* bytes into the payload. None where one does
    not fit, or lies outside: what was verified before it is noted in *done*.
    """
    cdef Py_buffer views[3]
    cdef _Payload at
    cdef int taken = 0
    cdef bint fits = False
    if not MLDB_HAS_XXHASH or not 0 <= log2 < 48 or not 0 <= start < stop or base < 0:
        return None
    at.size, at.log2 = stop - start, log2
    if len(done) != ((at.size - 1) >> log2) + 1 or len(checks) != 8 * len(done) or first < 0:
        return None
    if last >= len(done) if rows is None else not 0 < width <= at.size - first:
        return None
    try:
        PyObject_GetBuffer(data, &views[0], PyBUF_SIMPLE)
        taken = 1
        PyObject_GetBuffer(done, &views[1], PyBUF_WRITABLE)  # nobody cuts it meanwhile
        taken = 2
        at.data = <const char *>views[0].buf + (start - base)
        at.low, at.high = base - start, base - start + views[0].len
        at.checks, at.done = <const uint8_t *>PyBytes_AS_STRING(checks), <uint8_t *>views[1].buf
        if rows is None:
            with nogil:
                fits = _all_fit(&at, first, last)
        else:
            PyObject_GetBuffer(rows, &views[2], PyBUF_SIMPLE)
            taken = 3
            with nogil:
                fits = _rows_fit(&at, <const int64_t *>views[2].buf, views[2].len // 8, first,
                                 width)
    except (BufferError, ValueError):
        return None
    finally:
        while taken:
            taken -= 1
            PyBuffer_Release(&views[taken])
    return True if fits else None
