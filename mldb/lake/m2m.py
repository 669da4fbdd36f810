"""The original interface: ``create_m2m(M2MConfig(...))`` and the verbs of its lake."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mldb.closing import Closing
from mldb.compaction.soc.report import ConsolidationReport
from mldb.database import MLDatabase
from mldb.errors import InvalidTypeError
from mldb.gpu.select import check_spec
from mldb.lake.lake import Lake
from mldb.lake.order.weights import Importance
from mldb.lake.stream.settings import Augmentation
from mldb.options import Durability
from mldb.sphere.geometry import Geometry

if TYPE_CHECKING:
    from mldb.lake.stream.loader import LakeLoader


@dataclass(frozen=True, slots=True, kw_only=True)
class M2MConfig:
    """Where a lake is and what runs it.

    device:       "auto", or one of those of :func:`mldb.gpu.select.open_device`.
    storage_path: the store; created when nothing is there.
    latent_dim:   the dimension of its rows.
    lake, geometry, durability: as in :func:`mldb.open` and ``db.lake``.
    """

    device: str = "auto"
    storage_path: str = "ml_storage"
    latent_dim: int = 640
    lake: str = "default"
    geometry: Geometry = "sphere"
    durability: Durability = "commit"


class M2M(Closing):
    """A store with one lake, as one object. A context manager; any thread.

    ``db`` and ``lake`` are what it stands on, for everything that it does not repeat.
    """

    def __init__(self, config: M2MConfig) -> None:
        """Raises InvalidValueError for an unknown device, and what opening a store raises."""
        check_spec(config.device)
        self.config = config
        self.db = MLDatabase(config.storage_path, durability=config.durability)
        try:
            self.lake: Lake = self.db.lake(
                config.lake, dim=config.latent_dim, geometry=config.geometry
            )
        except BaseException:
            self.db.close()
            raise

    def add_splats(self, mu: Any, **columns: Any) -> Any:
        """Append rows [N, latent_dim] as one commit; see ``Lake.add_splats``. Returns their ids."""
        return self.lake.add_splats(mu, **columns)

    def consolidate(self, **options: Any) -> ConsolidationReport:
        """Merge near-copies as one commit; see ``Lake.consolidate``."""
        return self.lake.consolidate(**options)

    def export_to_dataloader(
        self,
        batch_size: int = 256,
        *,
        importance_sampling: bool | Importance = False,
        generate_samples: bool | Augmentation = False,
        device: str | None = None,
        **options: Any,
    ) -> LakeLoader:
        """Return a torch DataLoader; see ``Lake.export_to_dataloader``.

        *device* is that of the config unless given.
        """
        return self.lake.export_to_dataloader(
            batch_size,
            importance_sampling=importance_sampling,
            generate_samples=generate_samples,
            device=self.config.device if device is None else device,
            **options,
        )

    def __len__(self) -> int:
        """How many live rows."""
        return len(self.lake)

    def close(self) -> None:
        """Close the store. Closing twice is harmless."""
        self.db.close()


def create_m2m(config: M2MConfig | None = None) -> M2M:
    """Open or create the store of *config* and its lake."""
    if not isinstance(config, M2MConfig | None):
        raise InvalidTypeError(
            f"config is a {type(config).__name__}; give mldb.M2MConfig(storage_path=...)"
        )
    return M2M(M2MConfig() if config is None else config)
