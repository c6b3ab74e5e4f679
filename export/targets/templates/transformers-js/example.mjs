// node example.mjs "where is my parcel?"   (after: npm install @huggingface/transformers)
// Without arguments it reads the texts from stdin, one per line. It prints one line of JSON per text.
import { readFile } from "node:fs/promises";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import * as library from "@huggingface/transformers";
import { load } from "./classifier.js";

const root = fileURLToPath(new URL("./", import.meta.url));
const manifest = JSON.parse(await readFile(`${root}model/manifest.json`, "utf8"));
const classify = await load(library, root, manifest);
const texts = process.argv.slice(2);
for await (const text of texts.length ? texts : createInterface({ input: process.stdin })) {
  const { heads } = await classify(text);
  console.log(JSON.stringify({ text, ...heads }));
}
