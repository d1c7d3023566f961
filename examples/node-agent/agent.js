// An agent in JavaScript: it counts the words of the texts that it is sent, answers, and remembers.
// What it does stands first, for you to change; the rest makes it take part as docs/protocol.md says.

import { createHash, randomUUID } from "node:crypto";
import { hostname } from "node:os";
import { setTimeout as sleep } from "node:timers/promises";
import { jetstream } from "@nats-io/jetstream";
import { connect, headers } from "@nats-io/transport-node";

class Rejected extends Error { reason = "rejected" } // no further attempt would mend it
const FOLLOWS = []; // types of topics, as in ["paper.published"]
// A handler for each type. It may be called again for the same event (after a kill, for one), but
// what it returns is stored once: an answer to the sender, and a note for the agent's memory.
const HANDLERS = {
  "text.written": async (data) => {
    if (typeof data?.text !== "string") throw new Rejected("data.text must be a string");
    const words = data.text.split(/\s+/).filter(Boolean).length;
    const note = { text: `a text of ${words} words`, data: { words }, tags: ["text"] };
    return { answer: { type: "text.counted", data: { words } }, note: { kind: "count", data: note } };
  },
};

const { STRATUM_NATS_URL = "nats://127.0.0.1:4222", STRATUM_AGENT: AGENT = "words" } = process.env;
const INSTANCE = process.env.STRATUM_INSTANCE || `1-${process.pid}-${randomUUID().slice(0, 8)}`;
const PASSING = [10077, 10158, 10163, 10167, 10176, 10210, 10211]; // the server asks to try again
const [started, asking, inHand] = [new Date(), new Set(), new Map()]; // by sequence, for the beats
let [state, progress, pending] = ["starting", 0, null];
const { host: servers, username: user, password: pass } = new URL(STRATUM_NATS_URL);
const nats = await connect({
  servers, user, pass, name: `agent ${AGENT}`, maxReconnectAttempts: -1, waitOnFirstConnect: true,
  inboxPrefix: `_INBOX_${AGENT}`, reconnectTimeWait: 200, // for permissions; 2 s of silence are death
});

// A lost server is waited for; and what was asked when the connection broke nobody answers any more.
const insist = (on) => on().catch((e) => (e.code > 0 ? Promise.reject(e) : sleep(500).then(() => insist(on))));
const unlessLost = (asked) => new Promise((resolve, lose) => {
  asking.add(lose);
  asked.then(resolve, lose).finally(() => asking.delete(lose));
});
const get = (what) => insist(() => unlessLost(nats.request(`$JS.API.DIRECT.GET.${what}`)));
async function ask(subject, body, headers) {
  const { error, ...rest } = (await unlessLost(nats.request(subject, body, { headers, timeout: 5000 }))).json();
  if (error) throw Object.assign(new Error(error.description), { code: error.err_code });
  return rest;
}

// Events: written as envelopes, read with and without. What is large is a blob.
const envelope = (id, type, data, more = {}) =>
  ({ specversion: "1.0", id, source: `/agents/${AGENT}`, type, time: new Date(), ...more, data });
function read(m) {
  const tokens = m.subject.split("."); // inbox.<to>.<from>.<type> or topic.<from>.<type>
  const [from, ...type] = tokens.slice(tokens[0] === "inbox" ? 2 : 1);
  const place = { from, tail: type.join(".") };
  const bare = { id: m.headers?.get("Nats-Msg-Id") || `LOG-${m.seq}`, type: place.tail, ...place };
  try {
    const body = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(m.data));
    if (body?.specversion === undefined) return { ...bare, data: body };
    const isWhole = [body.id, body.source, body.type].every((each) => each && typeof each === "string");
    if (isWhole) return { ...body, ...place };
    throw new Error("id, source or type is missing");
  } catch (error) {
    return { ...bare, unreadable: Object.assign(error, { reason: "unreadable" }) };
  }
}
async function blob(digest) {
  const found = await get(`BLOBS.blob.${digest}`);
  const chunks = found.headers?.get("Stratum-Blob") === "manifest" && found.json().chunks;
  const bytes = Buffer.concat(chunks ? await Promise.all(chunks.map(blob)) : [found.data]);
  if (createHash("sha256").update(bytes).digest("hex") === digest) return bytes;
  throw new Error(`there is no blob ${digest}`);
}

