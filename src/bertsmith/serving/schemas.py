"""Request and response models, which are also the OpenAPI description."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, StringConstraints, Tag

from bertsmith.evaluation.calibration import softmax

Text = Annotated[str, StringConstraints(min_length=1, pattern=r"[^\s\x00-\x1f\x7f\x81\x8d\x8f\x90\x9d\ufeff]")]
"""A text that is not empty after normalisation."""


Columns = Annotated[dict[str, str | int | float | bool | None], Field(min_length=1)]
"""The columns of one text or pair by name, or ``text`` and ``text_pair``."""


def _kind(value: Any) -> str:
    if isinstance(value, dict):
        return "columns"
    return "batch" if isinstance(value, list) else "text"


def _nested_kind(value: Any) -> str:
    is_pair = isinstance(value, list) and len(value) == 2 and all(isinstance(text, str) for text in value)
    return "pair" if is_pair else _kind(value)


def _row_kind(value: Any) -> str:
    return {"batch": "row", "text": "row"}.get(kind := _nested_kind(value), kind)


# A discriminator tries a single alternative, so that an error names the field and not every alternative.
_Text = Annotated[Text, Tag("text")]
_Columns = Annotated[Columns, Tag("columns")]
_Pair = Annotated[list[Text], Field(min_length=2, max_length=2), Tag("pair")]
_Row = Annotated[
    Annotated[list[Text], Field(min_length=1, max_length=1), Tag("row")] | _Pair | _Columns, Discriminator(_row_kind)
]
_Rows = Annotated[list[_Row], Field(min_length=1), Tag("batch")]
_Item = Annotated[_Text | _Columns, Discriminator(lambda value: "columns" if isinstance(value, dict) else "text")]
_Items = Annotated[list[_Item], Field(min_length=1), Tag("batch")]


class _RequestModel(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class PredictRequest(_RequestModel):
    """Body in the format of text-embeddings-inference: a text or a pair, or a batch with one list per text or pair."""

    inputs: Annotated[_Text | _Pair | _Columns | _Rows, Discriminator(_nested_kind)] = Field(
        description='A text, or a batch such as [["first text"], ["second text"]]. In this format, a flat list of two '
        "strings is a pair, for models that read pairs. POST / accepts flat lists as batches. An object has the "
        "columns that the model reads, or text and text_pair.",
        examples=["great phone", [["great phone"], ["never again"]]],
    )
    truncate: bool = Field(
        False,
        strict=True,
        description="Accept texts that the model does not read completely. Otherwise, a request with such a text gets "
        "status 413.",
    )
    truncation_direction: Literal["Left", "Right", "left", "right"] = Field(
        "Right",
        description="Side to truncate; Right keeps the beginning. Has an effect only if `long` in `/info` is truncate.",
    )
    raw_scores: bool = Field(False, strict=True, description="Return logits instead of probabilities.")


def _number(value: object) -> object:
    """Refuse texts and truth values, which pydantic would convert. JSON Schema counts 2.0 as an integer, so do we."""
    if isinstance(value, str | bool):
        raise ValueError("input should be a valid integer")
    return value


class Parameters(_RequestModel):
    """Parameters of Hugging Face's inference API."""

    top_k: Annotated[int, Field(ge=1, le=100_000), BeforeValidator(_number)] | None = Field(
        None, description="Number of labels to return. By default, the best label; with null, all labels."
    )
    function_to_apply: Literal["softmax", "sigmoid", "none"] | None = Field(
        None, description="Function that turns logits into scores; by default that of the model."
    )


class PipelineRequest(_RequestModel):
    """Request of Hugging Face's inference API: a text or an object, or a flat list of these."""

    inputs: Annotated[_Text | _Columns | _Items, Discriminator(_kind)] = Field(
        description='A text, a pair as {"text": …, "text_pair": …}, an object with the columns that the model reads, '
        "or a batch of these.",
        examples=["great phone", ["great phone", "never again"]],
    )
    parameters: Parameters = Parameters()


class ExplainRequest(_RequestModel):
    """A text, a pair or an object of columns to explain."""

    inputs: Annotated[_Text | _Pair | _Columns, Discriminator(_nested_kind)] = Field(
        description="A text, a pair, or an object with the columns that the model reads.", examples=["great phone"]
    )


class ClassifyRequest(_RequestModel):
    """Request of vLLM: a text, or a list of texts."""

    input: Annotated[_Text | _Columns | _Items, Discriminator(_kind)] = Field(
        description="A text, an object with the columns that the model reads, or a list of these.",
        examples=["great phone", ["great phone", "never again"]],
    )
    model: str | None = Field(None, description="Ignored: the server has one model.")
    user: str | None = Field(None, description="Ignored.")


class VertexRequest(_RequestModel):
    """Request of Vertex AI."""

    instances: list[_Item] = Field(
        min_length=1,
        description="Texts, or objects with the columns that the model reads.",
        examples=[["great phone", "never again"]],
    )
    parameters: Parameters = Parameters()


