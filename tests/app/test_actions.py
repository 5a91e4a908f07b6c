"""What the actions of the page do, with a tiny index and no networks."""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from medretrieval.errors import IndexFormatError, InputError, UsageError
from medretrieval.ui.actions import Actions
from medretrieval.ui.backend import DEMO
from medretrieval.ui.session import Download, Props


def uploaded(uploads: Path, source: Path) -> Path:
    """Put a file where the server puts an upload."""
    (uploads / "hash").mkdir(exist_ok=True)
    return Path(shutil.copy(source, uploads / "hash" / source.name))


def rows(shown: dict[str, Any]) -> list[dict[str, str]]:
    content = shown["hits_file"].content
    return list(csv.DictReader(io.StringIO(content.decode())))


def settings(shown: dict[str, Any]) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(shown["settings_file"].content)
    return loaded


# The image


def test_the_page_starts_with_examples_and_the_card_of_the_index(visitor: Any) -> None:
    examples = visitor.shown["examples"]
    assert examples.count('data-action="open"') == 2
    assert "Open the example Synthetic CT of a block" in examples
    assert "made for tests" in visitor.shown["about"]
    assert "Synthetic phantoms" in visitor.shown["about"]


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
    assert b"Doe" not in nib.Nifti1Image.from_bytes(gunzip(mask.content)).header.binaryblock
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
    assert [row["volume_id"] for row in rows(shown)] == [hit.volume_id for hit in found]
    assert [int(row["row_id"]) for row in rows(shown)] == [hit.row_id for hit in found]
    assert found[0].volume_id == "upper-1"
    assert shown["hits"].count('class="mr-card"') == len(found)
    assert settings(shown)["search"]["mode"] == mode
    assert settings(shown)["index"]["embedder"]["name"] == "toy"


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
    assert {row["query_slice"] for row in rows(shown)} == {"3"}
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


# The support set


def test_adding_twice_and_removing(visitor: Any) -> None:
    visitor.example()
    visitor.find()
    for _ in range(2):
        visitor.do(visitor.actions.add_hit(visitor.session, 2, "1:2:2"))
    assert [item.title for item in visitor.session.cart] == ["upper-1 \u00b7 slice 2"]
    assert "\u2713 in the set" in visitor.shown["hits"]
    key = visitor.session.cart[0].key
    assert settings(visitor.shown)["support_set"] == [
        {"key": key, "title": "upper-1 \u00b7 slice 2"}
    ]
    visitor.do(visitor.actions.remove(visitor.session, 2, "demo/unknown"))
    assert len(visitor.session.cart) == 1
    visitor.do(visitor.actions.remove(visitor.session, 2, key))
    assert visitor.session.cart == ()
    assert "\u2713 in the set" not in visitor.shown["hits"]


def test_adding_all_leaves_out_what_is_not_annotated(visitor: Any) -> None:
    visitor.example()
    visitor.find("slice", k=20)
    plain = next(h for h in visitor.session.found.result.hits if h.volume_id == "plain-1")
    assert "not annotated" in visitor.shown["hits"]
    pair = plain.matches[0]
    key = f"{plain.rank}:{pair.slice_index}:{pair.query_slice}"
    with pytest.raises(UsageError, match="not annotated"):
        visitor.actions.add_hit(visitor.session, 2, key)
    shown = visitor.do(visitor.actions.add_hits(visitor.session, 2))
    assert len(visitor.session.cart) == 15
    assert "5 without annotation left out" in shown["segment_status"]
    visitor.do(visitor.actions.empty(visitor.session, 2))
    assert visitor.session.cart == ()


def test_adding_before_a_search(visitor: Any) -> None:
    with pytest.raises(UsageError, match="find similar cases first"):
        visitor.actions.add_hits(visitor.session, 0)


def own_pair(uploads: Path, size: tuple[int, int] = (32, 24)) -> tuple[Path, Path]:
    picture = np.arange(32 * 24, dtype=np.uint8).reshape(24, 32)
    mask = np.zeros(size[::-1], np.uint8)
    mask[4:9, 3:9] = 1
    mask[12:15, 20:25] = 2
    Image.fromarray(picture).save(uploads / "image.png")
    Image.fromarray(mask).save(uploads / "mask.png")
    return uploads / "image.png", uploads / "mask.png"


def test_an_own_pair_joins_the_set_with_the_names_given(visitor: Any, uploads: Path) -> None:
    image, mask = own_pair(uploads)
    shown = visitor.do(
        visitor.actions.add_own(visitor.session, 0, str(image), str(mask), "1 = liver")
    )
    (item,) = visitor.session.cart
    assert item.row_id is None
    assert item.support.names == {1: "liver", 2: "label_2"}
    assert item.support.image.shape == (24, 32)
    assert shown["structures"]["choices"] == ["label_2", "liver"]
    assert shown["own_image"] is shown["own_mask"] is None
    assert not image.exists()
    assert not mask.exists()


def test_an_own_pair_that_does_not_fit(visitor: Any, uploads: Path) -> None:
    image, mask = own_pair(uploads, (30, 24))
    with pytest.raises(InputError, match="30x24 pixels"):
        visitor.actions.add_own(visitor.session, 0, str(image), str(mask), "")
    assert not mask.exists()


def test_half_an_own_pair(visitor: Any, uploads: Path) -> None:
    image, _ = own_pair(uploads)
    with pytest.raises(UsageError, match="upload both"):
        visitor.actions.add_own(visitor.session, 0, str(image), None, "")


# The mask


def gunzip(data: bytes) -> bytes:
    import gzip

    return gzip.decompress(data)


