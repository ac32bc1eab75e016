"""Training arguments: those of the recipe, with what the user set on top, checked."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError
from transformers import TrainingArguments

from bertsmith.config import PRIMARY, TrainConfig
from bertsmith.errors import ConfigError, did_you_mean
from bertsmith.training.recipe import Recipe

if TYPE_CHECKING:
    import torch

NEVER = 2**31 - 1
"""Steps."""
_OWN_FLAG = {"output_dir": "-o", "seed": "--seed", "data_seed": "--seed", "resume_from_checkpoint": "--resume"}


def problems_of(settings: Mapping[str, Any]) -> dict[str, str]:
    """Return what is wrong with the training arguments the user sets, by name: there is none, or of another type."""
    known = {f.name for f in dataclasses.fields(TrainingArguments)}
    hints = typing.get_type_hints(TrainingArguments)
    problems: dict[str, str] = {}
    for name, value in settings.items():
        if name in _OWN_FLAG:
            problems[name] = f"use {_OWN_FLAG[name]} instead"
        elif name == "eval_strategy" and str(value) == "no":
            problems[name] = "not no: the best epoch is chosen on validation; use epoch or steps"
        elif name not in known:
            problems[name] = f"there is no such training argument.{did_you_mean(name, known)}"
        else:
            try:
                TypeAdapter(hints[name]).validate_python(value)
            except ValidationError as error:
                message = error.errors()[0]["msg"]
                problems[name] = f"{message[0].lower()}{message[1:]}, not {value!r}"
    return problems


def training_arguments(
    recipe: Recipe,
    config: TrainConfig,
    folder: Path,
    device: torch.device | None = None,
    *,
    saves: bool = True,
    validates: bool = True,
) -> TrainingArguments:
    """Return the training arguments of a recipe, with what the user set on top.

    Args:
        recipe: what was chosen.
        config: with what the user set.
        folder: for checkpoints.
        device: where training will run.
        saves: keep checkpoints, and take the best one in the end.
        validates: score validation texts; without them the last weights are kept, and checkpoints are saved by time.

    Raises:
        ConfigError: if transformers refuses what the user set.
    """
    arguments: dict[str, Any] = {
        "output_dir": str(folder),
        "seed": config.seed,
        "num_train_epochs": recipe.epochs,
        "per_device_train_batch_size": recipe.batch_size,
        "per_device_eval_batch_size": 4 * recipe.batch_size,
        "learning_rate": recipe.learning_rate,
        "warmup_steps": recipe.warmup,
        "weight_decay": recipe.weight_decay,
        "bf16": recipe.precision == "bf16",
        "fp16": recipe.precision == "fp16",
        "use_cpu": device is not None and device.type == "cpu",
        "eval_strategy": "epoch",
        "logging_strategy": "epoch",
        # The best, the newest, and the one before, which is gone on from if the newest is half written.
        "save_total_limit": 3,
        "restore_callback_states_from_checkpoint": True,
        "load_best_model_at_end": True,
        "metric_for_best_model": PRIMARY,
        "greater_is_better": True,
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,  # what goes to a GPU is pinned when it has been cut
        "logging_nan_inf_filter": False,  # it would wait for a GPU in every step; the engine looks after that itself
    }
    arguments |= config.set
    # A checkpoint is kept where one is scored, so that the best one is there in the end.
    arguments.setdefault("save_strategy", arguments["eval_strategy"])
    if "eval_steps" in arguments:
        arguments.setdefault("save_steps", arguments["eval_steps"])
    if not validates:
        arguments |= {"eval_strategy": "no", "save_strategy": "steps", "save_steps": NEVER}
        arguments |= {"load_best_model_at_end": False}
    if not saves:
        arguments |= {"save_strategy": "no", "load_best_model_at_end": False}
    try:
        result = TrainingArguments(**arguments)
    except (ValueError, TypeError, ImportError) as error:
        raise refused(config.set, error) from error
    if device is not None and device.type == "cuda":
        result._n_gpu = min(result.n_gpu, 1)  # no silent DataParallel: it would multiply the batch size
    return result


def refused(user_arguments: Mapping[str, Any], error: Exception) -> ConfigError:
    """Return the error that says which training arguments, set by hand, do not work, and why."""
    given = ", ".join(f"{name}={value}" for name, value in user_arguments.items()) or "the defaults"
    return ConfigError(
        f"transformers refuses these training arguments: {' '.join(str(error).split())}",
        where=f"--set {given}",
        remedy="Change or leave out the argument it names.",
    )
