"""Which indexes the page opens, and how their embedders and missing pictures are shown."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from hub.client import LocalHub

from medretrieval.errors import UsageError
from medretrieval.index import add_embedder, remove_patient
from medretrieval.index.push import push
from medretrieval.ui import content
from medretrieval.ui.actions import Actions
from medretrieval.ui.backend import DEMO, DEMO_TITLE, Backend

from .conftest import ToyBackend, ToyEmbedder, Visitor


class OtherEmbedder(ToyEmbedder):
    identity = type(ToyEmbedder.identity)(**{**vars(ToyEmbedder.identity), "name": "other"})


@pytest.fixture
def two(index_path: Path, tmp_path: Path) -> Path:
    """An index with two embedders."""
    folder = tmp_path / "two"
    shutil.copytree(index_path, folder)
    return add_embedder(folder, embedder=OtherEmbedder())


def test_an_open_index_is_listed_with_each_of_its_embedders(two: Path, uploads: Path) -> None:
    backend = Backend(indexes={"Two": str(two)})
    assert backend.choices() == [(DEMO_TITLE, DEMO), ("Two", "Two")]
    assert backend.open("Two").index.manifest.embedder.name == "toy"
    listed = [("Two \u00b7 other", "Two#other"), ("Two \u00b7 toy", "Two#toy")]
    assert backend.choices()[2:] == listed
    chosen = Actions(backend, uploads=uploads).choose_index("Two#other", None)
    assert chosen["index"]["choices"][2:] == listed
    assert backend.open("Two#other").index.manifest.embedder.name == "other"
    with pytest.raises(UsageError, match="did you mean other"):
        backend.open("Two#othr")


def test_indexes_that_are_opened_together_are_shown_with_a_version_each(
    index_path: Path, tmp_path: Path, uploads: Path
) -> None:
    one = remove_patient(index_path, tmp_path / "one", volumes=["upper-1", "upper-2"])
    other = remove_patient(index_path, tmp_path / "some", volumes=["lower-1"])
    other = remove_patient(other, tmp_path / "other", volumes=["plain-1"])
    actions = Actions(Backend(allow_paths=True), uploads=uploads)
    about = actions.choose_index(f"{one},{other}", None)["about"]
    assert "toy, version 2; toy, version 3" in about


def test_a_page_for_everyone_opens_what_is_listed_or_allowed(
    two: Path, hub: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(two, "lab/two")
    public = Backend(indexes={"Ours": "lab/two@v2"})
    assert len(public.open("Ours#other").index.store) == 20
    allowed = tmp_path / "trusted.txt"
    monkeypatch.setenv("MEDRETRIEVAL_TRUSTED", str(allowed))
    for key in ("lab/two", str(two), f"{two}#other", "Ours,lab/two"):
        with pytest.raises(UsageError, match="only the indexes of its list"):
            public.open(key)
    allowed.write_text("lab  # ours\n")
    assert public.open("lab/two#other").index.manifest.embedder.name == "other"
    with pytest.raises(UsageError, match="only the indexes of its list"):
        public.open(f"{two}#other")


def test_an_index_of_the_hub_becomes_no_new_version_here(two: Path, hub: LocalHub) -> None:
    push(two, "lab/two")
    own = Backend(allow_paths=True)
    own.open("lab/two@v2#toy")
    assert ("lab/two@v2 \u00b7 other", "lab/two@v2#other") in own.choices("lab/two@v2#toy")
    with pytest.raises(UsageError, match="medretrieval pull lab/two"):
        own.append("lab/two@v2", Path("somewhere"))


def test_hits_without_pictures(
    index_path: Path, queries: object, uploads: Path, hub: LocalHub
) -> None:
    push(index_path, "lab/bare", images=False)
    backend = ToyBackend(index_path, queries, allow_paths=True)  # type: ignore[arg-type]
    visitor = Visitor(Actions(backend, uploads=uploads))
    visitor.do(visitor.actions.prepare())
    visitor.do(visitor.actions.introduce(DEMO))
    visitor.session = type(visitor.session)(**{**vars(visitor.session), "index": "lab/bare"})
    visitor.do(visitor.actions.choose_index("lab/bare", None))
    assert "none (its publisher chose so)" in visitor.shown["about"]
    visitor.do(visitor.actions.load_example("0", "lab/bare"))
    visitor.find("rerank")
    hits = visitor.shown["hits"]
    assert "upper-1" in hits
    assert "without a picture" in hits
    assert "not annotated" in hits
    opened = backend.open("lab/bare")
    blank = content.row_picture(opened, 0)
    assert blank.shape == (224, 224)
    assert content.row_aspect(opened, 0) is None
    key = hits.partition('data-key="')[2].partition('"')[0]
    assert "upper-1" in visitor.actions.why(visitor.session, key)["why"]
    assert "this index has no pictures" in visitor.actions.maps(visitor.session, key)["maps"]


def test_the_page_says_where_an_index_came_from(two: Path, hub: LocalHub, uploads: Path) -> None:
    done = push(two, "lab/two")
    own = Backend(allow_paths=True)
    shown = Actions(own, uploads=uploads).choose_index("lab/two", None)
    assert f"lab/two@{done.commit}" in shown["about"]
    assert own.open("lab/two").describe()["origin"] == f"lab/two@{done.commit}"
    assert "origin" not in own.open(str(two)).describe()
    assert own.open(f"lab/two@{done.commit}").origin == f"lab/two@{done.commit}"
