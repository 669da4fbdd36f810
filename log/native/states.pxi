# The tensors of a whole state at once: where they lie, their bytes, their keys, and into the packs.

# --- tensors of torch -----------------------------------------------------------------------------


cdef object _real_dtype = None  # that was met last: its tensors have no conjugated bytes


cdef object _copied(object value, tuple asked, dict known, int64_t most, int64_t *place):
    """The Prepared of a tensor with a copy of its bytes; None for one that Python has to look at.

    *place* becomes the address of its storage. Raises for what is not plain.
    """
    global _real_dtype
    cdef int64_t size, start, offset
    cdef tuple entry
    is_neg, is_conj, storage_of, is_contiguous, strided, made = asked
    # These two may give up the lock of the interpreter. None of the rest does, so that the memory
    # is that of the tensor until it is copied, whatever other threads do with it.
    if is_neg(value) is not False:
        raise ValueError
    dtype = value.dtype
    if dtype is not _real_dtype:
        if is_conj(value) is not False:
            raise ValueError
        dtype = value.dtype
        if dtype.is_complex is False:
            _real_dtype = dtype
    if value.layout is not strided or value.is_cpu is not True:
        raise ValueError
    storage = storage_of(value)
    start, size = _natural(storage.data_ptr()), _natural(value.nbytes)
    if not start or not size:
        raise ValueError
    place[0] = start
    if size > most:
        return None
    cdef PyObject *found = PyDict_GetItemWithError(known, (dtype, value.shape))
    if found is NULL or is_contiguous(value) is not True:
        return None
    entry = <tuple><object>found
    offset = _natural(value.storage_offset())
    if offset:
        offset *= _natural(value.itemsize)
    if size > _natural(storage.nbytes()) - offset:
        return None
    data = PyBytes_FromStringAndSize(<char *>(start + offset), size)
    return _row(made, (entry[0], entry[1], (data,), size, True))


def look_at_tensors(dict named not None, tuple asked, dict known, most):
    """The address of the storage of each torch tensor, None if not plain; and their Prepareds by name.

    *asked* are the methods of a tensor that are called, the strided layout, and the class Prepared.
    Only tensors of at most so many bytes are prepared: their bytes are copied, and so ``owned``.
    """
    cdef list places = []
    cdef dict ready = {}
    cdef int64_t place
    for name, value in named.items():
        where = None
        if _is_tensor(value):
            place = 0
            try:
                made = _copied(value, asked, known, most, &place)
                if made is not None:
                    ready[name] = made
            except Exception:
                pass
            if place:
                where = place
        places.append(where)
    return places, ready


# --- into the packs -------------------------------------------------------------------------------


def tensor_keys(names):
    """The keys of tensors with these names; None unless all are plain names."""
    cdef list keys = []
    try:
        for name in names:
            keys.append(_key_of(name))
    except Exception:
        return None
    return keys


cdef object _digest_of_newest(tuple view, bytes key):
    """The digest of the newest version of a key at the head of *view*, empty where there is none.

    As ``Duplicates.rival`` has it, of what is in memory. Raises ValueError for the rest.
    """
    cdef PyObject *entry = NULL
    cdef tuple intervals = <tuple>view[1], newest
    cdef Py_ssize_t count
    cdef int64_t low, high
    cdef _Found where
    if type(view[1]) is not tuple:
        raise ValueError
    count = len(intervals)
    if not count or type(intervals[count - 1]) is not tuple or type(view[5]) is not tuple:
        raise ValueError
    newest = <tuple>intervals[count - 1]
    low, high = _number(<PyObject *>newest[0]), _number(<PyObject *>newest[1])
    if low < 0 or high < 0:
        raise ValueError
    for part in <tuple>view[5]:
        if type(part) is _Memory:
            where = _in_memory(part, key, low, high, &entry)
        elif type(part) is _Mapped:
            where = _in_mapped(part, key, low, high, &entry)
        else:
            raise ValueError
        if where == _HERE:
            return (<tuple><object>entry)[9]
        if where == _NOT_MINE or (where == _OLDER and count > 1):
            raise ValueError
    units = view[10]
    if type(units) is not _Units or <object>_field(units, _at.found) != ():
        raise ValueError
    return b""


def pack_tensors(
    list keys not None, list prepared not None, Py_ssize_t first, Py_ssize_t stop, set seen,
    dict where, list packs, most, int64_t below, int64_t upper, view, dict digests,
):
    """Pack tensors under new keys from number *first* on, one after another, up to the first that
    is not plain, or to *stop*; return its number, and how many were compared. Raises ValueError for
    numbers that are none.

    Those of fewer than *below* bytes are packed as pack_tensor does without digests. Those of fewer
    than *upper* are compared with the newest version of their key in *view*, and with *digests*.
    """
    cdef Py_ssize_t number = first, compared = 0
    cdef int64_t size, used, start, align = 1 << _PAYLOAD_ALIGN_LOG2
    cdef Py_buffer room
    cdef tuple fields
    cdef bytes key, digest
    cdef dict drafts
    if not 0 <= first <= stop <= min(len(keys), len(prepared)):
        raise ValueError
    if not packs or (_learned != 1 and (_learned or not _learn())):
        return first, 0
    pack = packs[len(packs) - 1]
    if type(pack) is not _PackType:
        _learn_pack(type(pack))
    drafts, used = <dict?><object>_field(pack, _pack_drafts), _natural(pack.size)
    PyObject_GetBuffer(<object>_field(pack, _pack_data), &room, PyBUF_WRITABLE)
    try:
        while number < stop and len(drafts) < <Py_ssize_t>most:
            item, key = prepared[number], keys[number]
            if not PyTuple_Check(item) or PyTuple_GET_SIZE(item) != _PREPARED:
                break
            fields = <tuple>item
            size = _natural(fields[3])
            if size > room.len - used - align or PySet_Contains(seen, key):
                break
            if size >= below and (size >= upper or type(view) is not _View):
                break
            start = (used + align - 1) & -align
            memset(<char *>room.buf + used, 0, start - used)
            _copy_parts(<char *>room.buf + start, size, fields[2])
            digest = digest128_of(<char *>room.buf + start, size)
            if size >= below:
                if digest in digests or digest == _digest_of_newest(<tuple>view, key):
                    break
                digests[digest] = key
                compared += 1
            PySet_Add(seen, key)
            where[key] = pack
            draft = (key, 0, _ENCODING_RAW, start, size, digest, 0, fields[1], b"")
            _keep_row_out(draft)
            drafts[key] = draft
            used = start + size
            number += 1
    except Exception:  # that one is for Python
        pass
    finally:
        PyBuffer_Release(&room)
        pack.size = used
    return number, compared
