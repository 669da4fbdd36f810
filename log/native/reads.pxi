# Reading one version of a dense tensor: what a view, its indexes and a segment do of it where all of
# that is in memory and verified, or verified by one pass here. And the look whether a view is newest.

from cpython.buffer cimport Py_buffer, PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.dict cimport PyDict_DelItem, PyDict_GetItemWithError
from cpython.object cimport PyObject, PyTypeObject
from cpython.ref cimport Py_DECREF, Py_INCREF
from cpython.set cimport PySet_Add, PySet_Contains, PySet_Size
from libc.stdint cimport uint16_t
from libc.string cimport memcpy
from posix.unistd cimport SEEK_END, lseek
cimport numpy as cnp

cdef extern from "structmember.h":
    ctypedef struct PyMemberDef:
        Py_ssize_t offset
    ctypedef struct PyMemberDescrObject:
        PyMemberDef *d_member

cdef extern from "Python.h":
    PyObject *PyMemoryView_GET_BASE(PyObject *view)
    long long PyLong_AsLongLongAndOverflow(object number, int *overflow) except? -1
    unsigned long long PyLong_AsUnsignedLongLongMask(object number) except? 0
    long PyLong_AsLong(object number) except? -1

cdef extern from "numpy/arrayobject.h":
    object PyArray_NewFromDescr(
        PyTypeObject *kind, cnp.dtype of, int axes, cnp.npy_intp *shape, cnp.npy_intp *strides,
        void *data, int flags, PyObject *like)
    void PyArray_UpdateFlags(cnp.ndarray array, int flags)
    int NPY_ARRAY_UPDATE_ALL

cnp.import_array()

cdef enum:
    _AXES_MAX = 32
    _BY_PACKAGE_FROM = 1 << 15  # the package is built for wider vectors, and gives the lock up
    _ONE_THREAD_BELOW = 8 << 20  # from here on blocks.py hashes in two

cdef struct _Stored:
    int64_t start, stop, checks, block

cdef struct _Slots:  # where in their objects the fields lie that are looked at
    Py_ssize_t fd, memory_entries, cache, entries, found, map, whole, blocks, seed

cdef _Slots _at
cdef int _learned = 0  # 1: the classes are as they are meant here, -1: they are not
cdef object _File, _Memory, _Mapped, _Units, _Sealed, _Part, _Segment, _View, _Entry, _Run
cdef Py_ssize_t _whole_max


cdef Py_ssize_t _slot(cls, str name) except -1:
    """Where a slot of a class lies in its objects."""
    member = getattr(cls, name)
    if type(member).__name__ != "member_descriptor":
        raise TypeError(f"{cls.__name__}.{name} is no slot")
    return (<PyMemberDescrObject *>member).d_member.offset


cdef inline PyObject *_field(object owner, Py_ssize_t offset) noexcept:
    """The object in a slot, borrowed; NULL where there is none."""
    return (<PyObject **>(<char *><PyObject *>owner + offset))[0]


cdef bint _learn() except -1:
    """Find the classes at the first call: imported earlier, some of them would import this module."""
    global _learned, _File, _Memory, _Mapped, _Units, _Sealed, _Part, _Segment, _View, _Entry, _Run
    global _whole_max
    from mldb.log import segment
    from mldb.log.directory.part import Part as _Part
    from mldb.log.directory.units import Units as _Units
    from mldb.log.fs.posix_file import OsFile as _File
    from mldb.log.fs.descriptor import OsDescriptor
    from mldb.log.index.address import Entry as _Entry, Run as _Run
    from mldb.log.index.mapped import MappedIndex as _Mapped
    from mldb.log.index.memory import MemoryIndex as _Memory
    from mldb.log.sealed import SealedPart as _Sealed
    from mldb.log.view import View as _View

    _learned = -1
    _Segment, _whole_max = segment.Segment, segment._WHOLE_MAX
    if _Entry._fields[:8] != ("commit_lsn", "segment", "frame", "offset", "length", "attr", "flags",
                              "encoding"):
        return False
    if [_View._fields[k] for k in (0, 1, 5, 7, 9, 10)] != [
            "commit", "intervals", "active", "segments", "epochs", "units"]:
        return False
    try:
        _at.fd = _slot(OsDescriptor, "_fd")
        _at.memory_entries = _slot(_Memory, "_entries")
        _at.cache, _at.entries = _slot(_Mapped, "_cache"), _slot(_Mapped, "_entries")
        _at.found = _slot(_Units, "_found")
        _at.map, _at.whole = _slot(_Segment, "_map"), _slot(_Segment, "_whole")
        _at.blocks, _at.seed = _slot(_Segment, "_blocks"), _slot(_Segment, "seed")
    except (AttributeError, TypeError):
        return False
    _learned = 1
    return True


