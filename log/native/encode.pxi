# A batch as bytes and entries (log/batch.py), versions into the index in memory, small tensors.

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
        entries.append((draft[0], _entry(draft, last, segment, frame, stands)))
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


# --- the index in memory --------------------------------------------------------------------------


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


def add_versions(
    dict table not None, list order not None, list log not None, list commits not None, row, entries
):
    """What MemoryIndex.add does with a commit; False, and nothing, if not plain.

    The containers are those of a MemoryIndex, which gives them to nobody: they hold bytes, entries
    and rows of commits alone, so they are kept out of the cycle collector like these.
    """
    cdef tuple pair
    if type(entries) is not list or type(row) is not _RowType:
        return False
    for item in <list>entries:
        if type(item) is not tuple or len(<tuple>item) != 2 or type((<tuple>item)[0]) is not bytes:
            return False
        if type((<tuple>item)[1]) is not _EntryType:
            return False
    for item in <list>entries:
        pair = <tuple>item
        key, entry = pair[0], pair[1]
        _keep_row_out(entry)
        found = PyDict_GetItemWithError(table, key)
        if found is NULL:
            versions = [entry]
            _keep_out(versions)
            table[key] = versions
            order.append(key)
        else:
            (<list>found).append(entry)
        log.append(key)
    _keep_row_out(row)
    log.append(row)
    commits.append(row)
    _keep_out(table)  # each list that comes in has it listed again
    _keep_out(order)
    _keep_out(log)
    _keep_out(commits)
    return True


# --- small tensors --------------------------------------------------------------------------------


cdef bytes _key_of(object name):
    """The key of a tensor whose name nearly all names look like (mldb/names.py). Raises."""
    cdef Py_ssize_t place, size
    cdef const unsigned char *text
    cdef unsigned char sign
    cdef bint ended = False  # whether a part may end, and another begin
    cdef bytes key
    if type(name) is not str or not PyUnicode_IS_COMPACT_ASCII(name):
        raise TypeError
    size = PyUnicode_GET_LENGTH(name)
    text = <const unsigned char *>PyUnicode_DATA(name)
    if size > _NAME_MAX:
        raise ValueError
    for place in range(size):
        sign = text[place]
        if sign == b"." or sign == b"/":
            if not ended:
                raise ValueError
            ended = False
        elif (
            b"a" <= sign <= b"z" or b"A" <= sign <= b"Z" or b"0" <= sign <= b"9"
            or sign == b"_" or sign == b"-"
        ):
            ended = True
        else:
            raise ValueError
    if not ended:
        raise ValueError
    key = PyBytes_FromStringAndSize(NULL, size + 1)
    PyBytes_AS_STRING(key)[0] = _TENSORS
    memcpy(PyBytes_AS_STRING(key) + 1, text, size)
    return key


cdef int _last_axes = -1  # of the array that was known last: most that follow are like it
cdef cnp.npy_intp _last_shape[_AXES_MAX]
cdef object _last_type = None  # its dtype, which is alive, so that no other one stands there
cdef object _last_key = None


cdef object _key_of_array(cnp.ndarray array):
    """What *known_arrays* of mldb/tensors/codec.py has it under. Raises TypeError."""
    global _last_axes, _last_type, _last_key
    cdef int axes = cnp.PyArray_NDIM(array)
    cdef size_t size = axes * sizeof(cnp.npy_intp)
    kind = <object>cnp.PyArray_DESCR(array)
    if kind is _last_type and axes == _last_axes:
        if memcmp(cnp.PyArray_DIMS(array), _last_shape, size) == 0:
            return _last_key
    if axes > _AXES_MAX:
        raise TypeError
    _last_axes = -1
    _last_type, _last_key = kind, (kind, (<object>array).shape)
    memcpy(_last_shape, cnp.PyArray_DIMS(array), size)
    _last_axes = axes
    return _last_key


cdef object _attr_of(object data, dict known):
    """The attr of arrays like *data*. Raises for what is not plain, or was not prepared before.

    The bytes of what is plain are in memory one after another, and NumPy exports them as they are.
    """
    if type(data) is not _ndarray or not cnp.PyArray_IS_C_CONTIGUOUS(<cnp.ndarray>data):
        raise TypeError
    cdef PyObject *found = PyDict_GetItemWithError(known, _key_of_array(data))
    if found is NULL:
        raise KeyError
    entry = <tuple><object>found
    if entry[2] is not True:
        raise TypeError
    return entry[1]


cdef object _PackType = None  # of mldb/write/packs.py, which this part of mldb does not import
cdef Py_ssize_t _pack_data, _pack_drafts


cdef int _learn_pack(object kind) except -1:
    """Find where the fields of a pack lie. Raises TypeError, AttributeError."""
    global _PackType, _pack_data, _pack_drafts
    _pack_data, _pack_drafts = _slot(kind, "data"), _slot(kind, "drafts")
    _PackType = kind
    return 0


