import json

from distill.heads import Head, columns, width

HEADS = (
    Head("intent", "single_label", ("a", "b", "c")),
    Head("flags", "multi_label", ("x", "y"), 0.5),
    Head("one", "multi_label", ("z",)),
)


def test_columns_lie_side_by_side_in_order() -> None:
    assert [(head.name, part) for head, part in columns(HEADS)] == [
        ("intent", slice(0, 3)),
        ("flags", slice(3, 5)),
        ("one", slice(5, 6)),
    ]
    assert width(HEADS) == 6
    assert width(()) == 0 and list(columns(())) == []


def test_json_round_trip() -> None:
    for head in HEADS:
        again = Head.from_json(json.loads(json.dumps(head.to_json())))
        assert again == head and hash(again) == hash(head)


def test_column_of_the_prepared_splits() -> None:
    assert HEADS[0].column == "head_intent"
