"""A packed bundle scores a label the same whatever stands beside it, and refuses invalid labels."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest

from export.bundle.files import write_bundle
from export.bundle.manifest import FP32, INT8, MANIFEST, PACKED, REPLAY, BundleError, Head, Manifest, _digest
from export.runtime import packed
from export.runtime.benchmark import bench
from export.runtime.classifier import _VIEWS, Classifier
from export.runtime.doctor import doctor, replay_file
from export.runtime.tokenizer import MAX_LABEL
from export.targets.registry import TARGETS, export_bundle
from export.targets.writer import TargetError

pytestmark = pytest.mark.exporting
LABELS = ("parcel", "refund_money", "thanks")
OWN = ["money back", "late", "where is my parcel", "the box", "order", "red week", "a day", "they paid"]
TEXTS = [
    "where is my parcel",
    "refund",
    "i love it",
    "they paid the money back to you with three red and blue of the day " * 3,
    "",
]
MAX_LENGTH, LABEL_LENGTH, HYPOTHESIS = 24, 16, "to my"


@dataclass(frozen=True)
class Bundle:
    folder: Path
    network: Any
    tokenizer: Any
    manifest: Manifest

    def expected(self, head: str, labels: list[str], descriptions: dict[str, str] | None = None) -> Any:
        """The logits of torch, `[texts, labels]`."""
        import torch

        from distill import heads
        from distill.models.base import on_device

        own = next(one for one in self.network.heads if one.name == head)
        other = heads.Head(
            head, own.kind, tuple(labels), hypothesis=own.hypothesis, descriptions=descriptions or {}
        )
        network = self.network.with_heads([other]).eval()
        encoded = network.text_encoder(self.tokenizer, MAX_LENGTH)(TEXTS)
        with torch.no_grad():
            batch = on_device(encoded.batch(np.arange(len(TEXTS))), torch.device("cpu"))
            return network(batch).numpy()


@pytest.fixture(scope="module")
def build(tiny_bert: Callable[..., Any], tiny_tokenizer: Any, tmp_path_factory: Any) -> Callable[..., Bundle]:
    """A function that writes a bundle of a packed network with random weights, so that no two are equal."""
    import torch

    from distill import heads
    from distill.models.packed import PackedClassifier
    from export.graph.quantize import quantize_int8
    from export.graph.to_onnx import to_onnx

    def write(*own: Head) -> Bundle:
        given = [
            heads.Head(h.name, h.kind, h.labels, hypothesis=h.hypothesis, descriptions=h.descriptions)
            for h in own
        ]
        network = PackedClassifier(tiny_bert(layers=2), given).eval()
        with torch.no_grad():
            for name, weight in network.named_parameters():
                weight.normal_(1.0 if "norm.weight" in name.lower() else 0.0, 0.3)
        folder = tmp_path_factory.mktemp("packed")
        (folder / FP32).parent.mkdir()
        room = LABEL_LENGTH + network.hypothesis_length
        to_onnx(network, [h.output for h in own], folder / FP32, positions=MAX_LENGTH + room)
        quantize_int8(folder / FP32, folder / INT8)
        tiny_tokenizer.save_pretrained(folder / "tokenizer")
        tokenizer = (folder / "tokenizer/tokenizer.json").read_bytes()
        manifest = Manifest(
            name="packed",
            heads=own,
            max_length=MAX_LENGTH,
            pad_token_id=0,
            variants={"fp32": FP32, "int8": INT8},
            default_variant="fp32",
            kind=PACKED,
            label_length=LABEL_LENGTH,
        )
        files: dict[str, Path | bytes] = {
            FP32: folder / FP32,
            INT8: folder / INT8,
            "tokenizer.json": tokenizer,
            REPLAY: replay_file(folder, manifest, len(tiny_tokenizer) - 1, tokenizer),
        }
        write_bundle(folder / "bundle", manifest, files)
        return Bundle(folder / "bundle", network, tiny_tokenizer, manifest)

    return write


@pytest.fixture(scope="module")
def one(build: Callable[..., Bundle]) -> Bundle:
    """A bundle of one head, without a hypothesis."""
    return build(
        Head(
            "intent",
            "single_label",
            LABELS,
            "logits",
            1.5,
            descriptions={"parcel": "where is my parcel"},
        )
    )


@pytest.fixture(scope="module")
def several(build: Callable[..., Bundle]) -> Bundle:
    """A bundle of three heads and two hypotheses."""
    return build(
        Head("intent", "single_label", LABELS, "logits_intent", hypothesis=HYPOTHESIS),
        Head("flags", "multi_label", ("now", "please"), "logits_flags", 0.8, (0.2, 0.9)),
        Head("place", "single_label", ("shop", "week"), "logits_place", hypothesis=HYPOTHESIS),
    )


@pytest.fixture(scope="module")
def classifier(one: Bundle) -> Classifier:
    return Classifier.load(one.folder, threads=1)


@pytest.fixture(scope="module")
def three(several: Bundle) -> Classifier:
    return Classifier.load(several.folder, threads=1)


def logits(classifier: Classifier, labels: Any) -> Any:
    return classifier.with_labels(labels).logits(TEXTS)["intent"]


# scores


def test_logits_of_torch(one: Bundle, classifier: Classifier) -> None:
    own = classifier.logits(TEXTS)["intent"]
    np.testing.assert_allclose(
        own, one.expected("intent", [*LABELS], {"parcel": "where is my parcel"}), atol=1e-4
    )
    assert np.ptp(own) > 0.1
    np.testing.assert_allclose(logits(classifier, OWN), one.expected("intent", OWN), atol=1e-4)


def test_logits_of_torch_with_hypotheses(several: Bundle, three: Classifier) -> None:
    for head in three.heads:
        own = three.labels(head)
        np.testing.assert_allclose(three.logits(TEXTS)[head], several.expected(head, [*own]), atol=1e-4)
        found = three.with_labels(OWN, head).logits(TEXTS)[head]
        np.testing.assert_allclose(found, several.expected(head, OWN), atol=1e-4)


@pytest.mark.parametrize(("block", "tokens"), [(256, 4096), (3, 4096), (1, 1), (5, 70)])
def test_neighbours_order_and_blocks_change_no_logit(
    classifier: Classifier, monkeypatch: pytest.MonkeyPatch, block: int, tokens: int
) -> None:
    every = logits(classifier, OWN)
    monkeypatch.setattr(packed, "BLOCK", block)
    monkeypatch.setattr(packed, "TOKENS", tokens)
    classifier._views.clear()
    np.testing.assert_allclose(logits(classifier, OWN), every, atol=1e-4)
    np.testing.assert_allclose(logits(classifier, OWN[::-1]), every[:, ::-1], atol=1e-4)
    for number, label in enumerate(OWN):
        np.testing.assert_allclose(logits(classifier, [label])[:, 0], every[:, number], atol=1e-4)
    alone = [classifier.with_labels(OWN).logits(text)["intent"] for text in TEXTS]
    np.testing.assert_allclose(np.concatenate(alone), every, atol=1e-4)
    classifier._views.clear()


def test_heads_in_blocks(three: Classifier, several: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "BLOCK", 2)
    cut = Classifier.load(several.folder, threads=2)
    for head, expected in three.logits(TEXTS).items():
        np.testing.assert_allclose(cut.logits(TEXTS)[head], expected, atol=1e-4)


def test_int8_chooses_as_fp32_does(one: Bundle) -> None:
    exact, rounded = (
        Classifier.load(one.folder, variant=variant).logits(TEXTS)["intent"] for variant in ("fp32", "int8")
    )
    assert 0 < np.abs(exact - rounded).max() < np.ptp(exact)


def test_one_label_and_a_thousand(classifier: Classifier) -> None:
    (answer,) = classifier(["where"], labels=["late"])
    assert answer == {"intent": {"label": "late", "score": 1.0}}
    words = ["red", "blue", "box", "shop", "day", "week", "late", "paid", "love", "order"]
    many = [f"{a} {b} {c}" for a in words for b in words for c in words]
    found = classifier("where is my parcel", labels=many, top_k=1000)["intent"]
    assert sorted(x["label"] for x in found) == sorted(many)
    assert sum(x["score"] for x in found) == pytest.approx(1)
    few = classifier.with_labels(many[:3]).logits("where is my parcel")["intent"]
    every = classifier.with_labels(many).logits("where is my parcel")["intent"]
    np.testing.assert_allclose(few, every[:, :3], atol=1e-4)


# labels as they are given


def test_forms_of_labels(classifier: Classifier) -> None:
    expected = classifier(TEXTS, labels=OWN)
    assert [answer["intent"]["label"] in OWN for answer in expected] == [True] * len(TEXTS)
    for labels in (tuple(OWN), iter(OWN), np.array(OWN), pandas.Series(OWN), dict.fromkeys(OWN)):
        assert classifier(TEXTS, labels=labels) == expected
    assert classifier.predict_intent(TEXTS, labels=OWN) == [answer["intent"] for answer in expected]
    assert classifier(TEXTS[0], labels=OWN)["intent"]["label"] == expected[0]["intent"]["label"]
    assert classifier([], labels=OWN) == []
    assert classifier(TEXTS[0])["intent"]["label"] in LABELS


def test_descriptions(one: Bundle, classifier: Classifier) -> None:
    given = {"late": "the order is late", "thanks": None, "refund_money": ""}
    described = {"late": "the order is late"}
    np.testing.assert_allclose(
        logits(classifier, given), one.expected("intent", [*given], described), atol=1e-4
    )
    # a known label keeps its description, unless another or none is given
    for labels, descriptions in (
        (["parcel", "late"], {"parcel": "where is my parcel"}),
        ({"parcel": "the box", "late": None}, {"parcel": "the box"}),
        ({"parcel": "", "late": None}, {}),
    ):
        expected = one.expected("intent", ["parcel", "late"], descriptions)
        np.testing.assert_allclose(logits(classifier, labels), expected, atol=1e-4)


def test_several_heads_need_a_name(three: Classifier) -> None:
    for heads in (None, ["intent", "flags"]):
        with pytest.raises(
            ValueError, match=r"^labels: are of one head, expected heads to name one of \['int"
        ):
            three(TEXTS, labels=OWN, heads=heads)
    found = three(TEXTS, labels=OWN, heads=["place"])
    assert found == three(TEXTS, labels=OWN, heads=("place", "place")) and list(found[0]) == ["place"]
    for heads in (["nowhere"], "place", [], 3):
        with pytest.raises(ValueError, match="head"):
            three(TEXTS, labels=OWN, heads=heads)


def test_invalid_heads_of_one_head(classifier: Classifier) -> None:
    for heads in (["nowhere", "there"], "intent", [], 3):
        with pytest.raises(ValueError, match="head"):
            classifier(TEXTS, labels=OWN, heads=heads)


def test_thresholds_of_known_and_unknown_labels(three: Classifier) -> None:
    labels = ["please", "late", "now"]
    view = three.with_labels(labels, "flags")
    assert view.manifest.heads[0].thresholds == (0.9, 0.5, 0.2)
    assert view.manifest.heads[0].temperature == 0.8
    chances = view.predict_proba(TEXTS)
    np.testing.assert_allclose(chances, 1 / (1 + np.exp(-view.logits(TEXTS)["flags"].astype(float) / 0.8)))
    for answer, row in zip(view(TEXTS), chances, strict=True):
        over = {
            label
            for label, chance, least in zip(labels, row, (0.9, 0.5, 0.2), strict=True)
            if chance >= least
        }
        assert {x["label"] for x in answer["flags"]} == over


def test_whole_numbers_are_the_labels_of_the_manifest_alone(build: Callable[..., Bundle]) -> None:
    head = Head(
        "stars",
        "single_label",
        ("1", "2"),
        "logits",
        label_type="integer",
        descriptions={"1": "late", "2": "love"},
    )
    found = Classifier.load(build(head).folder)
    assert found("where")["stars"]["label"] in (1, 2)
    assert found("where", labels=["late", "love"])["stars"]["label"] in ("late", "love")
    with pytest.raises(ValueError, match=r"^labels: position 0: label must be str, got int 1$"):
        found("where", labels=[1, 2])


# views


def test_a_view_is_a_classifier(classifier: Classifier) -> None:
    view = classifier.with_labels(OWN)
    assert view.heads == ("intent",) and view.labels("intent") == tuple(OWN)
    assert view.classes_.tolist() == OWN
    shares = view.predict_proba(TEXTS)
    assert shares.shape == (len(TEXTS), len(OWN)) and shares.sum(1) == pytest.approx(1)
    assert view.predict(TEXTS) == [OWN[i] for i in shares.argmax(1)]
    assert view.predict_intent(TEXTS[0])["label"] == view.predict(TEXTS[0])
    assert repr(view) == "<Classifier 'packed', fp32: intent (single_label, 8 labels)>"
    assert view.tokens(TEXTS) == classifier.tokens(TEXTS)
    assert bench(view, ["where is my parcel"] * 4)["throughput"] > 0
    assert classifier.labels("intent") == LABELS, "the classifier keeps its own"


def test_a_copy_of_a_view_is_the_same_view(classifier: Classifier, three: Classifier) -> None:
    nested = three.with_labels({"late": "the box"}, "place", hypothesis="of")
    for view in (
        classifier.with_labels(OWN),
        classifier.with_labels({"late": "the box", "red": None}, hypothesis="of my"),
        nested.with_labels(["late", "red"]),  # keeps hypothesis and description of the first
    ):
        for other in (copy.copy(view), copy.deepcopy(view)):
            assert other.manifest == view.manifest and other.variant == view.variant
            head = view.heads[0]
            np.testing.assert_array_equal(other.logits(TEXTS)[head], view.logits(TEXTS)[head])
    assert nested.with_labels(["late", "red"]).manifest.heads[0].descriptions == {"late": "the box"}


def test_views_are_cached_and_bounded(classifier: Classifier) -> None:
    assert classifier.with_labels(OWN) is classifier.with_labels(iter(OWN))
    assert classifier.with_labels(OWN) is not classifier.with_labels(OWN[::-1])
    assert classifier.with_labels(OWN) is not classifier.with_labels(OWN, hypothesis="of")
    for number in range(3 * _VIEWS):
        classifier.with_labels([f"{'a ' * (number % 14)}day", f"{'the ' * (number // 14)}week"])
    assert len(classifier._views) <= _VIEWS


def test_threads_share_a_classifier(several: Bundle) -> None:
    shared = Classifier.load(several.folder, threads=2)
    sets = [(head, OWN[size:] + OWN[:1]) for size in range(2, 8) for head in shared.heads]
    expected = [shared.with_labels(labels, head).predict_proba(TEXTS * 9) for head, labels in sets]
    shared._views.clear()

    def ask(number: int) -> Any:
        head, labels = sets[number % len(sets)]
        return shared.with_labels(labels, head).predict_proba(TEXTS * 9)

    with ThreadPoolExecutor(6) as pool:
        for number, found in enumerate(pool.map(ask, range(4 * len(sets)))):
            np.testing.assert_allclose(found, expected[number % len(sets)], atol=1e-5)


# hypotheses


def test_another_hypothesis(several: Bundle, three: Classifier) -> None:
    network = several.network
    view = three.with_labels(OWN, "intent", hypothesis="")
    assert view.manifest.heads[0].hypothesis == ""
    plain = replace(next(h for h in network.heads if h.name == "intent"), hypothesis="", labels=tuple(OWN))
    import torch

    from distill.models.base import on_device

    other = network.with_heads([plain]).eval()
    with torch.no_grad():
        encoded = other.text_encoder(several.tokenizer, MAX_LENGTH)(TEXTS)
        expected = other(on_device(encoded.batch(np.arange(len(TEXTS))), torch.device("cpu"))).numpy()
    np.testing.assert_allclose(view.logits(TEXTS)["intent"], expected, atol=1e-4)


def test_a_longer_hypothesis_takes_the_place_of_the_text(classifier: Classifier) -> None:
    long = "the box of my order is with you from the shop of the week"
    view = classifier.with_labels(["late", "red " * (LABEL_LENGTH - 1)], hypothesis=long)
    cut = " ".join(TEXTS[3].split()[: MAX_LENGTH - 2 - len(long.split())])
    np.testing.assert_allclose(*(view.logits(text)["intent"] for text in (TEXTS[3], cut)), atol=1e-5)
    assert np.abs(view.logits(TEXTS[3])["intent"] - view.logits("where")["intent"]).max() > 1e-3
    with pytest.raises(
        ValueError, match=r"^hypothesis: .* has 40 tokens, expected at most 16 \(shorten it\)$"
    ):
        classifier.with_labels(OWN, hypothesis="red " * 40)


@pytest.mark.parametrize(
    ("hypothesis", "problem"),
    [
        (3, "must be str, got int 3"),
        (["of"], r"must be str, got list \['of'\]"),
        ("a\ud800", "has half a surrogate pair"),
    ],
)
def test_an_invalid_hypothesis(classifier: Classifier, hypothesis: Any, problem: str) -> None:
    with pytest.raises(ValueError, match=rf"^hypothesis: {problem}"):
        classifier.with_labels(OWN, hypothesis=hypothesis)


# labels that are none


@pytest.mark.parametrize(
    ("labels", "problem"),
    [
        ([], "must name at least one label, got none"),
        ({}, "must name at least one label, got none"),
        ("late", "must be a list of labels or a dict of descriptions, got 'late'"),
        (b"late", "must be a list of labels or a dict of descriptions, got b'late'"),
        ({"late", "red"}, "must be a list of labels or a dict of descriptions, got {'"),
        (3, "must be a list of labels or a dict of descriptions, got 3"),
        (pandas.DataFrame({"label": ["late"]}), r"must be a list of labels, got DataFrame of shape \(1, 1\)"),
        (np.array([["late"]]), r"must be a list of labels, got ndarray of shape \(1, 1\)"),
        (np.array("late"), r"must be a list of labels, got ndarray of shape \(\)"),
        (["late", 3], "position 1: label must be str, got int 3"),
        (["late", None], "position 1: label must be str, got NoneType None"),
        (["late", float("nan")], "position 1: label must be str, got float nan"),
        ([["late"]], r"position 0: label must be str, got list \['late'\]"),
        ({"late": 3}, "position 0: description must be str, got int 3"),
        ({3: "late"}, "position 0: label must be str, got int 3"),
        (["late", ""], r"position 1: is empty, expected the name of a label \(remove it\)"),
        ([" \t\u200b\ufeff"], "position 0: is empty"),
        (["late", "red", "late"], r"position 2: 'late' is read as 'late' before it \(remove one\)"),
        (["red box", "red_box"], "position 1: 'red_box' is read as 'red box' before it"),
        (["late", "Late"], "'Late' and 'late' are the same tokens to the network"),
        (["x" * 50, "y" * 50], ".* are the same tokens to the network"),
        (["\U0001f600", "\U0001f4a9"], ".* are the same tokens to the network"),
        (["late", "a\ud800"], r"position 1: label has half a surrogate pair \(remove it\)"),
        ({"late": "a\udc00"}, "position 0: description has half a surrogate pair"),
        (["red " * LABEL_LENGTH], f"'.*' has {LABEL_LENGTH + 1} tokens, expected at most {LABEL_LENGTH}"),
        ({"late": "red " * LABEL_LENGTH}, f"'.*' has .* tokens, expected at most {LABEL_LENGTH}"),
        (["x" * (MAX_LABEL + 1)], f"'x.*' has {MAX_LABEL + 1} characters, expected at most {MAX_LABEL}"),
        ({"late": "x" * 10**7}, f".* has .* characters, expected at most {MAX_LABEL}"),
    ],
)
def test_invalid_labels(classifier: Classifier, labels: Any, problem: str) -> None:
    for ask in (classifier.with_labels, lambda given: classifier("where", labels=given)):
        with pytest.raises(ValueError, match=f"^labels: {problem}") as caught:
            ask(labels)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


@pytest.mark.parametrize(
    "label",
    [
        "\U0001f600",
        "\u5305\u88f9",
        "\u0634\u062d\u0646\u0629",
        "a\nb",
        "x" * MAX_LABEL,
        "\u200flate",
        "_",
        "[SEP]",
    ],
)
def test_labels_in_any_script(classifier: Classifier, label: str) -> None:
    found = classifier(TEXTS, labels=[label, "late order"], scores=True)
    assert {x["label"] for x in found[0]["intent"]} == {label, "late order"}
    json.dumps(found, ensure_ascii=False).encode()


def test_a_label_of_the_largest_size_and_the_longest_text(classifier: Classifier) -> None:
    largest = ("red " * (LABEL_LENGTH - 1)).strip()
    assert classifier("late " * 1000, labels=[largest, "late"])["intent"]["label"] in (largest, "late")


def test_fixed_labels(bundle: Path) -> None:
    fixed = Classifier.load(bundle)
    for ask in (lambda: fixed.with_labels(OWN), lambda: fixed("where", labels=OWN, heads=["intent"])):
        with pytest.raises(ValueError, match="labels: are fixed in this bundle"):
            ask()


def test_targets_refuse(one: Bundle, tmp_path: Path) -> None:
    for target in TARGETS:
        with pytest.raises(TargetError, match="its labels are input, which no target supports"):
            export_bundle(one.folder, target, tmp_path / target)
        assert not (tmp_path / target).exists()


# bundles


def test_without_torch(one: Bundle, run_blocked: Callable[..., Any]) -> None:
    code = (
        "from tinyheads import Classifier\n"
        f"found = Classifier.load({str(one.folder)!r})\n"
        "print(found('where is my parcel', labels={'late': 'the box', 'red': None})['intent']['label'])\n"
        "print(found.with_labels(['late', 'red']).predict(['where']))\n"
    )
    done = run_blocked(code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] in ("late", "red")


def test_doctor(one: Bundle, several: Bundle) -> None:
    for bundle in (one, several):
        found = doctor(bundle.folder)
        assert found["right"] and found["variants"]["fp32"]["max_difference"] < 1e-4


def test_the_manifest_is_the_same_after_reading(several: Bundle) -> None:
    read = Manifest.from_json(json.loads((several.folder / MANIFEST).read_text("utf-8")))
    assert replace(read, files={}) == several.manifest
    assert read.kind == PACKED and read.label_length == LABEL_LENGTH
    assert [head.hypothesis for head in read.heads] == [HYPOTHESIS, "", HYPOTHESIS]


def test_a_manifest_of_fixed_labels_has_no_new_keys(manifest: Manifest) -> None:
    document = manifest.to_json()
    assert not document.keys() & {"kind", "label_length"}
    assert not {key for head in document["heads"] for key in head} & {"hypothesis", "descriptions"}


def changed(folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """The bundle with another manifest, whose digest fits, as that of a hostile author does."""
    document = json.loads((folder / MANIFEST).read_text("utf-8"))
    change(document)
    document.pop("digest")
    document["digest"] = _digest(document)
    (folder / MANIFEST).write_text(json.dumps(document), "utf-8")
    return folder


def in_head(**keys: Any) -> Callable[[dict[str, Any]], None]:
    return lambda document: document["heads"][0].update(keys)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda d: d.update(kind="other"), "kind: must be heads or packed, got 'other'"),
        (lambda d: d.update(kind=[]), "kind: must be of type str"),
        (lambda d: d.update(kind=None), "kind: must be of type str"),
        (lambda d: d.pop("kind"), "label_length: must be from 2 to 8192 in a packed bundle, got 16"),
        (lambda d: d.pop("label_length"), "label_length: must be from 2 to 8192 in a packed bundle, got 0"),
        (
            lambda d: d.update(label_length=1),
            "label_length: must be from 2 to 8192 in a packed bundle, got 1",
        ),
        (lambda d: d.update(label_length=8193), "label_length: must be from 2 to 8192"),
        (lambda d: d.update(label_length=10**30), "label_length: must be from 2 to 8192"),
        (lambda d: d.update(label_length=12.5), "label_length: must be of type int, got 12.5"),
        (lambda d: d.update(label_length=True), "label_length: must be of type int, got True"),
        (lambda d: d.update(label_length=8192), "cannot compute 1 texts"),
        (lambda d: d.update(max_length=8192), "cannot compute 1 texts"),
        (in_head(hypothesis=3), "hypothesis: must be text, got 3"),
        (in_head(hypothesis=None), "hypothesis: must be text, got None"),
        (in_head(hypothesis="red " * 40), "hypothesis: .* has 40 tokens, expected at most 16"),
        (in_head(hypothesis="x" * 10**6), "hypothesis: .* has 1000000 characters"),
        (in_head(descriptions=[]), "descriptions: must be an object of texts by label"),
        (in_head(descriptions={"nowhere": "x"}), "descriptions: must be an object of texts by label"),
        (in_head(descriptions={"parcel": 3}), "descriptions: must be an object of texts by label"),
        (in_head(descriptions={"parcel": None}), "descriptions: must be an object of texts by label"),
        (in_head(descriptions={"parcel": "x" * 10**7}), "has .* characters, expected at most 4000"),
        (in_head(descriptions={"parcel": "red " * 20}), "has .* tokens, expected at most 16"),
        (in_head(labels=["parcel", "Thanks", "thanks"]), "are the same tokens to the network"),
    ],
)
def test_an_invalid_manifest(one: Bundle, tmp_path: Path, change: Any, problem: str) -> None:
    folder = changed(Path(shutil.copytree(one.folder, tmp_path / "bundle")), change)
    with pytest.raises(BundleError, match=problem) as caught:
        Classifier.load(folder)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 700 and str(folder) in str(caught.value)


def test_a_graph_of_another_kind(one: Bundle, bundle: Path, tmp_path: Path) -> None:
    """A graph of heads in a packed bundle, and a packed graph in a bundle of heads."""
    own = {name: (one.folder / name).read_bytes() for name in (FP32, INT8, "tokenizer.json")}
    fixed = {name: (bundle / name).read_bytes() for name in (FP32, INT8, "tokenizer.json")}
    write_bundle(tmp_path / "packed", one.manifest, fixed)
    with pytest.raises(BundleError, match=r"inputs must be \['attention_mask', 'input_ids', 'label_ids'"):
        Classifier.load(tmp_path / "packed")
    write_bundle(tmp_path / "heads", replace(one.manifest, kind="heads", label_length=0), own)
    with pytest.raises(BundleError, match="inputs must be of"):
        Classifier.load(tmp_path / "heads")
    for output in ("nowhere", "n" * 10_000):
        other = replace(one.manifest.heads[0], output=output)
        write_bundle(tmp_path / "output", replace(one.manifest, heads=(other,)), own)
        with pytest.raises(BundleError, match=r"no float32 outputs \['n.*'\]") as caught:
            Classifier.load(tmp_path / "output")
        assert len(str(caught.value)) < 500


def test_a_graph_that_forgets_labels(one: Bundle, tmp_path: Path) -> None:
    """It gives logits of the right shape for one and two labels, which loading tries, and for no more."""
    from onnx import helper, load_from_string, numpy_helper

    model = load_from_string((one.folder / FP32).read_bytes())
    (last,) = [node for node in model.graph.node if "logits" in node.output]
    last.output[0] = "all"
    bounds = [numpy_helper.from_array(np.array([n]), f"bound.{n}") for n in (0, 1, 2)]
    model.graph.initializer.extend(bounds)
    cut = helper.make_node("Slice", ["all", "bound.0", "bound.2", "bound.1"], ["logits"])
    model.graph.node.append(cut)
    own = {name: (one.folder / name).read_bytes() for name in ("tokenizer.json",)}
    manifest = replace(one.manifest, variants={"fp32": FP32})
    write_bundle(tmp_path / "bundle", manifest, own | {FP32: model.SerializeToString()})
    classifier = Classifier.load(tmp_path / "bundle")
    assert len(classifier("where", labels=["late", "red"], top_k=3)["intent"]) == 2
    with pytest.raises(BundleError, match=r"logits must have shape \(1, 3\), got \[\(1, 2\)\]"):
        classifier("where")
