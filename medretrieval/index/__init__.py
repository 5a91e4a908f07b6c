"""The index folder: building, opening, and finding neighbours in it.

The names load on first use, so that importing this package loads neither faiss nor pyarrow.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medretrieval.index.adding import add_embedder, drop_embedder
    from medretrieval.index.appending import append, append_slices
    from medretrieval.index.builder import build
    from medretrieval.index.cases import Case
    from medretrieval.index.comparing import IndexDiff, diff
    from medretrieval.index.folder import cases_from_folder
    from medretrieval.index.group import IndexGroup, open_group, open_stores
    from medretrieval.index.kinds import KINDS
    from medretrieval.index.manifest import Manifest
    from medretrieval.index.merging import merge
    from medretrieval.index.ray_engine import RayEngine
    from medretrieval.index.removing import remove_patient
    from medretrieval.index.store import IndexStore, open_store, pseudonym
    from medretrieval.index.tabular import cases_from_table

_MODULES = {
    "Case": "cases",
    "IndexDiff": "comparing",
    "IndexGroup": "group",
    "IndexStore": "store",
    "KINDS": "kinds",
    "Manifest": "manifest",
    "RayEngine": "ray_engine",
    "add_embedder": "adding",
    "append": "appending",
    "append_slices": "appending",
    "build": "builder",
    "cases_from_folder": "folder",
    "cases_from_table": "tabular",
    "diff": "comparing",
    "drop_embedder": "adding",
    "merge": "merging",
    "open_group": "group",
    "open_store": "store",
    "open_stores": "group",
    "pseudonym": "store",
    "remove_patient": "removing",
}

__all__ = [
    "KINDS",
    "Case",
    "IndexDiff",
    "IndexGroup",
    "IndexStore",
    "Manifest",
    "RayEngine",
    "add_embedder",
    "append",
    "append_slices",
    "build",
    "cases_from_folder",
    "cases_from_table",
    "diff",
    "drop_embedder",
    "merge",
    "open_group",
    "open_store",
    "open_stores",
    "pseudonym",
    "remove_patient",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'medretrieval.index' has no attribute {name!r}")
    module = importlib.import_module(f"medretrieval.index.{_MODULES[name]}")
    value = getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