def test_one_slice_from_slices_found_by_themselves(visitor: Any, backend: Any) -> None:
    visitor.example()
    shown = visitor.segment("slice", number=3)
    (supports,) = backend.model.supports
    assert len(supports) == 2
    image = nib.Nifti1Image.from_bytes(gunzip(shown["mask_file"].content))
    query = nib.load(backend.queries[0].path)
    assert image.shape == query.shape
    assert np.array_equal(image.affine, query.affine)
    labelled = np.asarray(image.dataobj).any(axis=(0, 1))
    assert labelled.tolist() == [False, False, False, True, False]
    assert "mr-over" in shown["result"]
    assert ">liver</td>" in shown["legend"]
    assert "slice 3 from annotated slices found" in shown["segment_status"]
    assert shown["picture_file"] == Download("medretrieval-mask.png", None, visible=False)
    assert settings(shown)["segmentation"]["supports_from"] == "retrieval for each slice"


def test_all_slices_from_the_support_set(visitor: Any, backend: Any) -> None:
    visitor.example()
    visitor.find()
    visitor.do(visitor.actions.add_hits(visitor.session, 2))
    shown = visitor.segment("volume")
    assert len(backend.model.supports) == 5
    keys = {item.support.key for item in visitor.session.cart}
    assert all({s.key for s in supports} == keys for supports in backend.model.supports)
    made = settings(shown)["segmentation"]
    assert made["supports_from"] == "support set"
    assert made["query_slice"] is None
    # The block is 8 x 6 voxels on slices 1 to 4, a voxel is 0.025 ml.
    voxels = made["labels"][0]["voxels"]
    assert voxels >= 8 * 6 * 4
    assert made["labels"][0]["ml"] == pytest.approx(voxels * 0.025)


def test_a_picture_is_segmented_to_png_too(visitor: Any) -> None:
    visitor.example(1)
    shown = visitor.segment("slice", number=0)
    assert shown["picture_file"].visible
    mask = np.asarray(Image.open(io.BytesIO(shown["picture_file"].content)))
    assert mask.shape == (40, 60)
    assert mask[5:20, 5:25].all()
    assert not mask[25:].any()
    assert "pixels" in shown["legend"]
    assert "ml" not in shown["legend"]


def test_a_mask_of_a_real_image_made_from_phantoms_is_no_success(
    visitor: Any, uploads: Path
) -> None:
    visitor.example(0)
    assert "mr-ok" in visitor.segment()["segment_status"]
    assert "has no meaning" not in visitor.shown["segment_status"]
    visitor.example(1)
    assert "mr-warning" in visitor.segment()["segment_status"]
    assert "the mask has no meaning" in visitor.shown["segment_status"]
    # The visitor's own pair is not synthetic.
    visitor.do(visitor.actions.add_own(visitor.session, 0, *map(str, own_pair(uploads)), "1=cyst"))
    assert "mr-ok" in visitor.segment()["segment_status"]
    visitor.find("slice", k=20, number=0)
    visitor.do(visitor.actions.add_hits(visitor.session, 0))
    assert len(visitor.session.cart) > 1
    assert "mr-warning" in visitor.segment()["segment_status"]


@pytest.mark.parametrize(("number", "words"), [(0, "your image"), (1, "slice 2")])
def test_the_status_says_what_was_segmented(visitor: Any, number: int, words: str) -> None:
    visitor.example(1 - number)
    assert (
        f"Segmented {words} from annotated slices found for it"
        in (visitor.segment()["segment_status"])
    )


def test_a_slice_without_any_structure_says_so(visitor: Any) -> None:
    visitor.example()
    visitor.segment("volume", number=2)
    assert "no structure found on it" not in visitor.shown["result"]
    assert "no structure found on it" in visitor.actions.show(visitor.session, "", 0)["result"]


def test_only_the_structures_asked_for(visitor: Any) -> None:
    visitor.example()
    with pytest.raises(UsageError):
        visitor.segment("slice", structures=["kidney"])
    shown = visitor.segment("slice", structures=["liver"])
    assert "liver" in shown["legend"]


def test_a_result_of_a_former_image_is_not_shown_over_a_new_one(visitor: Any) -> None:
    visitor.example()
    visitor.segment()
    former = visitor.session.outcome
    visitor.example()
    assert visitor.session.outcome is None
    visitor.do({"outcome": former})
    assert "result" not in visitor.actions.show(visitor.session, "", 1)
    visitor.find()
    assert settings(visitor.shown)["segmentation"] is None


def test_what_was_made_for_a_former_image_is_dropped(visitor: Any) -> None:
    visitor.example(0)
    found = visitor.actions.find(visitor.session, "count", 3, 2)["new_found"]
    outcome = visitor.actions.segment("slice", visitor.session, 2, "toy", 2, None)["new_outcome"]
    visitor.example(0)
    for shown, status in (
        (visitor.actions.show_found(visitor.session, 2, found), "search_status"),
        (visitor.actions.show_outcome(visitor.session, "", 2, outcome), "segment_status"),
    ):
        assert "changed meanwhile" in shown[status]
        assert len(shown) == 2
    assert visitor.actions.show_found(visitor.session, 2, None) == {}
    assert visitor.actions.show_outcome(visitor.session, "", 2, None) == {}


def test_loading_takes_the_former_results_away(visitor: Any) -> None:
    visitor.example()
    visitor.find()
    visitor.segment()
    shown = visitor.example(1)
    for name in ("hits_file", "settings_file", "mask_file", "picture_file"):
        assert shown[name].content is None
    assert shown["found"] is None
    assert shown["result_tools"] == Props(visible=False)


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
