"""The classifier gives the same answers for single texts, batches and threads, and without torch."""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

import export
from export.bundle.files import write_bundle
from export.bundle.manifest import FP32, TOKENIZER, BundleError, Manifest
from export.runtime.benchmark import bench
from export.runtime.classifier import Classifier
from export.runtime.postprocess import Answers
from export.runtime.probabilities import probabilities, sigmoid, softmax

ROOT = Path(export.__file__).parents[1]
BLOCKED = "torch transformers datasets accelerate optimum evaluate onnx pydantic yaml"


def same(found: list[dict], expected: list[dict]) -> bool:
    """Whether two lists of answers agree, scores to 1e-6."""
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        for head in one:
            listed = [answer if isinstance(answer, list) else [answer] for answer in (one[head], other[head])]
            assert [x["label"] for x in listed[0]] == [x["label"] for x in listed[1]]
            scores = [[x["score"] for x in side] for side in listed]
            assert scores[0] == pytest.approx(scores[1], abs=1e-6)
    return True


def test_logits_match_the_network(
    classifier: Classifier, bundle: Path, texts: list[str], weights: dict[str, np.ndarray]
):
    tokenizer = Tokenizer.from_file(str(bundle / TOKENIZER))
    tokenizer.no_padding()
    tokenizer.enable_truncation(12)
    found = classifier.logits(texts)
    assert list(found) == ["intent", "flags"]
    assert [part.shape for part in found.values()] == [(len(texts), 3), (len(texts), 2)]
    assert all(part.dtype == np.float32 for part in found.values())
    for row, text in enumerate(texts):
        mean = weights["table"][tokenizer.encode(text).ids].mean(axis=0)
        expected = mean @ weights["weight"] + weights["bias"]
        np.testing.assert_allclose(found["intent"][row], expected[:3], atol=1e-5)
        np.testing.assert_allclose(found["flags"][row], expected[3:], atol=1e-5)


def test_a_text_returns_a_dict_and_a_list_returns_a_list(classifier: Classifier):
    answer = classifier("where is my parcel")
    assert list(answer) == ["intent", "flags"]
    assert answer["intent"].keys() == {"label", "score"}
    assert type(answer["intent"]["score"]) is float
    assert isinstance(answer["flags"], list)
    assert same(classifier(["where is my parcel"]), [answer])
    assert same(classifier(("where is my parcel",)), [answer])
    assert same(classifier(np.array(["where is my parcel"])), [answer])
    assert classifier([]) == []
    assert classifier.logits([])["intent"].shape == (0, 3)
    assert classifier("").keys() == {"intent", "flags"}


@pytest.mark.parametrize("batch_size", [1, 2, 7, 1000])
def test_batch_size_does_not_change_results(classifier: Classifier, texts: list[str], batch_size: int):
    many = texts * 3
    one_by_one = [classifier(text, scores=True) for text in many]
    assert same(classifier(many, scores=True, batch_size=batch_size), one_by_one)


def test_answers_are_the_calibrated_probabilities(
    classifier: Classifier, manifest: Manifest, texts: list[str]
):
    intent, flags = manifest.heads
    logits = {name: part.astype(float) for name, part in classifier.logits(texts).items()}
    powers = np.exp(logits["intent"] / 1.5)
    shares = powers / powers.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(classifier.probabilities(logits["intent"], "intent"), shares)
    chances = 1 / (1 + np.exp(-logits["flags"] / 0.8))
    np.testing.assert_allclose(classifier.probabilities(logits["flags"], "flags"), chances)
    sizes = set()
    for answer, share, chance in zip(classifier(texts), shares, chances, strict=True):
        assert answer["intent"]["label"] == intent.labels[share.argmax()]
        assert answer["intent"]["score"] == pytest.approx(share.max(), abs=1e-6)
        over = [i for i in np.argsort(-chance) if chance[i] >= (0.6, 0.7)[i]]
        assert [found["label"] for found in answer["flags"]] == [flags.labels[i] for i in over]
        assert [found["score"] for found in answer["flags"]] == pytest.approx(chance[over])
        sizes.add(len(over))
    assert sizes == {0, 1, 2}, "the texts must try both sides of the thresholds"


