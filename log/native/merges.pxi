# Columns of an index: rows of versions turned into them, and two of them merged (log/index/).

from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_GET_SIZE
from cpython.dict cimport PyDict_GetItemWithError
from cpython.long cimport PyLong_AsUnsignedLongLong, PyLong_CheckExact
from cpython.tuple cimport PyTuple_Check, PyTuple_GET_SIZE
from libc.string cimport memcmp, memcpy, memset

cdef enum:
    _FIELDS = 11  # of an Entry
    _NUMBERS = 5  # columns of 8 bytes: commit, frame, offset, length, base


cdef struct _Heap:
    # Items one behind the other: ``offset`` has ``count`` + 1 bounds in ``data``.
    const uint64_t *offset
    const char *data
    int64_t count


cdef inline int _order(const _Heap *one, int64_t i, const _Heap *two, int64_t k) noexcept nogil:
    """Below 0, 0 or above 0, as item *i* of the one stands to item *k* of the other."""
    cdef int64_t size = one.offset[i + 1] - one.offset[i]
    cdef int64_t other = two.offset[k + 1] - two.offset[k]
    cdef int found = memcmp(one.data + one.offset[i], two.data + two.offset[k], min(size, other))
    return found if found else (size > other) - (size < other)


cdef void _seek(const _Heap *heap, const _Heap *wanted, int64_t *places, uint8_t *fresh) noexcept nogil:
    """Gallop from each wanted item to the next, which stands behind it."""
    cdef int64_t k, low = 0, high, step, middle
    cdef int order
    for k in range(wanted.count):
        step, high = 1, low
        while high < heap.count and _order(heap, high, wanted, k) < 0:
            low, high = high + 1, high + step
            step <<= 1
        high = min(high, heap.count)
        while low < high:
            middle = (low + high) >> 1
            order = _order(heap, middle, wanted, k)
            if order < 0:
                low = middle + 1
            else:
                high = middle
        places[k] = low
        fresh[k] = low == heap.count or _order(heap, low, wanted, k) != 0


cdef bint _are_sound(const _Heap *heap, int64_t size) noexcept nogil:
    """Whether these are bounds in a heap of so many bytes."""
    cdef int64_t i
    if heap.count < 0 or heap.offset[0] != 0 or heap.offset[heap.count] != <uint64_t>size:
        return False
    for i in range(heap.count):
        if heap.offset[i] > heap.offset[i + 1]:
            return False
    return True


cdef bint _take_heap(_Heap *heap, object offsets, object data, Py_buffer *views, int *taken) except *:
    """Take the exports of a heap; False where it is none."""
    if not _take_numbers(offsets, &views[taken[0]], b"L", b"Q", PyBUF_SIMPLE):
        return False
    heap.offset = <const uint64_t *>views[taken[0]].buf
    heap.count = views[taken[0]].shape[0] - 1
    taken[0] += 1
    if views[taken[0] - 1].itemsize != 8 or not _take_bytes(data, &views[taken[0]], PyBUF_SIMPLE):
        return False
    heap.data = <const char *>views[taken[0]].buf
    taken[0] += 1
    return _are_sound(heap, views[taken[0] - 1].len)


def find_items(offsets, heap, wanted_offsets, wanted_heap, places, fresh):
    """Where ascending items stand among others, and whether each is none of them; None: not mine.

    *places* (i64 [n]) and *fresh* (bool [n]) are filled. An item that is not there has the number
    of the first one above it.
    """
    cdef Py_buffer views[6]
    cdef _Heap some, wanted
    cdef int taken = 0
    try:
        if not _take_heap(&some, offsets, heap, views, &taken):
            return None
        if not _take_heap(&wanted, wanted_offsets, wanted_heap, views, &taken):
            return None
        if not _take_numbers(places, &views[taken], b"l", b"q", PyBUF_WRITABLE):
            return None
        taken += 1
        if not _take_numbers(fresh, &views[taken], b"?", b"?", PyBUF_WRITABLE):
            return None
        taken += 1
        if views[4].shape[0] != wanted.count or views[5].shape[0] != wanted.count:
            return None
        with nogil:
            _seek(&some, &wanted, <int64_t *>views[4].buf, <uint8_t *>views[5].buf)
        return True
    finally:
        while taken:
            taken -= 1
            PyBuffer_Release(&views[taken])


