# cython: language_level=3
"""The compiled twin of the short paths. What the Python modules say, it does, byte for byte.

It never locks, publishes, syncs or acknowledges. Whatever is not plain it gives back as "not mine"
(None), and the Python twin runs, and raises. Little-endian, builds with a GIL only.
"""

from libc.stdint cimport int16_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize

include "hash.pxi"
include "format.pxi"
include "reads.pxi"
include "planes.pxi"
include "rows.pxi"
include "blocks.pxi"
include "encode.pxi"
include "puts.pxi"
include "trees.pxi"
include "states.pxi"
include "draws.pxi"
include "merges.pxi"
