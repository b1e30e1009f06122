// graphql-ws, graphql-sse and fetch against a server that wants to know who they are.

import assert from "node:assert/strict";
import { createHmac } from "node:crypto";
import { test } from "node:test";
import { createClient as createSse } from "graphql-sse";
import { createClient as createWs } from "graphql-ws";
import WebSocket from "ws";
import { http, until, websocket } from "./support.mjs";

const LABELS = "subscription { labelChanges { sequence changes { node { name } } } }";
const now = () => Math.floor(Date.now() / 1000);

/** A token that lives for so many seconds. */
function token(seconds) {
  const part = (value) => Buffer.from(JSON.stringify(value)).toString("base64url");
  const signed = `${part({ alg: "HS256" })}.${part({ sub: "ada", aud: "tidewire", exp: now() + seconds })}`;
  return `${signed}.${createHmac("sha256", process.env.SECRET).update(signed).digest("base64url")}`;
}

const authorization = (seconds) => `Bearer ${token(seconds)}`;
const wsClient = (options) => createWs({ url: websocket, webSocketImpl: WebSocket, ...options });

test("fetch: 401 with a code, and 200 with a token", async () => {
  const ask = (headers) => fetch(`${http}?${new URLSearchParams({ query: "{ __typename }" })}`, { headers });
  const refused = await ask({});
  assert.equal(refused.status, 401);
  assert.equal(refused.headers.get("www-authenticate"), "Bearer");
  assert.equal((await refused.json()).errors[0].extensions.code, "UNAUTHENTICATED");
  assert.equal((await ask({ authorization: authorization(60) })).status, 200);
});

test("graphql-ws: a token ends, and the client comes back with another", async (t) => {
  const closed = [];
  let connections = 0;
  const client = wsClient({
    connectionParams: () => ({ authorization: authorization(connections === 0 ? 5 : 600) }),
    retryWait: async () => {},
    on: { connected: () => { connections += 1; }, closed: ({ code, reason }) => { closed.push([code, reason]); } },
  });
  t.after(() => client.dispose());
  const events = client.iterate({ query: LABELS });
  // The subscription begins anew on the second socket, without its user having done anything.
  let begun = 0;
  await until(events, ({ data }) => { begun += data.labelChanges.sequence === 0 ? 1 : 0; return begun === 2; });
  assert.equal(connections, 2);
  assert.deepEqual(closed, [[4403, "Token expired"]]);
});

test("graphql-ws: without a token the client gives up at once", async (t) => {
  let attempts = 0;
  const client = wsClient({ on: { connecting: () => { attempts += 1; } } });
  t.after(() => client.dispose());
  await assert.rejects(client.iterate({ query: LABELS }).next(), ({ code }) => code === 4401);
  assert.equal(attempts, 1);
});

test("graphql-ws: a pong answers the newer token in a ping", async (t) => {
  let socket;
  let pong;
  const ponged = new Promise((resolve) => { pong = resolve; });
  const client = wsClient({
    connectionParams: () => ({ authorization: authorization(30) }),
    on: { opened: (opened) => { socket = opened; }, pong: () => pong() },
  });
  t.after(() => client.dispose());
  const events = client.iterate({ query: LABELS });
  await events.next();
  socket.send(JSON.stringify({ type: "ping", payload: { authorization: authorization(600) } }));
  await ponged;
  await events.return();
});

test("graphql-sse: a token in the headers", async (t) => {
  const client = createSse({ url: http, retryAttempts: 0, headers: () => ({ authorization: authorization(60) }) });
  t.after(() => client.dispose());
  const events = client.iterate({ query: LABELS });
  assert.equal((await events.next()).value.data.labelChanges.sequence, 0);
  await events.return();
  const stranger = createSse({ url: http, retryAttempts: 0 });
  t.after(() => stranger.dispose());
  await assert.rejects(stranger.iterate({ query: LABELS }).next());
});
