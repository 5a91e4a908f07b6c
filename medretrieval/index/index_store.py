"""An open index: its rows, pictures and search."""

from __future__ import annotations

import hashlib
import logging
import threading
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medretrieval.errors import IndexFormatError, UsageError
from medretrieval.index.columns import RowMap
from medretrieval.index.embedding_sets import embedders_here
from medretrieval.index.index_files import IndexFiles
from medretrieval.index.manifest import Manifest, read_manifest
from medretrieval.index.memory_files import memory_info, without_memories
from medretrieval.index.png import decode_png
from medretrieval.index.row_columns import Columns
from medretrieval.index.search_entry import EXACT_KINDS
from medretrieval.index.slice_table import SliceTable
from medretrieval.types import Support

if TYPE_CHECKING:
    from medretrieval.index.searcher import Searcher

logger = logging.getLogger(__name__)


def pseudonym(patient_id: str, index_name: str) -> str:
    """Return the name that a patient has in the index called `index_name`: 16 hexadecimal digits.

    A keyed hash (BLAKE2b), so that the same patient has different names in different indexes. It is
    a pseudonym, not an anonymisation: who knows an identifier can compute its hash and find it.
    """
    key = hashlib.sha256(index_name.encode()).digest()
    return hashlib.blake2b(patient_id.encode(), key=key, digest_size=8).hexdigest()


