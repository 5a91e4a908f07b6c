"""Several indexes together, and examples of what is wanted; a tiny index and no networks."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from medretrieval.errors import UsageError
from medretrieval.retrieval.feedback import Feedback
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
