"""Node.js for the tests that need it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.flow import nodejs


@pytest.fixture
def in_node(tmp_path: Path) -> Callable[..., Path]:
    """Puts files into a folder of their own from which the NATS client can be imported."""

    def put(*files: Path) -> Path:
        folder = tmp_path / "node"
        folder.mkdir()
        try:
            nodejs.put(folder, *files)
        except nodejs.NoNode as error:
            pytest.skip(str(error))
        return folder

    return put
