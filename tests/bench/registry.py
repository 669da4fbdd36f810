"""All contenders by name, limits first."""

from __future__ import annotations

from tests.bench import limit_log, peer_files, peer_keyvalue, peer_mldb, peer_sqlite
from tests.bench.peer import Ability, Peer

_ALL = (
    *limit_log.LIMITS,
    *peer_mldb.PEERS,
    *peer_files.PEERS,
    *peer_keyvalue.PEERS,
    *peer_sqlite.PEERS,
)
PEERS: dict[str, Peer] = {peer.name: peer for peer in _ALL}


def is_limit(name: str) -> bool:
    """Tell whether *name* is a limit of the machine, not a product."""
    return name.startswith("limit:")


def select(names: list[str] | None, with_mldb: bool) -> list[Peer]:
    """Return the limits and the installed peers; *names* are beginnings of names, None is all."""
    chosen = []
    for peer in PEERS.values():
        ours = peer.name.startswith(peer_mldb.MLDB)
        wanted = names is None or any(peer.name.startswith(name) for name in names)
        if (is_limit(peer.name) or (with_mldb if ours else wanted)) and peer.installed():
            chosen.append(peer)
    return chosen


def able(peers: list[Peer], ability: Ability) -> list[Peer]:
    """Return those of *peers* that have *ability*."""
    return [peer for peer in peers if ability in peer.can]
