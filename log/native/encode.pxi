# A batch as bytes and entries (log/batch.py).

from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_CheckExact, PyBytes_GET_SIZE
from cpython.dict cimport PyDict_GetItemWithError
from cpython.long cimport PyLong_AsLongLong, PyLong_AsUnsignedLongLong, PyLong_CheckExact
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from cpython.object cimport PyObject, PyTypeObject
from cpython.ref cimport Py_INCREF
from cpython.tuple cimport PyTuple_Check, PyTuple_GET_ITEM, PyTuple_GET_SIZE, PyTuple_SET_ITEM
from libc.stdint cimport uint16_t
from libc.string cimport memcmp, memcpy, memset

from numpy import ndarray as _ndarray

from mldb.log.frame import pack as _pack_value
from mldb.log.index.address import CommitRow as _RowType, Entry as _EntryType

cdef extern from *:
    """
    static PyObject *mldb_new_row(PyObject *kind, Py_ssize_t size)
    {
        return ((PyTypeObject *)kind)->tp_alloc((PyTypeObject *)kind, size);
    }
    """
    object mldb_new_row(object kind, Py_ssize_t size)

cdef extern from "pythread.h":
    unsigned long PyThread_get_thread_ident()

cdef extern from "Python.h":
    void PyObject_GC_UnTrack(PyObject *item)
    object PyMemoryView_FromObject(object data)
    bint PyUnicode_IS_COMPACT_ASCII(object text)
    Py_ssize_t PyUnicode_GET_LENGTH(object text)
    void *PyUnicode_DATA(object text)

cdef enum:
    _TENSORS = 1  # the key space of mldb/keys.py
    _NAME_MAX = 255  # bytes, of mldb/names.py
    _DRAFT = 9  # fields of a draft
    _PREPARED = 5  # fields of a Prepared
    _START = 9  # fields of a BatchStart
    _ROOM = 7  # fields of what Packs.room returns
    _DRAFT_ROOM = 64  # what the fields of a draft take beside their bytes, at most
    _JOIN = 16 << 10  # as in log/batch.py


cdef inline int64_t _natural(object value) except -1:
    if not PyLong_CheckExact(value):
        raise TypeError
    cdef int64_t number = PyLong_AsLongLong(value)
    if number < 0:
        raise ValueError
    return number


cdef inline int64_t _whole(object value) except? -1:
    if not PyLong_CheckExact(value):
        raise TypeError
    return PyLong_AsLongLong(value)


cdef inline Py_ssize_t _size_of(object value) except -1:
    if not PyBytes_CheckExact(value):
        raise TypeError
    return PyBytes_GET_SIZE(value)


# --- the cycle collector --------------------------------------------------------------------------


cdef inline void _keep_out(object item) noexcept:
    """Take a container that no cycle can lead through out of the cycle collector's lists.

    It would go through all that are stored at each full collection. Of plain tuples it finds out by
    itself that they hold numbers and bytes alone; of named ones, lists and dicts it does not.
    """
    PyObject_GC_UnTrack(<PyObject *>item)


cdef inline void _keep_row_out(object row) noexcept:
    """Do so with a named tuple of numbers and bytes, and nothing with another."""
    cdef Py_ssize_t place
    for place in range(PyTuple_GET_SIZE(row)):
        field = <object>PyTuple_GET_ITEM(row, place)
        if not PyBytes_CheckExact(field) and not PyLong_CheckExact(field):
            return
    _keep_out(row)


# --- msgpack, as Packer(use_bin_type=True) writes it ----------------------------------------------


cdef inline char *_big(char *at, int mark, uint64_t value, int size) noexcept:
    """A mark and the lowest *size* bytes of a number, the highest first."""
    at[0] = <char>mark
    at += size
    for _ in range(size):
        at[0] = <char>value
        value >>= 8
        at -= 1
    return at + 1 + size


