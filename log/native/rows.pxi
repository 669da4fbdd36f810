# Copies of rows of mapped tables, in any order: what a batch of a lake consists of.

from cpython.buffer cimport (
    PyBUF_C_CONTIGUOUS, PyBUF_FORMAT, PyBUF_SIMPLE, PyBUF_WRITABLE,
    PyBuffer_Release, PyObject_CheckBuffer, PyObject_GetBuffer,
)
from libc.string cimport memcpy

cdef extern from *:
    """
    #if defined(__GNUC__)
    #define mldb_prefetch(place) __builtin_prefetch((place), 0, 3)
    #define mldb_noted(flag) __atomic_load_n((flag), __ATOMIC_ACQUIRE)
    #else
    #define mldb_prefetch(place) ((void)(place))
    #define mldb_noted(flag) (*(volatile const unsigned char *)(flag))
    #endif
    """
    void mldb_prefetch(const void *place) nogil
    uint8_t mldb_noted(const uint8_t *flag) nogil  # what was written before it is seen behind it

cdef enum:
    _RUN = 1024  # rows whose places are found before they are copied: 16 KiB of the stack
    _LINE = 64  # bytes that the processor fetches at once
    _ABREAST = 4  # rows that are copied line by line in turn: it follows so many at once
    _AHEAD = 8  # rows: a line of each is asked for when that of one before it is copied
    _ABREAST_LEAST = 256  # bytes of a row; shorter ones are copied one after the other
    _FREE_BYTES = 1 << 16  # copied with the lock of the interpreter; more without it
    _MAPPINGS_MAX = 64


cdef struct _Blocks:
    # What is known of the blocks of a chain, or of one table where ``count`` is 0.
    Py_ssize_t count
    const int64_t *stops  # rows up to the end of each block
    const int16_t *mapping  # that its column lies in; below 0 for none
    const int64_t *offset  # of row 0 of the column, in numbers
    const uint8_t *verified  # noted last, by a thread that may run meanwhile
    const int64_t *added  # to numbers of 8 bytes, or NULL


cdef struct _Mapping:
    const char *start
    int64_t rows  # whose places lie in it, at multiples of ``size``


cdef const char *_place(
    const _Blocks *blocks, const _Mapping *mappings, int mapped, int64_t row, int64_t numbers,
    int64_t size, Py_ssize_t *block,
) noexcept nogil:
    """Where a row of so many *numbers* lies; NULL where that is not plain to see."""
    cdef Py_ssize_t low = 0, high = blocks.count, middle
    cdef int64_t at = 0
    cdef int which = 0
    if high:
        while low < high:
            middle = (low + high) >> 1
            if blocks.stops[middle] <= row:
                low = middle + 1
            else:
                high = middle
        if row < 0 or low == blocks.count or not mldb_noted(&blocks.verified[low]):
            return NULL
        block[0], which, at = low, blocks.mapping[low], blocks.offset[low]
        if low:
            row -= blocks.stops[low - 1]
    if not 0 <= which < mapped or not 0 <= row < mappings[which].rows:
        return NULL
    at += row * numbers
    return mappings[which].start + at * size if 0 <= at < mappings[which].rows else NULL


cdef void _copy_abreast(
    const char **places, Py_ssize_t count, int64_t width, char *out
) noexcept nogil:
    """Copy long rows, several at a time: reads that do not wait for each other are the faster."""
    cdef const char *ahead[_ABREAST]
    cdef Py_ssize_t start = 0, i
    cdef int64_t whole = width - width % _LINE, at
    while start + _ABREAST <= count:
        for i in range(_ABREAST):
            ahead[i] = places[min(start + _AHEAD + i, count - 1)]
        at = 0
        while at < whole:
            for i in range(_ABREAST):
                mldb_prefetch(ahead[i] + at)
                memcpy(out + i * width + at, places[start + i] + at, _LINE)
            at += _LINE
        for i in range(_ABREAST):
            memcpy(out + i * width + whole, places[start + i] + whole, width - whole)
        start += _ABREAST
        out += _ABREAST * width
    for i in range(start, count):
        memcpy(out, places[i], width)
        out += width


