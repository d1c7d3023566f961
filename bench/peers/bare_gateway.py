"""The least that takes CloudEvents over HTTP: Starlette, and one awaited nats-py publish a post.

As `python bare_gateway.py NATS-URL`: no tokens, no limits, no ids beyond the dedupe window.
"""

from __future__ import annotations

import json
import socket
import sys

import nats
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route


def app(url: str) -> Starlette:
    connected: list[nats.js.JetStreamContext] = []

    async def post(request: Request) -> JSONResponse:
        if not connected:
            connected.append((await nats.connect(url)).jetstream())
        payload = await request.body()
        event = json.loads(payload)
        to = f"inbox.{request.path_params['to']}.bench.{event['type']}"
        headers = {"Nats-Msg-Id": event["id"], "Content-Type": "application/cloudevents+json"}
        ack = await connected[0].publish(to, payload, headers=headers)
        return JSONResponse({"id": event["id"], "sequence": ack.seq}, 202)

    return Starlette(routes=[Route("/inbox/{to}", post, methods=["POST"])])


if __name__ == "__main__":
    listener = socket.create_server(("127.0.0.1", 0), backlog=2048)
    print(f"listening at http://127.0.0.1:{listener.getsockname()[1]}", file=sys.stderr, flush=True)
    config = uvicorn.Config(
        app(sys.argv[1]), http="httptools", ws="none", lifespan="off", log_config=None,
        access_log=False,
    )  # fmt: skip
    uvicorn.Server(config).run(sockets=[listener])
