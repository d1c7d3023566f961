"""The agent `billing`, on a bare socket: asks, notes, publishes, and answers what it is asked.

    python billing.py HOST PORT

It prints each event that it handles as a line of JSON and ends with the first of type `stop`.
"""
# mypy: ignore-errors

import json
import sys
import uuid

from raw import Nats

nats = Nats(sys.argv[1], int(sys.argv[2]))


def envelope(type, data, **attributes):
    about = {"specversion": "1.0", "id": str(uuid.uuid4()), "source": "/agents/billing"}
    return {**about, "type": type, **attributes, "data": data}


def publish(subject, event):
    headers = {"Content-Type": "application/cloudevents+json", "Nats-Msg-Id": event["id"]}
    answer = nats.request(subject, json.dumps(event).encode(), headers)
    assert "seq" in answer, answer


# Bare JSON is enough to ask; the reader takes sender and type from the subject.
asked = nats.request("inbox.research.billing.question", b'{"q": "raw"}', {"Nats-Msg-Id": "raw-1"})
again = nats.request("inbox.research.billing.question", b'{"q": "raw"}', {"Nats-Msg-Id": "raw-1"})
assert again == {**asked, "duplicate": True}
publish("topic.billing.invoice.paid", envelope("invoice.paid", {"invoice": 7}))
nats.request("memory.billing.note", b'{"text": "raw was here", "tags": ["raw"], "score": 0.5}')

# Its inbox: a durable consumer with its name, and one message asked for at a time.
config = {"name": "billing", "durable_name": "billing", "ack_policy": "explicit"}
config |= {"filter_subjects": ["inbox.billing.>"], "ack_wait": 30_000_000_000}
body = {"stream_name": "LOG", "config": config}
created = nats.request("$JS.API.CONSUMER.CREATE.LOG.billing", json.dumps(body).encode())
assert "error" not in created, created

stopped = False
while not stopped:
    nats.publish(
        "$JS.API.CONSUMER.MSG.NEXT.LOG.billing", b'{"batch": 1}', reply=f"{nats.inbox}.next"
    )
    subject, ack, head, payload = nats.receive()
    event = json.loads(payload)
    sender = subject.split(".")[2]
    stopped = event["type"] == "stop"
    print(json.dumps({"subject": subject, **event}), flush=True)
    if event["type"] == "later" and ".1." == ack[len("$JS.ACK.LOG.billing") :][:3]:
        nats.publish(ack, b'-NAK {"delay": 10000000}')  # 10 ms, in nanoseconds
        continue
    if event["type"] == "question":
        answer = envelope("answer", {"of": event["data"]}, causationid=event["id"])
        publish(f"inbox.{sender}.billing.answer", answer)
    nats.publish(ack, b"+ACK")
nats.publish("ping")
nats.write(b"PING")
assert nats.incoming.readline() == b"PONG\r\n"  # the server has the last ack
