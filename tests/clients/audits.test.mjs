// The server audits of graphql-http: what the GraphQL-over-HTTP specification asks, recommends and allows.

import assert from "node:assert/strict";
import { test } from "node:test";
import { serverAudits } from "graphql-http";
import { http } from "./support.mjs";

const audits = serverAudits({ url: http, fetchFn: fetch });

test("there are as many audits as were read", () => assert.equal(audits.length, 61));

for (const { id, name, fn } of audits) {
  test(`${id} ${name}`, async () => {
    const { status, reason } = await fn();
    assert.equal(status, "ok", reason);
  });
}
