"""Data of declared types in their newest version, for a projection that reads them:

    from shop.events import Order  # declares the type, its versions and their upcasters

    ORDERS = Projection(
        name="orders",
        types=("order.placed",),
        prepare=newest,
        ...
    )

What the log holds stays as it was written, and so does the table `events`.
"""

from __future__ import annotations

import msgspec
import pyarrow as pa

from stratum_bus.errors import EncodeError
from stratum_bus.event import encode_value
from stratum_bus.schema import TYPES, upcast


def newest(batch: pa.Table) -> pa.Table:
    """The `prepare` of a projection: `batch` with upcast `data`, its `type` and `dataschema` too.

    An event that an upcaster fails on is quarantined. A type that the projector's process has not
    seen declared is left as it is.
    """
    names = ("type", "dataschema", "data")
    columns = [batch[name].to_pylist() for name in names]
    rows = [_newest(*values) for values in zip(*columns, strict=True)]
    for number, name in enumerate((*names, "refused")):
        values = pa.array([row[number] for row in rows], pa.string())
        if name in batch.column_names:
            batch = batch.set_column(batch.column_names.index(name), name, values)
        else:
            batch = batch.append_column(name, values)
    return batch


def _newest(
    type: str, dataschema: str | None, data: str | None
) -> tuple[str, str | None, str | None, str | None]:
    """Type, dataschema and data as of today, and why they could not be had."""
    known = TYPES.get(type)
    if known is None or data is None:
        return type, dataschema, data, None
    version = known.version_of(dataschema)
    if version >= known.version:
        return known.name, dataschema, data, None
    try:
        value = upcast(known, msgspec.json.decode(data), version)
        return known.name, known.schema_uri(), encode_value(value, "$.data").decode(), None
    except (msgspec.MsgspecError, EncodeError, RecursionError) as error:
        return type, dataschema, data, str(error)
