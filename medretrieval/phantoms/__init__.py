"""Synthetic phantom cases: formula-made, seeded, from no patient."""

from medretrieval.phantoms.cohort import KINDS, PhantomCase, PhantomKind, make_case

__all__ = ["KINDS", "PhantomCase", "PhantomKind", "make_case"]
