"""The indexes of this project: table, cards, recipes and page agree, and the recipes work."""

from __future__ import annotations

import doctest
import re
import shlex
from pathlib import Path
from types import SimpleNamespace

import pytest
from hub.client import LocalHub
from huggingface_hub.utils import validate_repo_id
from layout_fakes import DATA

from medretrieval.arguments import parser
from medretrieval.cli import main
from medretrieval.embedders import REGISTRY
from medretrieval.errors import UsageError
from medretrieval.index import offered as offered_module
from medretrieval.index import open_store
from medretrieval.index.licenses import LICENSES
from medretrieval.index.offered import OFFERED, Offered, wrapped
from medretrieval.index.opening import open_named
from medretrieval.index.sources import SOURCES, may_publish_pictures, recognise
from medretrieval.recipes import LAYOUTS, totalsegmentator
from medretrieval.recipes.cards import NOT_PUBLISHED, offer_card
from medretrieval.types import RESEARCH_ONLY, Progress
from medretrieval.ui import content
from medretrieval.ui.backend import DEMO, DEMO_TITLE, Backend

ROOT = Path(__file__).resolve().parents[2]
CARDS = ROOT / "index_cards"
SIZES = ("n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M")
BUILT = [key for key, row in OFFERED.items() if row.origin.layout]
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def one_published(monkeypatch: pytest.MonkeyPatch) -> Offered:
    """As if one of the indexes were published."""
    row = OFFERED["acdc"]
    fields = {name: getattr(row, name) for name in row.__dataclass_fields__}
    changed = Offered(**{**fields, "revision": COMMIT})
    table = {**OFFERED, "acdc": changed}
    monkeypatch.setattr(offered_module, "OFFERED", table)
    monkeypatch.setattr(content, "OFFERED", table)
    return changed


def test_every_index_has_a_card_and_every_card_an_index() -> None:
    assert {path.name for path in CARDS.iterdir()} == set(OFFERED)
    for key, row in OFFERED.items():
        assert (CARDS / key / "README.md").read_text() == offer_card(row)


@pytest.mark.parametrize("key", OFFERED)
def test_rows_of_the_table(key: str) -> None:
    row = OFFERED[key]
    assert row.key == key
    assert row.source in SOURCES
    assert row.embedder in REGISTRY
    assert row.size is None or row.size in SIZES
    assert (row.origin.layout is None) == (row.data == "")
    validate_repo_id(row.repo)
    assert row.revision is None or re.fullmatch(r"[0-9a-f]{40}", row.revision)
    # What the manifest will say is understood by what decides on publishing.
    assert recognise(row.origin_text) == [row.origin]
    assert may_publish_pictures(row.origin_text, row.origin.license) == row.pictures


def test_repos_are_different() -> None:
    assert len({row.repo for row in OFFERED.values()}) == len(OFFERED)


@pytest.mark.parametrize("key", OFFERED)
def test_cards_say_what_they_must(key: str) -> None:
    row, card = OFFERED[key], (CARDS / key / "README.md").read_text()
    _, front, body = card.split("---\n", 2)
    assert RESEARCH_ONLY == "Research use only. Not for diagnosis."
    assert RESEARCH_ONLY in body
    assert (NOT_PUBLISHED in body) == (not row.published)
    license = re.search(r"^license: (\S+)$", front, re.MULTILINE)
    assert license is not None
    assert license[1] in LICENSES or (license[1] == "other" and "license_name:" in front)
    for name in ("pretty_name:", "tags:", "task_categories:", "configs:", "slices/*.parquet"):
        assert name in front
    assert row.pictures.reason in body
    assert ("carries no pictures" in body) == (row.pictures.allowed != "yes")
    (recipe,) = re.findall(r"```bash\n(.*?)```", body, re.DOTALL)
    lines = recipe.replace(" \\\n", "").splitlines()
    assert [shlex.split(line) for line in lines] == [shlex.split(c) for c in row.commands]
    assert all(len(line) <= 100 for line in recipe.splitlines())


def test_front_matter_is_yaml() -> None:
    yaml = pytest.importorskip("yaml")
    for key, row in OFFERED.items():
        front = (CARDS / key / "README.md").read_text().split("---\n", 2)[1]
        assert yaml.safe_load(front)["pretty_name"] == row.title