cdef bint _let_in(
    const _Heap *older, const _Heap *newer, const int64_t *before, const int64_t *which,
    int64_t count, uint64_t *offsets, char *data, int64_t size,
) noexcept nogil:
    """Merge two heaps; False where what is let in is not in order or does not fit."""
    cdef int64_t done = 0, i, item, cut, place = 0, at = 0, bytes_
    for i in range(count + 1):
        cut = before[i] if i < count else older.count
        if not done <= cut <= older.count:
            return False
        bytes_ = older.offset[cut] - older.offset[done]
        if bytes_ > size - at:
            return False
        memcpy(data + at, older.data + older.offset[done], bytes_)
        for item in range(done, cut):
            offsets[place] = at + older.offset[item] - older.offset[done]
            place += 1
        at += bytes_
        done = cut
        if i == count:
            break
        item = which[i]
        if not 0 <= item < newer.count:
            return False
        bytes_ = newer.offset[item + 1] - newer.offset[item]
        if bytes_ > size - at:
            return False
        memcpy(data + at, newer.data + newer.offset[item], bytes_)
        offsets[place] = at
        place += 1
        at += bytes_
    offsets[place] = at
    return at == size


def merge_items(offsets, heap, newer_offsets, newer_heap, before, which, made_offsets, made_heap):
    """Merge two heaps as let_in_items of log/index/merge_parts.py does; None: not mine.

    The items *which* (i64 [n]) of the newer one are let in, each behind so many of the others as
    *before* (i64 [n], ascending) says. *made_offsets* (u64) and *made_heap* (u8) are filled.
    """
    cdef Py_buffer views[8]
    cdef _Heap older, newer
    cdef int taken = 0
    cdef bint done
    try:
        if not _take_heap(&older, offsets, heap, views, &taken):
            return None
        if not _take_heap(&newer, newer_offsets, newer_heap, views, &taken):
            return None
        for array in (before, which):
            if not _take_numbers(array, &views[taken], b"l", b"q", PyBUF_SIMPLE):
                return None
            taken += 1
        if not _take_numbers(made_offsets, &views[taken], b"L", b"Q", PyBUF_WRITABLE):
            return None
        taken += 1
        if not _take_bytes(made_heap, &views[taken], PyBUF_WRITABLE):
            return None
        taken += 1
        if views[4].shape[0] != views[5].shape[0] or views[6].itemsize != 8:
            return None
        if views[6].shape[0] != older.count + views[4].shape[0] + 1:
            return None
        with nogil:
            done = _let_in(
                &older, &newer, <int64_t *>views[4].buf, <int64_t *>views[5].buf,
                views[4].shape[0], <uint64_t *>views[6].buf, <char *>views[7].buf, views[7].len,
            )
        return True if done else None
    finally:
        while taken:
            taken -= 1
            PyBuffer_Release(&views[taken])


# --- columns of rows ------------------------------------------------------------------------------


cdef inline uint64_t _at_most(object value, uint64_t most) except? 0:
    if not PyLong_CheckExact(value):
        raise TypeError
    cdef uint64_t number = PyLong_AsUnsignedLongLong(value)
    if number > most:
        raise ValueError
    return number