cdef inline int64_t _number(PyObject *value) except? -1:
    """An integer of at least 0; -1 for anything else."""
    cdef int overflow = 0
    cdef long long found
    if value == NULL or type(<object>value) is not int:
        return -1
    found = PyLong_AsLongLongAndOverflow(<object>value, &overflow)
    return -1 if overflow or found < 0 else found


# --- is a view the newest -------------------------------------------------------------------------


cdef inline long long _size(object file) except -2:
    return lseek(<int>PyLong_AsLong(<object>_field(file, _at.fd)), 0, SEEK_END)


def are_as_long(one, long long size, two, long long other):
    """Whether two open files have these sizes, above 0; False as well where that is not plain.

    With the lock: on a local file system it waits for nothing and takes 0.1 us each, and who gave
    the lock up for that may wait for it as long as another thread likes.
    """
    if _learned != 1 and (_learned or not _learn()):
        return False
    if type(one) is not _File or type(two) is not _File:
        return False
    return _size(one) == size and _size(two) == other and size > 0 and other > 0


# --- which version --------------------------------------------------------------------------------


cdef enum _Found:
    _ABSENT  # no version of the key
    _HERE
    _OLDER  # versions, none of them in the newest interval
    _NOT_MINE


cdef Py_ssize_t _above(object items, bint entries, int64_t high) except -2:
    """How many of these ascending LSNs, or entries, are not above *high*; -1 where one is odd."""
    cdef Py_ssize_t low = 0, stop = len(items), middle
    cdef int64_t lsn
    cdef PyObject *item
    while low < stop:
        middle = (low + stop) >> 1
        if entries:
            item = <PyObject *>(<list>items)[middle]
            if type(<object>item) is not _Entry:
                return -1
            lsn = _number(<PyObject *>(<tuple><object>item)[0])
        else:
            lsn = _number(<PyObject *>(<tuple>items)[middle])
        if lsn < 0:
            return -1
        if lsn <= high:
            low = middle + 1
        else:
            stop = middle
    return low


cdef _Found _in_memory(object index, bytes key, int64_t low, int64_t high, PyObject **found) except *:
    """Look in a MemoryIndex; the entry comes borrowed."""
    cdef PyObject *versions = PyDict_GetItemWithError(<object>_field(index, _at.memory_entries), key)
    cdef Py_ssize_t count
    if versions == NULL:
        return _ABSENT
    if type(<object>versions) is not list:
        return _NOT_MINE
    count = _above(<object>versions, True, high)
    if count <= 0:
        return _NOT_MINE if count else _OLDER
    found[0] = <PyObject *>(<list><object>versions)[count - 1]
    return _OLDER if _number(<PyObject *>(<tuple><object>found[0])[0]) < low else _HERE


cdef _Found _in_mapped(object index, bytes key, int64_t low, int64_t high, PyObject **found) except *:
    """The same in what a MappedIndex keeps of its columns."""
    cdef PyObject *rows = PyDict_GetItemWithError(<object>_field(index, _at.cache), key)
    cdef Py_ssize_t count
    if rows == NULL:
        return _NOT_MINE
    if <object>rows is None:
        return _ABSENT
    lsns, first = (<tuple><object>rows)[0], (<tuple><object>rows)[1]
    if type(lsns) is not tuple:
        return _NOT_MINE
    count = _above(lsns, False, high)
    if count <= 0:
        return _NOT_MINE if count else _OLDER
    if _number(<PyObject *>(<tuple>lsns)[count - 1]) < low:
        return _OLDER
    found[0] = PyDict_GetItemWithError(<object>_field(index, _at.entries), first + (count - 1))
    if found[0] == NULL or type(<object>found[0]) is not _Entry:
        return _NOT_MINE
    return _HERE