// Runs: what came of one event. Their ids follow from the events', and their journals take one entry,
// in one atomic batch with all that is sent and noted: it is there once, whoever tries, how often ever.
function runId(event) {
  const digest = createHash("sha256").update(`${AGENT}\0${event}`).digest("hex").slice(0, 30);
  const base32 = BigInt(`0x${digest}`).toString(32).padStart(24, "0");
  return "r" + base32.replace(/./g, (c) => "abcdefghijklmnopqrstuvwxyz234567"[parseInt(c, 32)]);
}
const hasEnded = async (run) => (await get(`LOG.run.${AGENT}.${run}`)).data.length > 0;
async function end(m, event, kind, said, effects) {
  const run = runId(event.id);
  const caused = { runid: run, causationid: event.id, correlationid: event.correlationid ?? event.id };
  const events = effects.map(([, type, data], i) => envelope(`${run}-${i + 1}`, type, data, caused));
  const batch = effects.map(([subject], i) => ({ subject, event: events[i] }));
  said.origin = { stream: "LOG", sequence: m.seq, id: event.id, type: event.type, handler: event.type };
  said.effects = effects.map(([subject, type], i) => ({ n: `${i + 1}`, subject, type }));
  Object.assign(said, { holder: `LOG-${m.seq}`, delivery: m.info.deliveryCount, instance: INSTANCE });
  const entry = envelope(`${run}-end`, `stratum.run.${kind}`, said, caused);
  batch.push({ subject: `run.${AGENT}.${run}`, event: entry, expected: 0 });
  for (let put = commit, pause = 0; ; put = store, pause = Math.min(2 * pause + 200, 5000)) {
    try {
      return await put(batch);
    } catch (error) {
      if (await hasEnded(run)) return; // by an earlier delivery, or only the answer was lost
      const passes = error.code ? PASSING.includes(error.code) : !error.name.startsWith("Invalid");
      if (put === store && !passes) throw error;
      console.error(`${AGENT}: ${run} waits to be stored: ${error.message}`);
      await unlessLost(sleep(pause)).catch(() => {});
    }
  }
}

// Those that wait share a batch, for each costs two fsyncs; where one is refused, each tries alone.
let [turn, waiting] = [Promise.resolve(), []];
function commit(batch) {
  if (!waiting.length) turn = turn.catch(() => {}).then(() => store(waiting.splice(0)));
  waiting.push(...batch);
  return turn;
}
async function store(batch, id = randomUUID(), last = batch.length - 1) {
  for (const [i, { subject, event, expected }] of batch.entries()) {
    const h = headers();
    h.set("Content-Type", "application/cloudevents+json");
    h.set("Nats-Msg-Id", event.id);
    h.set("Nats-Batch-Id", id);
    h.set("Nats-Batch-Sequence", `${i + 1}`);
    if (expected !== undefined) h.set("Nats-Expected-Last-Subject-Sequence", `${expected}`);
    if (i === last) h.set("Nats-Batch-Commit", "1");
    if (i < last) nats.publish(subject, JSON.stringify(event), { headers: h });
    else await ask(subject, JSON.stringify(event), h);
  }
}