@pytest.mark.parametrize("key", OFFERED)
def test_recipes_parse(key: str) -> None:
    for command in OFFERED[key].commands:
        program, *arguments = shlex.split(command)
        assert program == "medretrieval"
        parser().parse_args(arguments)


def test_recipes_in_the_documentation_parse() -> None:
    text = (ROOT / "docs" / "sources.md").read_text()
    lines = [
        line for b in re.findall(r"```bash\n(.*?)```", text, re.DOTALL) for line in b.splitlines()
    ]
    assert lines
    for line in lines:
        parser().parse_args(shlex.split(line)[1:])


@pytest.mark.parametrize("key", BUILT)
def test_recipes_build_and_publish_the_index(
    key: str,
    tmp_path: Path,
    hub: LocalHub,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The very commands of the recipe, on a tiny data set in the layout of the real one."""
    monkeypatch.chdir(tmp_path)
    row = OFFERED[key]
    DATA[key](tmp_path / row.data)
    hub.log_in(hub.add_user("owner", organisations=("medretrieval",)))
    for command in row.commands:
        assert main([*shlex.split(command)[1:], "--quiet"]) == 0, capsys.readouterr().err
    with open_named(row.repo) as published:
        assert published.manifest.pictures == (row.pictures.allowed == "yes")
    *_, push = row.commands
    store = open_store(shlex.split(push)[2], verify="full")
    manifest = store.manifest
    assert manifest.name == row.name
    assert manifest.embedder.name == row.embedder
    assert may_publish_pictures(manifest.source, manifest.license) == row.pictures
    layout = LAYOUTS[str(row.origin.layout)]
    assert set(manifest.attributes) <= set(layout.extra)
    assert manifest.label_counts
    assert "unknown" not in manifest.modalities
    masked = layout.name not in ("radimagenet", "medmnist")
    assert (manifest.counts.annotated_slices > 0) == masked


def test_every_recipe_has_its_tiny_data() -> None:
    assert set(DATA) == set(BUILT)


def test_long_commands_are_wrapped() -> None:
    command = "medretrieval build a b " + " ".join(f"--keep column-{n:02d}" for n in range(9))
    lines = wrapped(command).split(" \\\n")
    assert len(lines) > 1
    assert "".join(lines).replace("    --", " --") == command


def test_examples() -> None:
    assert doctest.testmod(offered_module).failed == 0
    assert doctest.testmod(totalsegmentator).failed == 0


# The page


def test_the_page_lists_no_index_that_is_not_published() -> None:
    assert not [row for row in OFFERED.values() if row.published]
    assert Backend(indexes={"own": "/data/own"}).choices() == [(DEMO_TITLE, DEMO), ("own", "own")]


def test_the_page_lists_published_indexes_by_their_hub_id(one_published: Offered) -> None:
    hub_id = f"medretrieval/acdc-efficientnet-lite0@{COMMIT}"
    assert Backend().choices() == [(DEMO_TITLE, DEMO), (one_published.title, hub_id)]
    assert f"<summary>{one_published.title}" not in content.buildable()
    card = offer_card(one_published)
    assert NOT_PUBLISHED not in card
    assert f'open_index("{hub_id}")' in card


def test_a_listed_hub_id_may_be_opened_and_no_other(
    one_published: Offered, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def opened(
        self: Backend, key: str, sources: list[str], *, synthetic: bool, progress: Progress
    ) -> SimpleNamespace:
        asked.append((key, sources, synthetic))
        return SimpleNamespace(embedders=[])

    monkeypatch.setattr(Backend, "_open", opened)
    backend = Backend()
    backend.open(one_published.hub_id)
    assert asked == [(one_published.hub_id, [one_published.hub_id], False)]
    with pytest.raises(UsageError, match="only the indexes of its list"):
        backend.open("other/index@main")


def test_the_page_shows_the_recipes_of_the_others() -> None:
    page = content.buildable()
    for key in BUILT:
        assert OFFERED[key].title in page.replace("&amp;", "&")
        assert f"medretrieval table {OFFERED[key].origin.layout}" in page
    assert DEMO_TITLE not in page
    assert "medretrieval push" not in page
    assert "<script" not in page
