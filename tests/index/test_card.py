"""The card as the Hub reads it, and the index as `datasets` reads it."""

from __future__ import annotations

import ast
import dataclasses
import doctest
import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from huggingface_hub import DatasetCard, metadata_load
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from index_fakes import DIM, POLICY, FakeEmbedder, FakeVolumeEmbedder, contents, make_case
from markdown_it import MarkdownIt

from medretrieval.errors import IndexFormatError, UsageError
from medretrieval.index import build, card_front, card_text, open_store
from medretrieval.index.card import dataset_card, write_card
from medretrieval.index.card_front import embedding_configs
from medretrieval.index.evaluated import MAX_EVALUATIONS, Evaluation
from medretrieval.index.in_place import publish
from medretrieval.index.manifest import FileEntry, Manifest, read_manifest
from medretrieval.phantoms import make_case as make_phantom

TABLE = "embeddings/embeddings.parquet"
ENTRY = FileEntry(bytes=1, sha256="0" * 64)


def front_matter(text: str) -> dict[str, Any]:
    start, yaml_text, _ = text.split("---\n", 2)
    assert start == ""
    loaded: dict[str, Any] = yaml.safe_load(yaml_text)
    assert DatasetCard(text).data.to_dict() == loaded
    return loaded


def evaluation(title: str = "Recall", **changes: Any) -> Evaluation:
    fields: dict[str, Any] = {
        "title": title,
        "command": "medretrieval evaluate few-shot x.csv",
        "header": ("method", "Dice"),
        "rows": (("a|b", ".5 [.4, .6]"),),
        "note": "By patient.",
        **changes,
    }
    return Evaluation(**fields)


def rich(manifest: Manifest, **changes: Any) -> Manifest:
    """A manifest that has everything that a card can show."""
    first = manifest.sets[manifest.embedder.name]
    other = dataclasses.replace(
        first,
        embedder=dataclasses.replace(first.embedder, name="hf:org/repo"),
        index_kind="hnsw",
        index_parameters={"M": 8},
        embeddings_file="embeddings/hf-org-repo.safetensors",
        faiss_file="index-hf-org-repo.faiss",
    )
    more = (
        *("columns.parquet", TABLE, other.embeddings_file, "embeddings/hf-org-repo.parquet"),
        *(other.faiss_file, "memories/sam2-micro-0123456789ab-00000.safetensors"),
    )
    return dataclasses.replace(
        manifest,
        **{
            "others": {"hf:org/repo": other},
            "files": {**manifest.files, **dict.fromkeys(more, ENTRY)},
            "attributes": ("scanner",),
            "command": "medretrieval build hearts out",
            "evaluations": (evaluation(),),
            "part": "1/2",
            "index_reason": "few rows",
            **changes,
        },
    )


def test_front_matter_points_at_the_slices(flat_index: Path) -> None:
    text = (flat_index / "README.md").read_text()
    data = front_matter(text)
    assert metadata_load(flat_index / "README.md") == data
    assert data["configs"] == [
        {
            "config_name": "default",
            "data_files": [{"split": "train", "path": "slices/*.parquet"}],
        }
    ]
    assert data["license"] == "unknown"
    assert data["size_categories"] == ["n<1K"]
    assert data["annotations_creators"] == ["found"]
    assert data["task_categories"] == ["image-feature-extraction", "image-segmentation"]
    assert data["task_ids"] == ["semantic-segmentation"]
    assert data["tags"] == [
        *("medical", "image-retrieval", "medretrieval", "mr", "chest", "head", "fake"),
    ]


def test_only_tasks_that_the_rows_serve(flat_index: Path) -> None:
    m = read_manifest(flat_index)
    plain = dataclasses.replace(
        m, counts=dataclasses.replace(m.counts, annotated_slices=0), label_counts={}, vocabulary={}
    )
    data = front_matter(dataset_card(plain))
    assert data["task_categories"] == ["image-feature-extraction"]
    assert data["annotations_creators"] == ["no-annotation"]
    assert "task_ids" not in data
    labelled = dataclasses.replace(m, label_counts={**m.label_counts, "benign": 3})
    assert "multi-label-image-classification" in front_matter(dataset_card(labelled))["task_ids"]