// Messages: handled and acknowledged, delivered again later, or put aside as dead letters.
async function work(m) {
  if (inHand.has(m.seq)) return; // the server took it for lost, but it is here
  const [event, attempt] = [read(m), m.info.deliveryCount];
  const held = { sequence: m.seq, subject: m.subject, event: event.id, run: runId(event.id), attempt };
  inHand.set(m.seq, { m, held: { ...held, since: new Date() } });
  pending = m.info.pending;
  try {
    await handle(m, event, held.run).then(() => m.ack());
  } catch (error) {
    console.error(`${AGENT}: attempt ${attempt} at ${event.id}: ${error.message}`);
    if (!error.reason && attempt < 5) m.nak(500 * 2 ** attempt);
    else await bury(m, event, error).then(() => m.term(error.message), () => m.nak(5000));
  }
  if (inHand.delete(m.seq)) progress += 1;
}
async function handle(m, event, run) {
  if (event.unreadable) throw event.unreadable;
  const isOurs = !m.subject.startsWith("control.") && !event.torun && Object.hasOwn(HANDLERS, event.type);
  if (!isOurs || (m.info.deliveryCount > 1 && (await hasEnded(run)))) return;
  if (event.dataref) event.data = JSON.parse(await blob(event.dataref.slice("blob:".length)));
  const { answer, note } = await HANDLERS[event.type](event.data, event);
  const effects = [[`inbox.${event.from}.${AGENT}.${answer.type}`, answer.type, answer.data]];
  if (note) effects.push([`memory.${AGENT}.${note.kind}`, "stratum.memory.noted", note.data]);
  await end(m, event, "completed", { name: "end", result: answer.data }, effects);
}
function bury(m, event, { name, message, reason = "failed" }) {
  const origin = { stream: "LOG", sequence: m.seq, subject: m.subject, id: event.id };
  const letter = { agent: AGENT, reason, error: message, attempts: m.info.deliveryCount, origin };
  const effect = [`dead.${AGENT}.${event.tail}`, "stratum.dead.lettered", letter];
  return end(m, event, "failed", { error: { type: name, message } }, [effect]);
}

// Living: heartbeats; others of our name; what one that was killed had in hand, or a lost server.
setInterval(() => inHand.forEach(({ m }) => m.working()), 10_000);
setInterval(beat, 500);
function beat() {
  const held = [...inHand.values()].map((each) => each.held);
  const event = envelope(randomUUID(), "stratum.health.beat", {
    name: AGENT, instance: INSTANCE, pid: process.pid, host: hostname(), every_seconds: 0.5, progress, pending,
    kind: "agent", started, state: state === "idle" && held.length ? "working" : state, holds: held.length,
    version: `node ${process.version}`, resident_bytes: process.memoryUsage.rss(), in_hand: held.slice(0, 64),
  });
  nats.publish(`health.${AGENT}.${INSTANCE}`, JSON.stringify(event));
}
const [alive, me] = [`alive.LOG.${AGENT}`, `${Date.now().toString(16).padStart(12, "0")}-${randomUUID()}`];
nats.subscribe(alive, { callback: (_, m) => m.respond(`${state.replace(/idle|stopping/, "working")} ${me}`) });
const filter_subjects = [`inbox.${AGENT}.>`, ...FOLLOWS.map((t) => `topic.*.${t}`), `control.${AGENT}.run.>`];
const config = { name: AGENT, durable_name: AGENT, filter_subjects, ack_policy: "explicit", ack_wait: 30e9 };
const asked = { stream_name: "LOG", config: { ...config, max_deliver: -1, max_ack_pending: 10_000 } };
const say = (verb, body) => ask(`$JS.API.CONSUMER.${verb}.LOG.${AGENT}`, body);
await say("CREATE", JSON.stringify(asked)).catch((e) => e.code && Promise.reject(e)); // or it was made for us
async function takeBack() {
  asking.forEach((lose) => lose(new Error("the connection broke")));
  const { num_ack_pending: count, ack_floor: floor, delivered } = await say("INFO");
  let isAlone = count > 0;
  for await (const answer of await nats.requestMany(alive, "", { strategy: "timer", maxWait: 50 })) {
    const [how, who] = answer.string().split(" ");
    if (who !== me && (how === "working" || who < me)) isAlone = false;
  }
  for (let s = floor.stream_seq + 1; isAlone && s <= delivered.stream_seq; s++)
    if (!inHand.has(s)) nats.publish(`$JS.ACK.LOG.${AGENT}.1.${s}.${floor.consumer_seq + 1}.0.0`, "-NAK");
}
(async () => {
  for await (const { type } of nats.status()) if (type === "reconnect") insist(takeBack).catch(console.error);
})();
await insist(takeBack);
const consumer = await insist(() => jetstream(nats).consumers.get("LOG", AGENT));
const messages = await consumer.consume({ max_messages: 64, bind: true }); // asks anew without delay
for (const name of ["SIGTERM", "SIGINT"]) process.once(name, () => ((state = "stopping"), messages.stop()));
state = "idle";
for await (const m of messages) void work(m);
while (inHand.size) await sleep(10);
await nats.drain();
process.exit(state === "stopping" ? 0 : 1);