def test_the_default_threshold_is_a_half(manifest: Manifest):
    head = replace(manifest.heads[1], thresholds=None, temperature=1.0)
    found = Answers([head])(np.array([[0.0, -1e-6], [-1.0, 2.0]], np.float32), None, False)
    assert [[x["label"] for x in row["flags"]] for row in found] == [["urgent"], ["späte"]]


def test_softmax_and_sigmoid_do_not_overflow(manifest: Manifest):
    with np.errstate(all="raise"):
        assert softmax(np.array([[600.0, 0.0]])) == pytest.approx(np.array([[1.0, 0.0]]))
        assert sigmoid(np.array([600.0, -600.0, 0.0])) == pytest.approx(np.array([1, 0, 0.5]))
    cold = replace(manifest.heads[0], temperature=0.5)
    logits = np.array([[1.0, 2.0, 0.5]])
    assert probabilities(logits, cold).max() > probabilities(logits, manifest.heads[0]).max()


def test_only_the_requested_heads(classifier: Classifier):
    both = classifier("cancel the order")
    for asked in (["flags"], ["intent"], ["flags", "intent"], ("intent", "intent")):
        found = classifier("cancel the order", heads=asked)
        assert list(found) == list(dict.fromkeys(asked))
        assert found == {head: both[head] for head in found}
        every = classifier("cancel the order", heads=asked, scores=True)
        assert every == {head: classifier("cancel the order", scores=True)[head] for head in found}
    assert list(classifier.logits("cancel", ["flags"])) == ["flags"]


def test_top_k_and_scores(classifier: Classifier):
    text = "please refund"
    every = classifier(text, scores=True)
    assert sorted(x["label"] for x in every["intent"]) == ["cancel", "thank", "track"]
    assert sorted(x["label"] for x in every["flags"]) == ["späte", "urgent"]
    assert sum(x["score"] for x in every["intent"]) == pytest.approx(1)
    for answers in every.values():
        scores = [x["score"] for x in answers]
        assert scores == sorted(scores, reverse=True)
    assert every["intent"][0] == classifier(text)["intent"]
    for k in (1, 2, 50):
        best = classifier(text, top_k=k)
        assert best == {name: answers[:k] for name, answers in every.items()}
        assert classifier([text], top_k=k, scores=True) == [best]
    assert json.loads(json.dumps(every)) == every


def test_at_a_threshold_of_1_a_label_never_applies(manifest: Manifest):
    head = replace(manifest.heads[1], thresholds=(0.5, 1.0), temperature=1.0)
    [answer] = Answers([head])(np.array([[40.0, 40.0]], np.float32), None, False)  # sigmoids that round to 1
    assert [one["label"] for one in answer["flags"]] == [head.labels[0]]


def test_thresholds_of_a_call_replace_those_of_the_bundle(classifier: Classifier, texts: list[str]):
    chance = classifier.predict_proba(texts, "flags")
    own = classifier(texts)

    def reaching(*thresholds: float) -> list[list[str]]:
        ranked = ([i for i in np.argsort(-row) if row[i] >= thresholds[i]] for row in chance)
        return [[("urgent", "späte")[i] for i in row] for row in ranked]

    cases = {0.3: (0.3, 0.3), 0: (0, 0), 1: (1, 1), np.float32(0.5): (0.5, 0.5)}
    given = list(cases.items())
    given += [({"urgent": 0.2}, (0.2, 0.7)), ({"späte": 0.1, "urgent": 0.9}, (0.9, 0.1)), ({}, (0.6, 0.7))]
    for value, both in given:
        found = classifier(texts, thresholds={"flags": value})
        assert [[x["label"] for x in answer["flags"]] for answer in found] == reaching(*both)
        assert same([{"i": x["intent"]} for x in found], [{"i": x["intent"]} for x in own])
        assert classifier(texts, heads=["flags"], thresholds={"flags": value})[3].keys() == {"flags"}
        assert classifier.predict(texts, "flags", thresholds={"flags": value}) == reaching(*both)
        assert classifier.predict_flags(texts, thresholds={"flags": value}) == [x["flags"] for x in found]
    assert reaching(0.3, 0.3) != reaching(0.6, 0.7) != reaching(0.2, 0.7), "the texts must try the thresholds"
    assert same(classifier(texts, thresholds={}), own)
    assert same(classifier(texts), own), "a call's thresholds are its own"


