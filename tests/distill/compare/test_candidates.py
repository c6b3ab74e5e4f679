import pytest

from distill.compare.candidates import DEFAULT, ENCODERS, parse
from distill.recipe.data_section import RecipeError
from teachers.encoders import untrained_encoder

# parameters without pooler and heads, in millions, as their authors publish the models (less the pooler)
PARAMETERS = {
    "distilbert": 66.4,
    "mobilebert": 24.6,
    "albert-base": 11.2,
    "tinybert-4l-312": 14.3,
    "bert-small": 28.5,
    "bert-mini": 11.1,
    "bert-tiny": 4.4,
    "minilm-l6": 22.6,
    "xtremedistil-l6-h256": 12.7,
    "ettin-17m": 16.8,
}


def test_names():
    assert [one.how for one in parse(["tfidf", "minilm-l6", "distilled:tiny", "distilled:bert-mini"])] == [
        "floor",
        "fine-tuned",
        "distilled",
        "distilled",
    ]
    assert parse(["owner/model@main"])[0].encoders == ("owner/model@main",)
    assert parse(["package:some"])[0].encoders == ("package:some",)
    assert parse(["distilled:tiny"])[0].size == "tiny"
    assert len(parse(DEFAULT)) == len(DEFAULT) == 14


def test_a_folder_is_a_candidate(tmp_path):
    [one] = parse([str(tmp_path)])
    assert one.encoders == (str(tmp_path),) and "/" not in one.slug
    names = ["a/b", "a-b/c", "a/b-c"]
    assert len({one.slug for one in parse(names)}) == 3


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["minlm-l6"], "did you mean 'minilm-l6'"),
        (["tiny"], "name distilled:tiny, or bert-tiny"),
        (["tfidf", "tfidf"], "given twice"),
        ([""], "unknown ''"),
        (["distilled:"], "unknown 'distilled:'"),
        (["distilled:tfidf"], "unknown 'distilled:tfidf'"),
        ([], "at least one"),
    ],
)
def test_names_that_are_none(names, message):
    with pytest.raises(RecipeError, match=message):
        parse(names)


@pytest.mark.parametrize("name", sorted(ENCODERS))
def test_configurations_have_the_published_size(name, tiny_tokenizer):
    import torch

    known = ENCODERS[name]
    with torch.device("meta"):
        encoder = untrained_encoder(known.model_type, known.config, tiny_tokenizer)
    millions = sum(p.numel() for p in encoder.parameters()) / 1e6
    assert millions == pytest.approx(PARAMETERS[name], rel=0.01)
