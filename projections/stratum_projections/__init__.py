"""Events into tables: projections, the projector that keeps them, and SQL on what it keeps."""

from stratum_projections.here import query
from stratum_projections.projection import Projection, Step
from stratum_projections.query import Answer, ask, query_file, stream
from stratum_projections.runner import run
from stratum_projections.select import open_read_only
from stratum_projections.views import SHIPPED

__all__ = [
    "SHIPPED",
    "Answer",
    "Projection",
    "Step",
    "ask",
    "open_read_only",
    "query",
    "query_file",
    "run",
    "stream",
]