def test_predict_head(classifier: Classifier):
    texts = ["where is my order", "thanks"]
    whole = classifier(texts)
    assert classifier.predict_intent(texts) == [answer["intent"] for answer in whole]
    assert same([{"f": classifier.predict_flags(texts[0])}], [{"f": whole[0]["flags"]}])
    assert len(classifier.predict_intent("thanks", top_k=2)) == 2
    assert "predict_intent" in dir(classifier) and "load" in dir(classifier)
    assert hasattr(classifier, "predict_flags") and not hasattr(classifier, "predict_other")
    with pytest.raises(
        AttributeError, match=r"'predict_intnet', did you mean 'predict_intent'\? \(heads: intent, flags\)"
    ):
        classifier.predict_intnet("thanks")
    with pytest.raises(AttributeError, match=r"has no attribute 'fit' \(heads: intent, flags\)"):
        classifier.fit  # noqa: B018


def test_a_head_does_not_shadow_a_method(
    manifest: Manifest, contents: dict[str, bytes], tmp_path: Path, texts: list[str]
):
    head = replace(manifest.heads[0], name="proba")
    write_bundle(tmp_path / "b", replace(manifest, heads=(head, *manifest.heads[1:])), contents)
    classifier = Classifier.load(tmp_path / "b")
    assert {*classifier.predict_proba(texts)} == {"proba", "flags"}
    assert dir(classifier).count("predict_proba") == 1
    twin = copy.copy(classifier)
    assert twin.predict_flags(texts) == classifier.predict_flags(texts)
    assert classifier.predict(texts, head="proba") == [
        answer["proba"]["label"] for answer in classifier(texts)
    ]
    with pytest.raises(AttributeError, match="nothing"):
        classifier.nothing  # noqa: B018


def test_predict_is_that_of_scikit_learn(classifier: Classifier, texts: list[str]):
    answers = classifier(texts)
    both = classifier.predict(texts)
    assert both["intent"] == classifier.predict(texts, head="intent")
    assert both["intent"] == [answer["intent"]["label"] for answer in answers]
    assert both["flags"] == [[one["label"] for one in answer["flags"]] for answer in answers]
    assert classifier.predict(texts[0]) == {head: labels[0] for head, labels in both.items()}
    assert classifier.predict(texts[0], "intent") == both["intent"][0]
    assert classifier.predict([], "intent") == []
    chances = classifier.predict_proba(texts)
    assert [*chances] == ["intent", "flags"] and chances["intent"].shape == (len(texts), 3)
    assert np.array_equal(chances["flags"], classifier.predict_proba(texts, head="flags"))
    assert chances["intent"].sum(-1) == pytest.approx(1)
    best = classifier.classes_["intent"][chances["intent"].argmax(-1)]
    assert best.tolist() == both["intent"]
    assert classifier.predict_proba("thanks", "intent").shape == (1, 3)
    for call in (classifier.predict, classifier.predict_proba):
        with pytest.raises(ValueError, match="did you mean 'flags'"):
            call(texts, head="flag")


def test_predict_with_a_single_head(
    tmp_path: Path, manifest: Manifest, contents: dict[str, bytes], texts: list[str]
):
    write_bundle(tmp_path / "b", replace(manifest, heads=manifest.heads[:1]), contents)
    one = Classifier.load(tmp_path / "b")
    assert one.predict(texts) == [answer["intent"]["label"] for answer in one(texts)]
    assert one.predict(texts[0]) == one(texts[0])["intent"]["label"]
    assert one.predict_proba(texts).shape == (len(texts), 3)
    assert one.classes_.tolist() == ["track", "cancel", "thank"]
    assert repr(one) == "<Classifier 'tiny', fp32: intent (single_label, 3 labels)>"


