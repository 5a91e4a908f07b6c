"""The direction of imports, and what `import medretrieval` may load."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import medretrieval

PACKAGE = Path(medretrieval.__file__).parent

# A module may import from layers before its own, and from its own package.
LAYERS = (
    {"errors"},
    {"types"},
    {"imaging", "similarity", "metrics", "hub", "folders"},
    {"embedders", "index", "phantoms"},
    {"retrieval", "segmentation", "recipes"},
    {"support_sets", "building"},
    {"pipeline"},
    {"demo"},
    {"evaluation"},
    {"console", "option_values"},
    {"query_arguments", "segment_arguments", "share_arguments", "table_command"},
    {"evaluate_arguments"},
    {"arguments"},
    {"segment_command", "share_command"},
    {"ui", "cli", "__main__"},
)
DEPTH = {name: depth for depth, names in enumerate(LAYERS) for name in names}


def part(module: str) -> str | None:
    """'medretrieval.index.store' -> 'index'; None for foreign modules and the package itself."""
    names = module.split(".")
    return names[1] if names[0] == "medretrieval" and len(names) > 1 else None


def imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert not node.level, f"{path}: write imports in full"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in map(part, found) if name in DEPTH}


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE))
)
def test_imports_point_downwards(path: Path) -> None:
    relative = path.relative_to(PACKAGE)
    own = relative.parts[0].removesuffix(".py")
    if own == "__init__":
        return
    assert own in DEPTH, f"{own} has no layer: add it to LAYERS"
    wrong = {name for name in imported(path) if name != own and DEPTH[name] >= DEPTH[own]}
    if own == "__main__":
        wrong -= {"cli"}
    assert not wrong


HEAVY = ("torch", "faiss", "gradio", "transformers", "datasets", "sam2", "nibabel", "pydicom")
LIGHT_MODULES = (
    "medretrieval",
    "medretrieval.cli",
    "medretrieval.pipeline",
    "medretrieval.embedders",
    "medretrieval.segmentation",
)


@pytest.mark.parametrize("module", LIGHT_MODULES)
def test_import_loads_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print([m for m in {HEAVY} if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_public_names_resolve() -> None:
    for name in medretrieval.__all__:
        assert getattr(medretrieval, name) is not None


def test_modules_stay_readable() -> None:
    long = {
        str(p.relative_to(PACKAGE)): n
        for p in PACKAGE.rglob("*.py")
        if (n := len(p.read_text().splitlines())) > 420
    }
    assert not long
