// Classify texts in a real Chromium, on the page that `distill export --target transformers-js` wrote.
//     node benchmarks/readers_browser.mjs NODE_MODULES CHROMIUM URL [PICTURE LIGHT_OR_DARK]  < texts.json
// NODE_MODULES holds playwright-core. Prints {answers, shown, outside}: what the page's own function
// answered to each text, what the page showed for the last one, and every request that left the page's folder.
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";

const [modules, executablePath, url, picture, colorScheme = "light"] = process.argv.slice(2);
const { chromium } = createRequire(join(resolve(modules), "x.js"))("playwright-core");
const texts = JSON.parse(readFileSync(0, "utf8"));
const profile = mkdtempSync(join(tmpdir(), "chromium-"));
const args = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"];
args.push("--disable-background-networking", "--disable-component-update", "--disable-sync");
const options = { executablePath, args, headless: true, colorScheme, viewport: { width: 1200, height: 900 } };
const browser = await chromium.launchPersistentContext(profile, options);
try {
  const outside = [];
  await browser.route("**/*", (route) => {
    const asked = route.request().url();
    if (asked.startsWith(url) || asked.startsWith("data:")) return route.continue();
    outside.push(asked);
    return route.abort();
  });
  const page = await browser.newPage();
  const faults = [];
  page.on("pageerror", (error) => faults.push(error.message));
  page.on("console", (message) => message.type() === "error" && faults.push(message.text()));
  await page.goto(url);
  const answers = await page.evaluate(async (given) => {
    const { ready } = await import("./playground.js");
    const classify = await ready;
    const found = [];
    for (const text of given) {
      const { heads, ms } = await classify(text);
      found.push({ ...heads, ms });
    }
    return found;
  }, texts);
  await page.fill("#text", texts.at(-1) ?? "");
  await page.waitForFunction(() => document.getElementById("status").textContent !== "");
  await page.waitForTimeout(1000);
  const shown = await page.textContent("#status");
  if (picture) await page.screenshot({ path: picture, fullPage: true });
  console.log(JSON.stringify({ answers, shown, outside, faults }));
} finally {
  await browser.close();
  rmSync(profile, { recursive: true, force: true });
}