cdef bint _find(
    tuple view, tuple intervals, bytes key, PyObject **found, Py_ssize_t *touched,
) except -1:
    """As ``View.newest``: whether the entry is in *found*, borrowed. Units are not counted here."""
    cdef Py_ssize_t count = len(intervals)
    cdef int64_t low, high, lowest, start, stop
    cdef _Found where
    if not count or type(intervals[count - 1]) is not tuple or type(view[5]) is not tuple:
        return False
    newest = <tuple>intervals[count - 1]
    low, high = _number(<PyObject *>newest[0]), _number(<PyObject *>newest[1])
    if low < 0 or high < 0:
        return False
    for part in <tuple>view[5]:
        if type(part) is _Memory:
            where = _in_memory(part, key, low, high, found)
        elif type(part) is _Mapped:
            where = _in_mapped(part, key, low, high, found)
        else:
            return False
        if where == _HERE:
            return True
        if where == _NOT_MINE or (where == _OLDER and count > 1):
            return False
    units = view[10]
    if type(units) is not _Units or type(<object>_field(units, _at.found)) is not tuple:
        return False
    lowest = low
    if count > 1:
        first = intervals[0]
        lowest = first.first if type(first) is _Run else first[0]
    for unit in <tuple><object>_field(units, _at.found):
        if type(unit) is not _Sealed and type(unit) is not _Part:
            return False
        start, stop = unit.first_lsn, unit.last_lsn
        if start > high or stop < lowest:
            continue
        index = unit._index
        if type(index) is not _Mapped:
            return False
        touched[0] += 1
        where = _in_mapped(index, key, low, high, found)
        if where == _HERE:
            return True
        if where == _NOT_MINE or (where == _OLDER and count > 1):
            return False
    return False


# --- its bytes ------------------------------------------------------------------------------------


cdef bint _is_zero(const uint8_t *data, int64_t low, int64_t high) noexcept nogil:
    while low < high:
        if data[low]:
            return False
        low += 1
    return True


cdef bint _is_sound(
    const uint8_t *data, int64_t size, uint64_t seed, int64_t at, int64_t low, int64_t high,
    _Stored *found,
) noexcept nogil:
    """Whether a frame is sound but for its payload, whose blocks all hold some of bytes low..high.

    As ``decode_header`` and ``check_body`` of frame.py have it.
    """
    cdef _Header head
    cdef int64_t checks, payload, end, stop, block, blocks, start
    if at < 0 or at + _FRAME_HEADER_SIZE > size:
        return False
    memcpy(&head, data + at, _FRAME_HEADER_SIZE)
    if head.magic != _FRAME_MAGIC or head.reserved or head.body_version > _BODY_VERSION:
        return False
    if mldb_check64(data + at, _FRAME_CHECKED_SIZE, seed + <uint64_t>at) != head.header_check:
        return False
    if (head.kind & ~_MUST_UNDERSTAND) <= _KIND_MANIFEST:  # no record
        return False
    if head.body_length > _BODY_BYTES_MAX or not 0 < head.payload_length < _ONE_THREAD_BELOW:
        return False
    if head.lsn >> 63 or head.commit_lsn >> 63:
        return False
    if not _BLOCK_LOG2_MIN <= head.block_log2 <= _BLOCK_LOG2_MAX:
        return False
    if not _ALIGN_LOG2_MIN <= head.align_log2 <= _ALIGN_LOG2_MAX:
        return False
    block = <int64_t>1 << head.block_log2
    blocks = (<int64_t>head.payload_length + block - 1) >> head.block_log2
    checks = at + _FRAME_HEADER_SIZE + head.body_length
    payload = checks + 8 * blocks
    payload += -payload & ((<int64_t>1 << head.align_log2) - 1)
    stop = payload + <int64_t>head.payload_length
    end = stop + (-stop & 7)
    if end > size or low < payload or high > stop or low >= high:
        return False
    if (low - payload) >> head.block_log2 or (high - 1 - payload) >> head.block_log2 != blocks - 1:
        return False  # the rest of it is not read now
    start = at + _FRAME_HEADER_SIZE
    if mldb_check64(data + start, checks + 8 * blocks - start, 0) != head.body_check:
        return False
    if not _is_zero(data, checks + 8 * blocks, payload) or not _is_zero(data, stop, end):
        return False
    found.start, found.stop, found.checks, found.block = payload, stop, checks, block
    return True


cdef bint _blocks_fit(const uint8_t *data, _Stored at) except -1:
    """Whether all blocks of a payload have their checksums, as ``Blocks.touch`` has it."""
    cdef uint64_t stored, found
    cdef int64_t size
    cdef int i
    while at.start < at.stop:
        stored, size = 0, min(at.block, at.stop - at.start)
        for i in range(8):
            stored = stored << 8 | data[at.checks + i]
        if size < _BY_PACKAGE_FROM:
            found = mldb_check64(data + at.start, size, 0)
        else:
            found = _check64_of_package(
                PyMemoryView_FromMemory(<char *>data + at.start, size, PyBUF_READ))
        if found != stored:
            return False
        at.start += at.block
        at.checks += 8
    return True


