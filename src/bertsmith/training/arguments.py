"""Build and check `transformers.TrainingArguments` from the recipe and the arguments set by the user."""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pydantic import TypeAdapter, ValidationError
from transformers import TrainingArguments

from bertsmith.config import PRIMARY, TrainConfig
from bertsmith.errors import ConfigError, did_you_mean, listing
from bertsmith.training.recipe import Recipe

if TYPE_CHECKING:
    from bertsmith.tasks.base import Task

NEVER = 2**31 - 1
"""A number of steps that no training reaches."""
_FLAGS = {"output_dir": "-o", "seed": "--seed", "data_seed": "--seed", "resume_from_checkpoint": "--resume"}

_UNSUPPORTED = {
    "auto_find_batch_size": "bertsmith itself splits the batches that do not fit into memory",
    "deepspeed": "bertsmith trains on several GPUs with torchrun or --ray",
    "eval_on_start": "an evaluation before the first step cannot select the best epoch",
    "fsdp": "bertsmith trains on several GPUs with torchrun or --ray",
    "neftune_noise_alpha": "bertsmith adds no noise to embeddings",
    "torch_empty_cache_steps": "bertsmith itself frees cached memory when memory runs out",
}
"""Training arguments that bertsmith cannot apply, and why."""


def argument_problems(settings: Mapping[str, Any]) -> dict[str, str]:
    """Return the problems of training arguments set by the user, by name: unknown or unsupported names, wrong types."""
    known = {f.name for f in dataclasses.fields(TrainingArguments)}
    hints = typing.get_type_hints(TrainingArguments)
    problems: dict[str, str] = {}
    for name, value in settings.items():
        if name in _FLAGS:
            problems[name] = f"use {_FLAGS[name]} instead"
        elif name == "eval_strategy" and str(value) == "no":
            problems[name] = "must be epoch or steps, because bertsmith chooses the best epoch on validation"
        elif name == "load_best_model_at_end" and value is not True:
            problems[name] = "must be true, because bertsmith keeps the weights of the best epoch"
        elif name == "save_steps" and value != settings.get("eval_steps"):
            problems[name] = "must be the same as eval_steps, because bertsmith saves each model that it evaluates"
        elif name in _UNSUPPORTED and value:
            problems[name] = f"not supported: {_UNSUPPORTED[name]}"
        elif name == "optim" and re.fullmatch(r"lomo|adalomo|.*_layerwise", str(value)):
            problems[name] = (
                f"not supported: {value} updates the weights in every backward pass, but a step can have several"
            )
        elif name == "optim" and str(value).startswith("schedule_free"):
            problems[name] = f"not supported: {value} has other weights for validation, which bertsmith does not load"
        elif name not in known:
            problems[name] = f"unknown training argument.{did_you_mean(name, known)}"
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
    device: torch.device,
    *,
    task: Task | None = None,
    saves: bool = True,
    validates: bool = True,
) -> TrainingArguments:
    """Return the training arguments of a recipe, overridden by the user's, which are in ``config``.

    Args:
        recipe, config, folder, device: of the training. The folder is for checkpoints.
        task: its primary metric selects the best epoch, unless the user chose another one; ``None`` if no epoch is
            selected.
        saves: whether to save checkpoints and load the best one at the end.
        validates: whether to score validation texts. If not, the last weights are the result, and checkpoints are
            saved only at time intervals.

    Raises:
        ConfigError: if transformers rejects the user's arguments, if the task has no such metric, if two samplers are
            chosen, or for fp16 on a CPU.
    """
    metric = str(config.set.get("metric_for_best_model") or (task.primary if task else PRIMARY)).removeprefix("eval_")
    if task is not None and metric not in (metrics := ("loss", *task.epoch_metrics)):
        raise ConfigError(
            f"{metric!r} cannot select the best epoch of --task {task.name}",
            where=f"--set metric_for_best_model={metric}",
            remedy=f"Use one of {listing(metrics)}, or leave out the argument.",
        )
    arguments: dict[str, Any] = {
        "output_dir": str(folder),
        "seed": config.seed,
        "num_train_epochs": recipe.epochs,
        "per_device_train_batch_size": recipe.batch_size,
        "learning_rate": recipe.learning_rate,
        "warmup_steps": recipe.warmup,
        "weight_decay": recipe.weight_decay,
        "bf16": recipe.precision == "bf16",
        "fp16": recipe.precision == "fp16",
        "use_cpu": device.type == "cpu",
        "eval_strategy": "epoch",
        "logging_strategy": "epoch",
        "save_total_limit": 3,  # the best, the newest, and the one before, in case the newest is damaged
        "restore_callback_states_from_checkpoint": True,
        "greater_is_better": metric not in ("loss", "mae"),
        "report_to": "none",
        "disable_tqdm": True,
        "logging_nan_inf_filter": False,  # would synchronize with the GPU in each step; see `NanGuard`
    }
    selects = saves and validates  # the best epoch, by its checkpoint
    arguments |= {**config.set, "metric_for_best_model": metric, "load_best_model_at_end": selects}
    # Each evaluated model is saved, so that the best one can be loaded.
    arguments.setdefault("save_strategy", arguments["eval_strategy"])
    if every := arguments.get("eval_steps") or arguments.get("logging_steps"):
        arguments["save_steps"] = every
    if not validates:
        arguments |= {"eval_strategy": "no", "save_strategy": "steps", "save_steps": NEVER}
    if not saves:
        arguments["save_strategy"] = "no"
    try:
        result = TrainingArguments(**arguments)
    except (ValueError, TypeError, ImportError) as error:
        raise arguments_error(config.set, error) from error
    if result.fp16 and device.type == "cpu":  # the loss is scaled on a GPU only
        raise ConfigError(
            "fp16 training needs a GPU: on a CPU, small gradients become 0", remedy="Pass --precision fp32 or bf16."
        )
    if recipe.imbalance == "balanced-sampling" and result.train_sampling_strategy != "random":
        raise ConfigError(
            "--imbalance balanced-sampling cannot be combined with another sampling strategy",
            where=f"--set train_sampling_strategy={result.train_sampling_strategy}",
            remedy="Leave out the argument, or pass another --imbalance.",
        )
    if device.type == "cuda":
        result._n_gpu = min(result.n_gpu, 1)  # DataParallel would silently multiply the batch size
    return result


def arguments_error(user_arguments: Mapping[str, Any], error: Exception) -> ConfigError:
    """Return the error for training arguments that transformers rejects."""
    flags = ", ".join(f"{name}={value}" for name, value in user_arguments.items())
    return ConfigError(
        f"transformers refuses these training arguments: {' '.join(str(error).split())}",
        where=f"--set {flags}" if flags else None,
        remedy="Change or leave out the argument that the message names.",
    )
