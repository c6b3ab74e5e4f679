import argparse

import pytest

from distill.cli.main import STAGES, _parser, main
from distill.pipeline import STAGES as PIPELINE

(COMMANDS,) = (a for a in _parser()._actions if isinstance(a, argparse._SubParsersAction))


def test_stages_of_the_pipeline(capsys):
    assert STAGES.split(", ") == [stage.name for stage in PIPELINE]
    with pytest.raises(SystemExit, match="0"):
        main(["run", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert text.count(STAGES) == 2


@pytest.mark.parametrize("name", COMMANDS.choices)
def test_every_command_has_a_valid_example(name):
    epilog = COMMANDS.choices[name].epilog
    assert epilog.startswith(f"example:\n  distill {name} ")
    words = epilog.splitlines()[1].split()[1:]
    assert _parser().parse_known_args(words)[0].parser.prog == f"distill {name}"


def test_every_argument_has_a_help():
    for parser in COMMANDS.choices.values():
        assert all(action.help for action in parser._actions)
