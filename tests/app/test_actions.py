"""What the actions of the page do, with a tiny index and no networks."""

from __future__ import annotations

import gzip
import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import pytest

from medretrieval.errors import IndexFormatError, InputError, UsageError
from medretrieval.ui.actions import Actions
from medretrieval.ui.backend import DEMO
from medretrieval.ui.session import Download, Props


def uploaded(uploads: Path, source: Path) -> Path:
    """Put a file where the server puts an upload."""
    (uploads / "hash").mkdir(exist_ok=True)
    return Path(shutil.copy(source, uploads / "hash" / source.name))


# The image


def test_the_page_starts_with_examples_and_the_card_of_the_index(visitor: Any) -> None:
    examples = visitor.shown["examples"]
    assert examples.count('data-action="open"') == 2
    assert "Open the example Synthetic CT of a block" in examples
    assert "made for tests" in visitor.shown["about"]
    assert "Synthetic phantoms" in visitor.shown["about"]
    # Another index was chosen while the demo was built: what is shown of that one stays.
    assert visitor.actions.introduce("another") == {}


def test_an_example_opens_in_its_middle_with_a_mode_for_cases(visitor: Any) -> None:
    shown = visitor.example(0)
    assert shown["mode"] == "rerank"
    assert shown["slice"]["maximum"] == 4
    assert shown["slice"]["value"] == shown["result_slice"]["value"] == 2
    assert shown["segment_volume"] == Props(visible=True)
    assert "24\u00d720\u00d75 voxels \u00b7 2\u00d72.5\u00d75 mm" in shown["image_status"]
    assert "axial \u00b7 slice 2 of 0 to 4 \u00b7 0.0 mm" in shown["viewer"]


def test_a_picture_has_no_slice_slider_and_a_mode_for_slices(visitor: Any) -> None:
    shown = visitor.example(1)
    assert shown["mode"] == "slice"
    assert not shown["slice"]["visible"]
    assert shown["segment_volume"] == Props(visible=False)
    assert "60\u00d740 pixels, spacing unknown" in shown["image_status"]


@pytest.mark.parametrize("key", ["2", "-1", "", "x", "\u00b2"])
def test_an_example_that_does_not_exist(visitor: Any, key: str) -> None:
    with pytest.raises(UsageError, match="no such example"):
        visitor.actions.load_example(key, DEMO)


def test_an_upload_is_deleted_and_nothing_of_its_name_is_shown_or_kept(
    visitor: Any, uploads: Path, nifti: Path
) -> None:
    path = uploaded(uploads, nifti)
    visitor.do(visitor.actions.load_upload(str(path), 0, DEMO))
    assert not path.exists()
    visitor.find()
    visitor.segment("volume")
    shown = {
        name: value.content if isinstance(value, Download) else value
        for name, value in visitor.shown.items()
        if name != "mask_file"
    }
    assert "Doe" not in repr(shown)
    mask = visitor.shown["mask_file"]
    assert (
        b"Doe" not in nib.Nifti1Image.from_bytes(gzip.decompress(mask.content)).header.binaryblock
    )
    assert "Doe" not in mask.name


def test_an_upload_that_cannot_be_read_is_deleted_and_the_message_does_not_name_it(
    visitor: Any, uploads: Path, tmp_path: Path
) -> None:
    (tmp_path / "Doe.png").write_text("no picture")
    path = uploaded(uploads, tmp_path / "Doe.png")
    with pytest.raises(InputError, match=r"your file\.png") as caught:
        visitor.actions.load_upload(str(path), 0, DEMO)
    assert "Doe" not in str(caught.value)
    assert not path.exists()


def test_a_file_outside_the_upload_folder_is_not_deleted(visitor: Any, nifti: Path) -> None:
    visitor.actions.load_upload(str(nifti), 0, DEMO)
    assert nifti.exists()


def test_no_upload_at_all(visitor: Any) -> None:
    with pytest.raises(UsageError, match="load an image first"):
        visitor.actions.load_upload(None, 0, DEMO)


@pytest.mark.parametrize(("asked", "shown"), [(0, 0), (4, 4), (99, 4), (-3, 0)])
def test_the_other_slider_follows(visitor: Any, asked: int, shown: int) -> None:
    visitor.example()
    updates = visitor.actions.show(visitor.session, "ct-bone", asked, follower="result_slice")
    assert updates["result_slice"] == shown
    assert "slice" not in updates
    assert f"slice {shown} of 0 to 4" in updates["viewer"]
    assert "result" not in updates


def test_the_window_changes_the_view_but_not_the_search(visitor: Any) -> None:
    visitor.example()
    narrow = visitor.actions.show(visitor.session, "ct-brain", 2)["viewer"]
    assert narrow != visitor.actions.show(visitor.session, "", 2)["viewer"]


# The search


