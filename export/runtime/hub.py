"""Downloads a bundle from the Hugging Face hub, with the package that tokenizers brings."""

from __future__ import annotations

from pathlib import Path

from export.bundle.files import read_manifest
from export.bundle.manifest import MANIFEST, BundleError


def download(name: str, revision: str | None = None, cache_dir: str | Path | None = None) -> Path:
    """The folder of a downloaded bundle: its manifest and the files that the manifest names.

    Args:
        name: Id of the repository.
        revision: Branch, tag or commit.
        cache_dir: Folder of downloaded files; by default that of huggingface-hub.

    Raises:
        BundleError: There is no such repository or revision, it holds no bundle, or the hub does not answer.
    """
    try:
        from huggingface_hub import hf_hub_download, snapshot_download

        folder = Path(hf_hub_download(name, MANIFEST, revision=revision, cache_dir=cache_dir)).parent
        files = [MANIFEST, *read_manifest(folder).files]
        # the folder is named after its commit, so all files are of one
        snapshot_download(name, revision=folder.name, cache_dir=cache_dir, allow_patterns=files)
    except BundleError:
        raise
    except Exception as error:  # those of the hub and of its HTTP library have no common base class
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        problem = f"is no folder, and the hub does not give it: {reason}"
        hint = "(give the folder of a bundle, or the id of a repository that holds one, such as ORG/NAME)"
        raise BundleError(f"{name}: {problem} {hint}") from error
    return folder
