"""The paragraph on methods for a paper, from the files of a run. Every number names the key that it comes from."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from bertsmith.data.clean import AVERAGED, UNITED
from bertsmith.data.table import MULTI_LABEL, ORDINAL
from bertsmith.data.texts import decimals
from bertsmith.errors import lower_first, number_form
from bertsmith.folders.run import Run
from bertsmith.folders.study import Study
from bertsmith.measuring.design import NOT_RANDOM
from bertsmith.measuring.result import show_mean
from bertsmith.report.references import REFERENCES
from bertsmith.tasks.base import Task
from bertsmith.tasks.registry import describe, get_task

_BY_ESTIMATOR = {
    "PPI++": ("prediction-powered inference with power tuning", "angelopoulos2023ppi"),
    "DSL": ("design-based supervised learning with known inclusion probabilities", "egami2023dsl"),
    "adjusted count": ("an adjusted count under the assumption of label shift", "lipton2018bbse"),
}
_CITATION = re.compile(r"\[@(\w+)\]")
_CODE = re.compile(r"`([^`]*)`")
_SPECIAL = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"} | {
    c: f"\\{c}" for c in "&%$#_{}"
}
_CONTRASTIVE = {
    "first": "Before this training, the model learned whether two texts have the same label [@tunstall2022setfit], and "
    "we fitted its head by logistic regression. ",
    "only": "The model learned whether two texts have the same label [@tunstall2022setfit]. We then fitted its head by "
    "logistic regression. ",
}
"""Sentences by the setting ``contrastive`` of the recipe."""
_IMBALANCE = {
    "none": "",
    "weights": "The loss gave more weight to rare labels. ",
    "effective-number": "The loss weighted each class by the inverse of its effective number of texts "
    "[@cui2019effective]. ",
    "focal": "We used the focal loss, which gives more weight to difficult texts [@lin2017focal]. ",
    "logit-adjustment": "The loss added the logarithms of the class shares to the logits [@menon2021logit]. ",
    "balanced-sampling": "Training drew each class equally often. ",
}
"""Sentences by the setting ``imbalance`` of the recipe, one for each treatment."""
_MERGED = {AVERAGED: "the mean of their numbers", UNITED: "all their labels"}
"""What a text got from its rows, by the reason for which cleaning dropped all but one of them."""


@dataclass
class Methods:
    """The paragraph on methods.

    Attributes:
        sentences: the paragraphs, with ``[@key]`` for citations and code in backquotes.
        sources: every number, with the file and the key that it comes from.
    """

    sentences: list[str] = field(default_factory=list)
    sources: list[tuple[str, str]] = field(default_factory=list)

    @property
    def citations(self) -> list[str]:
        """Keys of the cited works, in order."""
        return list(dict.fromkeys(key for text in self.sentences for key in _CITATION.findall(text)))

    def markdown(self) -> str:
        """Return the paragraphs, and a table with the source of each number."""
        rows = [f"| {value} | `{key}` |" for value, key in self.sources]
        table = "\n".join(["| number | comes from |", "| --- | --- |", *rows])
        return "\n\n".join([*self.sentences, table]) + "\n"

    def latex(self) -> str:
        """Return the paragraphs, and the source of each number in comments."""
        paragraphs = []
        for text in self.sentences:
            parts = re.split(r"(\[@\w+\]|`[^`]*`)", text)
            paragraphs.append("".join(map(_to_latex, parts)))
        return "\n\n".join([*paragraphs, "\n".join(f"% {value}: {key}" for value, key in self.sources)]) + "\n"

    def bibtex(self) -> str:
        """Return the cited works."""
        return "\n\n".join(REFERENCES[key] for key in self.citations) + "\n"


def _to_latex(part: str) -> str:
    if citation := _CITATION.fullmatch(part):
        return f"\\cite{{{citation[1]}}}"
    code = _CODE.fullmatch(part)
    text = "".join(_SPECIAL.get(c, c) for c in (code[1] if code else part)).replace("±", r"$\pm$")
    return f"\\texttt{{{text}}}" if code else text


def write_methods(run: Run, measurement: Mapping[str, Any] | None = None) -> Methods:
    """Write the paragraph on methods of a run.

    Args:
        run: the finished run.
        measurement: the output of ``bertsmith measure --json``, for a second paragraph.

    Raises:
        RunFolderError: if a file of the run is missing or damaged.
    """
    result = Methods()
    files = {"run.json": run.info, "metrics.json": run.metrics, "labels.json": {"classes": run.class_counts}}

    def n(file: str, key: str, show: Callable[[Any], str] = lambda v: f"{v:,}") -> str:
        value: Any = files[file]
        for part in key.split("."):
            value = value[int(part)] if isinstance(value, list) else value[part]
        result.sources.append((show(value), f"{file}: {key}"))
        return show(value)

    info, test = run.info, run.metrics["splits"]["test"]
    splits = info["data"]["splits"]
    left_out = [
        f"{n('run.json', f'data.left_out.{reason}')} {number_form(rows, 'row')} ({reason})"
        for reason, rows in info["data"]["left_out"].items()
        if reason not in _MERGED
    ]
    excluded = f" We excluded {_listed(left_out)}." if left_out else ""
    for reason in _MERGED.keys() & info["data"]["left_out"].keys():
        rows = n("run.json", f"data.left_out.{reason}")
        removed = f"{rows} {number_form(info['data']['left_out'][reason], 'row')}"
        excluded += f" We merged rows with the same text, and used {_MERGED[reason]}. This removed {removed}."
    if "by" in test:
        unseen = "The prediction for each of the {} texts comes from a model that was not trained on it."
        if "best_seed" in info:
            unseen += " We chose the seed on these texts, so that the metrics are slightly too good."
        evaluated = f"evaluated the model by {n('metrics.json', 'splits.test.folds')}-fold cross-validation"
    else:
        unseen = "We did not use the {} test texts for training or for any choice."
        if run.has_chosen_validation:  # a labelling project shows scores on its random texts while coders label
            unseen = "We drew the {} test texts at random, unlike the training texts. We did not train on test texts."
        held_out = " and ".join(f"{n('run.json', f'data.splits.{s}')} {s}" for s in ("validation", "test") if splits[s])
        evaluated = f"held out {held_out} texts"
    study = Study(run.path.resolve().parent)
    if study.file.is_file() and study.best.path == run.path.resolve():
        files["study.json"] = study.info
        trials = n("study.json", "trials", lambda v: f"{len(v):,}")
        scored = "on the validation texts" if splits["validation"] else "on some of the training texts"
        if (study.info.get("searched") or {}).get("cv"):
            scored = f"in {n('study.json', 'searched.cv')}-fold cross-validation"
        evaluated += f", and chose the settings among {trials} trials by their scores {scored}"
        if (study.result or {}).get("told", 1) > 1:
            told = n("study.json", "result.told")
            unseen += f" In all, the search has shown us {told} test results."
    task = get_task(run.task)

    def interval(name: str, how: str = "") -> str:
        bounds = (n("metrics.json", f"splits.test.metrics.{name}.interval.{i}", decimals) for i in (0, 1))
        return f" ({how}{' to '.join(bounds)})" if test["metrics"][name]["interval"] else ""

    first, *others = (name for name in task.headline if test["metrics"][name]["value"] is not None)
    count, calibrated = len(run.labels), ""
    if task.decides:
        count = int(n("labels.json", "classes", lambda v: str(len(v))))
        held_out = _held_out(run)
        if info["data"].get("folds") and "by" not in test:
            held_out = f"in {n('run.json', 'data.folds')}-fold cross-validation of the training texts"
        calibrated = f" We calibrated the probabilities by temperature scaling [@guo2017calibration] {held_out}."
        if "stretch" in test["calibration"]:
            calibrated += (
                " To keep this scaling from moving predictions to the middle of the scale, we also changed the slope "
                "of the logits over the ordered classes."
            )
    recipe = info["recipe"]
    model = f"`{n('run.json', 'model.name', str)}`, a pretrained model of the BERT family [@devlin2019bert]"
    fitted = f"as a {describe(task, count)}. The training set has {n('run.json', 'data.splits.train')} labelled texts"
    if recipe["epochs"]:
        seed, kept = n("run.json", "best_seed" if "best_seed" in info else "config.seed", str), ""
        if "best_seed" in info:
            seeds = n("run.json", "config.seeds")
            kept = f"Of {seeds} models with different seeds, we kept the best {_held_out(run)}. "
        arguments, accumulated = info["config"].get("set", {}), ""
        limit, unit = "recipe.epochs", "epoch"
        if int(arguments.get("max_steps", 0)) > 0:
            limit, unit = "config.set.max_steps", "step"
        duration = n("run.json", limit, lambda v: f"{float(v):,g}")
        if int(arguments.get("gradient_accumulation_steps", 1)) > 1:
            batches = n("run.json", "config.set.gradient_accumulation_steps")
            accumulated = f" and gradients accumulated over {batches} batches"
        trained = (
            f"We fine-tuned {model}, {fitted}. We {evaluated}.{excluded} "
            f"Training ran for at most {duration} {unit}{'' if duration == '1' else 's'}, with a batch size of "
            f"{n('run.json', 'recipe.batch_size')}{accumulated}, a peak learning rate of "
            f"{n('run.json', 'recipe.learning_rate', '{:g}'.format)} and seed {seed}. "
            f"{_CONTRASTIVE.get(recipe.get('contrastive', 'none'), '')}{_loss(info, n)}{kept}"
        )
    else:
        trained = (
            f"We fitted only the head of {model}, {fitted}. The head is a regression on the mean of the last hidden "
            f"states. We {evaluated}.{excluded} "
        )
    result.sentences.append(f"{trained}{_reading(run, n)}.{_columns(run)}{_rule(run)}{calibrated}")
    rest = ""
    for second in others:
        value = n("metrics.json", f"splits.test.metrics.{second}.value", decimals)
        rest = f" The {_name(task, second)} is {value}{interval(second)}."
    result.sentences.append(
        f"{unseen.format(n('metrics.json', 'splits.test.texts'))} The "
        f"{_name(task, first)} is {n('metrics.json', f'splits.test.metrics.{first}.value', decimals)}"
        f"{interval(first, _interval_name(test['metrics'][first]))}.{rest} "
        f"The {_name(task, first)} of a bag-of-words baseline is "
        f"{n('metrics.json', f'baseline.bag_of_words.test.{first}', decimals)}. We used bertsmith "
        f"{n('run.json', 'versions.bertsmith', str)}, transformers {n('run.json', 'versions.transformers', str)} "
        f"[@wolf2020transformers] and PyTorch {n('run.json', 'versions.torch', str)}. The training table has the "
        f"SHA-256 fingerprint `{n('run.json', 'data.fingerprint', lambda v: str(v)[:16])}`."
    )
    if measurement is not None:
        files["measurement"] = dict(measurement)
        result.sentences.append(_measured(measurement, n))
    return result


def _loss(info: Mapping[str, Any], n: Callable[..., str]) -> str:
    """Return what the loss and the learning rates had beyond the default, and on what labels the model was trained."""
    recipe, number = info["recipe"], "{:g}".format
    sentences = [_IMBALANCE[recipe["imbalance"]]]
    if recipe.get("consistency"):
        weight = n("run.json", "recipe.consistency", number)
        sentences.append(
            f"R-Drop [@wu2021rdrop] with weight {weight} made predictions under different dropout similar. "
        )
    if info["config"].get("set", {}).get("label_smoothing_factor") and recipe.get("contrastive") != "only":
        factor = n("run.json", "config.set.label_smoothing_factor", number)
        sentences.append(f"We used label smoothing [@szegedy2016inception] with a factor of {factor}. ")
    if recipe.get("layer_decay", 1) != 1:
        decay = n("run.json", "recipe.layer_decay", number)
        sentences.append(f"Each layer had {decay} times the learning rate of the layer above it [@howard2018ulmfit]. ")
    if (info.get("soft_labels") or {}).get("used"):
        sentences.append("We trained the model on the shares of the labels that the coders gave to a text. ")
    if (info.get("label_noise") or {}).get("used"):
        suspects = n("run.json", "label_noise.suspects")
        sentences.append(
            "We used confident learning [@northcutt2021confident] to find training texts with a probably wrong label, "
            f"and left out {suspects} {number_form(int(info['label_noise']['suspects']), 'text')}. "
        )
    return "".join(sentences)


def _columns(run: Run) -> str:
    """Return how the model reads several columns, and which column groups the texts."""
    template, config = run.template, run.info["config"]
    split = "" if any(map(config.get, ("split_column", "validation", "test"))) else "split and the "
    columns = {
        "Each text joins the columns {}": template.text_column[1:] and template.text_column,
        "After the text, the model read the name and the value of {}": template.with_columns,
        "The model read pairs of texts, with the second text from the column {}": [template.pair_column],
        f"The {split}intervals treat all texts with the same value in {{}} as one group": [config.get("group_column")],
    }
    listed = {sentence: _listed(f"`{name}`" for name in names if name) for sentence, names in columns.items()}
    return "".join(f" {sentence.format(names)}." for sentence, names in listed.items() if names)


def _rule(run: Run) -> str:
    """Return what decides for a label, if it is not the most likely one."""
    if run.task == ORDINAL:
        return " The predicted class is the one with the least expected squared distance from the label, in steps."
    if not run.metrics.get("decision_rule", {}).get("used"):
        return " A text gets each label whose probability is above one half." if run.task == MULTI_LABEL else ""
    task = get_task(run.task)
    what = "a threshold for each label" if task.name == MULTI_LABEL else "an offset to the logit of each class"
    return f" For the predictions, we used {what}, tuned for the {_name(task, task.primary)} {_held_out(run)}."


def _held_out(run: Run) -> str:
    """Return where the run was calibrated and its rule and seed were chosen, as the end of a sentence."""
    return "in cross-validation" if run.info["data"].get("folds") else "on the validation texts"


def _listed(items: Iterable[str]) -> str:
    """Return items as a sentence lists them: ``a, b and c``."""
    *others, last = [*items] or [""]
    return f"{', '.join(others)} and {last}" if others else last


def _interval_name(metric: Mapping[str, Any]) -> str:
    """Return how the interval of the first metric was computed, before the interval: the bootstrap needs a mistake."""
    exact = metric["value"] == 1 and metric["interval"] and metric["interval"][0] < 1
    how = "exact interval of accuracy [@clopper1934exact]" if exact else "bootstrap interval [@efron1979bootstrap]"
    return f"95 % {how} "


def _reading(run: Run, n: Callable[..., str]) -> str:
    """Return how the model reads texts above the maximum length."""
    limit = f"{n('run.json', 'model.max_length')} tokens"
    return {
        "head-tail": f"Of texts with more than {limit}, the model read the beginning and the end",
        "window": f"The model read texts with more than {limit} in overlapping windows, after training on beginnings",
    }.get(run.info.get("long", "truncate"), f"The model read at most the first {limit} of each text")


def _name(task: Task, metric: str) -> str:
    """Return a metric as a paper writes it."""
    return "macro-averaged F1 score" if metric == "macro_f1" else lower_first(task.metric_names[metric][0])


def _measured(measurement: Mapping[str, Any], n: Callable[..., str]) -> str:
    percent = "{:.1%}".format
    whole = [(i, s) for i, s in enumerate(measurement["shares"]) if s["group"] is None]
    # A number has a mean instead of shares.
    first, about = (f"shares.{whole[0][0]}", whole[0][1]) if whole else ("means.0", measurement["means"][0])
    method, key = _BY_ESTIMATOR[about["estimator"]]
    sample = ""
    if about["labelled"]:
        origin = "of the corpus" if measurement.get("in_corpus", True) else "from the population of the corpus"
        drawn = f"{n('measurement', 'clusters')} groups with " if measurement.get("clusters") else ""
        drawn += f"{n('measurement', f'{first}.labelled')} texts"
        chances = ", with unequal inclusion probabilities" if about["estimator"] == "DSL" else ""
        left_out = [
            f"{n('measurement', f'left_out.{reason}')} {number_form(rows, 'row')} ({reason})"
            for reason, rows in measurement.get("left_out", {}).items()
            # Rows that were not drawn, in the words of older versions too, are not part of the sample.
            if reason not in _MERGED and not reason.startswith(NOT_RANDOM.partition(",")[0])
        ]
        sample = f" We labelled a random sample of {drawn} {origin}{chances}."
        sample += f" These texts do not include {', '.join(left_out)} of the sample." if left_out else ""
    shares = "; ".join(
        "{}: {} ({} to {}; naive count {})".format(
            s["label_text"],
            n("measurement", f"shares.{i}.share", percent),
            *(n("measurement", f"shares.{i}.interval.{j}", percent) for j in (0, 1)),
            n("measurement", f"shares.{i}.naive", percent),
        )
        for i, s in whole
    )
    others = ""
    if measurement.get("trained"):
        others = f", not counting another {n('measurement', 'trained')} that are training or validation texts,"
    mean = ""
    if measurement.get("means"):
        value, low, high, naive = (
            n("measurement", f"means.0.{key}", show_mean) for key in ("mean", "interval.0", "interval.1", "naive")
        )
        of = ("mean level", "levels") if whole else ("mean with its 95 % interval", "numbers")
        mean = f" The {of[0]} is {value} ({low} to {high}; mean of the predicted {of[1]} {naive})."
    wanted, biased = (
        ("share of each class", "A count of predicted labels") if whole else ("mean", "A mean of predictions")
    )
    listed = f" The shares with 95 % intervals are: {shares}." if whole else ""
    return (
        f"We estimated the {wanted} among {n('measurement', f'{first}.texts')} texts of the corpus{others} by {method} "
        f"[@{key}].{sample} {biased} would be biased.{listed}{mean}"
    )