def test_classes_of_labels_that_are_whole_numbers(
    tmp_path: Path, manifest: Manifest, contents: dict[str, bytes], texts: list[str]
):
    head = replace(manifest.heads[0], labels=("2", "0", "1"), label_type="integer")
    write_bundle(tmp_path / "b", replace(manifest, heads=(head,)), contents)
    one = Classifier.load(tmp_path / "b")
    assert one.classes_.dtype == np.int64
    assert one.classes_[one.predict_proba(texts).argmax(-1)].tolist() == one.predict(texts)


def test_repr(classifier: Classifier):
    heads = "intent (single_label, 3 labels), flags (multi_label, 2 labels)"
    assert repr(classifier) == f"<Classifier 'tiny', fp32: {heads}>"
    assert repr(Classifier.__new__(Classifier)) == "<Classifier>"


def test_every_kind_of_list(classifier: Classifier, texts: list[str]):
    pandas = pytest.importorskip("pandas")
    expected = classifier.predict(texts)
    for kind in (tuple, iter, np.array, pandas.Series, pandas.Index, lambda x: (one for one in x)):
        assert classifier.predict(kind(texts)) == expected
    frame = pandas.DataFrame({"text": texts}, index=range(100, 100 + len(texts)))
    assert classifier.predict(frame["text"]) == expected
    assert classifier.predict(frame["text"].astype("category")) == expected
    with pytest.raises(ValueError, match=r"got DataFrame of shape \(64, 1\) \(choose one column\)"):
        classifier(frame)
    with pytest.raises(ValueError, match=r"got ndarray of shape \(64, 1\)"):
        classifier(frame.to_numpy())
    for gap in (None, float("nan"), pandas.NA, pandas.NaT):
        with pytest.raises(ValueError, match=r"texts: position 1: must be str, got .* \(drop missing texts"):
            classifier.predict_proba(pandas.Series(["a", gap], dtype=object))


def test_from_pretrained(bundle: Path, classifier: Classifier, tmp_path: Path, texts: list[str]):
    """A folder, or the cache of huggingface-hub; the tests run offline."""
    assert same(Classifier.from_pretrained(bundle, threads=1)(texts), classifier(texts))
    repository = tmp_path / "models--me--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs/main").write_text("a" * 40)
    shutil.copytree(bundle, repository / "snapshots" / ("a" * 40))
    loaded = Classifier.from_pretrained("me/tiny", cache_dir=tmp_path, variant="int8", threads=1)
    assert loaded.variant == "int8" and same(loaded(texts), classifier(texts))
    (repository / "snapshots" / ("a" * 40) / FP32).write_bytes(b"?")
    with pytest.raises(BundleError, match=f"{FP32}: changed"):
        Classifier.from_pretrained("me/tiny", cache_dir=tmp_path)


@pytest.mark.parametrize("name", ["me/nothing", "no/such/folder", "/nowhere", "a b", ""])
def test_from_pretrained_without_a_bundle(tmp_path: Path, name: str):
    problem = (
        "is no folder, and the hub does not give it: .*give the folder of a bundle|must be JSON|is missing"
    )
    with pytest.raises(BundleError, match=problem) as caught:
        Classifier.from_pretrained(name, cache_dir=tmp_path)
    assert "\n" not in str(caught.value)


def test_copies_load_the_bundle_again(classifier: Classifier, texts: list[str]):
    assert not hasattr(Classifier.__new__(Classifier), "predict_intent")
    for twin in (copy.copy(classifier), copy.deepcopy(classifier)):
        assert twin.threads == 1 and twin.variant == "fp32"
        assert twin(texts) == classifier(texts)


def test_attributes(classifier: Classifier, bundle: Path, manifest: Manifest):
    assert classifier.heads == ("intent", "flags")
    assert replace(classifier.manifest, files={}) == manifest
    assert (classifier.variant, classifier.threads) == ("fp32", 1)
    assert classifier.labels("flags") == ("urgent", "späte")
    assert 1 <= Classifier.load(bundle).threads <= 4
    assert classifier.tokens(["thanks", "", "parcels " * 40]) == [3, 2, 12]