cdef bint _is_verified(
    object segment, Py_buffer *data, int64_t frame, int64_t low, int64_t high,
) except -1:
    """Whether these bytes were verified, or are now, with all of their frame; else not mine."""
    whole, blocks = <object>_field(segment, _at.whole), <object>_field(segment, _at.blocks)
    cdef uint64_t seed
    cdef _Stored at
    if PySet_Contains(whole, frame):
        return True
    if not MLDB_HAS_XXHASH or PySet_Size(whole) >= _whole_max or frame in <dict>blocks:
        return False
    seed = PyLong_AsUnsignedLongLongMask(<object>_field(segment, _at.seed))
    if not _is_sound(<uint8_t *>data.buf, data.len, seed, frame, low, high, &at):
        return False
    if not _blocks_fit(<uint8_t *>data.buf, at):
        return False
    PySet_Add(<object>_field(segment, _at.whole), frame)
    (<dict><object>_field(segment, _at.blocks)).pop(frame, None)
    return True


cdef object _array(object segment, tuple entry, tuple what, str verify, int64_t border):
    """The bytes of one raw version as an array: in the mapping, or copied below *border*; or None."""
    cdef Py_buffer data
    cdef int64_t frame = _number(<PyObject *>entry[2]), low = _number(<PyObject *>entry[3])
    cdef int64_t size = _number(<PyObject *>entry[4])
    cdef cnp.npy_intp shape[_AXES_MAX]
    cdef int64_t rest = size
    cdef Py_ssize_t axes = len(<tuple>what[0]), i
    cdef cnp.dtype of = what[1]
    cdef void *start
    mapped = <object>_field(segment, _at.map)
    if frame < 0 or low < 0 or size <= 0 or axes > _AXES_MAX or type(mapped) is not memoryview:
        return None
    for i in range(axes):
        shape[i] = (<tuple>what[0])[i]
        if shape[i] <= 0 or rest % shape[i]:
            return None
        rest //= shape[i]
    if rest != of.itemsize or PyMemoryView_GET_BASE(<PyObject *>mapped) == NULL:
        return None
    PyObject_GetBuffer(mapped, &data, PyBUF_SIMPLE)
    try:
        if low > data.len - size or not data.readonly:
            return None
        if verify != "never" and not _is_verified(segment, &data, frame, low, low + size):
            return None
        if size < border:
            base = PyBytes_FromStringAndSize(<char *>data.buf + low, size)
            start = PyBytes_AS_STRING(base)
        else:
            base = <object>PyMemoryView_GET_BASE(<PyObject *>mapped)
            start = <char *>data.buf + low
    finally:
        PyBuffer_Release(&data)
    Py_INCREF(of)  # the next call takes a reference of it
    made = PyArray_NewFromDescr(
        <PyTypeObject *>cnp.ndarray, of, axes, shape, NULL, start, cnp.NPY_ARRAY_CARRAY_RO, NULL)
    cnp.set_array_base(made, base)
    PyArray_UpdateFlags(made, NPY_ARRAY_UPDATE_ALL)
    return made


cdef object _Scope = None, _Source
cdef dict _keys, _plain


def meet(kinds not None, int64_t learns_from, dict keys not None, dict plain not None):
    """Take what stands above the log: the classes of mldb/tensors that a read is made of.

    Scope, Source, Door, MapBorder, ReadNotes; the size from which a border must be known; the keys
    of names, and shape, dtype and size by packed descriptor. Raises AttributeError, TypeError.
    """
    global _Scope, _Source, _keys, _plain
    if _learned != 1 and not _learn():
        return
    scope, source, door, border, notes = kinds
    if scope._fields != ("source", "view", "commit", "intervals"):
        raise TypeError("a scope of other fields")
    _above_log.private, _above_log.door = _slot(source, "private"), _slot(source, "door")
    _above_log.border, _above_log.reads = _slot(source, "border"), _slot(source, "reads")
    _above_log.state = _slot(source, "state")
    _above_log.mapped, _above_log.copied = _slot(source, "mapped_reads"), _slot(source, "copied_reads")
    _above_log.verify, _above_log.known = _slot(door, "verify"), _slot(border, "known")
    _above_log.value, _above_log.notes = _slot(border, "value"), _slot(notes, "_notes")
    _above_log.fresh, _above_log.now = _slot(notes, "_fresh"), _slot(notes, "_now")
    _above_log.learns_from, _keys, _plain = learns_from, keys, plain
    _Scope, _Source = scope, source


