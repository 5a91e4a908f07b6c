"""How an index is named: a folder or a data set of the Hub, and one of its embedders."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from huggingface_hub.utils import validate_repo_id
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from medretrieval.index.reference import (
    Reference,
    is_repo,
    parse_reference,
    split_references,
)

COMMIT = "0123456789abcdef0123456789abcdef01234567"
NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,20}", fullmatch=True)
REVISIONS = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_./-]{0,20}", fullmatch=True)
EMBEDDERS = st.text(min_size=1, max_size=20)
ODD = st.text(
    alphabet=st.characters(exclude_characters="/\0", exclude_categories=["Cs"]),
    min_size=1,
    max_size=20,
).filter(lambda name: name not in (".", "..") and len(os.fsencode(name)) < 200)


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test finds a folder by accident."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("lab/liver", Reference(repo="lab/liver")),
        ("lab/liver@v2", Reference(repo="lab/liver", revision="v2")),
        (f"lab/liver@{COMMIT}", Reference(repo="lab/liver", revision=COMMIT)),
        ("lab/liver@refs/pr/1", Reference(repo="lab/liver", revision="refs/pr/1")),
        ("lab/liver#dinov2", Reference(repo="lab/liver", embedder="dinov2")),
        ("lab/liver@v1#a+b", Reference(repo="lab/liver", revision="v1", embedder="a+b")),
        (
            "lab/liver#hf:org/net@main#2",
            Reference(repo="lab/liver", embedder="hf:org/net@main#2"),
        ),
        ("_lab/0", Reference(repo="_lab/0")),
        ("hf://datasets/lab/liver@v2", Reference(repo="lab/liver", revision="v2")),
        ("https://huggingface.co/datasets/lab/liver", Reference(repo="lab/liver")),
        ("https://huggingface.co/datasets/lab/liver/", Reference(repo="lab/liver")),
        ("http://127.0.0.1:8000/datasets/lab/liver#x", Reference(repo="lab/liver", embedder="x")),
        (
            "https://huggingface.co/datasets/lab/liver/tree/v2",
            Reference(repo="lab/liver", revision="v2"),
        ),
        (
            "https://huggingface.co/datasets/lab/liver/blob/main/README.md",
            Reference(folder=Path("https:/huggingface.co/datasets/lab/liver/blob/main/README.md")),
        ),
    ],
)
def test_what_a_text_names(text: str, expected: Reference) -> None:
    assert parse_reference(text) == expected


@pytest.mark.parametrize(
    "text",
    ["liver", "./lab/liver", "../lab", "/data/liver", "lab/liver/", "a/b/c", "lab//liver", "lab/",
     "/liver", "C:\\data\\liver", "C:/data/liver", "\\\\server\\share", "~/liver", "lab/liver@",
     "lab/liver@ v2", "lab/liver@-x", "lab/liver@a/../../b", "lab/liver@..", "lab/li ver",
     "lab/lebér", "lab/liver\n", "a--b/c", "a/b.git", "a/b..c", "a/.b", "a/b-", "a/" + "b" * 97,
     "hf://lab/liver", "hf://models/lab/liver", "https://huggingface.co/lab/liver",
     "ftp://x/datasets/lab/liver", "lab@v1/liver", "lab/liver@v1@v2", "x" * 5000, "a\0b/c"],
)  # fmt: skip
def test_what_is_a_folder(text: str) -> None:
    named = parse_reference(text)
    assert (named.repo, named.revision, named.embedder) == (None, None, None)
    assert named.folder == Path(text)


def test_a_path_is_a_folder() -> None:
    assert parse_reference(Path("lab/liver")) == Reference(folder=Path("lab/liver"))


@pytest.mark.parametrize("name", ["lab/liver", "lab/liver@v2", "lab/liver#x", "a,b", "x#y#z", "@"])
def test_a_folder_that_is_there_is_meant(name: str, empty_folder: Path) -> None:
    (empty_folder / name).mkdir(parents=True)
    assert parse_reference(name) == Reference(folder=Path(name))
    assert parse_reference(f"{name}#net") == Reference(folder=Path(name), embedder="net")
    assert split_references(name) == [name]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ODD, EMBEDDERS)
def test_any_folder_that_is_there(empty_folder: Path, name: str, embedder: str) -> None:
    folder = empty_folder / name
    folder.mkdir(exist_ok=True)
    try:
        assert parse_reference(name).folder == Path(name)
        assert split_references(name) == [name]
        assert parse_reference(str(folder)) == Reference(folder=folder)
        if "#" not in name:
            named = parse_reference(f"{name}#{embedder}")
            assert named == Reference(folder=Path(name), embedder=embedder)
    finally:
        folder.rmdir()


@given(NAMES, NAMES, st.none() | REVISIONS, st.none() | EMBEDDERS)
@example("a", "b", "v1", "#")
def test_what_is_written_is_read(
    org: str, name: str, revision: str | None, net: str | None
) -> None:
    named = parse_reference(
        f"{org}/{name}" + (f"@{revision}" if revision else "") + (f"#{net}" if net else "")
    )
    if named.repo is None:
        assert not is_repo(f"{org}/{name}") or ".." in (revision or "")
    else:
        expected = Reference(repo=f"{org}/{name}", revision=revision, embedder=net)
        assert named == expected
    assert parse_reference(str(named)) == named


@given(st.text(max_size=40))
def test_any_text_names_something(text: str) -> None:
    named = parse_reference(text)
    assert (named.folder is None) != (named.repo is None)
    for part in split_references(text):
        parse_reference(part)


@given(st.from_regex(r"[\w.-]{1,12}/[\w.-]{1,12}", fullmatch=True) | st.text(max_size=20))
def test_names_are_those_of_the_client(name: str) -> None:
    """The Hub's client takes every name that is taken here, and no other one with two parts."""
    if is_repo(name):
        validate_repo_id(name)
    elif name.count("/") == 1:
        with pytest.raises(ValueError, match=r".*"):
            validate_repo_id(name)


# Several


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("a,b", ["a", "b"]),
        (" lab/a@v1#x , ./folder ,, ", ["lab/a@v1#x", "./folder"]),
        ("a", ["a"]),
        (",", []),
        (Path("a,b"), [Path("a,b")]),
        (["a,b", "c"], ["a,b", "c"]),
        ([Path("a"), "b"], [Path("a"), "b"]),
        ((), []),
    ],
)
def test_several(source: object, expected: list[object]) -> None:
    assert split_references(source) == expected  # type: ignore[arg-type]


def test_a_folder_with_a_comma_of_one_embedder(empty_folder: Path) -> None:
    (empty_folder / "a,b").mkdir()
    assert split_references("a,b#net") == ["a,b#net"]
    assert split_references("a,b#net,c") == ["a", "b#net", "c"]
    (empty_folder / "a").mkdir()
    assert split_references("a#net,b#other") == ["a#net", "b#other"]
