"""What tests of several folders use."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# Last, so that the folders of the tests hide no package.
sys.path.append(str(Path(__file__).parent))

from hub.client import LocalHub, running_hub


@pytest.fixture
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalHub]:
    """A Hub on this machine that huggingface_hub and datasets meet; see `hub.server`.

    A test fails if it asked for something that this Hub does not model.
    """
    with running_hub(tmp_path_factory.mktemp("hf")) as local:
        yield local
