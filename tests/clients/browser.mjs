// Chromium, as the machine has it.

import { chromium } from "playwright-core";

/** Opens a page, lets `use` have it, and closes everything. Errors on the page are thrown. */
export async function withPage(path, use) {
  const browser = await chromium.launch({
    executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
    // Containers run as root, and have no GPU.
    args: ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync"],
  });
  try {
    const context = await browser.newContext();
    await context.grantPermissions(["clipboard-read", "clipboard-write"], { origin: process.env.TIDEWIRE });
    const page = await context.newPage();
    const problems = [];
    const elsewhere = [];
    page.on("pageerror", (error) => problems.push(error.message));
    page.on("request", (request) => {
      const url = request.url();
      if (!url.startsWith(process.env.TIDEWIRE) && !/^(data|blob):/.test(url)) elsewhere.push(url);
    });
    await page.goto(process.env.TIDEWIRE + path);
    await use(page);
    if (problems.length || elsewhere.length) throw new Error(JSON.stringify({ problems, elsewhere }));
  } finally {
    await browser.close();
  }
}