cdef inline char *_int(char *at, int64_t value) noexcept:
    if value >= 0:
        if value < 0x80:
            at[0] = <char>value
            return at + 1
        if value < 0x100:
            return _big(at, 0xcc, value, 1)
        if value < 0x10000:
            return _big(at, 0xcd, value, 2)
        if value < 0x100000000:
            return _big(at, 0xce, value, 4)
        return _big(at, 0xcf, value, 8)
    if value >= -0x20:
        at[0] = <char>value
        return at + 1
    if value >= -0x80:
        return _big(at, 0xd0, value, 1)
    if value >= -0x8000:
        return _big(at, 0xd1, value, 2)
    if value >= -0x80000000:
        return _big(at, 0xd2, value, 4)
    return _big(at, 0xd3, value, 8)


cdef inline char *_bin(char *at, object value) noexcept:
    cdef Py_ssize_t size = PyBytes_GET_SIZE(value)
    if size < 0x100:
        at = _big(at, 0xc4, size, 1)
    elif size < 0x10000:
        at = _big(at, 0xc5, size, 2)
    else:
        at = _big(at, 0xc6, size, 4)
    memcpy(at, PyBytes_AS_STRING(value), size)
    return at + size


cdef inline char *_list(char *at, Py_ssize_t count) noexcept:
    if count < 0x10:
        at[0] = <char>(0x90 | count)
        return at + 1
    return _big(at, 0xdc, count, 2) if count < 0x10000 else _big(at, 0xdd, count, 4)


# --- batches --------------------------------------------------------------------------------------


cdef inline void _put(object made, Py_ssize_t place, object field) noexcept:
    Py_INCREF(field)
    PyTuple_SET_ITEM(made, place, field)


cdef inline object _row(object kind, tuple fields):
    """What ``tuple.__new__(kind, fields)`` makes, without the call."""
    cdef Py_ssize_t place, size = PyTuple_GET_SIZE(fields)
    cdef object made = mldb_new_row(kind, size)
    for place in range(size):
        _put(made, place, <object>PyTuple_GET_ITEM(fields, place))
    return made


cdef inline object _entry(
    tuple draft, object last, bytes segment, object frame, object stands
):
    """An Entry of a sound draft.

    The fields of a draft: key, flags, encoding, offset, length, digest, base, attr, owner.
    """
    cdef object made = mldb_new_row(_EntryType, 11)
    _put(made, 0, last)
    _put(made, 1, segment)
    _put(made, 2, frame)
    _put(made, 3, stands)
    _put(made, 4, <object>PyTuple_GET_ITEM(draft, 4))
    _put(made, 5, <object>PyTuple_GET_ITEM(draft, 7))
    _put(made, 6, <object>PyTuple_GET_ITEM(draft, 1))
    _put(made, 7, <object>PyTuple_GET_ITEM(draft, 2))
    _put(made, 8, <object>PyTuple_GET_ITEM(draft, 6))
    _put(made, 9, <object>PyTuple_GET_ITEM(draft, 5))
    _put(made, 10, <object>PyTuple_GET_ITEM(draft, 8))
    _keep_row_out(made)
    return made


cdef Py_ssize_t _room_of(tuple drafts, int64_t payload) except -1:
    """How many bytes sound drafts take in a body at most. Raises for what is not sound."""
    cdef Py_ssize_t room = 0, key, attr, owner, digest
    cdef int64_t offset, length
    cdef tuple draft
    if len(drafts) > _ENTRIES_MAX:
        raise ValueError
    for item in drafts:
        if not PyTuple_Check(item) or PyTuple_GET_SIZE(item) != _DRAFT:
            raise TypeError
        draft = <tuple>item
        key, digest = _size_of(draft[0]), _size_of(draft[5])
        attr, owner = _size_of(draft[7]), _size_of(draft[8])
        offset, length = _natural(draft[3]), _natural(draft[4])
        _natural(draft[6])
        if (
            not 0 < key <= _KEY_BYTES_MAX
            or attr > _ATTR_BYTES_MAX
            or owner > _KEY_BYTES_MAX
            or (digest != _DIGEST_SIZE and digest != 0)
            or _natural(draft[1]) > 255
            or _natural(draft[2]) > 255
            or length > payload - offset
        ):
            raise ValueError
        room += _DRAFT_ROOM + key + digest + attr + owner
    return room


