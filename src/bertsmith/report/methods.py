"""The paragraph on methods for a paper, from the files of a run. Every number names the key that it comes from."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from bertsmith.data.table import MULTI_LABEL
from bertsmith.errors import lower_first, number_form
from bertsmith.folders.run import Run
from bertsmith.tasks.base import Task
from bertsmith.tasks.registry import describe, get_task

REFERENCES = {
    "devlin2019bert": """@inproceedings{devlin2019bert,
  title = {{BERT}: Pre-training of Deep Bidirectional Transformers for Language Understanding},
  author = {Devlin, Jacob and Chang, Ming-Wei and Lee, Kenton and Toutanova, Kristina},
  booktitle = {Proceedings of NAACL-HLT}, year = {2019}, pages = {4171--4186}}""",
    "tunstall2022setfit": """@misc{tunstall2022setfit,
  title = {Efficient Few-Shot Learning Without Prompts},
  author = {Tunstall, Lewis and Reimers, Nils and Jo, Unso Eun Seo and others},
  year = {2022}, eprint = {2209.11055}, archivePrefix = {arXiv}}""",
    "wu2021rdrop": """@inproceedings{wu2021rdrop,
  title = {{R-Drop}: Regularized Dropout for Neural Networks},
  author = {Wu, Lijun and Li, Juntao and Wang, Yue and Meng, Qi and Qin, Tao and Chen, Wei and others},
  booktitle = {Advances in Neural Information Processing Systems}, year = {2021}}""",
    "howard2018ulmfit": """@inproceedings{howard2018ulmfit,
  title = {Universal Language Model Fine-tuning for Text Classification},
  author = {Howard, Jeremy and Ruder, Sebastian},
  booktitle = {Proceedings of ACL}, year = {2018}, pages = {328--339}}""",
    "szegedy2016inception": """@inproceedings{szegedy2016inception,
  title = {Rethinking the Inception Architecture for Computer Vision},
  author = {Szegedy, Christian and Vanhoucke, Vincent and Ioffe, Sergey and Shlens, Jon and Wojna, Zbigniew},
  booktitle = {Proceedings of CVPR}, year = {2016}, pages = {2818--2826}}""",
    "northcutt2021confident": """@article{northcutt2021confident,
  title = {Confident Learning: Estimating Uncertainty in Dataset Labels},
  author = {Northcutt, Curtis G. and Jiang, Lu and Chuang, Isaac L.},
  journal = {Journal of Artificial Intelligence Research}, volume = {70}, year = {2021}, pages = {1373--1411}}""",
    "cui2019effective": """@inproceedings{cui2019effective,
  title = {Class-Balanced Loss Based on Effective Number of Samples},
  author = {Cui, Yin and Jia, Menglin and Lin, Tsung-Yi and Song, Yang and Belongie, Serge},
  booktitle = {Proceedings of CVPR}, year = {2019}, pages = {9268--9277}}""",
    "lin2017focal": """@inproceedings{lin2017focal,
  title = {Focal Loss for Dense Object Detection},
  author = {Lin, Tsung-Yi and Goyal, Priya and Girshick, Ross and He, Kaiming and Doll{\\'a}r, Piotr},
  booktitle = {Proceedings of ICCV}, year = {2017}, pages = {2980--2988}}""",
    "menon2021logit": """@inproceedings{menon2021logit,
  title = {Long-tail Learning via Logit Adjustment},
  author = {Menon, Aditya Krishna and Jayasumana, Sadeep and Rawat, Ankit Singh and Jain, Himanshu and others},
  booktitle = {Proceedings of ICLR}, year = {2021}}""",
    "wolf2020transformers": """@inproceedings{wolf2020transformers,
  title = {Transformers: State-of-the-Art Natural Language Processing},
  author = {Wolf, Thomas and others},
  booktitle = {Proceedings of EMNLP: System Demonstrations}, year = {2020}, pages = {38--45}}""",
    "guo2017calibration": """@inproceedings{guo2017calibration,
  title = {On Calibration of Modern Neural Networks},
  author = {Guo, Chuan and Pleiss, Geoff and Sun, Yu and Weinberger, Kilian Q.},
  booktitle = {Proceedings of ICML}, year = {2017}, pages = {1321--1330}}""",
    "efron1979bootstrap": """@article{efron1979bootstrap,
  title = {Bootstrap Methods: Another Look at the Jackknife}, author = {Efron, Bradley},
  journal = {The Annals of Statistics}, volume = {7}, number = {1}, year = {1979}, pages = {1--26}}""",
    "clopper1934exact": """@article{clopper1934exact,
  title = {The Use of Confidence or Fiducial Limits Illustrated in the Case of the Binomial},
  author = {Clopper, C. J. and Pearson, E. S.},
  journal = {Biometrika}, volume = {26}, number = {4}, year = {1934}, pages = {404--413}}""",
    "angelopoulos2023ppi": """@article{angelopoulos2023ppi,
  title = {{PPI++}: Efficient Prediction-Powered Inference},
  author = {Angelopoulos, Anastasios N. and Duchi, John C. and Zrnic, Tijana},
  journal = {arXiv preprint arXiv:2311.01453}, year = {2023}}""",
    "egami2023dsl": """@inproceedings{egami2023dsl,
  title = {Using Imperfect Surrogates for Downstream Inference: Design-based Supervised Learning for Social Science
           Applications of Large Language Models},
  author = {Egami, Naoki and Hinck, Musashi and Stewart, Brandon M. and Wei, Hanying},
  booktitle = {Advances in Neural Information Processing Systems}, year = {2023}}""",
    "lipton2018bbse": """@inproceedings{lipton2018bbse,
  title = {Detecting and Correcting for Label Shift with Black Box Predictors},
  author = {Lipton, Zachary C. and Wang, Yu-Xiang and Smola, Alexander J.},
  booktitle = {Proceedings of ICML}, year = {2018}}""",
}
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
    "weights": "The loss gave more weight to rare labels. ",
    "effective-number": "The loss weighted each class by the inverse of its effective number of texts "
    "[@cui2019effective]. ",
    "focal": "We used the focal loss, which gives more weight to difficult texts [@lin2017focal]. ",
    "logit-adjustment": "The loss added the logarithms of the class shares to the logits [@menon2021logit]. ",
    "balanced-sampling": "Training drew texts of all classes equally often. ",
}
"""Sentences by the setting ``imbalance`` of the recipe."""


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

    three = "{:.3f}".format
    info, test = run.info, run.metrics["splits"]["test"]
    splits = info["data"]["splits"]
    left_out = [
        f"{n('run.json', f'data.left_out.{reason}')} {number_form(rows, 'row')} ({reason})"
        for reason, rows in info["data"]["left_out"].items()
    ]
    listed = " and ".join([*([", ".join(left_out[:-1])] if left_out[1:] else []), *left_out[-1:]])
    excluded = f" We excluded {listed}." if listed else ""
    if "by" in test:
        unseen = "The prediction for each of the {} texts comes from a model that was not trained on it."
        evaluated = f"evaluated the model by {n('metrics.json', 'splits.test.folds')}-fold cross-validation"
    else:
        unseen = "We did not use the {} test texts for training or for any choice."
        held_out = " and ".join(f"{n('run.json', f'data.splits.{s}')} {s}" for s in ("validation", "test") if splits[s])
        evaluated = f"held out {held_out} texts"
    task = get_task(run.task)
    first, *others = (name for name in task.headline if test["metrics"][name]["interval"])  # those that are defined
    interval = " to ".join(n("metrics.json", f"splits.test.metrics.{first}.interval.{i}", three) for i in (0, 1))
    count, calibrated = len(run.labels), ""
    if task.decides:
        count = int(n("labels.json", "classes", lambda v: str(len(v))))
        held_out = "held-out texts"
        if info["data"].get("folds") and "by" not in test:
            held_out = f"training texts, each predicted in {n('run.json', 'data.folds')}-fold cross-validation"
        calibrated = f" We calibrated the probabilities by temperature scaling [@guo2017calibration] on {held_out}."
        if "stretch" in test["calibration"]:
            calibrated += (
                " To keep the predicted ranks, we changed the slope of the logits over the ranks of the classes."
            )
    recipe = info["recipe"]
    model = f"`{n('run.json', 'model.name', str)}`, a pretrained model of the BERT family [@devlin2019bert]"
    fitted = f"as a {describe(task, count)}. The training set has {n('run.json', 'data.splits.train')} labelled texts"
    if recipe["epochs"]:
        seed, kept = n("run.json", "best_seed" if "best_seed" in info else "config.seed", str), ""
        if "best_seed" in info:
            seeds = n("run.json", "config.seeds")
            kept = f"Of {seeds} models with different seeds, we kept the best on held-out texts. "
        trained = (
            f"We fine-tuned {model}, {fitted}. We {evaluated}.{excluded} "
            f"Training ran for at most {n('run.json', 'recipe.epochs', '{:g}'.format)} "
            f"{number_form(recipe['epochs'], 'epoch')}, with a batch size of "
            f"{n('run.json', 'recipe.batch_size')}, a peak learning rate of "
            f"{n('run.json', 'recipe.learning_rate', '{:g}'.format)} and seed {seed}. "
            f"{_CONTRASTIVE.get(recipe.get('contrastive', 'none'), '')}{_loss(info, n)}{kept}"
        )
    else:
        trained = (
            f"We fitted only the head of {model}, {fitted}. The head is a regression on the mean of the last hidden "
            f"states. We {evaluated}.{excluded} "
        )
    result.sentences.append(f"{trained}{_reading(run, n)}.{_rule(run)}{calibrated}")
    rest = ""
    for second in others:
        value = n("metrics.json", f"splits.test.metrics.{second}.value", three)
        low, high = (n("metrics.json", f"splits.test.metrics.{second}.interval.{i}", three) for i in (0, 1))
        rest = f" The {_name(task, second)} is {value} ({low} to {high})."
    result.sentences.append(
        f"{unseen.format(n('metrics.json', 'splits.test.texts'))} The "
        f"{_name(task, first)} is {n('metrics.json', f'splits.test.metrics.{first}.value', three)} "
        f"(95 % {_interval_name(test['metrics'][first])} {interval}).{rest} "
        f"The {_name(task, first)} of a bag-of-words baseline is "
        f"{n('metrics.json', f'baseline.bag_of_words.test.{first}', three)}. We used bertsmith "
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
    sentences = [_IMBALANCE.get(recipe["imbalance"], "")]
    if recipe.get("consistency"):
        weight = n("run.json", "recipe.consistency", number)
        sentences.append(
            f"R-Drop [@wu2021rdrop] with weight {weight} made predictions under different dropout similar. "
        )
    if info["config"].get("set", {}).get("label_smoothing_factor") and recipe.get("contrastive") != "only":
        factor = n("run.json", "config.set.label_smoothing_factor", number)
        sentences.append(f"We smoothed the labels [@szegedy2016inception] by {factor}. ")
    if recipe.get("layer_decay", 1) != 1:
        decay = n("run.json", "recipe.layer_decay", number)
        sentences.append(f"Each layer had {decay} times the learning rate of the layer above it [@howard2018ulmfit]. ")
    if (info.get("soft_labels") or {}).get("used"):
        sentences.append("We trained the model on the shares of the labels that the coders gave to a text. ")
    if (info.get("label_noise") or {}).get("used"):
        suspects = n("run.json", "label_noise.suspects")
        sentences.append(
            f"By confident learning [@northcutt2021confident], we found and left out {suspects} training "
            f"{number_form(int(info['label_noise']['suspects']), 'text', 'texts')} with a probably wrong label. "
        )
    return "".join(sentences)


def _rule(run: Run) -> str:
    """Return what decides for a label, if it is not the most likely one."""
    if not run.metrics.get("decision_rule", {}).get("used"):
        return ""
    task = get_task(run.task)
    what = "a threshold for each label" if task.name == MULTI_LABEL else "an offset to the logit of each class"
    return f" For the predictions, we used {what}, tuned on held-out texts for the {_name(task, task.primary)}."


def _interval_name(metric: Mapping[str, Any]) -> str:
    """Return how the interval of the first metric was computed: the bootstrap needs a mistake."""
    exact = metric["value"] == 1 and metric["interval"][0] < 1
    return "exact interval of accuracy [@clopper1934exact]" if exact else "bootstrap interval [@efron1979bootstrap]"


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
    method, key = _BY_ESTIMATOR[whole[0][1]["estimator"]]
    first = whole[0][0]
    sample = ""
    if whole[0][1]["labelled"]:
        origin = "of the corpus" if measurement.get("in_corpus", True) else "from the population of the corpus"
        sample = f" We labelled a random sample of {n('measurement', f'shares.{first}.labelled')} texts {origin}."
    shares = "; ".join(
        "{}: {} ({} to {}; naive count {})".format(
            s["label_text"],
            n("measurement", f"shares.{i}.share", percent),
            *(n("measurement", f"shares.{i}.interval.{j}", percent) for j in (0, 1)),
            n("measurement", f"shares.{i}.naive", percent),
        )
        for i, s in whole
    )
    mean = ""
    if measurement.get("means"):
        value, low, high, naive = (
            n("measurement", f"means.0.{key}", "{:.3g}".format) for key in ("mean", "interval.0", "interval.1", "naive")
        )
        mean = f" The mean level is {value} ({low} to {high}; mean of the predicted levels {naive})."
    return (
        f"We estimated the share of each class among {n('measurement', f'shares.{first}.texts')} texts of the corpus "
        f"by {method} [@{key}].{sample} A count of predicted labels would be biased. The shares with 95 % intervals "
        f"are: {shares}.{mean}"
    )
