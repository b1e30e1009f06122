// The built-in page, in a browser that may speak to nobody but the server.

import assert from "node:assert/strict";
import { test } from "node:test";
import { withPage } from "./browser.mjs";
import { addLabel } from "./support.mjs";

test("the page runs a document", () =>
  withPage("/", async (page) => {
    await page.waitForFunction(() => document.querySelectorAll("#example option").length > 5);
    await page.fill("#document", "query ($limit: Int!) { task(pagination: { page: { page: 0, limit: $limit } }) { nodes { title } } }");
    await page.click("summary:has-text('Variables')");
    await page.fill("#variables", '{ "limit": 3 }');
    await page.click("#run");
    await page.waitForFunction(() => document.querySelector("#answer").textContent.startsWith("{"));
    assert.equal(JSON.parse(await page.textContent("#answer")).data.task.nodes.length, 3);
    await page.fill("#variables", "no");
    await page.click("#run");
    await page.waitForSelector("#answer:has-text('The variables are not JSON')");
  }));

test("the page runs a subscription", () =>
  withPage("/", async (page) => {
    await page.waitForFunction(() => document.querySelectorAll("#example option").length > 5);
    await page.fill("#document", "subscription { labelChanges { changes { operation node { name } } } }");
    await page.click("#run");
    await page.waitForSelector("#answer:has-text('labelChanges')");
    await addLabel("for a subscription");
    await page.waitForSelector("#answer:has-text('for a subscription')");
    await page.click("#stop");
    assert.equal(await page.isVisible("#stop"), false);
  }));

test("the page shows changes, and resumes after a cursor that was copied", () =>
  withPage("/", async (page) => {
    await page.waitForSelector("#state.live");
    await addLabel("before the cursor");
    await page.waitForSelector("#changes li:has-text('INSERT'):has-text('label')");
    await page.waitForFunction(() => document.querySelector("#cursor").value !== "");
    await page.click("#copy");
    await page.waitForSelector("#copy:has-text('Copied')");
    const cursor = await page.evaluate(() => navigator.clipboard.readText());
    assert.equal(cursor, await page.inputValue("#cursor"));

    await page.click("#pause");
    await page.waitForSelector("#state.down");
    await page.click("#clear");
    await addLabel("missed <b>one</b>");
    await addLabel("missed two");
    await page.fill("#cursor", cursor);
    await page.click("#resume button[type=submit]");
    await page.waitForFunction(() => document.querySelectorAll("#changes li").length === 2);
    await page.click("#changes li:last-child summary");
    // Text from a row is text.
    assert.match(await page.textContent("#changes li:last-child table"), /missed <b>one<\/b>/);
    assert.equal(await page.locator("#changes b").count(), 0);

    await page.fill("#cursor", "rubbish");
    await page.click("#resume button[type=submit]");
    await page.waitForSelector("#changes .note:has-text('malformed')");
  }));