class IndexStore:
    """An open index; made by `open_store`. Safe to use from several threads.

    Attributes:
        path: the folder.
        manifest: what it says of itself.
        embeddings: (n, dim) float32 unit rows; a read-only memory map if stored as float32.
        volume_ids: names of the volumes.
        volume: (n,) int32, code of each row's volume into `volume_ids`.
        patient: (n,) pseudonyms (see `pseudonym`).
        modality, region: (n,) names.
        attributes: extra columns of the table that the index was built from, by name: (n,) text,
            empty where the table says nothing.
        slice_index: (n,) int64, voxel index along the sliced axis of the volume.
        position_mm: (n,) float64, NaN where unknown.
        spacing: (n, 3) float64 mm (row, column, through-plane), NaN where unknown.
        labels: for each row names: labels of the case, then structures in the mask.
        annotated: (n,) bool, the row has a mask (all zero where nothing of it is on the slice).
        vocabulary: mask value -> name.
    """

    def __init__(
        self,
        path: Path,
        manifest: Manifest,
        embeddings: NDArray[np.float32],
        table: SliceTable,
        columns: Columns,
        files: IndexFiles,
        *,
        trusted: bool,
    ) -> None:
        self.path = path
        self.manifest = manifest
        self.embeddings = embeddings
        self.volume_ids = columns.volume_ids
        self.volume = columns.volume
        self.patient = columns.patient
        self.modality = columns.modality
        self.region = columns.region
        self.attributes = columns.attributes
        self.slice_index = columns.slice_index
        self.position_mm = columns.position_mm
        self.spacing = columns.spacing
        self.labels = columns.labels
        self.annotated = columns.annotated
        self.vocabulary: dict[int, str] = dict(manifest.vocabulary)
        self._table = table
        self._files = files
        self._trusted = trusted
        self._searcher: Searcher | None = None
        self._lock = threading.Lock()

    @property
    def origin(self) -> str | None:
        """ORG/NAME@COMMIT of the Hub, None for a folder of one's own."""
        return self._files.origin

    def __len__(self) -> int:
        return len(self.embeddings)

    def __repr__(self) -> str:
        m = self.manifest
        return (
            f"IndexStore({m.name}: {m.counts.slices} slices of {m.counts.volumes} volumes, "
            f"{m.embedder.name}, {m.index_kind})"
        )

    def __enter__(self) -> IndexStore:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the files; pictures cannot be read afterwards."""
        self._table.close()

    def pseudonyms(self, patient_id: str) -> tuple[str, ...]:
        """Return the names that a patient of the source can have in `self.patient`.

        One, or one for each name that merged indexes had.
        """
        return tuple(pseudonym(patient_id, key) for key in self.manifest.pseudonym_keys)

    def row(self, volume_id: str, slice_index: int) -> int:
        """Return the row of a slice.

        Raises:
            UsageError: no such volume, or no such slice of it.
        """
        return self._rows.row(volume_id, slice_index)

    @cached_property
    def _rows(self) -> RowMap:
        return RowMap(self.volume_ids, self.volume, self.slice_index)

    def image(self, row: int) -> NDArray[np.uint8]:
        """Return the picture of a row: (H, W) or (H, W, 3) uint8.

        Raises:
            UsageError: no such row, or an index without pictures.
            IndexFormatError: the stored picture is damaged.
            UnavailableError: its file cannot be fetched.
        """
        if not self.manifest.pictures:
            raise UsageError(
                f"the index {self.manifest.name} has no pictures ({self.manifest.withheld}); look "
                "the case up at its source by its name"
            )
        picture = self._picture(row, "image")
        if picture is None or picture.dtype != np.uint8:
            raise IndexFormatError(f"{self._table.where(row)}: the image is not 8 bits deep")
        return picture

    def has_image(self, row: int) -> bool:
        """Whether the index has a picture of the slice, be it that it has to be fetched."""
        self._check(row)
        return self.manifest.pictures

    def fetched_with(self, row: int) -> str | None:
        """The file of an index of the Hub in which the picture of a row is; None of a folder."""
        return None if self._files.blobs is None else self._table.path(self._check(row)).name

    def has_mask(self, row: int) -> bool:
        """Whether the slice was annotated, be it that nothing is on it."""
        return bool(self.annotated[self._check(row)])

    def mask(self, row: int) -> NDArray[Any] | None:
        """Return the label map of a row: (H, W) uint8 or uint16 of the image's size, or None.

        Raises:
            UsageError: no such row.
            IndexFormatError: damaged, or a value that the vocabulary does not name.
        """
        mask = self._picture(row, "mask")
        if mask is None:
            return None
        values = np.flatnonzero(np.bincount(mask.ravel())).tolist()
        unnamed = [value for value in values if value and value not in self.vocabulary]
        if mask.ndim != 2 or unnamed:
            raise IndexFormatError(
                f"{self._table.where(row)}: the mask is not a label map of this vocabulary "
                f"(values without a name: {unnamed[:5]})"
            )
        return mask

    def support(self, row: int, score: float | None = None) -> Support:
        """Return an annotated slice to segment by.

        Args:
            score: similarity to the query, if it was retrieved.

        Raises:
            UsageError: no such row, or it was never annotated.
        """
        key = f"{self.volume_ids[self.volume[self._check(row)]]}:{self.slice_index[row]}"
        mask = self.mask(row)
        if mask is None:
            raise UsageError(
                f"slice {key} has no annotation and cannot be a support; choose a row of which "
                "has_mask is true"
            )
        image = self.image(row)
        if image.shape[:2] != mask.shape:
            raise IndexFormatError(f"{self._table.where(row)}: image and mask differ in size")
        values = np.flatnonzero(np.bincount(mask.ravel())).tolist()
        names = {value: self.vocabulary[value] for value in values if value}
        return Support(image=image, mask=mask, names=names, key=key, score=score)

    def neighbours(
        self, queries: NDArray[Any], k: int, rows: NDArray[Any] | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Find the k most similar rows of each query; see `Searcher.neighbours`."""
        return self.searcher().neighbours(queries, k, rows)

    def searcher(self) -> Searcher:
        """Return the search structure, read or built on first use."""
        with self._lock:
            if self._searcher is None:
                self._searcher = self._make_searcher()
            return self._searcher

    def reload_memories(self) -> None:
        """Take note of memories that were stored in the folder since it was opened."""
        try:
            manifest = read_manifest(self.path, blobs=self._files.blobs)
            manifest = manifest.choose(self.manifest.embedder.name)
        except (IndexFormatError, UsageError) as error:
            logger.warning("%s was changed while it is open: %s", self.path, error)
            return
        if without_memories(manifest) == without_memories(self.manifest):
            self.manifest = manifest
            self._files.update(manifest.files)

    def check_file(self, name: str) -> None:
        """Make sure that a file of the index is there and right, just before it is used.

        Opening may have been long ago, or have compared sizes only.

        Raises:
            IndexFormatError: it was changed.
            UnavailableError: it cannot be fetched.
            OSError: it cannot be read.
        """
        self._files.check(name, always=True)

    def has_file(self, name: str) -> bool:
        """Whether a file of the index is there, or can be fetched."""
        return name in self.manifest.files and self._files.available(name)

    def info(self) -> dict[str, Any]:
        """Return what `medretrieval info` prints: JSON-able."""
        m = self.manifest.to_json()
        files = m.pop("files")
        memories = memory_info(self.path, self.manifest.files)
        checked = ["sizes"] if self._files.verify == "sizes" else ["sha256", "norms"]
        # Of the Hub, files are fetched and looked at when they are needed.
        listed = ["file list"] if self._files.blobs is None else []
        return {
            "path": str(self.path),
            **({} if self.origin is None else {"origin": self.origin}),
            **m,
            "files": len(files),
            "bytes": sum(entry["bytes"] for entry in files.values()),
            # An index that fails a check does not open.
            "checked": ["schema", *listed, *checked, "rows", "counts", "dimension"],
            "exact": self.manifest.index_kind in EXACT_KINDS,
            # Those of others may be left out of a copy of the index.
            "embedders_here": embedders_here(self.path, self.manifest.sets),
            **({"memories": memories} if memories else {}),
            "stored_faiss_index": self.manifest.faiss_file in files
            and (self.path / self.manifest.faiss_file).exists(),
        }

    def _make_searcher(self) -> Searcher:
        from medretrieval.index import faiss_files
        from medretrieval.index.kinds import KINDS
        from medretrieval.index.searcher import Searcher

        m = self.manifest
        path = self.path / m.faiss_file
        index = None
        if KINDS[m.index_kind].build is not None:
            if self._trusted and self.has_file(m.faiss_file):
                self.check_file(m.faiss_file)
                index = faiss_files.read_faiss(path, rows=len(self), dim=m.dim, kind=m.index_kind)
            else:
                logger.info("building the %s index of %s in memory", m.index_kind, self.path)
                index = faiss_files.build_faiss(self.embeddings, m.index_kind, m.index_parameters)
        return Searcher(
            embeddings=self.embeddings,
            kind=m.index_kind,
            parameters=m.index_parameters,
            index=index,
        )

    def _check(self, row: int) -> int:
        if not 0 <= row < len(self):
            raise UsageError(f"row {row} does not exist; the index has rows 0..{len(self) - 1}")
        return int(row)

    def _picture(self, row: int, column: str) -> NDArray[Any] | None:
        data = self._table.picture(self._check(row), column)
        if data is None:
            return None
        where = f"{column} of {self._table.where(row)}"
        return decode_png(data, where, max_side=self.manifest.slices.max_side)
