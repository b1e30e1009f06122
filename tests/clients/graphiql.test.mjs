// GraphiQL, served by the program, in a browser that may speak to nobody but the server.

import assert from "node:assert/strict";
import { test } from "node:test";
import { withPage } from "./browser.mjs";

test("GraphiQL runs a document", () =>
  withPage("/graphiql/?query=%7B%20task%20%7B%20paginationInfo%20%7B%20total%20%7D%20%7D%20%7D", async (page) => {
    // The editor comes up after the page, and only then knows what to run.
    await page.waitForSelector(".graphiql-query-editor .view-line:has-text('paginationInfo')");
    await page.click(".graphiql-execute-button");
    await page.waitForFunction(() => /"total":\s*60/.test(document.querySelector(".graphiql-response")?.innerText.replaceAll("\u00a0", " ") ?? ""));
    assert.ok(await page.isVisible(".graphiql-container"));
  }));