cdef int _put_row(
    tuple row, dict ids, uint64_t **numbers, uint32_t *attr, uint8_t *flags, uint8_t *encoding,
    char *digest,
) except -1:
    """The fields of an Entry into the columns. Raises for what is not plain."""
    cdef uint64_t all_ = <uint64_t>-1
    if PyTuple_GET_SIZE(row) != _FIELDS or not PyBytes_CheckExact(row[5]) or row[10] != b"":
        raise TypeError
    numbers[0][0] = _at_most(row[0], all_)
    numbers[1][0] = _at_most(row[2], all_)
    numbers[2][0] = _at_most(row[3], all_)
    numbers[3][0] = _at_most(row[4], all_)
    numbers[4][0] = _at_most(row[8], all_)
    flags[0] = <uint8_t>_at_most(row[6], 255)
    encoding[0] = <uint8_t>_at_most(row[7], 255)
    found = PyDict_GetItemWithError(ids, row[5])
    if found is NULL:
        attr[0] = <uint32_t>len(ids)
        ids[row[5]] = len(ids)
    else:
        attr[0] = <uint32_t>_at_most(<object>found, 0xFFFFFFFF)
    if not PyBytes_CheckExact(row[9]):
        raise TypeError
    if PyBytes_GET_SIZE(row[9]) == _DIGEST_SIZE:
        memcpy(digest, PyBytes_AS_STRING(row[9]), _DIGEST_SIZE)
    elif PyBytes_GET_SIZE(row[9]) == 0:
        memset(digest, 0, _DIGEST_SIZE)
    else:
        raise ValueError
    return 0


def rows_to_columns(list rows not None, dict ids not None, tuple numbers not None, attr, flags,
                    encoding, digest):
    """Fill the columns of Entries without owners, as _put_rows of log/index/columns.py has them.

    *numbers* are the columns of 8 bytes, *ids* the attrs that are known, to which the new ones are
    added. None, with anything in the columns and *ids* as they were, for what is not plain.
    """
    cdef Py_buffer views[_NUMBERS + 4]
    cdef uint64_t *places[_NUMBERS]
    cdef int taken = 0, i
    cdef Py_ssize_t count = len(rows), row
    cdef Py_ssize_t known = len(ids)
    if len(numbers) != _NUMBERS:
        return None
    try:
        for column in (*numbers, attr, flags, encoding, digest):
            if not _take_bytes(column, &views[taken], PyBUF_WRITABLE):
                return None
            taken += 1
        for i in range(_NUMBERS):
            if views[i].len != 8 * count:
                return None
        if views[5].len != 4 * count or views[6].len != count or views[7].len != count:
            return None
        if views[8].len != _DIGEST_SIZE * count:
            return None
        for row in range(count):
            for i in range(_NUMBERS):
                places[i] = <uint64_t *>views[i].buf + row
            item = rows[row]
            if not PyTuple_Check(item):
                raise TypeError
            _put_row(
                <tuple>item, ids, places, <uint32_t *>views[5].buf + row,
                <uint8_t *>views[6].buf + row, <uint8_t *>views[7].buf + row,
                <char *>views[8].buf + _DIGEST_SIZE * row,
            )
        return True
    except Exception:
        while len(ids) > known:
            ids.popitem()
        return None
    finally:
        while taken:
            taken -= 1
            PyBuffer_Release(&views[taken])


def items_to_heap(list items not None, offsets, heap, hashes):
    """Put items one behind the other, with their bounds (u64 [n+1]) and checksums (u64 [n]).

    None, with anything in them, where an item is no bytes or *heap* (u8) is not as long as all.
    """
    cdef Py_buffer views[3]
    cdef int taken = 0
    cdef Py_ssize_t i, size, at = 0, count = len(items)
    try:
        for column in (offsets, heap, hashes):
            if not _take_bytes(column, &views[taken], PyBUF_WRITABLE):
                return None
            taken += 1
        if views[0].len != 8 * (count + 1) or views[2].len != 8 * count:
            return None
        for i in range(count):
            item = items[i]
            if not PyBytes_CheckExact(item):
                return None
            size = PyBytes_GET_SIZE(item)
            if size > views[1].len - at:
                return None
            (<uint64_t *>views[0].buf)[i] = at
            memcpy(<char *>views[1].buf + at, PyBytes_AS_STRING(item), size)
            (<uint64_t *>views[2].buf)[i] = check64_of(PyBytes_AS_STRING(item), size, 0)
            at += size
        (<uint64_t *>views[0].buf)[count] = at
        return True if at == views[1].len else None
    finally:
        while taken:
            taken -= 1
            PyBuffer_Release(&views[taken])