cdef bint _copy_rows(
    const _Blocks *blocks, const _Mapping *mappings, int mapped, const int64_t *rows,
    Py_ssize_t count, int64_t numbers, int64_t size, char *out,
) noexcept nogil:
    """Copy rows; False, with a part of them copied, where one is not plain to see."""
    cdef const char *places[_RUN]
    cdef Py_ssize_t which[_RUN]
    cdef Py_ssize_t start, part, i
    cdef int64_t width = numbers * size
    start = 0
    while start < count:
        part = min(count - start, <Py_ssize_t>_RUN)
        for i in range(part):
            places[i] = _place(blocks, mappings, mapped, rows[start + i], numbers, size,
                               &which[i])
            if places[i] == NULL:
                return False
        if width >= _ABREAST_LEAST:
            _copy_abreast(places, part, width, out)
        else:
            for i in range(part):
                if i + _AHEAD < part:
                    mldb_prefetch(places[i + _AHEAD])
                memcpy(out + i * width, places[i], width)
        if blocks.added != NULL:
            for i in range(part):
                (<int64_t *>out)[i] += blocks.added[which[i]]
        out += part * width
        start += part
    return True


cdef bint _take_bytes(object array, Py_buffer *view, int flags) except *:
    """Take an export of a C-contiguous array; False where there is none."""
    if not PyObject_CheckBuffer(array):
        return False
    try:
        PyObject_GetBuffer(array, view, flags | PyBUF_C_CONTIGUOUS)
    except (BufferError, ValueError):
        return False
    return True


cdef bint _take_numbers(
    object array, Py_buffer *view, char kind, char other, int flags
) except *:
    """The same for one dimension of native numbers of one of these kinds; b"l" has 8 bytes."""
    if not _take_bytes(array, view, flags | PyBUF_FORMAT):
        return False
    if view.ndim == 1 and view.format[0] in (kind, other) and not view.format[1]:
        if kind != c"l" or view.itemsize == 8:  # a long has 4 bytes elsewhere
            return True
    PyBuffer_Release(view)
    return False


def gather_rows(tuple tables not None, rows, out, int64_t numbers, int64_t size, blocks=None):
    """Copy *rows* (i64 [n]) to *out*, without the lock of the interpreter; True when done.

    A row is so many *numbers* of *size* bytes, and lies in one of *tables*, C-contiguous arrays, at
    a multiple of *size*. *blocks* are None, for rows of one table, or (stops i64, table i16, offset
    i64 in numbers, is_verified bool), [blocks] of each, and perhaps what is added to their rows,
    i64. None, with anything in *out*, for rows that are none, for blocks that are not verified, and
    for arrays of another kind.
    """
    cdef Py_buffer views[7 + _MAPPINGS_MAX]
    cdef _Mapping mappings[_MAPPINGS_MAX]
    cdef _Blocks known
    cdef Py_buffer *into
    cdef int taken = 0, first, mapped = <int>len(tables), i
    cdef bint done
    if not 0 < mapped <= _MAPPINGS_MAX or size < 1 or numbers < 1:
        return None
    known.count, known.added = 0, NULL
    try:
        if not _take_numbers(rows, &views[0], b"l", b"q", PyBUF_SIMPLE):
            return None
        taken = 1
        if not _take_bytes(out, &views[1], PyBUF_WRITABLE):
            return None
        taken, into = 2, &views[1]
        if into.len != views[0].shape[0] * numbers * size:
            return None
        if blocks is not None:
            for array, kinds in zip(blocks, _BLOCK_KINDS):
                if not _take_numbers(array, &views[taken], kinds[0], kinds[1], PyBUF_SIMPLE):
                    return None
                taken += 1
                if views[taken - 1].shape[0] != views[2].shape[0]:
                    return None
            if taken < 6 or not views[2].shape[0]:
                return None
            known.count = views[2].shape[0]
            if taken == 7:
                if numbers * size != 8 or <size_t>into.buf % 8:
                    return None
                known.added = <int64_t *>views[6].buf
            known.stops, known.mapping = <int64_t *>views[2].buf, <int16_t *>views[3].buf
            known.offset, known.verified = <int64_t *>views[4].buf, <uint8_t *>views[5].buf
        for i in range(mapped):
            if not _take_bytes(tables[i], &views[taken], PyBUF_SIMPLE):
                return None
            mappings[i].start = <const char *>views[taken].buf
            mappings[i].rows = max((views[taken].len - numbers * size) // size + 1, 0)
            taken += 1
        if into.len < _FREE_BYTES:
            done = _copy_rows(&known, mappings, mapped, <int64_t *>views[0].buf,
                              views[0].shape[0], numbers, size, <char *>into.buf)
        else:
            with nogil:
                done = _copy_rows(&known, mappings, mapped, <int64_t *>views[0].buf,
                                  views[0].shape[0], numbers, size, <char *>into.buf)
        return True if done else None
    finally:
        while taken:
            taken -= 1
            PyBuffer_Release(&views[taken])


_BLOCK_KINDS = (b"lq", b"hh", b"lq", b"??", b"lq")
