"""A gateway as users run it, in a process of its own, and what speaks HTTP to it."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

START_SECONDS = 40.0
ANSWER_SECONDS = 40.0
CLOUDEVENT = "application/cloudevents+json"
BATCH = "application/cloudevents-batch+json"


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def sequences(self) -> list[int]:
        assert self.status == 202, self
        return [each["sequence"] for each in self.json["events"]]


class Client:
    """One connection that is kept open; it connects again after a failure."""

    def __init__(self, port: int, token: str = "") -> None:
        self._http = http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWER_SECONDS)
        self._token = token

    def ask(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        given = {"Authorization": f"Bearer {self._token}"} if self._token else {}
        given.update(headers or {})
        content = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        try:
            self._http.request(method, path, content, given)
            answer = self._http.getresponse()
            read = answer.read()
        except (OSError, http.client.HTTPException):
            self._http.close()
            raise
        return Answer(answer.status, {k.lower(): v for k, v in answer.getheaders()}, read)

    def post(self, path: str, body: Any, kind: str = CLOUDEVENT, **headers: str) -> Answer:
        return self.ask("POST", path, body, {"Content-Type": kind, **headers})

    def close(self) -> None:
        self._http.close()


class Told(NamedTuple):
    """One event of a stream."""

    id: int
    name: str
    data: Any


class Stream:
    """A stream of events that is open, read line by line."""

    def __init__(self, port: int, path: str, token: str, last: int | None = None) -> None:
        self._http = http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWER_SECONDS)
        headers = {"Authorization": f"Bearer {token}"}
        if last is not None:
            headers["Last-Event-ID"] = str(last)
        self._http.request("GET", path, headers=headers)
        self.answer = self._http.getresponse()
        assert self.answer.status == 200, self.answer.read()

    def events(self, count: int) -> list[Told]:
        """So many, or fewer where it ends before."""
        found: list[Told] = []
        fields: dict[str, str] = {}
        while len(found) < count:
            try:
                line = self.answer.readline()
            except (OSError, http.client.HTTPException):
                return found
            if not line:
                return found
            name, _, value = line.decode().rstrip("\n").partition(": ")
            if name:
                fields[name] = value
            elif "data" in fields:
                data = json.loads(fields["data"])
                found.append(Told(int(fields["id"]), fields.get("event", "message"), data))
                fields = {}
        return found

    def close(self) -> None:
        self.answer.close()
        self._http.close()


class Gateway:
    """`stratum gateway` on the server at `url`, with this `[gateway]` section."""

    def __init__(self, folder: Path, url: str, settings: str, port: int = 0) -> None:
        folder.mkdir(exist_ok=True)
        (folder / "stratum.toml").write_text(f"[gateway]\n{settings}")
        self._folder, self._url = folder, url
        self.port = port
        self.start()

    def start(self) -> None:
        """Also again, on the same port, after it was killed."""
        environ = {name: value for name, value in os.environ.items() if "STRATUM_" not in name}
        log, options = self._folder / "log", ("--nats-url", self._url)
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "stratum_cli", *options, "gateway", "--port", str(self.port)],
                cwd=self._folder, env=environ, stdout=output, stderr=output,
            )  # fmt: skip
        deadline = time.monotonic() + START_SECONDS
        while not (found := re.search(r"listening at http://127.0.0.1:(\d+)\n", log.read_text())):
            assert self.process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, "it does not listen"
            time.sleep(0.02)
        self.port = int(found[1])
        self.wait_ready()

    def wait_ready(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while self.get("/readyz").status != 200:
            assert time.monotonic() < deadline, self.get("/readyz")
            time.sleep(0.02)

    def get(self, path: str) -> Answer:
        client = Client(self.port)
        try:
            return client.ask("GET", path)
        finally:
            client.close()

    def metric(self, name: str) -> float:
        page = self.get("/metrics").body.decode()
        return float(page.partition(f"\nstratum_gateway_{name} ")[2].split("\n")[0])

    def kill(self) -> None:
        """kill -9."""
        self.process.kill()
        self.process.wait()

    def terminate(self) -> int:
        """SIGTERM; its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(START_SECONDS)

    @property
    def log(self) -> str:
        return (self._folder / "log").read_text()

    @property
    def resident_bytes(self) -> int:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(r"VmRSS:\s+(\d+) kB", status)
        assert found
        return int(found[1]) * 1024


@contextmanager
def gateway(folder: Path, url: str, settings: str) -> Iterator[Gateway]:
    started = Gateway(folder, url, settings)
    try:
        yield started
    finally:
        with suppress(ProcessLookupError):
            started.process.kill()
        started.process.wait()


def token(name: str, settings: str) -> str:
    """The section of a token whose secret is `secret(name)`."""
    return f'[gateway.tokens.{name}]\nsecret = "{secret(name)}"\n{settings}\n'


def secret(name: str) -> str:
    return f"secret-of-the-{name}-0123456789"
