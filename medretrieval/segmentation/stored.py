"""Memories that are stored in an index: read one by one when a segmentation needs them."""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import Any, Protocol

from safetensors import SafetensorError

from medretrieval.errors import IndexFormatError
from medretrieval.index.manifest import Manifest
from medretrieval.index.memory_files import memory_files, memory_prefix, open_memories
from medretrieval.segmentation.cache import Memory, MemorySource
from medretrieval.segmentation.sam2_backend import Sam2Network
from medretrieval.segmentation.segmenter import Segmenter

logger = logging.getLogger(__name__)

FORMAT = "medretrieval-memories-1"


class MemoryStore(Protocol):
    """An open index folder, as far as its memories are concerned (`index.IndexStore`)."""

    @property
    def path(self) -> Path: ...

    @property
    def manifest(self) -> Manifest: ...

    def reload_memories(self) -> None: ...

    def check_file(self, name: str) -> None: ...


class StoredMemories:
    """The memories in an index that were made by one network. Safe to share between threads.

    A file is hashed, unless it is known to be right, and its list of tensors read when the first
    memory is asked for. Then only the tensors of a memory are read, if they have the size that the
    network makes. A file that is not as the manifest says is logged and left out: its memories are
    computed again, as are those of a file that is missing.

    Attributes:
        files: the files that the manifest lists and that are there, by name.

    Args:
        store: the open index.
        segmenter: whose name and weights the files are of.
    """

    def __init__(self, store: MemoryStore, segmenter: Segmenter) -> None:
        network = segmenter.network
        names = memory_files(store.manifest.files, memory_prefix(segmenter.name, network.digest))
        listed = store.manifest.files
        self.files = {name: listed[name] for name in names if (store.path / name).is_file()}
        self._store = store
        self._shapes = memory_shapes(network)
        self._places: dict[str, Any] | None = None  # key -> the open file that has it
        self._lock = threading.Lock()

    def __contains__(self, key: str) -> bool:
        with self._lock:
            return key in self._index()

    def __len__(self) -> int:
        with self._lock:
            return len(self._index())

    def get(self, key: str) -> Memory | None:
        """Return a memory in float16, or None where there is none of this key."""
        with self._lock:
            file = self._index().get(key)
            if file is None:
                return None
            try:
                tensors = {}
                for name, shape in self._shapes.items():
                    # Before anything is read.
                    found = file.get_slice(f"{key}.{name}").get_shape()
                    if tuple(found) != shape:
                        raise ValueError(f"{name} is {found}, the network makes {shape}")
                    tensors[name] = file.get_tensor(f"{key}.{name}")
                return Memory.from_tensors(tensors)
            except (SafetensorError, OSError, ValueError) as error:
                logger.warning(
                    "memory %s of %s is damaged and is computed again: %s",
                    key,
                    self._store.path,
                    error,
                )
                return None

    def _index(self) -> dict[str, Any]:
        if self._places is None:
            self._places = {}
            for name in self.files:
                self._open(name, self._places)
        return self._places

    def _open(self, name: str, places: dict[str, Any]) -> None:
        path = self._store.path / name
        if not path.is_file():
            return  # they may be deleted
        try:
            self._store.check_file(name)
            file = open_memories(path, "pt")
            if (file.metadata() or {}).get("format") != FORMAT:
                raise ValueError(f"it is not of the format {FORMAT}")
        except (IndexFormatError, SafetensorError, OSError, ValueError) as error:
            logger.warning("%s is not used, its memories are computed again: %s", path, error)
            return
        for tensor in file.keys():
            places.setdefault(tensor.partition(".")[0], file)


def memory_shapes(network: Sam2Network) -> dict[str, tuple[int, ...]]:
    """The shapes of the tensors of a memory that a network makes, by name."""
    model = network.model
    side = network.image_size // int(model.backbone_stride)
    return {
        "features": (int(model.mem_dim), side, side),
        "pointer": (int(model.hidden_dim),),
        "foreground": (side, side),
    }


def use_stored(stores: Any, segmenter: Any) -> None:
    """Let a segmenter look for memories in an index, and in no other, before it computes them.

    Memories that were stored in the index since it was opened are found too.

    Args:
        stores: an open index (`IndexStore`, or an `IndexGroup` of several).
        segmenter: a `Segmenter`; anything else has no memories and stays as it is.
    """
    if not isinstance(segmenter, Segmenter):
        return
    known = segmenter.cache.sources
    wanted: dict[str, MemorySource] = {}
    for store in getattr(stores, "stores", (stores,)):
        store.reload_memories()
        name = f"{store.path} {memory_prefix(segmenter.name, segmenter.network.digest)}"
        found, old = StoredMemories(store, segmenter), known.get(name)
        if isinstance(old, StoredMemories) and old.files == found.files:
            wanted[name] = old  # its files are open already
        elif found.files:
            wanted[name] = found
    segmenter.cache.sources = wanted
