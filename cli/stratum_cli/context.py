"""What a command works with: the settings, the server it talks to, and its output."""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cached_property
from pathlib import Path

from msgspec import Struct

from stratum_bus import config as configs
from stratum_bus.bus import Bus, connect
from stratum_bus.config import Config
from stratum_bus.data_dir import locate
from stratum_cli.failure import NoServer
from stratum_cli.output import Output


class Options(Struct, frozen=True):
    """The options that every command takes."""

    config: str | None = None
    data_dir: str | None = None
    nats_url: str | None = None
    json: bool = False
    debug: bool = False


class Cli:
    """The surroundings of one command."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.out = Output(json=options.json)
        # Without a handler Python prints warnings by itself, beside the one line of the error.
        logging.getLogger("stratum").addHandler(logging.NullHandler())
        logging.getLogger("nats").setLevel(logging.CRITICAL)
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)
        if options.debug:
            logging.basicConfig(level=logging.DEBUG, format="%(asctime)s %(name)s %(message)s")

    @cached_property
    def config(self) -> Config:
        """The settings, `--data-dir` and `--nats-url` put in. Raises ConfigError."""
        environ = dict(os.environ)
        if self.options.data_dir:
            environ["STRATUM_DATA_DIR"] = self.options.data_dir
        if self.options.nats_url:
            environ["STRATUM_NATS_URL"] = self.options.nats_url
        return configs.load(self.options.config, environ)

    @property
    def data_dir(self) -> Path:
        return Path(self.config.server.data_dir)

    def url(self) -> str:
        """The server: the one that was named, else what runs on the data folder.

        Raises NoServer, ConfigError.
        """
        if self.config.server.url:
            return self.config.server.url
        if running := locate(self.data_dir):
            return running.url
        raise NoServer(str(self.data_dir))

    @asynccontextmanager
    async def bus(self) -> AsyncIterator[Bus]:
        """A bus on the server. Raises NoServer, ConnectionLost, ConfigError."""
        async with connect(self.url(), name="stratum") as bus:
            yield bus
