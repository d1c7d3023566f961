"""The health projector: from heartbeats, control events and positions to incidents and commands."""

from stratum_projections.health.incident import Finding, Incident
from stratum_projections.health.machine import Machine, replay

__all__ = ["Finding", "Incident", "Machine", "replay"]
