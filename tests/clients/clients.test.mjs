// fetch, graphql-ws and graphql-sse, as their users use them.

import assert from "node:assert/strict";
import { test } from "node:test";
import { createClient as createSse } from "graphql-sse";
import { createClient as createWs } from "graphql-ws";
import WebSocket from "ws";
import { addLabel, ask, http, until, websocket } from "./support.mjs";

const wsClient = (options) => createWs({ url: websocket, webSocketImpl: WebSocket, ...options });
const sseClient = () => createSse({ url: http, retryAttempts: 0 });

const LABELS = `subscription ($after: String) {
  labelChanges(after: $after) { cursor sequence upToDate resync changes { event operation node { id name } } }
}`;

test("fetch: a query by POST and by GET", async () => {
  const query = "{ task(pagination: { page: { page: 0, limit: 2 } }) { nodes { title project { name } assignee { name } label { nodes { name } } comment { nodes { body } } } } }";
  const posted = await ask(query);
  assert.equal(posted.task.nodes.length, 2);
  assert.ok(posted.task.nodes[0].project.name);
  const got = await fetch(`${http}?${new URLSearchParams({ query })}`, { headers: { accept: "application/graphql-response+json" } });
  assert.equal(got.status, 200);
  assert.match(got.headers.get("content-type"), /^application\/graphql-response\+json/);
  assert.deepEqual((await got.json()).data, posted);
});

test("fetch: what cannot be done is said by status and code", async () => {
  const mutation = await fetch(`${http}?${new URLSearchParams({ query: "mutation { labelDelete(filter: {}) }" })}`);
  assert.equal(mutation.status, 405);
  const unknown = await fetch(http, {
    method: "POST",
    headers: { "content-type": "application/json", accept: "application/graphql-response+json" },
    body: JSON.stringify({ query: "{ nothing }" }),
  });
  assert.equal(unknown.status, 400);
  const { errors } = await unknown.json();
  assert.ok(errors[0].extensions.code && errors[0].message.includes("nothing"));
});

/** A client that stops, while others write, and goes on where it was. */
async function resumes(iterate) {
  const name = `resumed ${Math.random()}`;
  let live = iterate({});
  // The first event comes at once and says where the subscription began.
  const seen = await until(live, ({ data }) => data.labelChanges.upToDate);
  await addLabel(`${name} 0`);
  seen.push(...(await until(live, ({ data }) => data.labelChanges.changes.some(({ node }) => node?.name === `${name} 0`))));
  await live.return();
  seen.forEach(({ data }, index) => assert.equal(data.labelChanges.sequence, index));
  const { cursor } = seen.at(-1).data.labelChanges;

  for (const index of [1, 2, 3]) await addLabel(`${name} ${index}`);
  live = iterate({ after: cursor });
  const missed = await until(live, ({ data }) => data.labelChanges.changes.some(({ node }) => node?.name === `${name} 3`));
  const names = missed.flatMap(({ data }) => data.labelChanges.changes.map(({ node }) => node.name));
  assert.deepEqual(names, [`${name} 1`, `${name} 2`, `${name} 3`]);
  assert.ok(missed.every(({ data }) => data.labelChanges.resync === null));
  await live.return();
}

for (const [name, create] of [["graphql-ws", wsClient], ["graphql-sse", sseClient]]) {
  test(`${name}: a subscription that resumes`, async (t) => {
    const client = create();
    t.after(() => client.dispose());
    await resumes((variables) => client.iterate({ query: LABELS, variables }));
  });
}

test("graphql-ws: queries, mutations and a live query over one socket", async (t) => {
  let sockets = 0;
  const client = wsClient({ lazy: true, on: { connected: () => { sockets += 1; } } });
  t.after(() => client.dispose());
  const live = client.iterate({
    query: `subscription { label(filters: { name: { eq: "over one socket" } }) { nodes { name color } } }`,
  });
  await until(live, ({ data }) => data.label.nodes.length === 0);
  const create = client.iterate({
    query: `mutation { labelCreateOne(data: { projectId: 1, name: "over one socket", color: "#111111" }) { id } }`,
  });
  const [{ data }] = await until(create, () => true);
  assert.ok(data.labelCreateOne.id);
  await until(live, ({ data }) => data.label.nodes[0]?.color === "#111111");
  const query = client.iterate({ query: "{ label { paginationInfo { total } } }" });
  assert.ok((await until(query, () => true))[0].data.label.paginationInfo.total > 0);
  await live.return();
  assert.equal(sockets, 1);
});

for (const [name, create] of [["graphql-ws", wsClient], ["graphql-sse", sseClient]]) {
  test(`${name}: a live query by patches`, async (t) => {
    const client = create();
    t.after(() => client.dispose());
    const prefix = `patched ${Math.random()}`;
    const live = client.iterate({
      query: `subscription ($prefix: String!) { labelLive(filters: { name: { starts_with: $prefix } }, orderBy: { name: ASC }) {
        sequence reset removals { id } upserts { index key { id } node { name } } } }`,
      variables: { prefix },
    });
    // As docs/PROTOCOL.md has it.
    let rows = [];
    const apply = ({ reset, removals, upserts }) => {
      if (reset) rows = [];
      const out = new Set([...removals, ...upserts.map(({ key }) => key)].map((key) => JSON.stringify(key)));
      rows = rows.filter(({ key }) => !out.has(JSON.stringify(key)));
      for (const { index, key, node } of upserts) rows.splice(index, 0, { key, node });
    };
    let sequence = 0;
    const reaches = (...names) => until(live, ({ data }) => {
      assert.equal(data.labelLive.sequence, sequence);
      sequence += 1;
      apply(data.labelLive);
      return rows.map(({ node }) => node.name.slice(prefix.length)).join() === names.join();
    });
    await reaches();
    const [c, a] = [await addLabel(`${prefix}c`), await addLabel(`${prefix}a`)];
    await reaches("a", "c");
    await ask("mutation ($id: Int, $name: String) { labelUpdate(data: { name: $name }, filter: { id: { eq: $id } }) { id } }", { id: a, name: `${prefix}d` });
    await reaches("c", "d");
    await ask("mutation ($id: Int) { labelDelete(filter: { id: { eq: $id } }) }", { id: c });
    await reaches("d");
    await live.return();
  });

  test(`${name}: a document that is wrong`, async (t) => {
    const client = create();
    t.after(() => client.dispose());
    const told = await new Promise((resolve) => {
      client.subscribe({ query: "subscription { nothing }" }, { next: resolve, error: resolve, complete: () => resolve("complete") });
    });
    assert.match(JSON.stringify(told), /nothing/);
  });
}

test("graphql-sse: a query is one event and the end", async (t) => {
  const client = sseClient();
  t.after(() => client.dispose());
  const query = client.iterate({ query: "{ label { paginationInfo { total } } }" });
  assert.ok((await query.next()).value.data.label.paginationInfo.total > 0);
  assert.equal((await query.next()).done, true);
});
