// The page shows the scores of every head while the user types.
import { load } from "./classifier.js";

const SHOWN = 6; // labels per head before "show all"
const LATENCIES = 50; // of the median
const at = (id) => document.getElementById(id);
const root = new URL("./", import.meta.url);
const numbers = new Intl.NumberFormat(undefined, { maximumFractionDigits: 1 });

theme();
/** Resolves to the function that classifies a text. */
export const ready = start().catch((error) => {
  at("about").textContent = "";
  fail(`The page could not start: ${error.message ?? error}`);
  throw error;
});

async function start() {
  const response = await fetch(new URL("model/manifest.json", root));
  if (!response.ok) throw new Error("model/manifest.json is missing");
  const manifest = await response.json();
  const bytes = manifest.files[manifest.variants[manifest.default_variant]].bytes;
  document.title = `${manifest.name} · playground`;
  at("name").textContent = manifest.name;
  at("size").textContent = `${numbers.format(bytes / 1e6)} MB ${manifest.default_variant}`;
  const library = await import("./transformers/transformers.web.min.js").catch(() => {
    throw new Error("the folder transformers/ is missing; export again with --transformers-js");
  });
  const { onnx } = library.env.backends;
  onnx.wasm.wasmPaths = Object.fromEntries(
    ["mjs", "wasm"].map((end) => [end, new URL(`transformers/ort-wasm-simd-threaded.${end}`, root).href]),
  );
  library.env.useWasmCache = false; // the cache would load the runtime from a blob URL
  library.env.useBrowserCache = false;
  const classify = await load(library, root.pathname, manifest);
  await classify("");
  const heads = manifest.heads.map(card);
  const labels = manifest.heads.reduce((sum, head) => sum + head.labels.length, 0);
  at("about").textContent = `${count(heads.length, "head")}, ${count(labels, "label")}, one small network, in your browser.`;
  listen(classify, heads, manifest);
  return classify;
}

/** Classifies the text after every change; changes during a run trigger one further run. */
function listen(classify, heads, manifest) {
  const text = at("text");
  const latencies = [];
  let busy = false;
  let again = false;
  let timer;
  const update = async () => {
    if (busy) {
      again = true;
      return;
    }
    busy = true;
    const { scores, tokens, ms } = await classify(text.value).catch((error) => {
      fail(`This text could not be classified: ${error.message ?? error}`);
      throw error;
    });
    for (const head of heads) head.show(scores[head.name]);
    latencies.push(ms);
    if (latencies.length > LATENCIES) latencies.shift();
    const sorted = [...latencies].sort((a, b) => a - b);
    at("latency").textContent = `${numbers.format(ms)} ms`;
    at("median").textContent = `${numbers.format(sorted[Math.floor(sorted.length / 2)])} ms`;
    at("tokens").textContent = String(tokens);
    const full = tokens >= manifest.max_length;
    at("truncated").hidden = !full;
    at("truncated").textContent = full ? `Texts are truncated to ${manifest.max_length} tokens.` : "";
    clearTimeout(timer);
    timer = setTimeout(() => {
      at("status").textContent = heads.map((head) => head.summary()).join(" ");
    }, 900);
    busy = false;
    if (again) {
      again = false;
      update();
    }
  };
  const initial = new URLSearchParams(location.hash.slice(1)).get("text");
  if (initial !== null) text.value = initial;
  text.disabled = false;
  text.addEventListener("input", update);
  text.focus();
  update();
}

/** Creates the card of a head; `show` updates it with scores, best first. */
function card(head) {
  const multi = head.kind === "multi_label";
  const article = element("article", multi ? "multi" : "");
  const title = element("h2", "", head.name);
  const one = head.abstain ? `one of ${head.labels.length}, or none` : `one of ${head.labels.length}`;
  const kind = multi ? "labels at or above the mark apply" : one;
  const list = element("ol");
  article.append(title, element("p", "kind", kind), list);
  const limit = Math.min(SHOWN, head.labels.length);
  let all = false;
  let latest = [];
  const rows = head.labels.map(() => row(multi));
  list.append(...rows.slice(0, limit).map((each) => each.item));
  if (head.labels.length > limit) {
    const more = element("button", "", `Show all ${head.labels.length}`);
    more.type = "button";
    more.setAttribute("aria-expanded", "false");
    more.addEventListener("click", () => {
      all = !all;
      more.textContent = all ? `Show the best ${limit}` : `Show all ${head.labels.length}`;
      more.setAttribute("aria-expanded", String(all));
      list.replaceChildren(...rows.slice(0, all ? undefined : limit).map((each) => each.item));
    });
    article.append(more);
  }
  at("heads").append(article);
  return {
    name: head.name,
    show(scores) {
      latest = scores;
      scores.forEach((score, rank) => rows[rank].show(score));
    },
    summary() {
      const applying = latest.filter((each) => each.applies);
      return `${head.name}: ${applying.map((each) => `${each.label} ${percent(each.score)}`).join(", ") || "none"}.`;
    },
  };
}

function row(multi) {
  const item = element("li");
  const words = element("div", "words");
  const label = element("span", "label");
  const score = element("span", "score");
  const track = element("div", "track");
  const fill = element("div", "fill");
  const threshold = element("div", "threshold");
  words.append(label, score);
  track.append(fill);
  if (multi) track.append(threshold);
  item.append(words, track);
  return {
    item,
    show(entry) {
      label.textContent = entry.label;
      score.textContent = percent(entry.score);
      fill.style.width = `${entry.score * 100}%`;
      item.classList.toggle("applies", entry.applies);
      if (multi) {
        threshold.style.left = `${entry.threshold * 100}%`;
        track.title = `threshold ${percent(entry.threshold)}`;
      }
    },
  };
}

function fail(message) {
  at("error").textContent = message;
  at("error").hidden = false;
}

function theme() {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const chosen = () => localStorage.getItem("theme") ?? (dark.matches ? "dark" : "light");
  const apply = () => {
    document.documentElement.dataset.theme = chosen();
  };
  dark.addEventListener("change", apply);
  at("theme").addEventListener("click", () => {
    localStorage.setItem("theme", chosen() === "dark" ? "light" : "dark");
    apply();
  });
  apply();
}

function element(tag, name = "", text = "") {
  const created = document.createElement(tag);
  if (name) created.className = name;
  created.textContent = text;
  return created;
}

function count(number, word) {
  return `${number} ${word}${number === 1 ? "" : "s"}`;
}

function percent(share) {
  return `${(share * 100).toFixed(1)} %`;
}
