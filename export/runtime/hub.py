"""Bundles on the Hugging Face hub, with the client that tokenizers brings.

The hub is asked with the token of `hf auth login` or of the variable HF_TOKEN, and with no other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar

from export.bundle.files import read_bundle, read_manifest
from export.bundle.manifest import CARD, MANIFEST, BundleError

PUSHED_AGAIN = "check the name and the network, then push again"
REMEDIES = {  # of a push, by the status of the answer
    401: "log in with `hf auth login`, or set HF_TOKEN",
    403: "use a token that may write to this repository",
    404: "check the name, and that your token may see the repository",
    409: "another commit came first: push again",
    412: "another commit came first: push again",
    429: "wait a few minutes, then push again",
}


class HubModel:
    """What a classifier does with the hub: `from_pretrained` and `push_to_hub`."""

    _folder: Path

    @classmethod
    def from_pretrained(
        cls: type[_Model],
        name: str | Path,
        *,
        variant: str | None = None,
        threads: int | None = None,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
    ) -> _Model:
        """Load the bundle in a folder or in a repository of the Hugging Face hub.

        Args:
            name: Folder of the bundle, or the id of a repository, such as ORG/NAME.
            variant: See `load`.
            threads: See `load`.
            revision: Branch, tag or commit of the repository.
            cache_dir: Folder of downloaded files; by default that of huggingface-hub.

        Raises:
            BundleError: There is neither such a folder nor such a repository, or see `load`.
            ValueError: See `load`.
        """
        folder = Path(name)
        if not folder.is_dir():
            folder = download(str(name), revision, cache_dir)
        return cls(folder, variant, threads)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        revision: str | None = None,
        commit_message: str | None = None,
    ) -> str:
        """Push the files of the bundle to a repository of the hub, in one commit; returns its address.

        Args:
            repo_id: Of the repository, ORG/NAME; it is made if there is none.
            private: Whether the repository is private; by default what the hub makes, and what there is.
            revision: Branch, made if there is none; by default main.
            commit_message: Title of the commit.

        Raises:
            BundleError: A file of the bundle is missing or changed, or the hub refuses it. The repository
                has the whole commit or none of it.
        """
        files = bundle_files(self._folder)
        return upload(files, repo_id, private=private, revision=revision, message=commit_message)


class _Loads(Protocol):
    def __init__(self, folder: str | Path, variant: str | None, threads: int | None) -> None: ...


_Model = TypeVar("_Model", bound=_Loads)


def bundle_files(folder: Path) -> dict[str, Path]:
    """The files of a published bundle by their path in it, compared with its manifest.

    Raises:
        BundleError: There is no bundle, a file is missing or changed, or no gates have passed it.
    """
    manifest = read_bundle(folder)
    if not (folder / CARD).is_file():
        problem = "has no model card, so no run has published it"
        raise BundleError(f"{folder}: {problem} (give the bundle that `distill run` writes to RUN/bundle)")
    return {name: folder / name for name in (MANIFEST, CARD, *manifest.files)}


def download(name: str, revision: str | None = None, cache_dir: str | Path | None = None) -> Path:
    """The folder of a downloaded bundle: its manifest and the files that the manifest names.

    Args:
        name: Id of the repository.
        revision: Branch, tag or commit.
        cache_dir: Folder of downloaded files; by default that of huggingface-hub.

    Raises:
        BundleError: There is no such repository or revision, it holds no bundle, or the hub does not answer.
    """
    hint = "give the folder of a bundle, or the id of a repository that holds one, such as ORG/NAME"
    with _hub_errors(f"{name}: is no folder, and the hub does not give it", hint):
        from huggingface_hub import hf_hub_download, snapshot_download

        folder = Path(hf_hub_download(name, MANIFEST, revision=revision, cache_dir=cache_dir)).parent
        files = [MANIFEST, *read_manifest(folder).files]
        # the folder is named after its commit, so all files are of one
        snapshot_download(name, revision=folder.name, cache_dir=cache_dir, allow_patterns=files)
    return folder


def upload(
    files: Mapping[str, Path | bytes],
    name: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    message: str | None = None,
) -> str:
    """Push files to a repository of the hub in one commit, whole or not at all; returns its address.

    Args:
        files: Files or their bytes, by their path in the repository.
        name: Id of the repository, made if there is none.
        private: Whether the repository must be private.
        revision: Branch, made if there is none.
        message: Title of the commit.

    Raises:
        BundleError: The hub refuses, does not answer, or the repository is public and must be private.
    """
    with _hub_errors(f"{name}: nothing is pushed", PUSHED_AGAIN, REMEDIES):
        from huggingface_hub import CommitOperationAdd, HfApi

        api, branch = HfApi(), revision or "main"
        api.create_repo(name, private=private, exist_ok=True)
        if private and not api.model_info(name).private:
            raise BundleError(
                f"{name}: nothing is pushed: the repository is public, expected a private one (change its "
                "visibility on the hub, or choose another name)"
            )
        if branch != "main":
            api.create_branch(name, branch=branch, exist_ok=True)
        added = [
            CommitOperationAdd(inside, content if isinstance(content, bytes) else str(content))
            for inside, content in files.items()
        ]
        commit = api.create_commit(name, added, commit_message=message or f"Push {name}", revision=branch)
    return str(commit.commit_url)


@contextmanager
def _hub_errors(problem: str, todo: str, by_status: Mapping[int, str] | None = None) -> Iterator[None]:
    """Raise what the hub's client raises as BundleError: `problem: reason (todo)`, in one line."""
    try:
        yield
    except BundleError:
        raise
    except ModuleNotFoundError as error:
        raise BundleError(
            f"{problem}: {error.name} is not installed (pip install huggingface-hub)"
        ) from error
    except Exception as error:  # those of the hub and of its HTTP library have no common base class
        response: Any = getattr(error, "response", None)
        todo = (by_status or {}).get(getattr(response, "status_code", 0), todo)
        lines = [line for line in map(str.strip, str(error).splitlines()) if line]
        raise BundleError(f"{problem}: {' '.join(lines[:2]) or type(error).__name__} ({todo})") from error
