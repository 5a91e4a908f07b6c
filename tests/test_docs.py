"""What the documentation says, checked against the code."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from medretrieval.arguments import parser
from medretrieval.demo import demo_cases
from medretrieval.imaging import write_volume
from medretrieval.index import build
from medretrieval.phantoms import make_case
from medretrieval.types import SlicePolicy

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
DOCS = sorted((ROOT / "docs").glob("*.md"))


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def test_generated_pages_are_up_to_date() -> None:
    command = [sys.executable, str(ROOT / "docs" / "generate.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", ["README.md", "docs/sharing.md"])
def test_commands_parse(page: str) -> None:
    lines = [
        re.split(r"\s#", line)[0]
        for block in blocks("bash", (ROOT / page).read_text())
        for line in block.splitlines()
        if line.startswith("medretrieval ")
    ]
    assert len(lines) >= 5
    for line in lines:
        parser().parse_args(shlex.split(line)[1:])


def test_errors_of_the_page_on_sharing_are_those_of_the_code() -> None:
    page = (ROOT / "docs" / "sharing.md").read_text().split("## Errors and what they mean")[1]
    quoted = re.findall(r"^\| `(.+?)` \|", page, re.MULTILINE)
    assert len(quoted) > 10
    said = [
        node.value
        for path in (ROOT / "medretrieval").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    for message in quoted:
        # Numbers and names stand where the code puts in others.
        for part in re.split(r"\d+|\.\.\.|manifest\.json", message):
            assert any(part.strip() in text for text in said), message


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{p.name}" for p in DOCS)])
def test_links_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\((?!http)([^)]+)\)", (ROOT / page).read_text()):
        path, _, anchor = target.partition("#")
        file = (ROOT / page).parent / path if path else ROOT / page
        assert file.exists(), target
        headings = re.findall(r"^#+ (.+)$", file.read_text(), re.MULTILINE) if anchor else []
        assert not anchor or anchor in {h.lower().replace(" ", "-") for h in headings}, target


def test_versions_agree() -> None:
    requirements = (ROOT / "requirements.txt").read_text()
    gradio = re.search(r"^gradio(?:\[\w+\])?==(\S+)$", requirements, re.MULTILINE)
    stated = re.search(r"^sdk_version: (\S+)$", README, re.MULTILINE)
    assert gradio is not None
    assert stated is not None
    assert gradio[1] == stated[1]


def test_ci_runs_the_test_command_of_the_readme() -> None:
    marked = re.findall(r"<!-- test command -->\n```bash\n(.*?)```", README, re.DOTALL)
    assert len(marked) == 1
    assert "pytest" in marked[0]
    assert "<!-- test command -->" in (ROOT / ".ci" / "run").read_text()


def test_the_example_in_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from medretrieval import load_embedder, read_labels, read_volume

    index, query = tmp_path / "index", tmp_path / "query.nii.gz"
    build(
        demo_cases(["mr-heart"], range(2)),
        index,
        embedder=load_embedder("efficientnet-lite0"),
        slices=SlicePolicy(),
        name="example",
    )
    write_volume(make_case("mr-heart", 9).volume, query)
    monkeypatch.chdir(tmp_path)
    (example,) = blocks("python")
    names = {"demo_index": index, "query_file": query}
    exec(compile(example, "README.md", "exec"), names)
    mask = read_labels(tmp_path / "mask.nii.gz", reference=read_volume(query).grid)
    assert np.count_nonzero(mask.voxels) > 0
    assert names["found"].hits[0].volume_id.startswith("synthetic-mr-heart")
