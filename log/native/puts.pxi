# Small tensors on their way into a batch, versions into the index in memory, and the next view.

from posix.stat cimport struct_stat

cdef extern from "<sys/stat.h>" nogil:
    int lstat(const char *path, struct_stat *found)


# --- what a commit changes ------------------------------------------------------------------------


def is_unchanged(path, seen, file, long long size):
    """Whether *path* leads to what was *seen* there, and an open file has this size, above 0.

    *seen* is device, inode and length. False as well where that is not plain.
    """
    cdef struct_stat found
    cdef const char *place
    cdef int failed
    if _learned != 1 and (_learned or not _learn()):
        return False
    if type(file) is not _File or type(path) is not bytes or type(seen) is not tuple:
        return False
    if len(<tuple>seen) != 3:
        return False
    place = PyBytes_AS_STRING(path)
    with nogil:  # a network may be asked
        failed = lstat(place, &found)
    if failed:
        return False
    if found.st_dev != <object>(<tuple>seen)[0] or found.st_ino != <object>(<tuple>seen)[1]:
        return False
    return found.st_size == <object>(<tuple>seen)[2] and _size(file) == size and size > 0


def following_view(view, row):
    """The view of a commit that follows the head of *view*, of which it takes all but the first two.

    As ``LogState.appended`` makes it; None where the commit follows another one, or is the first.
    """
    cdef Py_ssize_t place, count
    if _learned != 1 and (_learned or not _learn()):
        return None
    if type(view) is not _View or type(row) is not _RowType:
        return None
    head, intervals = (<tuple>view)[0], (<tuple>view)[1]
    if type(head) is not _RowType or type(intervals) is not tuple or not intervals:
        return None
    if (<tuple>row)[1] != (<tuple>head)[0]:
        return None
    count = len(<tuple>intervals)
    last = (<tuple>intervals)[count - 1]
    if type(last) is not tuple or len(<tuple>last) != 2:
        return None
    now = ((<tuple>last)[0], (<tuple>row)[0])
    seen = (now,) if count == 1 else (<tuple>intervals)[:count - 1] + (now,)
    made = mldb_new_row(_View, len(<tuple>view))
    _put(made, 0, row)
    _put(made, 1, seen)
    for place in range(2, len(<tuple>view)):
        _put(made, place, (<tuple>view)[place])
    return made


# --- the index in memory --------------------------------------------------------------------------


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
            _keep_out(table)  # it is listed again with each list that comes in
            order.append(key)
        else:
            (<list>found).append(entry)
        log.append(key)
    _keep_row_out(row)
    log.append(row)
    commits.append(row)
    _keep_out(table)
    _keep_out(order)
    _keep_out(log)
    _keep_out(commits)
    return True


# --- small tensors --------------------------------------------------------------------------------


cdef bint _is_plain_name(object name, bint slashes) noexcept:
    """Whether this is what nearly all names look like (mldb/names.py), perhaps with *slashes*."""
    cdef Py_ssize_t place, size
    cdef const unsigned char *text
    cdef unsigned char sign
    cdef bint ended = False  # whether a part may end, and another begin
    if type(name) is not str or not PyUnicode_IS_COMPACT_ASCII(name):
        return False
    size = PyUnicode_GET_LENGTH(name)
    text = <const unsigned char *>PyUnicode_DATA(name)
    if size > _NAME_MAX:
        return False
    for place in range(size):
        sign = text[place]
        if sign == b"." or (sign == b"/" and slashes):
            if not ended:
                return False
            ended = False
        elif (
            b"a" <= sign <= b"z" or b"A" <= sign <= b"Z" or b"0" <= sign <= b"9"
            or sign == b"_" or sign == b"-"
        ):
            ended = True
        else:
            return False
    return ended


cdef bytes _key_of(object name):
    """The key of a tensor with a plain name. Raises ValueError for another name."""
    cdef Py_ssize_t size
    cdef bytes key
    if not _is_plain_name(name, True):
        raise ValueError
    size = PyUnicode_GET_LENGTH(name)
    key = PyBytes_FromStringAndSize(NULL, size + 1)
    PyBytes_AS_STRING(key)[0] = _TENSORS
    memcpy(PyBytes_AS_STRING(key) + 1, PyUnicode_DATA(name), size)
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


cdef int _copy_parts(char *room, int64_t size, tuple buffers) except -1:
    """Copy buffers of *size* bytes together behind one another. Raises ValueError for others."""
    cdef Py_buffer source
    cdef int64_t at = 0
    for part in buffers:
        if PyBytes_CheckExact(part):
            if PyBytes_GET_SIZE(part) <= size - at:
                memcpy(room + at, PyBytes_AS_STRING(part), PyBytes_GET_SIZE(part))
            at += PyBytes_GET_SIZE(part)
            continue
        PyObject_GetBuffer(part, &source, PyBUF_SIMPLE)
        if source.len <= size - at:
            memcpy(room + at, source.buf, source.len)
        at += source.len
        PyBuffer_Release(&source)
    if at != size:
        raise ValueError
    return 0


cdef bytes _pack_in(
    bytes key, object attr, tuple buffers, const void *whole, int64_t size, set seen, dict where,
    list packs, most, rival, dict digests,
):
    """Copy a tensor into the newest pack (mldb/write/packs.py), and keep it; return its digest.

    Its bytes are at *whole*, or else those of *buffers*. Raises where there is no room, for what is
    not plain, and, with *digests*, where the digest is one of them or *rival*; then nothing is done.
    """
    cdef Py_buffer room
    cdef int64_t used, start, align = 1 << _PAYLOAD_ALIGN_LOG2
    cdef bytes digest
    if not packs or size < 0 or PySet_Contains(seen, key):
        raise ValueError
    pack = packs[len(packs) - 1]
    if type(pack) is not _PackType:
        _learn_pack(type(pack))
    cdef dict drafts = <dict?><object>_field(pack, _pack_drafts)
    used = _natural(pack.size)
    start = (used + align - 1) & -align
    PyObject_GetBuffer(<object>_field(pack, _pack_data), &room, PyBUF_WRITABLE)
    try:
        if size > room.len - used - align or len(drafts) >= <Py_ssize_t>most:
            raise ValueError
        memset(<char *>room.buf + used, 0, start - used)
        if whole != NULL:
            memcpy(<char *>room.buf + start, whole, size)
        else:
            _copy_parts(<char *>room.buf + start, size, buffers)
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
    draft = (key, 0, _ENCODING_RAW, start, size, digest, 0, attr, b"")
    _keep_row_out(draft)
    drafts[key] = draft
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
        if size > _LONG:  # as check_of_block of log/checksum.py
            check = PyBytes_FromStringAndSize(PyBytes_AS_STRING(digest) + 8, 8)
        else:
            _big(marked, 0, check64_of(whole, size, 0), 8)
            check = PyBytes_FromStringAndSize(marked + 1, 8)
        draft = (key, 0, _ENCODING_RAW, 0, size, digest, 0, attr, b"")
        _keep_row_out(draft)
        payload = (PyMemoryView_FromObject(data).cast("B"),)
        return _new_record(
            made,
            (kind, (draft,), payload, size, None, 1, _PAYLOAD_ALIGN_LOG2, _BLOCK_LOG2, check, False),
        )
    except Exception:
        return None
