"""A finished run of which a file is damaged, then the same command: the same bundle, only that made again."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from distill.cli.main import main

pytestmark = pytest.mark.exporting


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1
    path.write_bytes(content)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "emptied": lambda path: path.write_bytes(b""),
    "cut in half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "one bit flipped": flip,
    "deleted": Path.unlink,
}
# files that no stage reads or that every run writes again
UNREAD = ("begun.json", ".lock", ".holder.json", "report.json", "report.html", "recipe.yaml")
STAGES = 8


@pytest.fixture(scope="module")
def run(tiny_job, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("damage") / "run"
    assert main(["run", str(tiny_job), "--out", str(folder), "-q"]) == 0
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def check(job: Path, run: Path, place: Path, name: str, how: str, capfd) -> None:
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(run, place)
    DAMAGE[how](place / name)
    capfd.readouterr()
    code = main(["run", str(job), "--out", str(place)])
    lines = capfd.readouterr().err.splitlines()
    about = f"{name} {how}: {lines}"
    if code:  # the name of the run, in recipe.yaml
        assert code == 2 and name == "recipe.yaml", about
        return
    assert contents(place / "bundle") == contents(run / "bundle"), about
    done_before = sum(": done before" in line for line in lines)
    if Path(name).name in UNREAD:
        assert done_before == STAGES, about
    else:
        assert done_before == STAGES - 1, about
        if not name.endswith("stage.json") or how != "deleted":  # as if the stage had been stopped
            stage = name.split("/")[1] if name.startswith("stages/") else ""
            assert any(name in line and line.endswith(f"{stage} is run again") for line in lines), about
    assert contents(place).keys() | {name} == contents(run).keys(), about


def test_one_file_is_damaged(tiny_job, run, tmp_path, capfd):
    """Each file in one of the ways, in turn."""
    for number, name in enumerate(sorted(contents(run))):
        how = [*DAMAGE][number % len(DAMAGE)]
        if name != "stages/.lock" or how == "deleted":
            check(tiny_job, run, tmp_path / "run", name, how, capfd)


@pytest.mark.slow
def test_each_file_is_damaged_in_each_way(tiny_job, run, tmp_path, capfd):
    cases = [(name, how) for name in sorted(contents(run)) for how in DAMAGE]
    for name, how in cases:
        if contents(run)[name] or how in ("emptied", "deleted"):
            check(tiny_job, run, tmp_path / "run", name, how, capfd)
    print(f"{len(cases)} cases")