cdef bytes _tail_of(tuple drafts, object extra, bytes checks, int64_t payload, uint32_t *size):
    """The body of a record and its checksums, with room behind them; *size* is of the body."""
    cdef bytes more = b"\xc0" if extra is None else _pack_value(extra)
    cdef Py_ssize_t room = 16 + _room_of(drafts, payload) + len(more)
    if room > _BODY_BYTES_MAX:
        raise ValueError
    cdef bytes tail = PyBytes_FromStringAndSize(NULL, room + len(checks))
    cdef char *at = PyBytes_AS_STRING(tail)
    cdef Py_ssize_t place
    cdef tuple draft
    if payload > _PAYLOAD_BYTES_MAX:
        raise ValueError
    if drafts:
        at[0] = <char>0x92
        at = _list(at + 1, len(drafts))
        for item in drafts:
            draft = <tuple>item
            at[0] = <char>(0x90 | _DRAFT)
            at = _bin(at + 1, draft[0])
            for place in range(1, 5):
                at = _int(at, PyLong_AsLongLong(draft[place]))
            at = _int(_bin(at, draft[5]), PyLong_AsLongLong(draft[6]))
            at = _bin(_bin(at, draft[7]), draft[8])
    memcpy(at, PyBytes_AS_STRING(more), len(more))
    at += len(more)
    size[0] = at - PyBytes_AS_STRING(tail)
    memcpy(at, PyBytes_AS_STRING(checks), len(checks))
    return tail


cdef bytes _frame(
    _Header *head, const char *tail, Py_ssize_t size, uint64_t seed, Py_ssize_t before, Py_ssize_t behind
):
    """A frame up to its payload, zeros before and behind; the head gets what it has checks of."""
    head.magic = _FRAME_MAGIC
    head.body_check = check64_of(tail, size, 0)
    head.header_check = check64_of(head, sizeof(_Header) - 8, seed)
    cdef bytes made = PyBytes_FromStringAndSize(NULL, before + sizeof(_Header) + size + behind)
    cdef char *at = PyBytes_AS_STRING(made)
    memset(at, 0, before)
    memcpy(at + before, head, sizeof(_Header))
    memcpy(at + before + sizeof(_Header), tail, size)
    memset(at + before + sizeof(_Header) + size, 0, behind)
    return made


cdef bytes _commit(tuple row, int64_t count, bytes chain, int64_t durable, uint64_t seed, extra):
    """The commit frame, as encode_commit of log/frame.py makes it."""
    cdef bytes stated = _pack_value(extra) if extra else b"\x80", commit_id = row[7]
    cdef bytes body = PyBytes_FromStringAndSize(NULL, 128 + len(stated) + len(commit_id))
    cdef char *at = PyBytes_AS_STRING(body)
    cdef Py_ssize_t place, size
    cdef _Header head
    at[0] = <char>0x9a
    at += 1
    for place in range(1, 5):  # parent, epoch, time, clock
        at = _int(at, _whole(row[place]))
    at = _int(_bin(_int(at, count), chain), durable)
    memcpy(at, PyBytes_AS_STRING(stated), len(stated))
    at = _bin(at + len(stated), commit_id)
    at[0] = <char>0x90
    size = at + 1 - PyBytes_AS_STRING(body)
    if size > _BODY_BYTES_MAX - 128:
        raise ValueError
    memset(&head, 0, sizeof(_Header))
    head.kind, head.body_version, head.body_length = _KIND_COMMIT | _MUST_UNDERSTAND, 1, size
    head.lsn = head.commit_lsn = _natural(row[0])
    seed += <uint64_t>_natural(row[6])
    return _frame(&head, PyBytes_AS_STRING(body), size, seed, 0, -size & (_FRAME_ALIGN - 1))


