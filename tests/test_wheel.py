"""The wheel holds the five packages and nothing else."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_wheel_holds_the_packages_only(tmp_path):
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {
        "tinyheads",
        "distill",
        "teachers",
        "students",
        "export",
    }
    others = [name for name in names if ".dist-info/" not in name and not name.endswith(".py")]
    folders = ("students/starts", "export/targets/templates", "distill/compare/templates")
    beside = [ROOT / folder for folder in folders]
    shipped = {str(p.relative_to(ROOT)) for folder in beside for p in folder.rglob("*") if p.is_file()}
    assert set(others) == {name for name in shipped if not name.endswith(".py")} and len(shipped) > 12
    expected = {str(p.relative_to(ROOT)) for top in tops for p in (ROOT / top).rglob("*.py")}
    assert expected <= set(names)
