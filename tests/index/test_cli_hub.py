"""Sharing indexes on the command line: data on stdout, all else on stderr, exit codes 0, 1, 2.

The Hub of these tests is modelled on huggingface_hub 2.4.0, see `tests/hub/server.py`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from hub.client import LocalHub
from index_fakes import FakeEmbedder, contents, make_case
from sharing import CARD, COLUMNS, MANIFEST, REPO, fetched, make_index, pushed

from medretrieval import embedders
from medretrieval.cli import main
from medretrieval.index.store import open_store


@pytest.fixture
def index(tmp_path: Path) -> Path:
    return make_index(tmp_path / "lab-a" / "hearts")


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedders, "load_embedder", lambda name, **_: FakeEmbedder())


@pytest.fixture
def query(tmp_path: Path) -> Path:
    volume, _ = make_case(77).load()
    path = tmp_path / "query.nii.gz"
    nib.save(nib.Nifti1Image(np.asarray(volume.voxels), volume.grid.affine), path)
    return path


def run(
    capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 0, quiet: bool = True
) -> tuple[str, str]:
    """What a command prints on stdout and stderr."""
    capsys.readouterr()
    assert main([*map(str, arguments), *(["--quiet"] if quiet else [])]) == code
    out, err = capsys.readouterr()
    return out, err


def data(capsys: pytest.CaptureFixture[str], *arguments: object) -> Any:
    out, err = run(capsys, *arguments, "--json")
    assert err == ""
    return json.loads(out)


def test_push_and_pull(
    hub: LocalHub, index: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = data(capsys, "push", index, REPO)
    assert set(done) == {
        *("repo", "commit", "tag", "url", "created", "sent", "withheld"),
        *("private", "gate", "before_removal"),
    }
    assert (done["repo"], done["tag"], done["created"]) == (REPO, "v1", True)
    assert hub.repo(REPO).private
    out, err = run(capsys, "push", index, REPO)
    assert out == f"{REPO}@{done['commit']} v1\n{hub.url}/datasets/{REPO}\n"
    assert err == ""
    pulled = data(capsys, "pull", f"{REPO}@{done['commit']}", tmp_path / "lab-b")
    assert pulled == {"index": str(tmp_path / "lab-b")}
    out, _ = run(capsys, "pull", REPO, tmp_path / "lab-c")
    assert out == f"{tmp_path / 'lab-c'}\n"
    assert contents(tmp_path / "lab-b") == contents(tmp_path / "lab-c")


def test_info_and_search(
    hub: LocalHub, index: Path, query: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pushed(hub, index)
    info = data(capsys, "info", f"{REPO}@v1")
    assert info["counts"] == data(capsys, "info", index)["counts"]
    assert sorted(fetched(hub)) == sorted([MANIFEST, COLUMNS, "embeddings/embeddings.safetensors"])
    for mode in ("slice", "max"):
        there = data(capsys, "search", REPO, query, "--mode", mode)
        assert there == data(capsys, "search", index, query, "--mode", mode)
        assert there["hits"]
    out, err = run(capsys, "search", f"{REPO}#fake", query)
    assert "volume-00" in out
    assert err == ""


def test_several_indexes(
    hub: LocalHub,
    index: Path,
    query: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pushed(hub, index)
    other = make_index(tmp_path / "other", cases=[make_case(n) for n in (4, 5)])
    there = data(capsys, "search", f"{REPO}@v1,{other}", query)
    assert there == data(capsys, "search", f"{index},{other}", query)
    assert data(capsys, "info", f"{REPO},{other}")["counts"]["volumes"] == 6


def test_progress_is_drawn_on_stderr(
    hub: LocalHub, index: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, err = run(capsys, "push", index, REPO, "--json", quiet=False)
    assert json.loads(out)["repo"] == REPO
    assert "sent" in err
    out, err = run(capsys, "pull", REPO, tmp_path / "out", "--json", quiet=False)
    assert json.loads(out) == {"index": str(tmp_path / "out")}
    assert f"fetching {REPO}" in err
    # Nothing of the client's own.
    assert "it/s" not in err
    assert "Warning" not in err


@pytest.mark.parametrize(
    ("options", "private", "gated"),
    [
        ([], True, False),
        (["--private"], True, False),
        (["--public"], False, False),
        (["--public", "--gate", "manual"], False, "manual"),
        (["--public", "--gate", "auto", "--message", "The first"], False, "auto"),
    ],
)
def test_who_sees_it(
    hub: LocalHub,
    index: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    private: bool,
    gated: object,
) -> None:
    data(capsys, "push", index, REPO, *options)
    assert (hub.repo(REPO).private, hub.repo(REPO).gated) == (private, gated)
    title = hub.repo(REPO).branches["main"].title
    assert title == ("The first" if "--message" in options else "Version v1")


def test_without_pictures_it_says_why(
    hub: LocalHub, index: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, err = run(capsys, "push", index, REPO, "--no-images", "--no-tables", "--json")
    assert json.loads(out)["withheld"] == "its publisher chose so"
    assert err == "published without images and masks: its publisher chose so\n"
    assert set(hub.repo(REPO).paths()) == {
        *(".gitattributes", CARD, MANIFEST, COLUMNS, "embeddings/embeddings.safetensors"),
        "slices/slices-00000.parquet",
    }


def test_earlier_versions_are_forgotten(
    hub: LocalHub, index: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(capsys, "push", index, REPO)
    run(capsys, "remove", index, tmp_path / "new", "--volume", "volume-000")
    done = data(capsys, "push", tmp_path / "new", REPO, "--squash-history")
    assert list(hub.repo(REPO).commits) == [done["commit"]]
    _, err = run(capsys, "pull", f"{REPO}@v1", tmp_path / "old", code=1)
    assert "does not have that revision" in err


def test_one_embedder(
    hub: LocalHub, index: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pushed(hub, index)
    run(capsys, "pull", REPO, tmp_path / "out", "--embedder", "fake")
    with open_store(tmp_path / "out") as store:
        assert len(store) == 12
    _, err = run(capsys, "pull", REPO, tmp_path / "x", "--embedder", "y", code=2)
    assert "unknown embedder of this index 'y'" in err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["push", "INDEX", "hearts"], 2, "cannot be the name of a data set"),
        (["push", "nothing", REPO], 1, "nothing does not exist"),
        (["push", "INDEX", REPO], 1, "cannot be made: log in"),
        (["pull", REPO, "OUT"], 1, "no such public repository"),
        (["pull", "folder", "OUT"], 2, "give ORG/NAME"),
        (["pull", REPO, "INDEX"], 2, "exists already"),
        (["pull", REPO, "INDEX/manifest.json", "--force"], 2, "is not an index"),
        (["info", REPO], 1, "There is no folder of the name lab/hearts either"),
        (["info", f"{REPO}@v1"], 1, "no such public repository"),
        (["search", REPO, "x.nii"], 1, "no such public repository"),
    ],
)
def test_errors(
    hub: LocalHub,
    index: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    message: str,
) -> None:
    hub.log_in(None)
    names = {"INDEX": str(index), "OUT": str(tmp_path / "out")}
    given = [names.get(word, word.replace("INDEX", str(index))) for word in arguments]
    out, err = run(capsys, *given, "--json", code=code)
    assert out == ""
    assert err.startswith("medretrieval: ")
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("arguments", [["--private", "--public"], ["--gate", "open"], ["x"]])
def test_arguments_that_cannot_be(
    index: Path, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["push", str(index), REPO, *arguments])
    assert caught.value.code == 2
    assert capsys.readouterr().out == ""


# In processes of their own


def test_two_labs(hub: LocalHub, index: Path, tmp_path: Path) -> None:
    done = hub.run("-m", "medretrieval", "push", str(index), REPO, "--json", "--quiet")
    assert (done.returncode, done.stderr) == (0, "")
    commit = json.loads(done.stdout)["commit"]
    source, out = f"{REPO}@{commit}", str(tmp_path / "lab-b")
    done = hub.run("-m", "medretrieval", "pull", source, out, "--quiet")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{out}\n", "")
    offline = {"HF_HUB_OFFLINE": "1"}
    done = hub.run("-m", "medretrieval", "info", source, "--json", "--quiet", **offline)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["counts"]["slices"] == 12
    done = hub.run("-m", "medretrieval", "info", REPO, "--quiet", **offline)
    assert done.returncode == 1
    assert "HF_HUB_OFFLINE" in done.stderr


@pytest.mark.parametrize("command", ["pull", "push"])
@pytest.mark.parametrize("how", ["hang", "drip"])
def test_a_hub_that_hangs_does_not_keep_the_process(
    hub: LocalHub, index: Path, tmp_path: Path, command: str, how: str
) -> None:
    """It ends with the error, though the client still waits."""
    if command == "pull":
        pushed(hub, index)
        arguments = ["pull", REPO, str(tmp_path / "out")]
    else:
        arguments = ["push", str(index), REPO]
    (hub.hang if how == "hang" else hub.drip)("^cdn/")
    code = (
        "import sys; from medretrieval import hub, __main__ as m; hub.STALL_S = 0.4\n"
        f"sys.argv = ['medretrieval', *{arguments!r}, '--quiet']\n"
        "m.run()"
    )
    done = hub.run("-c", code)
    assert done.returncode == 1
    assert done.stdout == ""
    assert "nothing came for" in done.stderr
    assert not (tmp_path / "out").exists()
