"""An index of whole volumes: one row each, shown by one slice."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from index_fakes import POLICY, FakeEmbedder, FakeVolumeEmbedder, contents, make_case

from medretrieval.errors import InputError, UsageError
from medretrieval.imaging import make_slices
from medretrieval.index import Case, build, open_store
from medretrieval.index.stream import representative
from medretrieval.types import LabelVolume, Volume


def run(cases: list[Case], out: Path, **options: Any) -> Path:
    options = {"embedder": FakeVolumeEmbedder(), "slices": POLICY, "name": "test", **options}
    return build(cases, out, **options)


def cases() -> list[Case]:
    return [make_case(n, depth=3 + n, annotated=n != 2, labels=("seen",)) for n in range(5)]


@pytest.mark.parametrize("float16", [False, True])
@pytest.mark.parametrize("kind", ["flat", "hnsw"])
def test_a_volume_is_one_row_with_the_labels_of_all_of_it(
    tmp_path: Path, float16: bool, kind: str
) -> None:
    embedder = FakeVolumeEmbedder()
    out = run(cases(), tmp_path / "i", embedder=embedder, float16=float16, index_kind=kind)
    with open_store(out) as store:
        assert store.manifest.embedder.unit == "volume"
        assert (store.manifest.counts.slices, store.manifest.counts.volumes) == (5, 5)
        assert store.manifest.counts.annotated_slices == 4
        for row, case in enumerate(cases()):
            volume, labels = case.load()
            assert store.volume_ids[store.volume[row]] == case.volume_id
            shown = int(store.slice_index[row])
            (piece,) = make_slices(volume, POLICY, labels=labels, indices=[shown])
            np.testing.assert_array_equal(store.image(row), piece.image)
            assert store.position_mm[row] == piece.position_mm
            expected = FakeVolumeEmbedder().embed_volume(volume)
            np.testing.assert_allclose(store.embeddings[row], expected, atol=1e-3)
            if labels is None:
                assert shown == volume.grid.shape[2] // 2
                assert store.mask(row) is None
                assert store.labels[row] == ("seen",)
            else:
                np.testing.assert_array_equal(store.mask(row), piece.mask)
                assert store.labels[row] == ("seen", "RV", "LV")
                assert store.support(row).names == {1: "RV", 2: "LV"}
        scores, rows = store.neighbours(store.embeddings[2:3], 3)
        assert rows[0, 0] == 2
        assert scores[0, 0] == pytest.approx(1, abs=1e-3)
    assert [volume.modality for volume in embedder.seen] == ["MR"] * 5


def test_labels_are_those_of_the_whole_volume_not_of_the_slice_shown(tmp_path: Path) -> None:
    base = make_case(0, depth=5)
    mask = np.zeros((9, 11, 5), np.uint8)
    mask[0, 0, 0] = 1
    mask[1:3, 1, 3] = 2
    mask[4, 4, 3] = 3

    def load() -> tuple[Volume, LabelVolume | None]:
        volume, _ = base.load()
        return volume, LabelVolume(voxels=mask, grid=volume.grid, names={3: "cyst"})

    case = dataclasses.replace(base, load=load)
    with open_store(run([case], tmp_path / "i")) as store:
        assert store.slice_index.tolist() == [3]
        assert list(store.labels) == [("RV", "LV", "cyst")]
        assert np.unique(store.mask(0)).tolist() == [0, 2, 3]
        assert store.manifest.vocabulary == {1: "RV", 2: "LV", 3: "cyst"}


@given(st.lists(st.frozensets(st.integers(1, 4)), min_size=1, max_size=9))
def test_the_slice_that_stands_for_a_volume(shown: list[frozenset[int]]) -> None:
    chosen = representative(shown)
    most = max(map(len, shown))
    assert len(shown[chosen]) == most
    middle = len(shown) // 2
    rivals = [i for i, found in enumerate(shown) if len(found) == most]
    assert abs(chosen - middle) == min(abs(i - middle) for i in rivals)
    if most == 0:
        assert chosen == middle


def test_a_build_that_failed_goes_on_where_it_stopped(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="machine fails"):
        run(cases(), tmp_path / "i", embedder=FakeVolumeEmbedder(fail_at=3))
    assert not (tmp_path / "i").exists()
    second = FakeVolumeEmbedder()
    out = run(cases(), tmp_path / "i", embedder=second)
    assert 2 <= len(second.seen) < 5
    assert contents(out) == contents(run(cases(), tmp_path / "j" / "i"))


def test_a_volume_that_the_embedder_does_not_take(tmp_path: Path) -> None:
    mixed = cases()
    mixed[1] = dataclasses.replace(mixed[1], modality="XX")
    message = r"1 of 5 cases cannot be used:\n  volume-001: v1 is no volume for this embedder"
    with pytest.raises(InputError, match=message):
        run(mixed, tmp_path / "i")
    with open_store(run(mixed, tmp_path / "i", skip_bad=True)) as store:
        assert store.manifest.counts.skipped == 1
        assert len(store) == 4


def test_a_mask_on_another_grid_is_named(tmp_path: Path) -> None:
    base, other = make_case(0, depth=4), make_case(1, depth=3)

    def load() -> tuple[Volume, LabelVolume | None]:
        return base.load()[0], other.load()[1]

    with pytest.raises(InputError, match="the mask is on another grid"):
        run([dataclasses.replace(base, load=load)], tmp_path / "i")


def test_an_embedding_without_length_is_refused(tmp_path: Path) -> None:
    class Broken(FakeVolumeEmbedder):
        def embed_volume(self, volume: Volume) -> Any:
            return 0 * super().embed_volume(volume)

    with pytest.raises(InputError, match=r"volume-000: it has no embedding of length 1"):
        run(cases(), tmp_path / "i", embedder=Broken())


def test_an_embedder_must_do_what_its_identity_says(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="embeds a slice at a time, but it has no embed_batch"):
        run(cases(), tmp_path / "i", embedder=FakeVolumeEmbedder(unit=None))


def test_progress_and_card_speak_of_volumes(tmp_path: Path) -> None:
    steps: list[str] = []
    out = run(cases(), tmp_path / "i", progress=lambda done, total, message: steps.append(message))
    assert "cases, 5 volumes embedded" in steps
    card = (out / "README.md").read_text()
    assert "one row a volume" in card
    assert "Every row is a whole volume, embedded at once" in card
    slices = build(cases(), tmp_path / "s", embedder=FakeEmbedder(), slices=POLICY, name="test")
    assert "one row a slice" in (slices / "README.md").read_text()
