"""What the command prints where the terminal is unusual."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from distill.cli import main as cli
from distill.cli.terminal import Result, print_error

ROOT = Path(__file__).parents[3]
PRINTS = """
import distill.cli.main as c
from distill.cli.terminal import Result
c._report = lambda options: Result({text}, None)
raise SystemExit(c.main(["report", "x"]))
"""
POLISH = ascii("Świetna 😀 \ud800")


@pytest.fixture(autouse=True)
def own_environment(monkeypatch):
    monkeypatch.setattr(os, "environ", {**os.environ})


def command(text: str, **settings) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **settings.pop("environment", {})}
    settings = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **settings}
    return subprocess.run(
        [sys.executable, "-c", PRINTS.format(text=text)], env=environment, check=False, **settings
    )


@pytest.mark.parametrize("environment", [{"PYTHONIOENCODING": "cp1252"}, {"LC_ALL": "C", "PYTHONUTF8": "0"}])
def test_utf_8_is_written_whatever_the_locale(environment):
    done = command(POLISH, environment=environment)
    assert done.returncode == 0 and done.stderr == b""
    assert done.stdout.decode() == "Świetna 😀 \\ud800\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_at_the_last_print_is_a_line():
    with Path("/dev/full").open("wb") as full:
        done = command(POLISH, stdout=full)
    problem = b"stdout: cannot be written: No space left on device"
    line = b"distill: " + problem + b" (files that the command wrote are complete)\n"
    assert (done.returncode, done.stderr) == (2, line)


def test_a_reader_that_has_gone_ends_the_command_in_silence():
    process = subprocess.Popen(
        [sys.executable, "-c", PRINTS.format(text="'line\\n' * 100_000")],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout and process.stderr
    assert process.stdout.readline() == b"line\n"
    process.stdout.close()
    assert (process.stderr.read(), process.wait()) == (b"", 0)


def test_an_error_in_the_program_itself_is_a_line_and_an_exit_code_of_its_own(monkeypatch, capsys):
    def fails(options):
        raise TypeError("no such\nthing")

    monkeypatch.setattr(cli, "_report", fails)
    assert cli.main(["report", "x"]) == cli.INTERNAL
    assert capsys.readouterr().err == (
        "distill: internal error: TypeError: no such (-v shows where; please report it)\n"
    )
    assert cli.main(["report", "x", "-v"]) == cli.INTERNAL
    assert "in fails" in capsys.readouterr().err


def test_control_characters_of_an_error_do_not_reach_the_terminal(capsys):
    print_error("a.yaml: \x1b[2J\r\x85é: unknown key\nb: \ud800")
    assert capsys.readouterr().err == "distill: a.yaml: \\x1b[2J\\r\\x85é: unknown key\ndistill: b: \\ud800\n"


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError(
            "DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes.\nError code 12"
        ),
    ],
)
def test_memory_that_the_system_refuses_is_a_line(monkeypatch, capsys, error):
    def fails(options):
        raise error

    monkeypatch.setattr(cli, "_report", fails)
    assert cli.main(["report", "x"]) == 2
    message = capsys.readouterr().err
    assert message.startswith("distill: out of memory: ") and message.count("\n") == 1


def test_messages_are_logged_and_quiet_hides_them(monkeypatch, capsys):
    def says(options):
        logging.getLogger("tinyheads").info("a message")
        logging.getLogger("tinyheads").warning("a warning")
        logging.getLogger("filelock").debug("a detail")
        return Result("text", {"value": "ż"})

    monkeypatch.setattr(cli, "_report", says)
    for words, out, err in (
        ([], "text\n", ["a message", "a warning"]),
        (["-q"], "text\n", ["a warning"]),
        (["--json"], '{"value": "ż"}\n', ["a message", "a warning"]),
    ):
        assert cli.main(["report", "x", *words]) == 0
        printed = capsys.readouterr()
        assert (printed.out, printed.err.splitlines()) == (out, err)
    assert cli.main(["report", "x", "-v"]) == 0
    assert "filelock: a detail" in capsys.readouterr().err
    logger = logging.getLogger("tinyheads")
    assert (logger.level, logger.propagate, logger.handlers) == (logging.NOTSET, True, [])
