"""docs/lake.md names all there is to set and all that can go wrong, and its file works."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from msgspec.structs import asdict, fields

from stratum_bus.config import LakeConfig, load
from stratum_bus.errors import LakeError
from stratum_projections.lake.rows import SCHEMA
from stratum_projections.projection import RESERVED

PAGE = (Path(__file__).parents[3] / "docs" / "lake.md").read_text(encoding="utf-8")


def test_every_setting_is_in_the_example_and_is_read(tmp_path: Path) -> None:
    example = re.search(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    assert example
    (tmp_path / "stratum.toml").write_text(example[1])
    lake = load(tmp_path / "stratum.toml", {}).lake
    assert asdict(lake) == {
        "path": str(tmp_path / "lake"), "streams": ("LOG",), "segment_events": 100_000,
        "segment_seconds": 60.0, "keep_hot_days": 30, "delta": str(tmp_path / "delta"),
    }  # fmt: skip
    for field in fields(LakeConfig):
        assert f"\n{field.name} = " in example[1]


@pytest.mark.parametrize("reason", re.findall(r"`(\w+)`", LakeError.__doc__ or "")[1:])
def test_every_reason_of_an_error_is_explained(reason: str) -> None:
    assert f"(`{reason}`)" in PAGE


@pytest.mark.parametrize("column", ["payload", "headers", "stored_ns", "unreadable"])
def test_the_columns_that_events_has_not_are_explained(column: str) -> None:
    assert column in SCHEMA.names
    assert f"| `{column}` |" in PAGE


def test_no_projection_can_take_the_names_of_the_lake() -> None:
    assert {"lake", "all_events"} <= RESERVED