class TasksRequest(BaseModel):
    """Body of a request from Label Studio for predictions; the server ignores other fields."""

    tasks: list[dict[str, Any]] = Field(
        min_length=1,
        description="Tasks of Label Studio. The field `data` of a task is an object with the fields of the imported "
        "table.",
        examples=[[{"id": 1, "data": {"text": "great phone"}}]],
    )
    label_config: str = Field(description="The labelling interface, in XML, with a choice for each label of the model.")


class SetupRequest(BaseModel):
    """Request of Label Studio to connect a project; its other fields are ignored."""

    label_config: str = Field(
        alias="schema", description="The labelling interface, in XML, with a choice for each label of the model."
    )


class Event(BaseModel):
    """Event of a Label Studio project; its other fields are ignored."""

    action: str = Field(description="What happened, such as ANNOTATION_CREATED.")


TASKS, INPUTS = "Label Studio", "text-embeddings-inference"
PredictBody = Annotated[
    Annotated[PredictRequest, Tag(INPUTS)] | Annotated[TasksRequest, Tag(TASKS)],
    Discriminator(lambda body: TASKS if isinstance(body, dict) and "tasks" in body else INPUTS),
]
"""A body of ``POST /predict``: two tools use the same path."""


class Score(BaseModel):
    """A label and its score."""

    label: str
    score: float


class Predictions(BaseModel):
    """Response in the format of Vertex AI: the best label of each instance, or several with ``top_k``."""

    predictions: list[Score] | list[list[Score]]


class ClassifiedText(BaseModel):
    """The label of a text, in the format of vLLM."""

    index: int
    label: str
    probs: list[float]
    num_classes: int


class Usage(BaseModel):
    """Tokens of a request, in the format of vLLM."""

    prompt_tokens: int
    total_tokens: int
    completion_tokens: int


class Classified(BaseModel):
    """Response in the format of vLLM's classification API."""

    id: str
    object: str
    created: int
    model: str
    data: list[ClassifiedText]
    usage: Usage


class TaskPrediction(BaseModel):
    """Prediction for a task of Label Studio: the chosen labels, and the confidence."""

    result: list[dict[str, Any]]
    score: float | None
    model_version: str


class TaskPredictions(BaseModel):
    """Response of a machine learning backend of Label Studio: one prediction per task."""

    results: list[TaskPrediction]


class ModelVersion(BaseModel):
    """Response to Label Studio when it connects a project: the name of the model, and when it was trained."""

    model_version: str


class ModelVersions(BaseModel):
    """Response to Label Studio with a list of the versions of the model: only the current version."""

    versions: list[str]


class Problem(BaseModel):
    """An error, in the format of text-embeddings-inference."""

    error: str = Field(description="Where the error is, what is wrong, and what to do.")
    error_type: str


class Health(BaseModel):
    """State of the server."""

    status: str


class LabelEntry(BaseModel):
    """A label of the model."""

    label: int = Field(description="Label number.")
    label_text: str = Field(description="Label text.")


class RequestLimits(BaseModel):
    """Limits of a request."""

    body: int = Field(description="Maximum number of bytes of the body.")
    texts: int = Field(description="Maximum number of texts.")
    characters: int = Field(description="Maximum number of characters of a text.")


class Info(BaseModel):
    """The model, its test metrics, and the limits of a request."""

    model: str = Field(description="Name of the run, or of the model folder.")
    task: str = Field(description="Kind of label, as in `--task`.")
    primary: str = Field(description="Name of the primary metric.")
    labels: list[LabelEntry] = Field(description="The labels of the model.")
    runtime: str = Field(description="`torch`, or format and precision of the export.")
    base_model: str | None = Field(
        None, description="Checkpoint that the training started from; absent for a model folder."
    )
    trained: str | None = Field(None, description="Time of the end of the training; absent for a model folder.")
    test: dict[str, Any] | None = Field(
        None,
        description="Number of test texts (`texts`), and `value` and `interval` of each main metric; absent for a "
        "model folder.",
    )
    version: str = Field(description="Version of bertsmith.")
    drift: dict[str, Any] | None = Field(
        description="Latest comparison: whether the texts differ (`differs`), and `distance`, `threshold` and "
        "`differs` of each of the `properties`."
    )
    explains: bool = Field(description="Whether `POST /explain` can explain predictions.")
    max_length: int = Field(description="Maximum number of tokens that the model reads at once.")
    columns: list[str] = Field(description="Columns that the model reads.")
    long: str = Field(description="How the model reads longer texts: `truncate`, `head-tail` or `window`.")
    limits: RequestLimits = Field(description="Limits that the server sets for a request.")


def apply_function(logits: np.ndarray, function: str) -> np.ndarray:
    """Return scores from logits, both of shape (texts, classes); ``function``: softmax, sigmoid or none."""
    if function == "none":
        return logits
    if function == "sigmoid":
        return 1 / (1 + np.exp(-logits))
    return softmax(logits)


def rank_labels(scores: np.ndarray, labels: tuple[str, ...], top_k: int | None = None) -> list[list[dict[str, Any]]]:
    """Return the ``top_k`` labels of each text with their scores, best first; ``scores`` has shape (texts, classes)."""
    order = np.argsort(-scores, axis=1, kind="stable")[:, :top_k]
    return [
        [{"label": labels[c], "score": float(row[c])} for c in best] for row, best in zip(scores, order, strict=True)
    ]
