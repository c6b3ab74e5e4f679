// A bundle read by transformers.js: texts in, calibrated answers of every head out. In browsers and Node.

/**
 * @param {object} library what `import * as library from "@huggingface/transformers"` gives
 * @param {string} root the folder that holds model/: a path ending in / (Node) or a URL (browsers)
 * @param {object} manifest the parsed model/manifest.json
 */
export async function load(library, root, manifest) {
  const { AutoModel, AutoTokenizer, Tensor, env } = library;
  env.allowLocalModels = true;
  env.allowRemoteModels = false;
  env.localModelPath = root;
  const dtype = manifest.default_variant === "int8" ? "q8" : "fp32";
  const tokenizer = await AutoTokenizer.from_pretrained("model");
  const model = await AutoModel.from_pretrained("model", { dtype });
  const encode = reader(tokenizer, manifest.max_length);

  /** The answer to one text: {heads: {HEAD: answer}, scores: {HEAD: [{label, score, applies}]}, tokens, ms}. */
  return async function classify(text) {
    const begun = performance.now();
    const ids = encode(text);
    const shape = [1, Math.max(1, ids.length)];
    const cells = ids.length ? ids : [manifest.pad_token_id];
    const filled = (value) => new Tensor("int64", BigInt64Array.from(cells, value), shape);
    const outputs = await model({
      input_ids: filled((id) => BigInt(id)),
      attention_mask: filled(() => (ids.length ? 1n : 0n)),
      token_type_ids: filled(() => 0n),
    });
    const scores = {};
    const heads = {};
    for (const head of manifest.heads) {
      scores[head.name] = ranked(head, Array.from(outputs[head.output].data));
      heads[head.name] = answer(head, scores[head.name]);
    }
    return { heads, scores, tokens: ids.length, ms: performance.now() - begun };
  };
}

/** Every label of a head, best first, with its calibrated score and whether it applies. */
export function ranked(head, logits) {
  const scaled = logits.map((logit) => logit / head.temperature);
  const single = head.kind === "single_label";
  let scores;
  if (single) {
    const most = Math.max(...scaled);
    const powers = scaled.map((value) => Math.exp(value - most));
    const sum = powers.reduce((total, power) => total + power, 0);
    scores = powers.map((power) => power / sum);
  } else {
    scores = scaled.map((value) => 1 / (1 + Math.exp(-value)));
  }
  const order = logits.map((_, label) => label).sort((a, b) => logits[b] - logits[a] || a - b);
  return order.map((label, rank) => ({
    label: head.labels[label],
    score: scores[label],
    least: single ? null : (head.thresholds?.[label] ?? 0.5),
    applies: single ? rank === 0 : scores[label] >= (head.thresholds?.[label] ?? 0.5),
  }));
}

/** What the Python runtime answers: the best label, or the list of those that apply. */
export function answer(head, labels) {
  const found = labels.filter((each) => each.applies).map(({ label, score }) => ({ label, score }));
  return head.kind === "single_label" ? found[0] : found;
}

// transformers.js truncates by dropping the end, the closing special token with it; so the room is kept here.
function reader(tokenizer, longest) {
  const bare = { add_special_tokens: false };
  const [framed, word] = [tokenizer.encode("a"), tokenizer.encode("a", bare)];
  const start = Math.max(0, framed.findIndex((_, at) => word.every((id, i) => framed[at + i] === id)));
  const [before, after] = [framed.slice(0, start), framed.slice(start + word.length)];
  const room = longest - before.length - after.length;
  return (text) => {
    const whole = tokenizer.encode(text);
    return whole.length <= longest ? whole : [...before, ...tokenizer.encode(text, bare).slice(0, room), ...after];
  };
}
