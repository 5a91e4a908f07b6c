"""Writes what the documentation takes from the code: pages, tables of other pages, index cards.

python docs/generate.py                   write them
python docs/generate.py --check           exit 1 if they are out of date
python docs/generate.py --report FILE     first take the numbers of `medretrieval evaluate few-shot`
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from medretrieval.arguments import parser  # noqa: E402
from medretrieval.embedders import REGISTRY as EMBEDDERS  # noqa: E402
from medretrieval.evaluation.figures import CURVE  # noqa: E402
from medretrieval.evaluation.pages import overview, sections  # noqa: E402
from medretrieval.evaluation.report import summary  # noqa: E402
from medretrieval.index import KINDS  # noqa: E402
from medretrieval.index.offered import OFFERED  # noqa: E402
from medretrieval.index.sources import SOURCES  # noqa: E402
from medretrieval.recipes import LAYOUTS  # noqa: E402
from medretrieval.recipes.cards import offer_card  # noqa: E402
from medretrieval.retrieval.modes import MODES  # noqa: E402
from medretrieval.segmentation import REGISTRY as SEGMENTERS  # noqa: E402


def cli_page() -> str:
    """The help of every command, as one Markdown page."""
    # argparse folds its help to the terminal; the page must not depend on who writes it.
    os.environ["COLUMNS"], os.environ["NO_COLOR"] = "96", "1"
    top = parser()
    parts = ["# Command line", f"```\n{top.format_help().strip()}\n```"]
    for sub in _commands(top):
        parts.append(f"## {sub.prog}\n\n```\n{sub.format_help().strip()}\n```")
    return "\n\n".join(parts) + "\n"


def _commands(parser: argparse.ArgumentParser) -> list[argparse.ArgumentParser]:
    """The commands of a parser, each followed by those below it."""
    found = []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for sub in action.choices.values():
                found += [sub, *_commands(sub)]
    return found


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as a Markdown table."""
    columns = list(rows[0])
    lines = [columns, ["---"] * len(columns)]
    lines += [[str(row[c]).replace("|", "/") for c in columns] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def embedder_table() -> str:
    where = {
        "package": "bundled: {weights}",
        "hub": "{weights}@{revision:.7}",
        "file": "local file: {weights}",
    }
    return markdown(
        [
            {
                "name": f"`{s.name}`",
                "papers": ", ".join(s.papers) or "-",
                "dim": s.dim,
                "input": s.input_size,
                "feature": s.pooling,
                "weights": where[s.source].format(weights=s.weights, revision=s.revision),
                "MB": s.size_mb,
                "licence": s.license,
            }
            for s in EMBEDDERS.values()
        ]
    )


def segmenter_table() -> str:
    return markdown(
        [
            {
                "name": f"`{s.name}`",
                "weights": s.weights,
                "input": s.image_size,
                "parameters": f"{s.parameters:g} M",
                "licence": s.license,
                "note": s.note or "-",
            }
            for s in SEGMENTERS.values()
        ]
    )


def mode_table() -> str:
    return markdown(
        [
            {"mode": f"`{m.name}`", "finds": m.finds, "score of a hit": m.score}
            for m in MODES.values()
        ]
    )


def kind_table() -> str:
    return markdown(
        [
            {
                "kind": f"`{kind.name}`",
                "search": kind.summary,
                "parameters": ", ".join(f"`{name}`" for name in kind.parameters) or "-",
            }
            for kind in KINDS.values()
        ]
    )


def source_table() -> str:
    return markdown(
        [
            {
                "source": f"[{s.title}]({s.homepage})" if s.homepage else s.title,
                "licence": s.license,
                "pictures in a published index": s.images,
                "why": s.why,
                "cite": s.citation,
            }
            for s in SOURCES.values()
        ]
    )


def layout_table() -> str:
    return markdown(
        [
            {
                "layout": f"`{layout.name}`",
                "SOURCE is": layout.title,
                "with such files": "<br>".join(
                    " ".join(f"`{word}`" if "/" in word or "." in word else word for word in line)
                    for line in map(str.split, layout.tree.splitlines())
                ),
                "columns beside the usual": ", ".join(f"`{name}`" for name in layout.extra),
                "written to OUT-files": layout.beside or "-",
            }
            for layout in LAYOUTS.values()
        ]
    )


def offered_table() -> str:
    verdicts = {"yes": "yes", "no": "no", "unknown": "not as long as its terms are unknown"}
    return markdown(
        [
            {
                "index": f"[{o.title}](../index_cards/{o.key}/README.md)",
                "repo id": f"`{o.repo}`",
                "published": f"`{o.revision}`" if o.published else "not yet",
                "source": o.origin.title,
                "embedder": f"`{o.embedder}`",
                "with pictures": verdicts[o.pictures.allowed],
            }
            for o in OFFERED.values()
        ]
    )


def index_cards() -> dict[str, str]:
    """The cards of the indexes of this project, by path."""
    return {f"index_cards/{key}/README.md": offer_card(o) for key, o in OFFERED.items()}


# The numbers of the last benchmark, without those of single volumes.
FEW_SHOT = ROOT / "docs" / "few-shot.json"


def few_shot_overview() -> str:
    return overview(json.loads(FEW_SHOT.read_text()))


def few_shot_sections() -> str:
    curve = FEW_SHOT.with_name(f"few-shot-{CURVE}")
    shown = f"![Dice by the number of supports]({curve.name})\n\n" if curve.exists() else ""
    return shown + sections(json.loads(FEW_SHOT.read_text()), level=3)


def take_report(path: Path) -> None:
    """Keep the numbers and the curve of a report for the documentation."""
    report = summary(json.loads(path.read_text()))
    FEW_SHOT.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    if (path.parent / CURVE).exists():
        shutil.copyfile(path.parent / CURVE, FEW_SHOT.with_name(f"few-shot-{CURVE}"))


TABLES = {
    "README.md": {
        "embedders": embedder_table,
        "segmenters": segmenter_table,
        "few-shot": few_shot_overview,
    },
    "docs/evaluation.md": {"few-shot": few_shot_sections},
    "docs/retrieval.md": {"modes": mode_table, "kinds": kind_table},
    "docs/sources.md": {
        "sources": source_table,
        "layouts": layout_table,
        "offered": offered_table,
    },
}


def with_tables(page: str) -> str:
    """The text of a page with its generated tables replaced."""
    text = (ROOT / page).read_text()
    for name, table in TABLES[page].items():
        begin, end = f"<!-- {name}: docs/generate.py -->", f"<!-- {name}: end -->"
        pattern = re.escape(begin) + r".*?" + re.escape(end)
        if not re.search(pattern, text, re.DOTALL):
            raise SystemExit(f"{page} has no place for the table of {name}: {begin} ... {end}")
        filled = f"{begin}\n{table()}\n{end}"
        text = re.sub(pattern, lambda _, filled=filled: filled, text, flags=re.DOTALL)
    return text


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--check", action="store_true")
    options.add_argument("--report", type=Path)
    given = options.parse_args()
    check = given.check
    if given.report:
        take_report(given.report)
    pages = {
        "docs/cli.md": cli_page(),
        **index_cards(),
        **{page: with_tables(page) for page in TABLES},
    }
    stale = []
    for page, text in pages.items():
        path = ROOT / page
        if not path.exists() or path.read_text() != text:
            stale.append(page)
            if not check:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
    if check and stale:
        raise SystemExit(f"out of date: {', '.join(stale)}; run `python docs/generate.py`")


if __name__ == "__main__":
    main()
