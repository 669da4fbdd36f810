# Checksums over memory: xxHash compiled in, or the functions of the xxhash package.

from cpython.memoryview cimport PyMemoryView_FromMemory
from cpython.buffer cimport PyBUF_READ

import xxhash as _xxhash

cdef extern from "hash.h":
    const int MLDB_HAS_XXHASH
    const char *MLDB_VERSION
    uint64_t mldb_check64(const void *data, size_t size, uint64_t seed) nogil
    void mldb_digest128(const void *data, size_t size, unsigned char *out) nogil

cdef enum:
    _LONG = 240  # of log/checksum.py

cdef object _check64_of_package = _xxhash.xxh3_64_intdigest
cdef object _digest128_of_package = _xxhash.xxh3_128_digest


cdef inline uint64_t check64_of(const void *data, Py_ssize_t size, uint64_t seed) except? 0:
    """xxh3-64 of memory, with the lock of the interpreter."""
    if MLDB_HAS_XXHASH:
        return mldb_check64(data, size, seed)
    return _check64_of_package(PyMemoryView_FromMemory(<char *>data, size, PyBUF_READ), seed)


cdef inline bytes digest128_of(const void *data, Py_ssize_t size):
    """xxh3-128 of memory in canonical form, 16 bytes."""
    cdef bytes digest
    if MLDB_HAS_XXHASH:
        digest = PyBytes_FromStringAndSize(NULL, 16)
        mldb_digest128(data, size, <unsigned char *>PyBytes_AS_STRING(digest))
        return digest
    return _digest128_of_package(PyMemoryView_FromMemory(<char *>data, size, PyBUF_READ))


def check64(bytes data not None, uint64_t seed=0):
    """xxh3-64, for the self-check: the same as that of the xxhash package."""
    return check64_of(PyBytes_AS_STRING(data), len(data), seed)


def digest128(bytes data not None):
    """xxh3-128, for the self-check."""
    return digest128_of(PyBytes_AS_STRING(data), len(data))
