import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from distill.storage import (
    RunLockedError,
    locked,
    read_json,
    read_sealed,
    write_json,
    write_sealed,
    written_whole,
)


def test_written_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with written_whole(path) as temporary:
        temporary.write_text("new")
        assert temporary.parent == tmp_path and not path.exists()
        assert temporary.name.startswith(".") and str(os.getpid()) in temporary.name
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt])
def test_a_write_that_fails_leaves_nothing(tmp_path: Path, failure: type[BaseException]) -> None:
    path = tmp_path / "a.txt"
    with pytest.raises(failure), written_whole(path) as temporary:
        temporary.write_text("half")
        raise failure
    assert list(tmp_path.iterdir()) == []
    path.write_text("old")
    with pytest.raises(failure), written_whole(path):
        raise failure
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_json_files(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    assert read_json(path) is None
    write_json(path, {"b": ["späte", 1.5, None], "a": {}})
    assert read_json(path) == {"b": ["späte", 1.5, None], "a": {}}
    assert "späte" in path.read_text("utf-8") and list(read_json(path)) == ["b", "a"]
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert read_json(path) == {"b": ["späte", 1.5, None], "a": {}} and list(tmp_path.iterdir()) == [path]


def test_a_sealed_object_is_whole_or_none(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    assert read_sealed(path) is None
    value = {"b": {"c": [1, 2.5, None]}, "a": "späte"}
    write_sealed(path, value)
    assert read_sealed(path) == value
    whole = path.read_bytes()
    for bit in range(8 * len(whole)):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        assert read_sealed(path) in (None, value)
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        assert read_sealed(path) is None


# the lock


def holder_is(pid: int) -> str:
    return rf"process {pid} on {socket.gethostname()} has been working in this folder since 20\d\d-"


def test_two_threads(tmp_path: Path) -> None:
    (tmp_path / "stages").mkdir()
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with locked(tmp_path):
            held.set()
            done.wait(60)

    holder = threading.Thread(target=hold)
    holder.start()
    try:
        assert held.wait(60)
        with pytest.raises(RunLockedError, match=holder_is(os.getpid())), locked(tmp_path):
            pass
    finally:
        done.set()
        holder.join()
    with locked(tmp_path):
        pass


def test_two_processes_of_which_the_first_is_killed(tmp_path: Path) -> None:
    (tmp_path / "stages").mkdir()
    hold = (
        "import pathlib, sys, time\nfrom distill.storage import locked\n"
        "with locked(pathlib.Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(60)"
    )
    command = [sys.executable, "-c", hold, str(tmp_path)]
    root = Path(__file__).parents[2]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root) as holder:
        try:
            assert holder.stdout and holder.stdout.readline() == "held\n"
            with pytest.raises(RunLockedError, match=holder_is(holder.pid)), locked(tmp_path):
                pass
        finally:
            holder.kill()
    with locked(tmp_path):
        pass


def test_a_folder_that_is_no_run_has_no_lock(tmp_path: Path) -> None:
    with locked(tmp_path), locked(tmp_path / "missing"):
        pass
    assert not [*tmp_path.iterdir()]
