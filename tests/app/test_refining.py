"""Several indexes together, and examples of what is wanted; a tiny index and no networks."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medretrieval.errors import UsageError
from medretrieval.retrieval.feedback import Feedback
from medretrieval.types import PatchFeatures
from medretrieval.ui.actions import Actions
from medretrieval.ui.backend import DEMO
from medretrieval.ui.session import Props


def ids(visitor: Any) -> list[str]:
    return [hit.volume_id for hit in visitor.session.found.result.hits]


# Several indexes


@pytest.fixture
def two(backend: Any, uploads: Path, index_path: Path, tmp_path: Path, visitor: Any) -> Any:
    """A visitor of a page with a second index of the same cases."""
    shutil.copytree(index_path, tmp_path / "again")
    mine = type(backend)(index_path, backend.queries, indexes={"again": str(tmp_path / "again")})
    visitor = type(visitor)(Actions(mine, uploads=uploads))
    visitor.do(visitor.actions.prepare())
    visitor.do(visitor.actions.introduce(DEMO))
    visitor.example()
    return visitor


def test_rankings_are_fused(two: Any) -> None:
    assert two.shown["opt_also"]["choices"] == [("again", "again")]
    assert two.shown["opt_also"]["visible"]
    shown = two.find("rerank", also=["again"])
    assert "fused score 0.0328" in shown["hits"]  # 2 / (60 + 1)
    assert ids(two)[0] == "upper-1"
    assert two.settings()["search"]["fused_with"] == ["toy"]
    hit = two.session.found.result.hits[0]
    match = hit.matches[0]
    key = f"1:{match.slice_index}:{match.query_slice}"
    assert "sum over the indexes" in two.actions.why(two.session, key)["why"]


def test_other_indexes_are_offered_only_where_there_are_any(visitor: Any, two: Any) -> None:
    assert not visitor.shown["opt_also"]["visible"]
    shown = two.actions.choose_index("again", None)
    assert shown["opt_also"]["choices"][0][1] == DEMO
    with pytest.raises(UsageError, match="only the indexes of its list"):
        two.find("rerank", also=["/etc"])


def test_several_folders_are_opened_together(
    backend: Any, uploads: Path, parts: tuple[Path, Path]
) -> None:
    actions = Actions(backend, uploads=uploads)
    together = ", ".join(map(str, parts))
    with pytest.raises(UsageError, match="only the indexes of its list"):
        actions.choose_index(together, None)
    backend.allow_paths = True
    shown = actions.choose_index(together, None)
    assert "mr-ok" in shown["search_status"]
    store = backend.open(together).index.store
    assert sorted(store.volume_ids) == ["lower-1", "plain-1", "upper-1", "upper-2"]


# Examples of what is wanted


def key_of(visitor: Any, rank: int) -> str:
    hit = visitor.session.found.result.hits[rank - 1]
    match = hit.matches[0]
    return f"{hit.rank}:{match.slice_index}:{match.query_slice}"


def test_more_and_less_like_this(visitor: Any) -> None:
    visitor.example()
    visitor.find("mean-pool", k=4)
    last = ids(visitor)[-1]
    actions = visitor.actions
    shown = visitor.do(actions.judge(visitor.session, 2, key_of(visitor, 4), like=True))
    assert visitor.session.feedback == Feedback(like=(last,))
    assert f"Remove {last} from: More like" in shown["chips"]
    assert shown["chips_panel"] == Props(visible=True)
    assert shown["hits"].count('aria-pressed="true"') == 1
    visitor.do(actions.judge(visitor.session, 2, key_of(visitor, 1), like=False))
    unliked = ids(visitor)[0]
    visitor.find("mean-pool", k=4)
    assert unliked not in ids(visitor)
    made = visitor.settings()["search"]["options"]
    assert (made["like"], made["unlike"]) == ([last], [unliked])
    visitor.do(actions.unjudge(visitor.session, 2, unliked))
    visitor.do(actions.unjudge(visitor.session, 2, last))
    assert not visitor.session.feedback
    assert visitor.shown["chips"] == ""
    assert visitor.shown["chips_panel"] == Props(visible=False)


def test_an_example_is_on_one_side_and_a_slice_where_slices_are_found(visitor: Any) -> None:
    visitor.example()
    visitor.find("slice", k=2)
    hit = visitor.session.found.result.hits[0]
    key = f"{hit.volume_id}:{hit.slice_index}"
    actions = visitor.actions
    visitor.do(actions.judge(visitor.session, 2, key_of(visitor, 1), like=True))
    visitor.do(actions.judge(visitor.session, 2, key_of(visitor, 1), like=False))
    assert visitor.session.feedback == Feedback(unlike=(key,))
    visitor.do(actions.judge(visitor.session, 2, key_of(visitor, 1), like=False))
    assert not visitor.session.feedback


def test_examples_go_with_the_image_and_the_index(visitor: Any) -> None:
    visitor.example()
    with pytest.raises(UsageError, match="find similar cases first"):
        visitor.actions.judge(visitor.session, 2, "1:2:2", like=True)
    for leave in (
        visitor.example,
        lambda: visitor.do(visitor.actions.choose_index(DEMO, visitor.session.query)),
    ):
        visitor.find()
        visitor.do(visitor.actions.judge(visitor.session, 2, key_of(visitor, 1), like=True))
        leave()
        assert not visitor.session.feedback
        assert visitor.shown["chips"] == ""


# Why


class PatchEmbedder:
    """The toy of the page, with features of the blocks of a picture."""

    def __init__(self, toy: Any) -> None:
        self.toy = toy
        self.identity = toy.identity
        self.asked = 0

    def embed_batch(self, images: Any) -> Any:
        return self.toy.embed_batch(images)

    def patches(self, pictures: Any) -> PatchFeatures:
        self.asked += len(pictures)
        values = np.random.default_rng(0).random((len(pictures), 4, 4, 3)).astype(np.float32)
        boxes = np.array([(0, 0, *picture.shape[:2]) for picture in pictures], dtype=np.float64)
        return PatchFeatures(features=values, boxes=boxes, mean_pooled=True)


def test_heat_maps_are_made_when_they_are_asked_for(visitor: Any, backend: Any) -> None:
    embedder = PatchEmbedder(backend.embedder)
    backend.open(DEMO).index._embedder = embedder
    visitor.example()
    visitor.find()
    shown = visitor.do(visitor.actions.why(visitor.session, key_of(visitor, 1)))
    assert embedder.asked == 0
    assert shown["explaining"] == key_of(visitor, 1)
    maps = visitor.actions.maps(visitor.session, shown["explaining"])["maps"]
    assert embedder.asked == 2
    assert maps.count("<figcaption>") == 3
    assert "Bright: " in maps


@pytest.mark.parametrize("mode", ["rerank", "slice"])
def test_without_features_of_parts_a_sentence_says_so(visitor: Any, mode: str) -> None:
    visitor.example()
    visitor.find(mode)
    maps = visitor.actions.maps(visitor.session, key_of(visitor, 1))["maps"]
    assert "data-enlarge" in maps  # the matrix is there
    assert "No heat maps: " in maps


def test_what_was_to_be_explained_is_gone(visitor: Any) -> None:
    assert visitor.actions.maps(visitor.session, "1:2:2") == {}
    visitor.example()
    visitor.find()
    assert visitor.actions.maps(visitor.session, None) == {}
    visitor.do({"found": visitor.session.found, **visitor.example()})
    assert visitor.actions.maps(visitor.session, "1:2:2") == {}
