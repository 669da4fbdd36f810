# Deltas: planes of bytes joined and added to the bytes below, in one pass without the lock.

from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, Py_buffer, PyBuffer_Release, PyObject_GetBuffer

cdef extern from "planes.h":
    void mldb_fold(int width, const uint8_t *planes, size_t count, size_t start, size_t n,
                   const void *base, void *made, int is_xor, uint64_t bias) nogil


def fold_planes(bytes planes not None, int width, Py_ssize_t start, bint is_xor, uint64_t bias,
                base, made):
    """Put planes joined, from element *start* on, over *base* into *made*; None: not mine.

    As ``_Delta`` has it in Python. *base* is None for zeros, or *made*, or does not overlap it.
    """
    cdef Py_buffer below, target
    if width not in (1, 2, 4, 8) or len(planes) % width:
        return None
    PyObject_GetBuffer(made, &target, PyBUF_WRITABLE)
    try:
        if base is None:
            return _folded(planes, width, start, is_xor, bias, &target, NULL)
        PyObject_GetBuffer(base, &below, PyBUF_SIMPLE)
        try:
            if below.len != target.len:
                return None
            return _folded(planes, width, start, is_xor, bias, &target, <char *>below.buf)
        finally:
            PyBuffer_Release(&below)
    finally:
        PyBuffer_Release(&target)


cdef object _folded(bytes planes, int width, Py_ssize_t start, bint is_xor, uint64_t bias,
                    Py_buffer *target, const char *base):
    cdef const uint8_t *first = <const uint8_t *>PyBytes_AS_STRING(planes)
    cdef Py_ssize_t count = len(planes) // width, size = target.len, n = size // width
    cdef char *made = <char *>target.buf
    if start < 0 or n * width != size or n > count - start:
        return None
    if base != NULL and base != made and base < made + size and made < base + size:
        return None
    with nogil:
        mldb_fold(width, first, count, start, n, base, made, is_xor, bias)
    return True
