"""Fixtures that every test may ask for: tiny models made once a session, offline."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pipeline.contract import Checkpoint

# Commands that tests start import the fake stages of tests.fakes by name.
os.environ["PYTHONPATH"] = os.pathsep.join(
    [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
)


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A two-layer random Llama with a byte-level chat tokenizer. Read it, never write into it."""
    from tests.tiny import tiny_model

    return tiny_model(Path(tmp_path_factory.mktemp("tiny")) / "llama")
