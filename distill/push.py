"""What of a run is pushed to the Hugging Face hub: its bundle, its recipe and its networks, no text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from distill.recipe.load import dump_yaml, load_yaml
from distill.run import is_current, read_record
from distill.storage import damaged, locked
from export.runtime.hub import bundle_files, upload
from teachers.checkpoints import CALIBRATION, SCALES

# what `saved_networks` reads; a stage's other files hold logits and probabilities of the texts
NETWORK = {"config.json", "heads.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
NETWORK |= {"special_tokens_map.json", "vocab.txt"}


class PushError(Exception):
    """A run that cannot be pushed."""

    exit_code = 2


def push_run(
    folder: Path,
    repo_id: str,
    *,
    teacher: bool = False,
    report: bool = False,
    private: bool | None = None,
    revision: str | None = None,
    message: str | None = None,
) -> str:
    """Push a finished run to a repository of the hub, in one commit; returns its address.

    The bundle is at the top of the repository, where `Classifier.from_pretrained` finds it. The student's
    network is in `stages/fit_student`, as in the run, so that a recipe names it
    ORG/NAME/stages/fit_student. The recipe names files without the folders of this machine, and no server.

    Args:
        folder: Of the run.
        repo_id: Of the repository, ORG/NAME; it is made if there is none.
        teacher: Whether to push the teacher's networks too.
        report: Whether to push report.html too, which quotes texts of the data.
        private: Whether the repository is private; by default what the hub makes, and what there is.
        revision: Branch, made if there is none; by default main.
        message: Title of the commit.

    Raises:
        PushError: The run is not finished, its gates refused the bundle, or a file is damaged.
        BundleError: The bundle is damaged, or the hub refuses it.
        RunLockedError: The run goes on.
    """
    with locked(folder):
        files = _files(folder, teacher=teacher, report=report)
        return upload(files, repo_id, private=private, revision=revision, message=message)


def _files(folder: Path, *, teacher: bool, report: bool) -> dict[str, Path | bytes]:
    """What is pushed, by its path in the repository."""
    again = f"distill run RECIPE --out {folder}"
    records = {path.parent.name: read_record(path) for path in folder.glob("stages/*/stage.json")}
    known = {name: record for name, record in records.items() if record}
    check = known.get("check")
    if check and is_current(check, known) and (refused := check["metrics"].get("refused")):
        raise PushError(f"{folder}: is not pushed, as its gates refused the bundle: {refused[0]}")
    for name in ("fit_teacher", "fit_student", "check", "bundle"):
        if name not in known or not is_current(known[name], known):
            raise PushError(f"{folder}: is not pushed: its stage {name} is not finished ({again})")
    stages = ["fit_teacher", "fit_student"] if teacher else ["fit_student"]
    for name in (*stages, "calibrate"):
        for file, what in damaged(folder, known[name]["files"]).items():
            raise PushError(f"{folder / file}: {what}, so nothing is pushed ({again})")
    files: dict[str, Path | bytes] = {**bundle_files(folder / "bundle")}
    recipe = load_yaml((folder / "recipe.yaml").read_text(encoding="utf-8"), str(folder / "recipe.yaml"))
    files["recipe.yaml"] = dump_yaml(_anywhere(recipe)).encode()
    for name in stages:
        for path in sorted(folder.glob(f"stages/{name}/**/*")):
            if path.name in NETWORK:
                files[path.relative_to(folder).as_posix()] = path
    files[CALIBRATION] = folder / CALIBRATION
    if (folder / SCALES).is_file():
        files[SCALES] = folder / SCALES
    if report:
        if not (folder / "report.html").is_file():
            raise PushError(f"{folder / 'report.html'}: is missing (distill report {folder})")
        files["report.html"] = folder / "report.html"
    return files


def _anywhere(recipe: dict[str, Any]) -> dict[str, Any]:
    """A recipe without the paths of this machine and the address of a language model's server."""
    recipe["data"]["root"] = "."
    if llm := recipe.get("teacher", {}).get("llm"):
        llm.pop("cache", None)
        llm["base_url"] = "http://localhost"

    def named(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: named(one) for key, one in value.items()}
        if isinstance(value, list):
            return [named(one) for one in value]
        return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value

    return {key: named(value) for key, value in recipe.items()}
