"""What tests of every kind share: the repository's root, and a checkout in a temporary folder."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from launchpad import declaration
from launchpad.declaration import Declaration

ROOT = Path(__file__).parent.parent

# shells have what they start in the background ignore interruptions, and so do its children
signal.signal(signal.SIGINT, signal.default_int_handler)

MINIMAL = "name: tiny\nmodels:\n  tiny: {source: model.py:build}\n"


@pytest.fixture(scope="session")
def repository() -> Path:
    """The repository that is under test."""
    return ROOT


@pytest.fixture
def declare(tmp_path: Path) -> Callable[..., Declaration]:
    """Write a text as `pipeline.yaml` of a temporary checkout, and read it."""

    def write_and_load(text: str = MINIMAL, root: Path = tmp_path) -> Declaration:
        (root / declaration.FILE).write_text(text, encoding="utf-8")
        return declaration.load(root)

    return write_and_load
