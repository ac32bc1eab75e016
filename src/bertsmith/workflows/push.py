"""Push the model of a finished run to the Hugging Face hub. Texts stay on this machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bertsmith.data import hub
from bertsmith.errors import ConfigError, HubError, UserError
from bertsmith.folders.run import Run, open_run
from bertsmith.inference.exported import ABOUT, ExportInfo, is_export
from bertsmith.report.card import Details, card_text

if TYPE_CHECKING:
    from huggingface_hub import HfApi

CARD = "README.md"
_SUFFIXES = (".safetensors", ".json", ".txt", ".model")
"""Files of a model, for runs of older versions, which did not list them."""


@dataclass(frozen=True)
class Push:
    """The content of a push.

    Attributes:
        repository: ``owner/name``.
        private: whether a new repository is private.
        exists: whether the repository already exists.
        files: the content of each file by its path in the repository: a file of the run, or the model card.
    """

    repository: str
    private: bool
    exists: bool
    files: dict[str, Path | bytes]

    @property
    def sizes(self) -> dict[str, int]:
        """Size of each file in bytes."""
        return {name: len(c) if isinstance(c, bytes) else c.stat().st_size for name, c in self.files.items()}


def push_run(
    path: Path,
    details: Details,
    *,
    private: bool = True,
    exports: bool = False,
    overwrite: bool = False,
    confirm: Callable[[Push], bool] = lambda push: True,
) -> str | None:
    """Push the model of a run to the hub, in one commit; see `bertsmith.push`.

    Args:
        path: the run folder.
        details: the repository, and metadata for the card.
        private: create a private repository.
        exports: also send the exports in the run folder.
        overwrite: push to an existing repository.
        confirm: called with the content of the push; returns whether to send it.

    Returns:
        The address of the repository; ``None`` if ``confirm`` returns false.

    Raises:
        UserError: if the run is not finished or damaged, or the hub refuses.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, get_token

    run = open_run(path)
    run.check_model()
    files = _files(run, details, exports=exports)
    repository = str(details.repository)
    reason = hub.unreachable_reason()
    if reason is not None:
        raise HubError(
            f"the hub cannot be reached: {reason}",
            where=hub.endpoint(),
            remedy="Connect to the network, correct HF_ENDPOINT, or unset HF_HUB_OFFLINE.",
        )
    if not get_token():
        raise HubError(
            "you are not logged in to the hub",
            where=hub.endpoint(),
            remedy="Run hf auth login with a token that has write access, or set HF_TOKEN.",
        )
    api = HfApi(endpoint=hub.endpoint(), library_name="bertsmith")
    with _hub_errors(repository):
        api.whoami()
        exists = _check_repository(api, repository, private=private, overwrite=overwrite)
    if not confirm(Push(repository, private, exists, files)):
        return None
    with _hub_errors(repository):
        if not exists:
            _check_card(files[CARD])
            api.create_repo(repository, private=private)
        operations = [CommitOperationAdd(name, content) for name, content in files.items()]
        api.create_commit(repository, operations, commit_message="Upload a model of bertsmith")
    return f"{hub.endpoint()}/{repository}"


def _files(run: Run, details: Details, *, exports: bool) -> dict[str, Path | bytes]:
    """Return the files to send: only files that bertsmith wrote, without any text of the table."""
    model = run.layout.model
    names = run.info.get("model_files") or [p.name for p in model.iterdir() if p.suffix in _SUFFIXES]
    files: dict[str, Path | bytes] = {CARD: card_text(run, details).encode()}
    files |= {name: model / name for name in sorted(names)}
    if exports:
        folders = [folder for folder in sorted(run.layout.exports.glob("*")) if is_export(folder)]
        if not folders:
            raise ConfigError(
                "the run has no export", where=str(run.layout.exports), remedy="Run bertsmith export first."
            )
        for folder in folders:
            about = ExportInfo.read(folder)
            about.check_files(folder)  # a changed description could name other files of this machine
            found = [name for name in (*about.files, ABOUT, CARD) if (folder / name).is_file()]
            files |= {f"export/{folder.name}/{name}": folder / name for name in sorted(found)}
    return files


def _check_card(card: Path | bytes) -> None:
    """Ask the hub to check the metadata of a model card. A refused commit would leave an empty repository."""
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

    content = {
        "repoType": "model",
        "content": card.decode() if isinstance(card, bytes) else card.read_text(encoding="utf-8"),
    }
    url = f"{hub.endpoint()}/api/validate-yaml"
    hf_raise_for_status(get_session().post(url, json=content, headers=build_hf_headers()))


def _check_repository(api: HfApi, repository: str, *, private: bool, overwrite: bool) -> bool:
    """Return whether a repository exists, and refuse to write to it without permission."""
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        info = api.model_info(repository)
    except RepositoryNotFoundError:
        return False
    if not overwrite:
        raise HubError(
            "the repository already exists",
            where=repository,
            remedy="Choose another name, or pass --overwrite to make a new commit in this repository.",
        )
    if private and not info.private:
        raise HubError(
            "the repository is public, but a push is private by default",
            where=repository,
            remedy="Pass --public to publish the model, or choose another name.",
        )
    return True


@contextmanager
def _hub_errors(repository: str) -> Iterator[None]:
    """Turn answers of the hub into user errors."""
    from huggingface_hub.errors import HfHubHTTPError

    remedies: dict[int, str] = {
        400: "Correct the value that the hub names.",
        401: "Log in again: hf auth login. Or correct HF_TOKEN.",
        403: "Use a token with write access to this owner, or choose another owner.",
        409: "Choose another name, or pass --overwrite.",
    }
    try:
        yield
    except HfHubHTTPError as error:
        status: Any = getattr(error.response, "status_code", None)
        raise HubError(
            f"the hub refuses the push ({status}): {_reason(error)}",
            where=repository,
            remedy=remedies.get(status, "Try again later. To repeat an interrupted push, pass --overwrite."),
        ) from error
    except Exception as error:  # the hub's client also raises errors of its HTTP library
        if isinstance(error, UserError):
            raise
        raise HubError(
            f"the push failed: {_reason(error)}",
            where=repository,
            remedy="Correct what the hub names, or try again. To repeat an interrupted push, pass --overwrite.",
        ) from error


def _reason(error: Exception) -> str:
    lines = [line for line in str(getattr(error, "server_message", None) or error).splitlines() if line.strip()]
    return " ".join(map(str.strip, lines[:2])) or type(error).__name__
