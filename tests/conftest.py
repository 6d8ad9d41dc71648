"""Fixtures that every test may ask for: tiny models made once a session, offline."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pipeline.contract import Checkpoint


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A two-layer random Llama with a byte-level chat tokenizer. Read it, never write into it."""
    from tests.tiny import tiny_model

    return tiny_model(Path(tmp_path_factory.mktemp("tiny")) / "llama")
