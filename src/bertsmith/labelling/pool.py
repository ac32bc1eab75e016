"""The pool of a project: the columns of its texts, and their embeddings in a file, so that each is computed once."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import xxhash

from bertsmith.config import Config
from bertsmith.data.columns import canonical
from bertsmith.data.template import Text, flat, is_empty
from bertsmith.errors import ConfigError, DataError, RunFolderError, quoted
from bertsmith.folders.atomic import write_json
from bertsmith.labelling.project import Project

EMBEDDINGS, HASHES, ABOUT = "embeddings.f16", "embeddings.hashes", "embeddings.json"
EMPTY = 0
"""The hash of a row without a text."""
SAME = 0.99
"""Smallest cosine similarity between an embedding in the file and a new one of the same text."""
COLUMNS = ("text_column", "pair_column")
"""The settings that a project remembers from the first choice of its texts."""


class EmptyPoolError(DataError):
    """No text of a pool is left to choose."""


def with_known_columns(project: Project, config: Config) -> Config:
    """Return settings that name the columns of a project: those given, or else those that the project remembers.

    Raises:
        ConfigError: if the given pair column differs from that of the project, or if an older version did not save
            the pair column.
    """
    given, known = config.pair_column, project.setting("pair_column")
    is_pair = [text.pair is not None for text in project.texts]
    if given and is_pair and (canonical(given) != canonical(known) if known else not any(is_pair)):
        read = f"pairs with the second text in the column {quoted(known)}" if known else "single texts"
        raise ConfigError(
            f"the project has {read}, but --pair-column names {quoted(given)}",
            where=str(project.path),
            remedy="Leave out --pair-column, or create another project with -o.",
        )
    if any(is_pair) and not (given or known):
        raise ConfigError(
            "an older version of bertsmith did not save the pair column of this project",
            where=str(project.path),
            remedy="Pass --pair-column. The project then remembers it.",
        )
    return config.model_copy(update={name: getattr(config, name) or project.setting(name) for name in COLUMNS})


def read_about(folder: Path) -> tuple[str, int]:
    """Return the name and the hidden size of the checkpoint that embedded the pool of a project.

    Raises:
        RunFolderError: if the file is missing or damaged.
    """
    try:
        content = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        return str(content["model"]), int(content["width"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunFolderError(
            f"the file cannot be read: {error}",
            where=str(folder / ABOUT),
            remedy="Remove the files embeddings.* from the project. bertsmith then embeds the pool again.",
        ) from error


def check_checkpoint(folder: Path, model: str, width: int | None = None) -> None:
    """Check that a checkpoint embedded the pool of a project.

    Raises:
        RunFolderError: if another checkpoint embedded the pool, or the hidden size differs.
    """
    before, before_width = read_about(folder)
    if model != before or width not in (None, before_width):
        raise RunFolderError(
            f"bertsmith embedded the pool with {before}, not with {model}",
            where=str(folder),
            remedy=f"Pass --model {before}, or remove the files embeddings.* to embed the pool again.",
        )


class PoolFile:
    """The embeddings and the hashes of the texts of a pool, by row.

    Args:
        folder: of the project.
        model: name of the checkpoint.
        width: hidden size.

    Raises:
        RunFolderError: if the file has embeddings of another checkpoint, or cannot be read.
    """

    def __init__(self, folder: Path, model: str, width: int) -> None:
        self.folder, self.width = folder, width
        if not (folder / ABOUT).is_file():
            write_json(folder / ABOUT, {"model": model, "width": width})
        check_checkpoint(folder, model, width)
        self.hashes = np.fromfile(folder / HASHES, dtype=np.uint64) if (folder / HASHES).is_file() else np.empty(0)
        size = (folder / EMBEDDINGS).stat().st_size if (folder / EMBEDDINGS).is_file() else 0
        self.done = min(len(self.hashes), size // (2 * width))  # an interruption may have cut the last rows
        self.hashes = self.hashes[: self.done].astype(np.uint64)
        self._longest: tuple[int, Text] | None = None  # the row and text of an embedding in the file

    def update(self, texts: Sequence[Text], first: int, embed: Callable[[list[Text]], np.ndarray], name: str) -> None:
        """Embed the texts of a chunk that are not embedded yet, and check those that are.

        Args:
            texts: the texts of the rows from ``first``.
            first: the first row of the chunk, from 0.
            embed: returns the embeddings of texts, shape (texts, hidden size).
            name: of the pool, for messages.

        Raises:
            DataError: if a text has changed since it was embedded.
            RunFolderError: if there are new texts, and the embedding of a known text has changed.
        """
        hashes = np.array([hash_text(text) for text in texts], dtype=np.uint64)
        known = min(max(self.done - first, 0), len(texts))
        changed = np.flatnonzero(self.hashes[first : first + known] != hashes[:known])
        if len(changed):
            raise DataError(
                f"the text of row {first + int(changed[0]) + 1:,} has changed since the project began",
                where=name,
                remedy="Pass the same pool and columns, with new rows only at its end, or create another project.",
            )
        if known:
            i = max(range(known), key=lambda i: len(flat(texts[i])))
            self._longest = None if is_empty(texts[i]) else (first + i, texts[i])
        if known == len(texts):
            return
        new = list(texts[known:])
        values = np.zeros((len(new), self.width), dtype=np.float16)
        filled = [i for i, text in enumerate(new) if not is_empty(text)]
        if filled:
            self._check_embeddings(embed)
            values[filled] = embed([new[i] for i in filled])
        for file, rows in ((EMBEDDINGS, values), (HASHES, hashes[known:])):
            path, row_bytes = self.folder / file, rows[:1].nbytes
            with path.open("r+b" if path.is_file() else "w+b") as stream:
                stream.truncate(self.done * row_bytes)
                stream.seek(0, os.SEEK_END)
                stream.write(rows.tobytes())
        self.hashes = np.concatenate([self.hashes, hashes[known:]])
        self.done = len(self.hashes)

    def _check_embeddings(self, embed: Callable[[list[Text]], np.ndarray]) -> None:
        """Check that the model is the one that embedded the file: its folder or the maximum length can have changed."""
        if self._longest is None:
            return
        row, text = self._longest
        before, now = self.read(np.array([row]))[0], embed([text])[0]
        if before @ now < SAME * np.linalg.norm(before) * np.linalg.norm(now):
            raise RunFolderError(
                f"the text of row {row + 1:,} has another embedding than before: the weights of the checkpoint or the "
                "maximum length changed",
                where=str(self.folder),
                remedy="Pass the same checkpoint and --max-length, or remove the files embeddings.* to embed the pool "
                "again.",
            )
        self._longest = None

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Return embeddings of rows, float32, shape (rows, hidden size), without memory-mapping the file."""
        values = np.empty((len(rows), self.width), dtype=np.float16)
        with (self.folder / EMBEDDINGS).open("rb") as file:
            for i, row in enumerate(rows.tolist()):
                file.seek(2 * self.width * row)
                values[i] = np.frombuffer(file.read(2 * self.width), dtype=np.float16)
        return values.astype(np.float32)


def hash_text(text: Text) -> int:
    """Return the XXH3 hash of a text; `EMPTY` for an empty one."""
    return EMPTY if is_empty(text) else xxhash.xxh3_64_intdigest(flat(text).encode()) or 1


def pool_size(hashes: np.ndarray) -> tuple[int, int]:
    """Return the number of rows of a pool, and how many have a text."""
    return len(hashes), int((hashes != EMPTY).sum())
