"""Write the demo data: generated customer messages to an online shop, in four files.

The messages are combinations of the hand-written phrases in `demo_phrases.json`. The requests, situations and
feedback of the test file use wordings that occur in no other file, as do half of its greetings, thanks and
insults. Validation and inbox use the train wordings and some of their own. A model therefore has to
generalise beyond the training wordings.
Run `python recipes/make_demo_data.py [--out DIR] [--seed N]`. The same seed gives the same bytes.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import re
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
PHRASES = HERE / "demo_phrases.json"
ROWS = {"train": 5000, "validation": 800, "test": 1200, "inbox": 3600}
HEADS = ("intent", "sentiment", "flags")
FLAGS = ("greeting", "gratitude", "urgent", "abusive", "has_order_number")

INTENT_WEIGHTS = {"refund_request": 33, "order_inquiry": 36, "general_feedback": 31}
# Each pair occurs, so neither head determines the other.
SENTIMENT_WEIGHTS = {
    "refund_request": {"positive": 18, "neutral": 44, "negative": 38},
    "order_inquiry": {"positive": 20, "neutral": 46, "negative": 34},
    "general_feedback": {"positive": 40, "neutral": 26, "negative": 34},
}
# How often a file uses one of its own wordings where it may also use a train wording.
OWN_SHARE = {"train": 0.0, "validation": 0.3, "inbox": 0.5, "test": 0.5}
# For phrases that determine the intent, the test file uses only its own wordings.
UNSEEN_IN_TEST = ("ask_", "situation_")

SHORT_FORMS = {
    "please": "pls", "you": "u", "your": "ur", "are": "r", "thanks": "thx", "because": "cos",
    "tomorrow": "tmrw", "about": "abt", "delivery": "deliv", "number": "nr", "weeks": "wks",
    "days": "d", "and": "&",
}  # fmt: skip
NEIGHBOURS = {
    "a": "sq", "b": "vn", "c": "xv", "d": "sf", "e": "wr", "f": "dg", "g": "fh", "h": "gj",
    "i": "uo", "k": "jl", "l": "k", "m": "n", "n": "bm", "o": "ip", "p": "o", "r": "et",
    "s": "ad", "t": "ry", "u": "yi", "v": "cb", "w": "qe", "y": "tu",
}  # fmt: skip

Phrases = dict[str, dict[str, list[str]]]


class Message(NamedTuple):
    """One message and its labels."""

    text: str
    intent: str
    sentiment: str
    flags: tuple[str, ...]


def load_phrases(path: Path) -> Phrases:
    """Read the phrase lists, {name of the list: {family: wordings}}.

    Raises:
        ValueError: A wording is in two families, so the test wordings would not be unseen.
    """
    phrases: Phrases = json.loads(path.read_text(encoding="utf-8"))
    seen: dict[str, str] = {}
    for name, families in phrases.items():
        if name == "fill":
            continue
        for family, wordings in families.items():
            for wording in wordings:
                other = seen.setdefault(normalise(wording), family)
                if other != family:
                    raise ValueError(f"{wording!r} is in two families, {other} and {family}")
    return phrases


def normalise(text: str) -> str:
    """Return the text without case and punctuation, to compare wordings and messages."""
    return re.sub(r"[^\w{}]+", " ", text.lower()).strip()


def weighted(rng: random.Random, weights: dict[str, int]) -> str:
    """Draw one key according to the weights."""
    return rng.choices(list(weights), list(weights.values()))[0]


def pick(rng: random.Random, phrases: Phrases, name: str, split: str) -> str:
    """Draw one wording from a list that the file `split` may use."""
    families = phrases[name]
    own = families.get(split)
    unseen = split == "test" and name.startswith(UNSEEN_IN_TEST)
    if own and (unseen or rng.random() < OWN_SHARE[split]):
        return rng.choice(own)
    return rng.choice(families["train"])


def fill(rng: random.Random, phrases: Phrases, parts: list[str], split: str) -> list[str] | None:
    """Fill the slots of one message's parts with products, places, days and order references.

    Returns None where two parts need different kinds of product.
    """
    slots = phrases["fill"]
    joined = " ".join(parts)
    kinds = [kind for kind in ("gadget", "wear", "home") if "{" + kind + "}" in joined]
    if len(kinds) > 1:
        return None
    # One value per slot and message: one product, one day, one place.
    values = {name: rng.choice(words) for name, words in slots.items()}
    values["item"] = rng.choice(slots[kinds[0] if kinds else "item"])
    values |= dict.fromkeys(kinds, values["item"])
    values["other"] = rng.choice([word for word in slots["item"] if word != values["item"]])
    values["n"] = str(rng.randint(10_000, 999_999))
    with_number = rng.random() < 0.3
    for slot in ("order", "box"):
        source = "order_number" if with_number else f"{slot}_plain"
        values[slot] = pick(rng, phrases, source, split).format(**values)
    filled = [part.format(**values) for part in parts]
    return [part[0].upper() + part[1:] for part in filled]


def draw_body(
    rng: random.Random, phrases: Phrases, intent: str, sentiment: str, split: str, *, insult: bool
) -> list[str]:
    """Draw the request or the feedback with situation, tone and insult, in a natural order."""

    def one(name: str) -> str:
        return pick(rng, phrases, name, split)

    if intent == "general_feedback":
        body = [one(f"ask_general_feedback_{sentiment}")]
        if sentiment != "neutral" and not insult and rng.random() < 0.16:
            body.append(one(f"tone_{sentiment}"))
        elif rng.random() < 0.06:
            body.append(one(f"ask_general_feedback_{sentiment}"))
        if rng.random() < 0.1:
            body.insert(0, one("situation_order_inquiry_benign"))
        if insult:
            body.insert(rng.choice((0, len(body))), one("abusive"))
        return body

    if sentiment == "negative":
        if rng.random() < 0.4:
            body = [one(f"ask_{intent}_negative")]
        else:
            # An insult makes the message negative; without one, a plain request needs a negative tone.
            body = [one(f"ask_{intent}_plain"), one("abusive" if insult else "tone_negative")]
            insult = False
        # Some refund requests mention a late delivery: words of the other intent.
        topic = "order_inquiry" if rng.random() < 0.3 else intent
        situation = f"situation_{topic}_complaint"
    else:
        body = [one(f"ask_{intent}_plain")]
        if sentiment == "positive":
            body.append(one("tone_positive"))
        situation = f"situation_{intent}_benign"
    if insult:
        body.append(one("abusive"))
    rng.shuffle(body)
    if rng.random() < 0.16:
        body.insert(0 if rng.random() < 0.75 else len(body), one(situation))
    return body


def scuff(rng: random.Random, text: str) -> str:
    """Make some messages look typed in a hurry: short forms, typos, no capitals."""
    if rng.random() < 0.12:
        text = re.sub(r"[A-Za-z]+", lambda match: SHORT_FORMS.get(match[0].lower(), match[0]), text)
    if rng.random() < 0.17:
        # Digits and short words stay unchanged, so the text keeps its meaning and its labels.
        words = [match.span() for match in re.finditer(r"[A-Za-z]{4,}", text)]
        slips = sorted(rng.sample(words, min(len(words), rng.randint(1, 3))), reverse=True)
        for start, end in slips:
            text = text[:start] + slip(rng, text[start:end]) + text[end:]
    if rng.random() < 0.22:
        text = text.lower()
    if rng.random() < 0.12:
        text = re.sub(r"[.,!?](?=\s|$)", "", text)
    elif rng.random() < 0.06:
        text = re.sub(r"[.](?=\s|$)", "!", text)
    return text


def slip(rng: random.Random, word: str) -> str:
    """Return the word with one typo: letters swapped, missing, doubled or from a neighbouring key."""
    at = rng.randint(1, len(word) - 2)
    kind = rng.randrange(4)
    if kind == 0:
        return word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    if kind == 1:
        return word[:at] + word[at + 1 :]
    if kind == 2:
        return word[:at] + word[at] + word[at:]
    near = NEIGHBOURS.get(word[at].lower(), word[at])
    return word[:at] + rng.choice(near) + word[at + 1 :]


def draw_message(rng: random.Random, phrases: Phrases, split: str) -> Message | None:
    """Draw one message for the file `split`, or None where its parts are incompatible."""

    def one(name: str) -> str:
        return pick(rng, phrases, name, split)

    intent = weighted(rng, INTENT_WEIGHTS)
    sentiment = weighted(rng, SENTIMENT_WEIGHTS[intent])
    feedback = intent == "general_feedback"
    insult = sentiment == "negative" and rng.random() < 0.36
    parts = draw_body(rng, phrases, intent, sentiment, split, insult=insult)
    flags: set[str] = {"abusive"} if insult else set()
    # Feedback is urgent only if negative, and rarely: other messages would be implausible.
    if not feedback and rng.random() < 0.18:
        flags.add("urgent")
        parts.append(one(f"urgent_{intent}" if rng.random() < 0.4 else "urgent_any"))
    elif feedback and sentiment == "negative" and rng.random() < 0.06:
        flags.add("urgent")
        parts.append(one("urgent_any"))
    if "{order}" not in " ".join(parts) and rng.random() < (0.08 if feedback else 0.16):
        parts.insert(rng.choice((0, len(parts))), one("order_tag"))
    if not insult and rng.random() < 0.2:
        flags.add("gratitude")
        parts.append(one("gratitude"))
    if rng.random() < 0.22:
        flags.add("greeting")
        parts.insert(0, one("greeting"))
    if rng.random() < 0.06:
        parts.append(one("closing"))

    filled = fill(rng, phrases, parts, split)
    if filled is None or not 3 <= len(" ".join(filled).split()) <= 60:
        return None
    text = " ".join(filled)
    # Only an order reference has five digits in a row: amounts, dates and delays are shorter.
    if re.search(r"\d{5}", text):
        flags.add("has_order_number")
    ordered = tuple(flag for flag in FLAGS if flag in flags)
    return Message(scuff(rng, text), intent, sentiment, ordered)


def draw_messages(seed: int, phrases: Phrases) -> dict[str, list[Message]]:
    """Draw the messages of all files, without duplicate texts."""
    rng = random.Random(seed)
    seen: set[str] = set()
    files: dict[str, list[Message]] = {}
    for split, count in ROWS.items():
        messages: list[Message] = []
        while len(messages) < count:
            message = draw_message(rng, phrases, split)
            if message is None or normalise(message.text) in seen:
                continue
            seen.add(normalise(message.text))
            messages.append(message)
        files[split] = messages
    return files


def write_labelled(rng: random.Random, path: Path, messages: list[Message]) -> None:
    """Write one CSV file. Its stem prefixes the row ids. A third of the rows lack the label of one head."""
    gaps = [HEADS[at % len(HEADS)] for at in range(len(messages) // 3)]
    gaps += [""] * (len(messages) - len(gaps))
    rng.shuffle(gaps)
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["id", "text", *HEADS])
        for at, (message, gap) in enumerate(zip(messages, gaps, strict=True)):
            # `none` means that no flag applies; an empty cell means unlabelled.
            cells = {
                "intent": message.intent,
                "sentiment": message.sentiment,
                "flags": "|".join(message.flags) or "none",
            }
            labels = ["" if head == gap else cells[head] for head in HEADS]
            writer.writerow([f"{path.stem[:2]}{at:04d}", message.text, *labels])


def write_classes(folder: Path, messages: list[Message]) -> None:
    """Write a file of texts for each intent, as recipes/three_files.yaml reads them."""
    folder.mkdir(exist_ok=True)
    for intent in INTENT_WEIGHTS:
        text = "".join(message.text + "\n" for message in messages if message.intent == intent)
        (folder / f"{intent}.txt").write_text(text, encoding="utf-8", newline="\n")
    print(f"{folder}: {len(INTENT_WEIGHTS)} files, one an intent")


def main() -> None:
    """Write the three labelled files and the unlabelled inbox."""
    parser = argparse.ArgumentParser(description="Write the generated messages of the demo.")
    parser.add_argument("--out", type=Path, default=HERE / "demo", help="folder to write to")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random choices")
    parser.add_argument(
        "--classes", action="store_true", help="write the folder classes too, a file an intent"
    )
    args = parser.parse_args()
    files = draw_messages(args.seed, load_phrases(PHRASES))
    args.out.mkdir(parents=True, exist_ok=True)
    rng = random.Random(args.seed + 1)
    for split, messages in files.items():
        if split == "inbox":
            path = args.out / "inbox.txt"
            text = "".join(message.text + "\n" for message in messages)
            path.write_text(text, encoding="utf-8", newline="\n")
        else:
            path = args.out / f"{split}.csv"
            write_labelled(rng, path, messages)
        print(f"{path}: {len(messages)} messages, {path.stat().st_size:,} bytes")
    if args.classes:
        write_classes(args.out / "classes", files["train"])


if __name__ == "__main__":
    main()