cdef bytes _pack_in(
    bytes key, object attr, tuple buffers, const void *whole, int64_t size, set seen, dict where,
    list packs, most, rival, dict digests,
):
    """Copy a tensor into the newest pack (mldb/write/packs.py), and keep it; return its digest.

    Its bytes are at *whole*, or else those of *buffers*. Raises where there is no room, for what is
    not plain, and, with *digests*, where the digest is one of them or *rival*; then nothing is done.
    """
    cdef Py_buffer room, source
    cdef int64_t used, start, at, align = 1 << _PAYLOAD_ALIGN_LOG2
    cdef bytes digest
    if not packs or size < 0 or PySet_Contains(seen, key):
        raise ValueError
    pack = packs[len(packs) - 1]
    if type(pack) is not _PackType:
        _learn_pack(type(pack))
    cdef dict drafts = <dict?><object>_field(pack, _pack_drafts)
    used = _natural(pack.size)
    at = start = (used + align - 1) & -align
    PyObject_GetBuffer(<object>_field(pack, _pack_data), &room, PyBUF_WRITABLE)
    try:
        if size > room.len - used - align or len(drafts) >= <Py_ssize_t>most:
            raise ValueError
        memset(<char *>room.buf + used, 0, start - used)
        if whole != NULL:
            memcpy(<char *>room.buf + start, whole, size)
            at += size
        else:
            for part in buffers:
                PyObject_GetBuffer(part, &source, PyBUF_SIMPLE)
                if source.len <= start + size - at:
                    memcpy(<char *>room.buf + at, source.buf, source.len)
                at += source.len
                PyBuffer_Release(&source)
        if at != start + size:
            raise ValueError
        digest = digest128_of(<char *>room.buf + start, size)
    finally:
        PyBuffer_Release(&room)
    if digests is not None:
        if digest == rival or digest in digests:
            raise ValueError
        digests[digest] = key
    PySet_Add(seen, key)
    where[key] = pack
    pack.size = start + size
    drafts[key] = (key, 0, _ENCODING_RAW, start, size, digest, 0, attr, b"")
    return digest


def pack_tensor(
    bytes key, prepared, set seen, dict where, list packs, most, rival=None, dict digests=None
):
    """Pack a Prepared under a new key where there is room; its digest, or None: not mine.

    With *digests*, only if its digest is neither *rival* nor one of these; it is then added.
    """
    cdef tuple fields
    try:
        fields = tuple(prepared)
        if len(fields) != _PREPARED:
            return None
        return _pack_in(
            key, fields[1], fields[2], NULL, fields[3], seen, where, packs, most, rival, digests
        )
    except Exception:
        return None


def pack_array(name, data, tuple room):
    """Pack an array as pack_tensor does, under a new plain name; its digest, or None: not mine.

    *room* is that of ``Packs.room``: the thread that may do so, what is known of arrays, the keys
    that were staged, their packs by key, all packs, how many entries one has, and from how many
    bytes on an array is not packed.
    """
    cdef int64_t size
    try:
        if len(room) != _ROOM or PyThread_get_thread_ident() != <unsigned long>room[0]:
            return None
        attr = _attr_of(data, <dict?>room[1])
        size = cnp.PyArray_NBYTES(<cnp.ndarray>data)
        if size >= <int64_t>room[6]:
            return None
        return _pack_in(
            _key_of(name), attr, None, cnp.PyArray_DATA(<cnp.ndarray>data), size,
            <set?>room[2], <dict?>room[3], <list?>room[4], room[5], None, None,
        )
    except Exception:
        return None


cdef object _RecordType = None  # the class of records whose slots these are
cdef Py_ssize_t _record_slots[10]


cdef int _learn_record(object kind) except -1:
    """Find where the fields of a record lie, in the order of its definition. Raises TypeError."""
    global _RecordType
    cdef Py_ssize_t place = 0
    names = kind.__slots__
    if len(names) != 10 or kind.__basicsize__ != object.__basicsize__ + 10 * sizeof(PyObject *):
        raise TypeError
    for name in names:
        _record_slots[place] = _slot(kind, name)
        place += 1
    _RecordType = kind
    return 0


cdef object _new_record(object kind, tuple fields):
    """An object of a class with ten slots and these in them: what its ``__init__`` would make."""
    cdef Py_ssize_t place
    cdef PyObject **slot
    if kind is not _RecordType:
        _learn_record(kind)
    made = mldb_new_row(kind, 0)
    for place in range(10):
        field = <object>PyTuple_GET_ITEM(fields, place)
        Py_INCREF(field)
        slot = <PyObject **>(<char *><PyObject *>made + _record_slots[place])
        slot[0] = <PyObject *>field
    return made


def small_record(kind, name, data, dict known not None, made, below):
    """The record of one small array, as small_tensor_stored makes it; None: not mine.

    *made* is the class of records.
    """
    cdef bytes key, digest, check
    cdef char marked[9]
    cdef Py_ssize_t size
    cdef const void *whole
    try:
        attr = _attr_of(data, known)
        size, whole = cnp.PyArray_NBYTES(<cnp.ndarray>data), cnp.PyArray_DATA(<cnp.ndarray>data)
        if size >= <int64_t>below:
            return None
        key = _key_of(name)
        digest = digest128_of(whole, size)
        _big(marked, 0, check64_of(whole, size, 0), 8)
        check = PyBytes_FromStringAndSize(marked + 1, 8)
        draft = (key, 0, _ENCODING_RAW, 0, size, digest, 0, attr, b"")
        payload = (PyMemoryView_FromObject(data).cast("B"),)
        return _new_record(
            made,
            (kind, (draft,), payload, size, None, 1, _PAYLOAD_ALIGN_LOG2, _BLOCK_LOG2, check, False),
        )
    except Exception:
        return None