def test_a_config_for_every_embedder_that_has_a_table(flat_index: Path) -> None:
    configs = front_matter(dataset_card(rich(read_manifest(flat_index))))["configs"]
    assert {c["config_name"]: c["data_files"][0]["path"] for c in configs} == {
        "default": "slices/*.parquet",
        "fake": TABLE,
        "hf-org-repo": "embeddings/hf-org-repo.parquet",
    }


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("default", "a", ["default-", "a"]),
        ("hf:a", "hf/a", ["hf-a", "hf-a-2"]),
        ("1.0", "null", ["1.0", "null"]),
    ],
)
def test_names_of_configs_are_words_and_none_occurs_twice(
    flat_index: Path, first: str, second: str, expected: list[str]
) -> None:
    m = rich(read_manifest(flat_index))
    (other,) = m.others.values()
    other = dataclasses.replace(other, embedder=dataclasses.replace(other.embedder, name=second))
    own = dataclasses.replace(m.embedder, name=first)
    m = dataclasses.replace(m, embedder=own, others={second: other})
    assert list(embedding_configs(m).values()) == expected
    configs = front_matter(dataset_card(m))["configs"]
    assert [config["config_name"] for config in configs] == ["default", *expected]


def test_card_says_what_it_must(flat_index: Path) -> None:
    text = (flat_index / "README.md").read_text()
    manifest = read_manifest(flat_index)
    for words in (
        "Research use only. Not for diagnosis.",
        "pseudonym, not an anonymisation",
        "open_index",
        "load_dataset",
        manifest.embedder.weights_sha256,
        "`percentile`",
        f"| slices | {manifest.counts.slices} |",
        f"| RV | 1 | {manifest.label_counts['RV']} |",
        "Out of scope",
        "`medretrieval remove`",
        "Their license is unknown",
        "| `position_mm` | number |",
    ):
        assert words in text
    for words in ("Evaluations", "columns.parquet", "memories/", "```bash", "org/"):
        assert words not in text


def test_card_of_an_index_that_has_everything(flat_index: Path) -> None:
    text = dataset_card(rich(read_manifest(flat_index)))
    for words in (
        "```bash\nmedretrieval build hearts out\n```",
        "| `columns.parquet` |",
        "| `embeddings/hf-org-repo.safetensors` | a float32 unit vector of length 12 for each row, "
        "by `hf:org/repo` |",
        "for `datasets`: config `hf-org-repo` |",
        "| `index-hf-org-repo.faiss` |",
        "| `memories/*.safetensors` |",
        "- Search by `hf:org/repo`: hnsw (M 8), cosine similarity.",
        "### Recall\n\n```bash\nmedretrieval evaluate few-shot x.csv\n```\n\n| method | Dice |",
        "| a/b | .5 [.4, .6] |",
        "Note: By patient.",
        "| `scanner` | text |",
    ):
        assert words in text, words
    order = ["What is inside", "Embedders", "How it was built", "Evaluations", "How to load it"]
    order += ["Intended use", "Limits", "Source, license and citation"]
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == order


def test_card_without_pictures_says_so(flat_index: Path) -> None:
    m = rich(read_manifest(flat_index), withheld="the source forbids it")
    text = dataset_card(m)
    assert "The images and their masks are **not** here" in text
    assert front_matter(text)["task_categories"] == ["image-feature-extraction"]
    for words in ('["image"]', "`mask`", "PNG", "segmentation from"):
        assert words not in text


@pytest.mark.parametrize(
    ("repo", "index", "dataset"),
    [
        ("org/name", 'open_index("org/name@v3")', 'load_dataset("org/name", revision="v3"'),
        ("o/n@abc", 'open_index("o/n@abc")', 'load_dataset("o/n", "hf-org-repo", revision="abc"'),
        (None, 'open_index("index")', 'load_dataset("index", "hf-org-repo", split="train")'),
    ],
)
def test_examples_load_it_from_where_it_is(
    flat_index: Path, repo: str | None, index: str, dataset: str
) -> None:
    text = dataset_card(rich(read_manifest(flat_index), version=3), repo=repo)
    assert index in text
    assert dataset in text
    files = re.findall(r"^file = (.+)$", text, re.MULTILINE)
    place = 'hf_hub_download("{}", "index-hf-org-repo.faiss", repo_type="dataset", revision="{}")'
    expected = {
        "org/name": place.format("org/name", "v3"),
        "o/n@abc": place.format("o/n", "abc"),
        None: '"index/index-hf-org-repo.faiss"',
    }
    assert files == [expected[repo]]


@pytest.mark.parametrize("repo", ["", "name", "a/b/c", "a/b@", 'a/b"', "a/b@x y", "../b", "a/b@-x"])
def test_what_is_no_repository(flat_index: Path, repo: str) -> None:
    with pytest.raises(UsageError, match="ORG/NAME"):
        dataset_card(read_manifest(flat_index), repo=repo)