def test_the_other_variant_takes_token_types(classifier: Classifier, bundle: Path, texts: list[str]):
    other = Classifier.load(str(bundle), variant="int8", threads=1)
    assert other.variant == "int8"
    assert same(other(texts, scores=True), classifier(texts, scores=True))


@pytest.mark.parametrize(
    ("call", "problem"),
    [
        (lambda c: c(b"bytes"), "texts: must be str or a list of str, got bytes"),
        (lambda c: c(None), "texts: must be str or a list of str, got NoneType"),
        (lambda c: c(3), "got int"),
        (lambda c: c({"a": 1}), "got dict"),
        (lambda c: c({"a"}), "got set"),
        (lambda c: c(["a", 3]), "position 1: must be str, got int 3"),
        (lambda c: c(["a", "b", None]), "position 2: must be str, got NoneType"),
        (lambda c: c([("a", "b")]), "position 0: must be str, got tuple"),
        (lambda c: c(["a", "b\ud800"]), "position 1: character 1 is half a surrogate pair"),
        (lambda c: c("\udfff"), "position 0: character 0"),
        (lambda c: c("a", heads=[]), "at least one head"),
        (lambda c: c("a", heads="intent"), "heads: must be a list of names, got 'intent'"),
        (lambda c: c("a", heads=3), "heads: must be a list of names"),
        (lambda c: c("a", heads=["intnet"]), r"unknown head 'intnet'.*did you mean 'intent'"),
        (lambda c: c("a", heads=[["intent"]]), "unknown head"),
        (lambda c: c("a", heads=["x" * 99_000]), r"unknown head 'x+\.\.\.x+', expected one of"),
        (lambda c: c([], heads=["zzz"]), r"unknown head 'zzz', expected one of .*flags'\]$"),
        (lambda c: c("a", top_k=0), "top_k: must be a whole number >= 1, got 0"),
        (lambda c: c("a", top_k=True), "top_k"),
        (lambda c: c("a", top_k=1.0), "top_k"),
        (lambda c: c([], top_k=-1), "top_k"),
        (lambda c: c("a", thresholds=[0.3]), r"thresholds: must map heads to numbers, got \[0.3\]"),
        (lambda c: c("a", thresholds={"flag": 0.3}), "thresholds: unknown head 'flag'.*did you mean 'flags'"),
        (
            lambda c: c("a", thresholds={"intent": {"track": 0.3}}),
            "'intent': must be one number, as the head",
        ),
        (lambda c: c("a", thresholds={"intent": 1.5}), "'intent': must be a number from 0 to 1, got 1.5"),
        (lambda c: c("a", thresholds={"intent": False}), "'intent': must be a number from 0 to 1, got False"),
        (lambda c: c("a", abstain=None), "abstain: must be True or False, got None"),
        (lambda c: c("a", abstain={"intent": 0.5}), "abstain: must be True or False.*thresholds= takes"),
        (lambda c: c.predict("a", abstain=0), "abstain: must be True or False, got 0"),
        (lambda c: c("a", heads=["intent"], thresholds={"flags": 1}), "unknown head 'flags'"),
        (lambda c: c("a", thresholds={"flags": {"urgnt": 0.3}}), "label 'urgnt'.*did you mean 'urgent'"),
        (lambda c: c("a", thresholds={"flags": 1.01}), "'flags': must be a number from 0 to 1, got 1.01"),
        (lambda c: c("a", thresholds={"flags": True}), "must be a number from 0 to 1, got True"),
        (lambda c: c("a", thresholds={"flags": None}), "must be a number from 0 to 1, got None"),
        (lambda c: c("a", thresholds={"flags": float("nan")}), "must be a number from 0 to 1, got nan"),
        (
            lambda c: c("a", thresholds={"flags": {"urgent": "1"}}),
            "'flags': 'urgent': must be a number .* '1'",
        ),
        (lambda c: c("a", thresholds={"flags": 0.3}, top_k=1), "thresholds: do not apply to lists of labels"),
        (lambda c: c("a", thresholds={}, scores=True), "thresholds: do not apply to lists of labels"),
        (lambda c: c.predict("a", thresholds={"flags": -0.1}), "must be a number from 0 to 1, got -0.1"),
        (lambda c: c("a", batch_size=0), "batch_size"),
        (lambda c: c([], batch_size=0), "batch_size"),
        (lambda c: c.logits(["a", 1]), "position 1"),
        (lambda c: c.logits("a", heads=[]), "at least one head"),
        (lambda c: c.tokens(b"a"), "texts"),
        (lambda c: c.labels("flag"), "did you mean 'flags'"),
        (lambda c: c.probabilities(np.zeros((1, 2)), "flag"), "did you mean 'flags'"),
        (lambda c: c.predict_intent(3), "texts"),
        (lambda c: Classifier.load(c._folder, variant="int4"), "did you mean 'int8'"),
        (lambda c: Classifier.load(c._folder, threads=0), "threads"),
        (lambda c: bench(c, []), "at least one text"),
        (lambda c: bench(c, "a"), "must be a list"),
        (lambda c: bench(c, ["a"], rounds=0), "rounds"),
    ],
)
def test_bad_input(classifier: Classifier, call: Callable[[Classifier], object], problem: str):
    with pytest.raises(ValueError, match=problem):
        call(classifier)


