from stratum_bus.bus import Bus, connect

__all__ = ["Bus", "connect"]
