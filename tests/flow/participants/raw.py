"""A NATS client on a bare socket, with nothing but Python's standard library."""
# mypy: ignore-errors

import itertools
import json
import socket


class Nats:
    def __init__(self, host="127.0.0.1", port=4222, inbox="_INBOX", **login):
        self.socket = socket.create_connection((host, port), timeout=30)
        self.incoming = self.socket.makefile("rb")
        self.inbox, self.number = f"{inbox}.{id(self):x}", itertools.count(1)
        options = {"verbose": False, "headers": True, "no_responders": True, **login}
        self.write(f"CONNECT {json.dumps(options)}".encode())
        self.write(f"SUB {self.inbox}.* 1".encode())

    def write(self, line):
        self.socket.sendall(line + b"\r\n")

    def publish(self, subject, payload=b"", headers=None, reply=""):
        lines = [f"{name}: {value}\r\n" for name, value in (headers or {}).items()]
        head = ("NATS/1.0\r\n" + "".join(lines) + "\r\n").encode()
        size = f"{len(head)} {len(head) + len(payload)}"
        self.write(f"HPUB {subject} {reply} {size}\r\n".encode() + head + payload)

    def receive(self):
        """The next message: (subject, reply, status line and headers, payload)."""
        while line := self.incoming.readline():
            match line.split():
                case [b"PING"]:
                    self.write(b"PONG")
                case [b"-ERR", *_]:
                    raise ConnectionError(line.decode().strip())
                case [b"MSG", subject, _, *reply, total]:
                    payload = self.incoming.read(int(total) + 2)[:-2]
                    return subject.decode(), b"".join(reply).decode(), "", payload
                case [b"HMSG", subject, _, *reply, size, total]:
                    block = self.incoming.read(int(total) + 2)[:-2]
                    head, payload = block[: int(size)].decode(), block[int(size) :]
                    return subject.decode(), b"".join(reply).decode(), head, payload
        raise ConnectionError("the server closed the connection")

    def request(self, subject, payload=b"", headers=None):
        """Publish and return the answer, parsed; what JetStream stores is acknowledged so."""
        reply = f"{self.inbox}.{next(self.number)}"
        self.publish(subject, payload, headers, reply)
        while True:
            to, _, head, answer = self.receive()
            if to == reply:
                return json.loads(answer) if answer else head
