// Classifies texts with a bundle and transformers.js, in browsers and Node.

/**
 * Loads the model; resolves to the function that classifies a text.
 * @param {object} library the namespace of `import * as library from "@huggingface/transformers"`
 * @param {string} root the folder of model/: a path ending in / (Node) or a URL (browsers)
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
  const encode = encoder(tokenizer, manifest.max_length);

  /** Resolves to {heads: {HEAD: answer}, scores: {HEAD: [{label, score, threshold, applies}]}, tokens, ms}. */
  return async function classify(text) {
    const start = performance.now();
    const ids = encode(text);
    const shape = [1, Math.max(1, ids.length)];
    const cells = ids.length ? ids : [manifest.pad_token_id];
    const tensor = (value) => new Tensor("int64", BigInt64Array.from(cells, value), shape);
    const outputs = await model({
      input_ids: tensor((id) => BigInt(id)),
      attention_mask: tensor(() => (ids.length ? 1n : 0n)),
      token_type_ids: tensor(() => 0n),
    });
    const scores = {};
    const heads = {};
    for (const head of manifest.heads) {
      const logits = Array.from(outputs[head.output].data);
      scores[head.name] = ranked(head, logits);
      heads[head.name] = answer(head, scores[head.name], confidence(head, logits));
    }
    return { heads, scores, tokens: ids.length, ms: performance.now() - start };
  };
}

/** The score by which a single_label head abstains: the probability of its answer, or the energy. */
export function confidence(head, logits) {
  const scaled = logits.map((logit) => logit / head.temperature);
  const max = Math.max(...scaled);
  const sum = scaled.reduce((total, value) => total + Math.exp(value - max), 0);
  return head.abstain?.score === "energy" ? max + Math.log(sum) : 1 / sum;
}

/** Whether a score reaches a threshold; none reaches 1, though a score may round to it. */
const reaches = (score, threshold) => score >= threshold && threshold < 1;

/** The labels of a head, best first, with calibrated scores, thresholds, and whether they apply. */
export function ranked(head, logits) {
  const scaled = logits.map((logit) => logit / head.temperature);
  const single = head.kind === "single_label";
  const sure = !head.abstain || confidence(head, logits) >= head.abstain.threshold;
  let scores;
  if (single) {
    const max = Math.max(...scaled);
    const powers = scaled.map((value) => Math.exp(value - max));
    const sum = powers.reduce((total, power) => total + power, 0);
    scores = powers.map((power) => power / sum);
  } else {
    scores = scaled.map((value) => 1 / (1 + Math.exp(-value)));
  }
  const order = logits.map((_, label) => label).sort((a, b) => logits[b] - logits[a] || a - b);
  return order.map((label, rank) => ({
    label: head.label_type === "integer" ? Number(head.labels[label]) : head.labels[label],
    score: scores[label],
    threshold: single ? null : (head.thresholds?.[label] ?? 0.5),
    applies: single ? rank === 0 && sure : reaches(scores[label], head.thresholds?.[label] ?? 0.5),
  }));
}

/**
 * The answer in the format of the Python runtime: the best label, or the list of labels that apply.
 * Where a single_label head abstains, the label is null and the score is `confidence`.
 */
export function answer(head, labels, confidence) {
  const applying = labels.filter((each) => each.applies).map(({ label, score }) => ({ label, score }));
  return head.kind === "single_label" ? (applying[0] ?? { label: null, score: confidence }) : applying;
}

// White space and characters of no width, which training texts have at neither end.
const ENDS = /^[\s\x1c-\x1f\x85\u200b-\u200f\u2060]+|[\s\x1c-\x1f\x85\u200b-\u200f\u2060]+$/g;

/** The text as the Python runtime tokenises it. */
export function strip(text) {
  return text.replace(ENDS, "");
}

// transformers.js drops the closing special tokens of truncated texts; this function keeps them.
function encoder(tokenizer, maxLength) {
  const bare = { add_special_tokens: false };
  const [whole, word] = [tokenizer.encode("a"), tokenizer.encode("a", bare)];
  const start = Math.max(0, whole.findIndex((_, at) => word.every((id, i) => whole[at + i] === id)));
  const [before, after] = [whole.slice(0, start), whole.slice(start + word.length)];
  const room = maxLength - before.length - after.length;
  return (unstripped) => {
    const text = strip(unstripped);
    const ids = tokenizer.encode(text);
    return ids.length <= maxLength ? ids : [...before, ...tokenizer.encode(text, bare).slice(0, room), ...after];
  };
}
