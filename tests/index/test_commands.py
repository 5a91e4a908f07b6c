"""What of a command an index keeps, and how commands are joined."""

from __future__ import annotations

import doctest
import shlex
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from index_fakes import POLICY, FakeEmbedder, contents, make_case

from medretrieval.index import append, build, commands, merge
from medretrieval.index.commands import joined, shareable
from medretrieval.index.manifest import MAX_COMMAND, read_manifest


@pytest.fixture(autouse=True)
def anna(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("getpass.getuser", lambda: "anna")
    monkeypatch.setattr(Path, "home", lambda: Path("/home/anna-home"))


@pytest.mark.parametrize(
    ("asked", "kept"),
    [
        ("build data/hearts out --name a", "build data/hearts out --name a"),
        ("build /home/anna/hearts/ /out/i", "build hearts i"),
        ("build ~/x ~anna/y ../a/b ..", "build x y b FOLDER"),
        ("build /home/anna ~ ~anna /home/anna-home", "build FOLDER FOLDER FOLDER FOLDER"),
        ("build anna/x data/anna/y", "build x y"),
        ("build x --table=/lists/anna/a.csv", "build x --table=a.csv"),
        (r"build 'C:\Users\anna\My Data' D:/x/y", "build 'My Data' y"),
        (r"build '\\server\anna\x' //server/anna/y", "build x y"),
        ("build x --where path=/home/anna/x", "build x --where path=x"),
        ("build x --embedder a+file:/home/anna/n.json", "build x --embedder a+file:n.json"),
        ("build file:///home/anna/x", "build x"),
        ("build x --source https://zenodo.org/record/1", None),
        ("build x --source 'ACDC / MICCAI 2017' --modality MR/CT --part 2/8", None),
        ("build x --embedder hf:org/repo --label-names 1=A,2=B", None),
        ("build x --ray-address 10.0.0.1:6379", "build x --ray-address HOST:PORT"),
        ("build x --ray-address=anna-pc:1", "build x --ray-address=HOST:PORT"),
        ("build x --source 'seen in /home/anna/x.txt'", "build x --source 'seen in x.txt'"),
        ("build x --quiet --json --debug --force", "build x --force"),
        ("build 'x\ny'", "build 'x y'"),
        ("build 'x", "build ''\"'\"'x'"),
        ("", ""),
    ],
)
def test_paths_elsewhere_are_their_last_component(asked: str, kept: str | None) -> None:
    assert shareable(asked) == (asked if kept is None else kept)


@given(
    parts=st.lists(st.text(alphabet="abc ,=:;.~-'\"", min_size=1), max_size=4),
    before=st.sampled_from(["", "--table=", "--where path=", "a,", "file:", "x=y:"]),
)
def test_no_home_and_no_user_of_any_path(parts: list[str], before: str) -> None:
    path = "/".join(["/home/anna", *parts])
    assert "anna" not in shareable(shlex.join(["medretrieval", "build", f"{before}{path}"]))


def test_what_is_too_long_is_cut() -> None:
    assert len(shareable("build " + "x " * MAX_COMMAND)) == MAX_COMMAND
    many = [f"build part{n} {'x' * 500}" for n in range(20)]
    lines = (joined(many, "merge all") or "").splitlines()
    assert lines[:2] == many[:2]
    assert lines[-2:] == [f"# and {20 - len(lines) + 2} more commands", "merge all"]
    for own in ("m" * MAX_COMMAND, "m" * (MAX_COMMAND - 20)):
        assert joined(many, own) == own


def test_commands_are_joined() -> None:
    assert joined([None, None], None) is None
    assert joined([None, None], "merge") == "merge"
    assert joined(["a", "b\nc", "a"], "merge") == "a\nb\nc\nmerge"
    assert joined(["a", None], None) == "a\n# merged from 2 indexes"
    assert joined(["a"], None) == "a"
    assert doctest.testmod(commands).failed == 0


def test_an_index_keeps_its_command_and_a_merge_those_of_its_parts(tmp_path: Path) -> None:
    made: dict[str, Any] = {"embedder": FakeEmbedder(), "slices": POLICY, "name": "n"}
    parts = []
    for number in (1, 2):
        command = f"medretrieval build /home/anna/x /out/p{number} --part {number}/2"
        out = tmp_path / f"p{number}"
        parts.append(
            build([make_case(n) for n in range(4)], out, part=(number, 2), command=command, **made)
        )
    kept = [f"medretrieval build x p{number} --part {number}/2" for number in (1, 2)]
    assert [read_manifest(part).command for part in parts] == kept
    assert f"```bash\n{kept[0]}\n```" in (parts[0] / "README.md").read_text()
    merged = merge(parts, tmp_path / "m", command=f"medretrieval merge {tmp_path / 'm'} p1 p2")
    lines = "\n".join([*kept, "medretrieval merge m p1 p2"])
    assert read_manifest(merged).command == lines
    assert f"```bash\n{lines}\n```" in (merged / "README.md").read_text()
    more = append(merged, tmp_path / "a", [make_case(9)], embedder=FakeEmbedder())
    assert read_manifest(more).command == lines
    for folder in (parts[0], merged):
        assert not any(b"anna" in content for content in contents(folder).values())