cdef struct _Above:
    int64_t learns_from
    Py_ssize_t private, door, border, reads, state, mapped, copied, verify, value, known
    Py_ssize_t notes, fresh, now

cdef _Above _above_log


cdef int _count(object owner, Py_ssize_t offset) except -1:
    """Add 1 to the number in a slot."""
    cdef PyObject **slot = <PyObject **>(<char *><PyObject *>owner + offset)
    before, more = <object>slot[0], <object>slot[0] + 1
    Py_INCREF(more)
    slot[0] = <PyObject *>more
    Py_DECREF(before)
    return 0


cdef int _note(object notes, object name, object commit, int64_t grain) except -1:
    """As ``ReadNotes.note``, where nothing is to be noted; else that is called."""
    cdef PyObject *known
    cdef int64_t last, now
    if <object>_field(notes, _above_log.notes) is False:
        return 0
    known = PyDict_GetItemWithError(<object>_field(notes, _above_log.fresh), (name, commit))
    if known != NULL:
        last = <object>known  # before the next line, which lets other threads run
        now = (<object>_field(notes, _above_log.now))()
        if 0 <= now - last <= grain:
            return 0
    notes.note(name, commit)
    return 0


def read(scope, name, int64_t grain):
    """Return the array of the newest version of tensor *name* in *scope*; None: not mine.

    As ``read_array`` of mldb/tensors/scope.py, for raw dense tensors whose descriptors are known,
    in a mapped segment. A read within *grain* nanoseconds of the last one is not noted again.
    """
    if _Scope is None or type(scope) is not _Scope:
        return None
    return _read((<tuple>scope)[0], (<tuple>scope)[1], (<tuple>scope)[2], (<tuple>scope)[3], name, grain)


def read_as_of(source, view, as_of, name, int64_t grain):
    """The same at the head of *view*, or as of an epoch that was asked for before."""
    cdef PyObject *known
    if type(view) is not _View:
        return None
    if as_of is None:
        return _read(source, view, (<tuple>view)[0], (<tuple>view)[1], name, grain)
    epochs = (<tuple>view)[9]
    if type(as_of) is not int or type(epochs) is not dict:
        return None
    known = PyDict_GetItemWithError(epochs, as_of)
    if known == NULL or type(<object>known) is not tuple:
        return None
    return _read(source, view, (<tuple><object>known)[0], (<tuple><object>known)[1], name, grain)


cdef object _read(object source, object view, object commit, object intervals, object name, int64_t grain):
    cdef PyObject *found = NULL
    cdef Py_ssize_t touched = 0
    cdef PyObject *known
    cdef PyObject *key
    cdef int64_t border, size
    if _Source is None or type(name) is not str:
        return None
    key = PyDict_GetItemWithError(_keys, name)
    if key == NULL or type(source) is not _Source or type(view) is not _View:
        return None
    if <object>_field(source, _above_log.private) is not False or type(intervals) is not tuple:
        return None
    verify = <object>_field(<object>_field(source, _above_log.door), _above_log.verify)
    if verify != "first" and verify != "never":
        return None
    if not _find(<tuple>view, <tuple>intervals, <bytes><object>key, &found, &touched):
        return None
    entry = <tuple><object>found
    if _number(<PyObject *>entry[6]) & _ENTRY_TOMBSTONE or _number(<PyObject *>entry[7]) != _ENCODING_RAW:
        return None
    known = PyDict_GetItemWithError(_plain, entry[5])
    if known == NULL:
        return None
    what = <tuple><object>known  # held from here on, as the segment is: hashing lets others run
    size = _number(<PyObject *>entry[4])
    if size != _number(<PyObject *>what[2]):
        return None
    borders = <object>_field(source, _above_log.border)
    border = _number(_field(borders, _above_log.value))
    if size >= _above_log.learns_from and <object>_field(borders, _above_log.known) is not True:
        return None
    if type((<tuple>view)[7]) is not dict:
        return None
    known = PyDict_GetItemWithError((<tuple>view)[7], entry[1])
    if known == NULL or type(<object>known) is not _Segment:
        return None
    segment = <object>known
    made = _array(segment, entry, what, verify, border)
    if made is None:
        return None
    _count(source, _above_log.mapped if size >= border else _above_log.copied)
    if touched:
        units = (<tuple>view)[10]
        units.lookups += 1
        units.touched += touched
    state = <object>_field(source, _above_log.state)
    if commit is not (<tuple>state.view)[0]:
        _note(<object>_field(source, _above_log.reads), name, entry[0], grain)
    return made
