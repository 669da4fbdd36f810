# Dicts of a state taken apart: nodes of the skeleton, and names of the tensors (mldb/state/tree.py).

cdef object _tensor_kinds = ()  # the classes of torch that have nothing of their own
cdef object _node_tags = None  # of a tensor, a dict, a list and a tuple
cdef int _depth_max = 0


def meet_tensors(tuple kinds not None, tuple tags not None, int depth):
    """Learn what tensors are, the tags of the skeleton, and how deep a state may be."""
    global _tensor_kinds, _node_tags, _depth_max
    if len(tags) != 4:
        raise ValueError
    _tensor_kinds, _node_tags, _depth_max = kinds, tags, depth


cdef bint _as_is(object value) except -1:
    """Whether a plain value is its own node. Raises for one that has another node."""
    cdef int overflow = 0
    kind = type(value)
    if value is None or kind is bool or kind is float or kind is bytes:
        return True
    if kind is int:
        PyLong_AsLongLongAndOverflow(value, &overflow)
        if overflow:
            raise ValueError
        return True
    if kind is str:
        if not PyUnicode_IS_COMPACT_ASCII(value):
            raise ValueError
        return True
    return False


cdef bint _is_tensor(object value) noexcept:
    kind = type(value)
    for plain in <tuple>_tensor_kinds:
        if plain is kind:
            return True
    return False


cdef object _component_of(object key, bint whole):
    """What a key adds to a name, where it stays as it is; *whole* allows parts with ``/`` between."""
    kind = type(key)
    if kind is int:
        _as_is(key)
        return str(key)
    if not _is_plain_name(key, whole):
        raise ValueError
    return key


cdef object _node_of(object value, object name, int depth, dict tensors, dict taken):
    """The node of a value. Raises for what is not plain."""
    kind = type(value)
    if _is_tensor(value):
        if name in tensors or name in taken:
            raise ValueError
        tensors[name] = value
        return [_node_tags[0], name]
    if depth >= _depth_max:
        raise ValueError
    if kind is dict:
        node = [_node_tags[1]]
        _add_items(value, name + "/", False, node, depth + 1, tensors, taken)
        return node
    if kind is not list and kind is not tuple:
        raise TypeError
    node = [_node_tags[2] if kind is list else _node_tags[3]]
    for number, item in enumerate(value):
        if not _as_is(item):
            item = _node_of(item, f"{name}/{number}", depth + 1, tensors, taken)
        node.append(item)
    return node


cdef int _add_items(
    object items, object start, bint whole, list node, int depth, dict tensors, dict taken
) except -1:
    for key, item in items.items():
        part = _component_of(key, whole)
        node.append(key)
        if not _as_is(item):
            item = _node_of(item, start + part if start else part, depth, tensors, taken)
        node.append(item)
    return 0


def add_items(items, str start not None, bint whole, list node not None, int depth, dict taken not None):
    """Add the keys and nodes of a dict to *node*, and its tensors by name to *taken*.

    As ``_Walk._dict`` does. False, and nothing, where anything in it is not plain.
    """
    cdef list made = []
    cdef dict tensors = {}
    try:
        _add_items(items, start, whole, made, depth, tensors, taken)
    except Exception:
        return False
    node += made
    taken.update(tensors)
    return True
