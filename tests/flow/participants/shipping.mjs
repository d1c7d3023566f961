// The agent `shipping` in Node.js, with the official client: what billing.py does on a socket.
//
//     node shipping.mjs nats://HOST:PORT

import { randomUUID } from "node:crypto";
import { AckPolicy, jetstream, jetstreamManager } from "@nats-io/jetstream";
import { connect, headers } from "@nats-io/transport-node";

const nats = await connect({ servers: process.argv[2] });
const js = jetstream(nats);

const envelope = (type, data, attributes = {}) => ({
  specversion: "1.0",
  id: randomUUID(),
  source: "/agents/shipping",
  type,
  ...attributes,
  data,
});

const publish = async (subject, event) => {
  const h = headers();
  h.set("Content-Type", "application/cloudevents+json");
  return js.publish(subject, JSON.stringify(event), { msgID: event.id, headers: h });
};

await js.publish("inbox.research.shipping.question", '{"q": "node"}', { msgID: "node-1" });
const again = await js.publish("inbox.research.shipping.question", '{"q": "node"}', { msgID: "node-1" });
if (!again.duplicate) throw new Error("stored twice");
await publish("topic.shipping.parcel.sent", envelope("parcel.sent", { parcel: 7 }));
await js.publish("memory.shipping.note", '{"text": "node was here", "tags": ["node"], "score": 0.5}');

await (await jetstreamManager(nats)).consumers.add("LOG", {
  durable_name: "shipping",
  ack_policy: AckPolicy.Explicit,
  filter_subjects: ["inbox.shipping.>"],
});
const consumer = await js.consumers.get("LOG", "shipping");
for await (const message of await consumer.consume({ max_messages: 10 })) {
  const event = message.json();
  console.log(JSON.stringify({ subject: message.subject, ...event }));
  if (event.type === "later" && message.info.deliveryCount === 1) {
    message.nak(10);
    continue;
  }
  if (event.type === "question") {
    const sender = message.subject.split(".")[2];
    const answer = envelope("answer", { of: event.data }, { causationid: event.id });
    await publish(`inbox.${sender}.shipping.answer`, answer);
  }
  await message.ackAck();
  if (event.type === "stop") break;
}
await nats.drain();
