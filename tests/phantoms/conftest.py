"""One full-size case of every kind, made once for all tests of the package."""

from __future__ import annotations

import pytest

from medretrieval.phantoms import KINDS, PhantomCase, make_case


@pytest.fixture(scope="session")
def cases() -> dict[str, PhantomCase]:
    return {kind: make_case(kind, 1) for kind in KINDS}


@pytest.fixture(scope="session")
def small_cases() -> dict[str, list[PhantomCase]]:
    """Three quick cases of every kind."""
    return {kind: [make_case(kind, seed, quick=True) for seed in range(3)] for kind in KINDS}