@pytest.mark.parametrize("mode", ["count", "weighted", "rerank"])
def test_cases_are_found_and_exported_as_they_are_shown(visitor: Any, mode: str) -> None:
    visitor.example()
    shown = visitor.find(mode)
    found = shown["found"].result.hits
    assert [row["volume_id"] for row in visitor.rows()] == [hit.volume_id for hit in found]
    assert [int(row["row_id"]) for row in visitor.rows()] == [hit.row_id for hit in found]
    assert found[0].volume_id == "upper-1"
    assert shown["hits"].count('class="mr-card"') == len(found)
    assert visitor.settings()["search"]["mode"] == mode
    assert visitor.settings()["index"]["embedder"]["name"] == "toy"


def test_every_case_shows_its_slice_for_the_slice_looked_at(visitor: Any) -> None:
    visitor.example()
    visitor.find(number=1)
    for number in (1, 3):
        hits = visitor.actions.show(visitor.session, "", number)["hits"]
        assert hits.count(f"for your {number}</span>") == len(visitor.session.found.result.hits)


def test_another_mode_does_not_embed_the_image_again(visitor: Any, backend: Any) -> None:
    visitor.example()
    visitor.find("count")
    assert backend.embedder.seen == 5
    visitor.find("rerank")
    visitor.find("slice")
    assert backend.embedder.seen == 5
    visitor.example()
    visitor.find("count")
    assert backend.embedder.seen == 10


def test_mode_slice_embeds_one_slice(visitor: Any, backend: Any) -> None:
    visitor.example()
    shown = visitor.find("slice", number=3)
    assert backend.embedder.seen == 1
    assert {row["query_slice"] for row in visitor.rows()} == {"3"}
    assert "slices similar to your slice 3" in shown["search_status"]


def test_a_real_image_among_phantoms_gets_a_warning(visitor: Any) -> None:
    visitor.example(0)
    assert "mr-warning" not in visitor.find("slice")["search_status"]
    visitor.example(1)
    shown = visitor.find("slice", number=0)["search_status"]
    assert "mr-warning" in shown
    assert "for a real image its cases have no meaning" in shown


def test_a_search_that_gives_fewer_cases_than_wanted_says_why(visitor: Any) -> None:
    visitor.example()
    shown = visitor.find("count", k=24)
    assert len(visitor.session.found.result.hits) < 24
    assert "In no other case is the best match" in shown["search_status"]
    assert "In no other case" not in visitor.find("count", k=1)["search_status"]


def test_a_search_that_fails_takes_the_former_results_away(visitor: Any) -> None:
    visitor.example()
    visitor.find()
    shown = visitor.do(visitor.actions.unfound())
    assert visitor.session.found is None
    assert "mr-card" not in shown["hits"]
    assert shown["hits_file"].content is None


def test_a_search_without_an_image(visitor: Any) -> None:
    with pytest.raises(UsageError, match="load an image first"):
        visitor.find()


def test_a_hit_is_explained_by_its_pairs(visitor: Any) -> None:
    visitor.example()
    visitor.find()
    hit = visitor.session.found.result.hits[0]
    best, other = hit.matches[:2]
    key = f"{hit.rank}:{best.slice_index}:{best.query_slice}"
    shown = visitor.actions.why(visitor.session, key)["why"]
    assert f"your slice {best.query_slice}<" in shown
    key = f"{hit.rank}:{other.slice_index}:{other.query_slice}"
    assert f"your slice {other.query_slice}<" in visitor.actions.why(visitor.session, key)["why"]
    assert f"Why #1, {hit.volume_id}" in shown
    assert shown.count("<tr><td>") == len(hit.matches)


@pytest.mark.parametrize("key", ["", "1", "1:2", "9:0:0", "1:99:2", "x:y:z", "1:2:2:2"])
def test_a_card_that_does_not_exist(visitor: Any, key: str) -> None:
    visitor.example()
    visitor.find()
    with pytest.raises(UsageError, match="not among the results"):
        visitor.actions.add_hit(visitor.session, 2, key)


# The index


def test_an_index_folder_of_this_machine(
    backend: Any, uploads: Path, index_path: Path, tmp_path: Path
) -> None:
    actions = Actions(backend, uploads=uploads)
    with pytest.raises(UsageError, match="only the indexes of its list"):
        actions.choose_index(str(index_path), None)
    backend.allow_paths = True
    shown = actions.choose_index(str(index_path), None)
    assert shown["structures"]["choices"] == ["liver", "spleen"]
    assert "Synthetic phantoms" not in shown["about"]
    with pytest.raises(IndexFormatError, match="does not exist"):
        actions.choose_index(str(tmp_path / "nothing"), None)
    with pytest.raises(UsageError, match="no index is chosen"):
        actions.choose_index("  ", None)


def test_another_index_takes_the_results_of_the_former_away(visitor: Any) -> None:
    visitor.example()
    visitor.find()
    visitor.segment()
    shown = visitor.do(visitor.actions.choose_index(DEMO, visitor.session.query))
    assert visitor.session.found is visitor.session.outcome is None
    assert shown["slice"]["value"] == 2
    assert "mr-base" in shown["viewer"]
