"""An open index folder, after every check."""

from __future__ import annotations

import hashlib
import logging
import threading
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
from numpy.typing import NDArray

from medretrieval.errors import IndexFormatError, UsageError
from medretrieval.index.columns import RowMap
from medretrieval.index.manifest import (
    MANIFEST,
    Manifest,
    read_manifest,
)
from medretrieval.index.memory_files import memory_info, without_memories
from medretrieval.index.png import decode_png
from medretrieval.index.search_entry import EXACT_KINDS
from medretrieval.index.table import Columns, SliceTable
from medretrieval.index.tensors import read_embeddings
from medretrieval.index.verified import Verified, Verify, check_files
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


def open_store(
    path: str | Path,
    *,
    embedder: str | None = None,
    verify: Verify = "changed",
    trusted: bool = True,
) -> IndexStore:
    """Open an index folder.

    Args:
        path: the folder.
        embedder: by whose embeddings it is searched, where it has several; default the first.
        verify: "changed" hashes every file and looks at every embedding the first time, which reads
            the whole folder once (about a second per gigabyte), and later only the files that
            changed since; "full" does it every time; "sizes" compares sizes only and trusts the
            contents. Manifest, rows, counts and the header of the embeddings are always checked.
        trusted: whether the folder is of this machine's user, or of an allowed source at a pinned
            commit. `index.faiss` of any other is never read (a manipulated one can corrupt the
            memory of the process); it is made again from the embeddings.

    Raises:
        IndexFormatError: not an index, of a newer schema, incomplete, changed, or inconsistent; the
            message names the file.
        UsageError: the index has no such embedder.
    """
    if verify not in get_args(Verify):
        raise UsageError(f"verify is {verify!r}; expected 'changed', 'full' or 'sizes'")
    folder = Path(path)
    manifest = read_manifest(folder).choose(embedder)
    _check_kind(manifest, folder)
    verified = check_files(folder, manifest, verify)
    counts = manifest.counts
    embeddings = read_embeddings(
        folder / manifest.embeddings_file,
        rows=counts.slices,
        dim=manifest.dim,
        dtype=manifest.dtype,
        check=_norms_unknown(verified, manifest, verify),
    )
    if verify != "sizes":
        verified.note_norms(manifest.embeddings_file)
    shards = sorted(name for name in manifest.files if name.startswith("slices/"))
    table = SliceTable([folder / name for name in shards], manifest.attributes)
    try:
        if table.rows != counts.slices:
            raise IndexFormatError(
                f"{folder / 'slices'} holds {table.rows} rows, {MANIFEST} says {counts.slices}"
            )
        columns = table.columns()
        _check_counts(columns, manifest, folder)
        verified.save()
        return IndexStore(
            folder, manifest, embeddings, table, columns, verified, verify=verify, trusted=trusted
        )
    except BaseException:
        table.close()
        raise


def _norms_unknown(verified: Verified, manifest: Manifest, verify: Verify) -> bool:
    name = manifest.embeddings_file
    entry = manifest.files[name]
    known = verify == "changed" and verified.holds(name, entry.sha256, norms=True)
    return not (known or verify == "sizes")


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
        verified: Verified,
        *,
        verify: Verify,
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
        self._verified = verified
        self._verify = verify
        self._trusted = trusted
        self._searcher: Searcher | None = None
        self._lock = threading.Lock()

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
        """Return the names that a patient of the source can have in `self.patient`: one."""
        return (pseudonym(patient_id, self.manifest.name),)

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
            UsageError: no such row.
            IndexFormatError: the stored picture is damaged.
        """
        picture = self._picture(row, "image")
        if picture is None or picture.dtype != np.uint8:
            raise IndexFormatError(f"{self._table.where(row)}: the image is not 8 bits deep")
        return picture

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
            manifest = read_manifest(self.path).choose(self.manifest.embedder.name)
        except (IndexFormatError, UsageError) as error:
            logger.warning("%s was changed while it is open: %s", self.path, error)
            return
        if without_memories(manifest) == without_memories(self.manifest):
            self.manifest = manifest

    def check_file(self, name: str) -> None:
        """Hash a file of the index right before it is used, unless it is still what was hashed.

        Opening may have been long ago, or have compared sizes only.

        Raises:
            IndexFormatError: it was changed.
            OSError: it cannot be read.
        """
        entry = self.manifest.files[name]
        if self._verify == "full" or not self._verified.holds(name, entry.sha256):
            self._verified.check(name, entry)
            self._verified.save()

    def info(self) -> dict[str, Any]:
        """Return what `medretrieval info` prints: JSON-able."""
        m = self.manifest.to_json()
        files = m.pop("files")
        memories = memory_info(self.path, self.manifest.files)
        checked = ["sizes"] if self._verify == "sizes" else ["sha256", "norms"]
        return {
            "path": str(self.path),
            **m,
            "files": len(files),
            "bytes": sum(entry["bytes"] for entry in files.values()),
            # An index that fails a check does not open.
            "checked": ["schema", "file list", *checked, "rows", "counts", "dimension"],
            "exact": self.manifest.index_kind in EXACT_KINDS,
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
        entry = m.files.get(m.faiss_file)
        index = None
        if KINDS[m.index_kind].build is not None:
            if self._trusted and entry is not None and path.exists():
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


def _check_kind(manifest: Manifest, folder: Path) -> None:
    from medretrieval.index.kinds import resolve_parameters

    try:
        parameters = resolve_parameters(
            manifest.index_kind,
            manifest.index_parameters,
            rows=manifest.counts.slices,
            dim=manifest.dim,
        )
    except UsageError as error:
        raise IndexFormatError(f"{folder / MANIFEST}: {error}") from None
    if parameters != dict(manifest.index_parameters):
        raise IndexFormatError(f"{folder / MANIFEST}: index parameters are missing")


def _check_counts(columns: Columns, manifest: Manifest, folder: Path) -> None:
    counts = manifest.counts
    for what, found, expected in (
        ("volumes", len(columns.volume_ids), counts.volumes),
        ("patients", len(columns.patient.names), counts.patients),
        ("annotated slices", int(columns.annotated.sum()), counts.annotated_slices),
    ):
        if found != expected:
            raise IndexFormatError(
                f"{folder / 'slices'} holds {found} {what}, {MANIFEST} says {expected}; fetch or "
                "build the index again"
            )