cdef int _add_entries(list entries, tuple drafts, last, bytes segment, frame, int64_t at) except -1:
    cdef tuple draft
    for item in drafts:
        draft = <tuple>item
        stands = at + PyLong_AsLongLong(draft[3])
        pair = (draft[0], _entry(draft, last, segment, frame, stands))
        _keep_out(pair)
        entries.append(pair)
    return 0


cdef tuple _encode(list records, tuple start, extra, bytes commit_id):
    if len(start) != _START:
        raise TypeError
    cdef uint64_t seed = PyLong_AsUnsignedLongLong(start[0])
    cdef bytes segment = start[1], chain = start[2], checks, tail
    cdef int64_t first = _natural(start[3]), offset = first, at, lsn = _natural(start[4])
    cdef Py_ssize_t count = len(records), before = 0, behind, size
    cdef bytes heads = PyBytes_FromStringAndSize(NULL, _DIGEST_SIZE + count * sizeof(_Header))
    cdef char *its_head = PyBytes_AS_STRING(heads) + _DIGEST_SIZE
    cdef list buffers = [], entries = []
    cdef tuple parent = <tuple>start[6], drafts
    cdef _Header head
    if type(start[6]) is not _RowType or count > _FRAMES_MAX or lsn > _LSN_MAX - (1 << 24):
        raise ValueError
    if not segment or len(chain) != _DIGEST_SIZE or len(commit_id) != _DIGEST_SIZE:
        raise ValueError
    _natural(start[7])  # the epoch
    memcpy(PyBytes_AS_STRING(heads), PyBytes_AS_STRING(chain), _DIGEST_SIZE)
    last = lsn + count
    head.commit_lsn, head.reserved = last, 0
    for record in records:
        drafts = tuple(record.drafts)
        head.kind, head.body_version = record.kind, record.body_version
        head.flags = _FLAG_KEYED if drafts else 0
        head.block_log2, head.align_log2 = record.block_log2, record.align_log2
        head.payload_length, head.lsn = _natural(record.payload_length), lsn
        if (
            record.written
            or not _BLOCK_LOG2_MIN <= head.block_log2 <= _BLOCK_LOG2_MAX
            or not _ALIGN_LOG2_MIN <= head.align_log2 <= _ALIGN_LOG2_MAX
        ):
            raise ValueError
        checks = (record.checks or b"") if head.payload_length else b""
        tail = _tail_of(drafts, record.extra, checks, head.payload_length, &head.body_length)
        size = head.body_length + len(checks)
        frame, at = offset, offset + <int64_t>sizeof(_Header) + size
        behind = -at & ((1 << head.align_log2) - 1 if head.payload_length else _FRAME_ALIGN - 1)
        buffers.append(_frame(&head, PyBytes_AS_STRING(tail), size, seed + offset, before, behind))
        memcpy(its_head, &head, sizeof(_Header))
        its_head += sizeof(_Header)
        if head.payload_length:
            at += behind
            behind = head.payload_length
            buffers += record.payload
        _add_entries(entries, drafts, last, segment, frame, at)
        at += behind
        before = -at & (_FRAME_ALIGN - 1)
        offset = at + before
        lsn += 1
    time = max(parent[3], start[8])
    row = _row(_RowType, (last, parent[0], start[7], time, start[8], start[3], offset, commit_id))
    chain = digest128_of(PyBytes_AS_STRING(heads), len(heads))
    tail = _commit(<tuple>row, count, chain, _natural(start[5]), seed, extra)
    if before:
        buffers.append(bytes(before))
    buffers.append(tail)
    if offset - first <= _JOIN:
        buffers = [b"".join(buffers)]
    return [(start[3], buffers)], row, entries, offset + <int64_t>len(tail), chain


def encode_batch(records, start, extra, commit_id):
    """What encode_batch of log/batch.py returns, or None."""
    try:
        return _encode(list(records), tuple(start), extra, commit_id)
    except Exception:  # it is not plain: Python says what is wrong with it
        return None
