"""Which sequence an id has: the same as a dictionary of all that came before would say."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from stratum_projections import ids
from stratum_projections.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store.open(tmp_path / "projection.duckdb")
    store.execute(ids.TABLE)
    yield store
    store.close()


def events(seed: int, count: int) -> list[tuple[int, str, str | None]]:
    """Few ids, so that many come again, and causes before, behind, beside and outside of the log."""
    chance = random.Random(seed)
    names = [f"id-{n}\0é" for n in range(count // 3)]
    return [
        (3 * n + 1, chance.choice(names), chance.choice([*names, "stranger", None]))
        for n in range(count)
    ]


def rows(batch: list[tuple[int, str, str | None]]) -> pa.Table:
    seq, id, causation = zip(*batch, strict=True) if batch else ((), (), ())
    return pa.table(
        {
            "seq": pa.array(seq, pa.int64()),
            "id": pa.array(id, pa.string()),
            "causationid": pa.array(causation, pa.string()),
        }
    )


@pytest.mark.parametrize("seed", range(5))
def test_first_and_cause_are_those_of_a_dictionary(store: Store, seed: int) -> None:
    log, chance = events(seed, 120), random.Random(seed)
    firsts: dict[str, int] = {}
    expected = []
    for seq, id, causation in log:
        first = firsts.setdefault(id, seq)
        cause = firsts.get(causation) if causation else None
        expected.append((first == seq, cause if cause != seq else None))
    found: list[tuple[bool, int | None]] = []
    while len(found) < len(log):
        batch = log[len(found) : len(found) + chance.randrange(1, 30)]
        looked = ids.look(store, rows(batch))
        ids.keep(store, looked)
        columns: list[Any] = [looked[name].to_pylist() for name in ("first", "cause")]
        found += zip(*columns, strict=True)
    assert found == expected
    assert dict(store.execute("select seq, count(*) from ids group by seq")) == dict.fromkeys(
        firsts.values(), 1
    )


def test_what_is_kept_already_is_found_again_at_its_place(store: Store) -> None:
    """As by a projection that is built anew while the others are far ahead."""
    log = events(7, 60)
    ids.keep(store, ids.look(store, rows(log)))
    once = ids.look(store, rows(log))
    again = ids.look(store, rows(log[:20]))
    assert again.equals(once.slice(0, 20))


def test_a_batch_without_an_event_has_none(store: Store) -> None:
    assert ids.look(store, rows([])).num_rows == 0