def python_blocks(text: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("repo", [None, "org/name"])
@pytest.mark.parametrize("pictures", [True, False])
@pytest.mark.parametrize("kind", ["flat", "hnsw"])
def test_examples_are_python(flat_index: Path, repo: str | None, pictures: bool, kind: str) -> None:
    m = rich(read_manifest(flat_index), withheld=None if pictures else "so they say")
    if kind == "flat":
        m = dataclasses.replace(m, files={k: v for k, v in m.files.items() if ".faiss" not in k})
    blocks = python_blocks(dataset_card(m, repo=repo))
    assert len(blocks) == 3
    for block in blocks:
        ast.parse(block)
        assert max(map(len, block.splitlines())) < 130
    assert ("add_faiss_index" in blocks[2]) == (kind == "flat")


TEXT = st.one_of(
    st.text(),
    st.text(alphabet="`|<>&*_[]()#~\\-\n\r\u2028\x85 \t!a"),
    st.sampled_from(
        ["---", "\n---\n", "```", "`" * 9, "<script>x</script>", "<!--", "![x](http://x/y.png)",
         "[a](javascript:b)", "# x", "\n# x\n", "| a | b |", "\\", "a\\", "*", "**x**", "~~x~~",
         "\x00", "\ud800", "x\n```\n# y", "&lt;b&gt;", "[x]: http://y", "$$x$$", "```bash\nx"]
    ),
)  # fmt: skip


def shape(text: str) -> list[tuple[str, str]]:
    """The elements of the Markdown below the front matter, without their texts."""
    tokens = MarkdownIt("gfm-like", {"linkify": False}).parse(text.split("\n---\n", 1)[1])
    found = []
    for token in tokens:
        found.append((token.type, token.tag))
        found += [
            (child.type, child.tag)
            for child in token.children or ()
            if child.type not in ("text", "softbreak", "text_special")
        ]
    return found


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_no_text_breaks_out_of_where_it_was_put(flat_index: Path, data: st.DataObject) -> None:
    def build_with(text: Any) -> str:
        m = rich(read_manifest(flat_index))
        (other,) = m.others.values()
        embedder = dataclasses.replace(
            m.embedder, weights=text(), revision=text(), weights_sha256=text(), pooling=text()
        )
        named = text()
        other = dataclasses.replace(
            other, embedder=dataclasses.replace(embedder, name=f"x{named}"), index_reason=text()
        )
        m = dataclasses.replace(
            m,
            name=text(),
            source=text(),
            license=f"x{text()}",
            split=f"x{text()}",
            medretrieval_version=text(),
            vocabulary={1: "RV"},
            label_counts={"RV": 1, f"x{text()}": 3},
            modalities={f"x{text()}": 3},
            regions={f"x{text()}": 3},
            attributes=(f"x{text()}",),
            embedder=embedder,
            others={other.embedder.name: other},
            slices=dataclasses.replace(m.slices, axis=text(), window=text(), crop=f"x{text()}"),
            index_kind="flat",
            index_parameters={f"x{text()}": 1},
            index_reason=text(),
            command=f"medretrieval {text()}",
            evaluations=(
                evaluation(
                    text(),
                    command=f"x{text()}",
                    note=f"x{text()}",
                    header=(text(), text()),
                    rows=((text(), text()),),
                ),
            ),
        )
        return dataset_card(m, repo="org/name")

    card = build_with(lambda: data.draw(TEXT))
    harmless = build_with(lambda: "x")
    assert shape(card) == shape(harmless)
    ours, theirs = front_matter(card), front_matter(harmless)
    assert ours.keys() == theirs.keys()
    assert [list(config) for config in ours["configs"]] == [
        list(config) for config in theirs["configs"]
    ]
    assert all(isinstance(tag, str) and tag for tag in ours["tags"])
    assert python_blocks(card)[:2] == python_blocks(harmless)[:2]


@given(
    name=st.text(min_size=1).filter(str.isprintable), license=st.sampled_from(["cc-by-4.0", "a: b"])
)
def test_any_name_makes_valid_front_matter(flat_index: Path, name: str, license: str) -> None:
    manifest = dataclasses.replace(read_manifest(flat_index), name=name, license=license)
    data = front_matter(dataset_card(manifest))
    assert data["pretty_name"] == name
    if license == "a: b":
        assert (data["license"], data["license_name"]) == ("other", license)
    else:
        assert data["license"] == license


def test_doctests() -> None:
    assert doctest.testmod(card_text).failed == 0
    assert doctest.testmod(card_front).failed == 0


# --- `datasets`


@pytest.fixture
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_datasets_reads_images_and_masks(tmp_path: Path, caches: Path) -> None:
    import datasets

    cases = [
        make_case(0, color=True),
        make_case(1, annotated=False),
        make_case(2, values=(1, 300), labels=("benign",)),
    ]
    cases[1] = dataclasses.replace(cases[1], attributes={"scanner": "A"})
    out = build(cases, tmp_path / "i", embedder=FakeEmbedder(), slices=POLICY, name="n")
    loaded = datasets.load_dataset(str(out), split="train", cache_dir=str(caches))
    assert isinstance(loaded.features["image"], datasets.Image)
    assert isinstance(loaded.features["mask"], datasets.Image)
    assert loaded.column_names == [
        "row_id", "volume_id", "patient_id", "modality", "region", "slice_index", "position_mm",
        "spacing", "labels", "image", "mask", "scanner",
    ]  # fmt: skip
    shown = re.findall(r"^\| `(\w+)` \| (?!.*parquet)", (out / "README.md").read_text(), re.M)
    assert shown[: len(loaded.column_names)] == loaded.column_names
    with open_store(out) as store:
        assert len(loaded) == len(store) == 9
        for row, data in enumerate(loaded):
            assert data["row_id"] == row
            assert data["volume_id"] == store.volume_ids[store.volume[row]]
            assert tuple(data["labels"]) == store.labels[row]
            assert (
                data["scanner"] == store.attributes["scanner"][row] == ("A" if 3 <= row < 6 else "")
            )
            assert data["spacing"] == store.spacing[row].tolist()
            np.testing.assert_array_equal(np.asarray(data["image"]), store.image(row))
            mask = store.mask(row)
            if mask is None:
                assert data["mask"] is None
            else:
                np.testing.assert_array_equal(np.asarray(data["mask"]), mask)


def add_table(index: Path) -> None:
    """Add the embeddings as a table."""
    with open_store(index) as store:
        vectors = pa.array(np.asarray(store.embeddings).ravel())
        columns = {
            "row_id": pa.array(range(len(store)), pa.int64()),
            "embedding": pa.FixedSizeListArray.from_arrays(vectors, DIM),
        }
    staged = index / ".staged.parquet"
    pq.write_table(pa.table(columns), staged)
    publish(index, read_manifest(index), arriving={TABLE: staged})


@pytest.mark.parametrize("kind", ["flat", "hnsw"])
def test_examples_with_datasets_run(
    tmp_path: Path, caches: Path, kind: str, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    import datasets

    cases = [make_case(n) for n in range(4)]
    made = {"embedder": FakeEmbedder(), "slices": POLICY, "name": "n", "index_kind": kind}
    out = build(cases, tmp_path / "index", **made)
    add_table(out)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", caches)
    slices, embeddings = python_blocks((out / "README.md").read_text())[1:]
    names: dict[str, Any] = {}
    exec(compile(slices, "README.md", "exec"), names)
    assert "PIL.PngImagePlugin" in capsys.readouterr().out
    assert "image" in names["slices"].features  # not the embeddings, though they are a config too
    exec(compile(embeddings, "README.md", "exec"), names)
    assert names["rows"].column_names == ["row_id", "embedding"]
    assert names["found"]["row_id"][0] == 0
    assert len(names["found"]["row_id"]) == 5
    with open_store(out) as store:
        _, rows = store.neighbours(store.embeddings[:1], 5)
    assert names["found"]["row_id"] == rows[0].tolist()


@pytest.mark.parametrize("whole", [False, True])
def test_the_example_with_medretrieval_runs(
    tmp_path: Path, whole: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import medretrieval
    from medretrieval.imaging import write_volume

    embedder = FakeVolumeEmbedder() if whole else FakeEmbedder()
    cases = [make_case(n) for n in range(4)]
    out = build(cases, tmp_path / "index", embedder=embedder, slices=POLICY, name="n")
    write_volume(make_phantom("mr-heart", 1).volume, tmp_path / "query.nii.gz")
    monkeypatch.chdir(tmp_path)
    real = medretrieval.open_index
    monkeypatch.setattr(medretrieval, "open_index", lambda path: real(path, embedder=embedder))
    exec(compile(python_blocks((out / "README.md").read_text())[0], "README.md", "exec"), {})
    assert "volume-00" in capsys.readouterr().out


# --- writing a card into an index


def test_a_card_with_evaluations_is_written(own_index: Path) -> None:
    before = contents(own_index)
    path = write_card(own_index, evaluations=[evaluation("A"), evaluation("B")], repo="org/name")
    text = path.read_text()
    assert path == own_index / "README.md"
    assert "### A" in text
    assert 'open_index("org/name@v1")' in text
    write_card(own_index, evaluations=[evaluation("A", note="newer"), evaluation("C")])
    with open_store(own_index, verify="full") as store:
        found = store.manifest.evaluations
    assert [(e.title, e.note) for e in found] == [
        *(("A", "newer"), ("B", "By patient."), ("C", "By patient.")),
    ]
    assert (own_index / "README.md").read_text() == dataset_card(read_manifest(own_index))
    after = contents(own_index)
    assert after.keys() == before.keys()
    assert {name for name in after if after[name] != before[name]} == {
        *("README.md", "manifest.json"),
    }


def test_a_card_of_a_build_is_written_as_it_was(flat_index: Path, tmp_path: Path) -> None:
    index = shutil.copytree(flat_index, tmp_path / "copy")
    (index / "README.md").write_text("mine")
    write_card(index)
    assert contents(index) == contents(flat_index)


def test_an_open_index_notices_memories_after_its_card_was_written(own_index: Path) -> None:
    name = "memories/net-0123456789ab-00000.safetensors"
    with open_store(own_index) as store:
        write_card(own_index, evaluations=[evaluation()])
        manifest = read_manifest(own_index)
        publish(own_index, dataclasses.replace(manifest, files={**manifest.files, name: ENTRY}))
        store.reload_memories()
        assert name in store.manifest.files


def test_a_changed_card_is_refused_with_what_to_do_and_a_missing_one_is_none(
    own_index: Path,
) -> None:
    with open(own_index / "README.md", "a") as file:
        file.write("mine")
    with pytest.raises(IndexFormatError, match="medretrieval card INDEX --write"):
        open_store(own_index)
    (own_index / "README.md").unlink()
    open_store(own_index).close()


@pytest.mark.parametrize("evaluations", [[evaluation(rows=(("1",),))], [evaluation("x" * 3000)]])
def test_what_a_manifest_cannot_hold_is_refused(
    own_index: Path, evaluations: list[Evaluation]
) -> None:
    before = contents(own_index)
    with pytest.raises(UsageError, match="must"):
        write_card(own_index, evaluations=evaluations)
    with pytest.raises(UsageError, match=f"a card shows {MAX_EVALUATIONS}"):
        write_card(own_index, evaluations=[evaluation(str(n)) for n in range(21)])
    assert contents(own_index) == before


def test_nothing_is_written_into_what_is_no_index(tmp_path: Path) -> None:
    with pytest.raises(IndexFormatError, match=r"no manifest\.json"):
        write_card(tmp_path)
    assert list(tmp_path.iterdir()) == []


KILLED = """
import dataclasses, json, os, signal, sys
from pathlib import Path
from medretrieval.index import open_store
from medretrieval.index.card import write_card
from medretrieval.index.evaluated import Evaluation
from medretrieval.index.in_place import publish
from medretrieval.index.manifest import read_manifest

EVENTS = ("os.rename", "os.remove", "shutil.rmtree")
index = Path(sys.argv[1])
found = Evaluation(title="killed", command="", header=("a",), rows=())
open_store(index)

def kill(step):
    left = [step]

    def before(event, arguments):
        if event in EVENTS and any(str(index) in str(a) for a in arguments):
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(before)
    write_card(index, evaluations=[found])
    os._exit(0)

seen = []
for step in range(20):
    child = os.fork()
    if child == 0:
        kill(step)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with open_store(index, verify="full") as store:
        listed = bool(store.manifest.evaluations)
    seen.append([code, listed, (index / "README.md").exists()])
    if code == 0:
        break
    publish(index, dataclasses.replace(read_manifest(index), evaluations=()))
print(json.dumps(seen))
"""


def test_an_index_opens_wherever_writing_its_card_is_killed(own_index: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(own_index)], capture_output=True, text=True, check=True
    )
    *killed, last = json.loads(done.stdout)
    assert last == [0, True, True]
    assert {code for code, *_ in killed} == {-signal.SIGKILL}
    # Before anything, without the old card, without the new card, and at the end.
    states = {(listed, there) for _, listed, there in killed}
    assert states == {(False, True), (False, False), (True, False), (True, True)}