def test_threads_share_a_classifier(classifier: Classifier, texts: list[str]):
    expected = classifier(texts, scores=True)
    with ThreadPoolExecutor(8) as pool:
        calls = [pool.submit(classifier, texts, scores=True, batch_size=5) for _ in range(40)]
        singles = pool.map(lambda text: classifier(text, scores=True), texts)
        assert all(same(call.result(), expected) for call in calls)
        assert same(list(singles), expected)


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_change_nothing(bundle: Path, classifier: Classifier, texts: list[str], threads: int):
    other = Classifier.load(bundle, threads=threads)
    assert same(other(texts * 40, batch_size=3, scores=True), classifier(texts * 40, scores=True))


def test_heads_of_very_different_sizes(manifest: Manifest):
    draw = np.random.default_rng(0)
    kinds = [
        ("single_label", 2),
        ("multi_label", 3),
        ("single_label", 700),
        ("single_label", 3),
        ("single_label", 1),
    ]
    heads = [
        replace(manifest.heads[0], name=f"h{i}", kind=kind, labels=tuple(f"l{j}" for j in range(count)))
        for i, (kind, count) in enumerate(kinds)
    ]
    logits = draw.normal(0, 3, (5, 709)).astype(np.float32)
    found, every = Answers(heads)(logits, None, False), Answers(heads)(logits, None, True)
    assert [list(row) for row in found] == [["h0", "h1", "h2", "h3", "h4"]] * 5
    for row, ranked in zip(found, every, strict=True):
        for name in ("h0", "h2", "h3", "h4"):
            assert row[name]["label"] == ranked[name][0]["label"]
            assert row[name]["score"] == pytest.approx(ranked[name][0]["score"])
        assert row["h1"] == [one for one in ranked["h1"] if one["score"] >= 0.5]


def test_a_text_may_have_no_tokens(tmp_path: Path, manifest: Manifest, contents: dict[str, bytes]):
    data = json.loads(contents[TOKENIZER])
    data["post_processor"] = None
    write_bundle(tmp_path / "b", manifest, {**contents, TOKENIZER: json.dumps(data).encode()})
    plain = Classifier.load(tmp_path / "b", threads=1)
    assert plain.tokens(["", "thanks"]) == [0, 1]
    assert same(plain(["", "thanks"]), [plain(""), plain("thanks")])


def test_files_that_do_not_match_the_manifest(
    tmp_path: Path, manifest: Manifest, contents: dict[str, bytes], graph: Callable[..., bytes]
):
    three = ("input_ids", "attention_mask", "position_ids")
    for changed, problem in [
        ({FP32: b"not a graph"}, "model.onnx: is not an ONNX file"),
        ({FP32: b""}, "model.onnx: onnxruntime cannot load it"),
        ({FP32: graph(outputs=("a", "logits_flags"))}, r"no output \['logits_intent'\]"),
        ({FP32: graph(three)}, "model.onnx: inputs must be of"),
        ({FP32: graph(rows=15)}, "cannot compute 1 texts of up to 12 tokens, ids up to 15"),
        ({FP32: graph(split=(2, 3))}, "model.onnx: logits must have shapes"),
        ({TOKENIZER: b"{}"}, "tokenizer.json: not a tokenizer"),
    ]:
        write_bundle(tmp_path / "b", manifest, {**contents, **changed})
        with pytest.raises(BundleError, match=problem):
            Classifier.load(tmp_path / "b")
    write_bundle(tmp_path / "b", replace(manifest, max_length=2), contents)
    with pytest.raises(BundleError, match=r"tokenizer.json: adds 2 special tokens"):
        Classifier.load(tmp_path / "b")
    write_bundle(tmp_path / "b", replace(manifest, max_length=3), contents)
    assert Classifier.load(tmp_path / "b").tokens("where is my parcel") == [3]


def test_bench(classifier: Classifier, texts: list[str]):
    found = bench(classifier, texts, rounds=20, warmup=2, heads=["intent"])
    latency = found["latency_ms"]
    assert 0 < latency["p50"] <= latency["p99"]
    assert (latency["tokens"], latency["threads"]) == (12, 1)
    assert found["throughput"] > 0 and found["variant"] == "fp32"
    assert json.loads(json.dumps(found)) == found


def run(code: str, *arguments: str) -> str:
    """The output of a new Python process."""
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def test_serving_needs_no_training_packages(bundle: Path, classifier: Classifier):
    code = (
        "import json, sys\n"
        f"for name in {BLOCKED.split()}: sys.modules[name] = None\n"
        "from export import Classifier\n"
        "from export.runtime.benchmark import bench\n"
        "classifier = Classifier.load(sys.argv[1], threads=1)\n"
        "bench(classifier, ['thanks'], rounds=2, warmup=0)\n"
        "print(json.dumps(classifier(['where is my parcel', 'thanks'])))\n"
    )
    assert same(json.loads(run(code, str(bundle))), classifier(["where is my parcel", "thanks"]))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_has_its_own_threads(bundle: Path):
    """Runs in a new process, since other loaded libraries may not survive a fork."""
    code = (
        "import os, select, signal, sys\n"
        "os.environ['TOKENIZERS_PARALLELISM'] = 'true'\n"
        "from export import Classifier\n"
        "texts = ['where is my parcel', 'thanks', 'cancel the order now'] * 10\n"
        "classifier = Classifier.load(sys.argv[1], threads=2)\n"
        "expected = classifier(texts, batch_size=4, scores=True)\n"
        "reader, writer = os.pipe()\n"
        "child = os.fork()\n"
        "if not child:\n"
        "    same = classifier(texts, batch_size=4, scores=True) == expected\n"
        "    os.write(writer, b'same' if same else b'other')\n"
        "    os._exit(0)\n"
        "found = select.select([reader], [], [], 60)[0]\n"
        "os.kill(child, signal.SIGKILL)\n"
        "print(os.read(reader, 9).decode() if found else 'hangs')\n"
    )
    assert run(code, str(bundle)) == "same\n"


def test_import_is_light():
    code = "import export, sys; print(export.__all__, *sorted(sys.modules), sep='\\n')"
    public, *loaded = run(code).splitlines()
    assert public == "['BundleError', 'Classifier']"
    assert not set(loaded) & set(BLOCKED.split())
    assert not {"export.graph.to_onnx", "export.graph.quantize", "export.graph.gates"} & set(loaded)


def test_onnxruntime_reports_nothing_and_writes_nothing_to_the_home_folder(tmp_path: Path) -> None:
    program = "import export, os; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    environment = {**os.environ, "HOME": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[3])}
    environment.pop("ORT_DISABLE_TELEMETRY", None)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, env=environment, check=True)
    assert (done.stdout, done.stderr) == (b"1\n", b"")
    assert not list(tmp_path.iterdir())
