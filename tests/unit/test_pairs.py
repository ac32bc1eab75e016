"""Pairs and several columns through tokenizer, model, run, export and server, against Hugging Face."""

import dataclasses
import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, pipeline

import bertsmith as bs
from bertsmith.config import Config
from bertsmith.data.table import Labels
from bertsmith.data.template import Template, Texts, texts_of
from bertsmith.errors import ConfigError, DataError, Interrupted, RunFolderError
from bertsmith.folders.run import Run
from bertsmith.inference.classifier import Classifier
from bertsmith.inference.explain import explain
from bertsmith.model import bert, checkpoint, forward
from bertsmith.model.load import LoadedModel, load_model, load_tokenizer
from bertsmith.model.tokenizer import encoder_for
from bertsmith.model.tokens import Tokens
from bertsmith.tasks.registry import get_task
from bertsmith.testing import WORDS, tiny_model, tiny_table
from bertsmith.workflows import ablation, baselines, trials
from bertsmith.workflows.prepare import prepare_model
from tests.conftest import rows_of, train

ALL_WORDS = [word for group in WORDS.values() for word in group]
TEXT = st.lists(st.sampled_from([*ALL_WORDS[:12], "[SEP]", "é", "\n"]), max_size=25).map(" ".join)
PAIRS = st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=5)


# -- tokens ---------------------------------------------------------------------------------------------------------


def _tokenizer(kind, side):
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    words = {word: i for i, word in enumerate([*special, *ALL_WORDS])}
    made = Tokenizer(models.WordPiece(words, unk_token="[UNK]"))
    made.normalizer, made.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    made.post_processor = {
        "BERT": processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2)),
        "RoBERTa": processors.RobertaProcessing(("[SEP]", 3), ("[CLS]", 2), trim_offsets=False),
        "XLNet": processors.TemplateProcessing(
            single="$A:0 [SEP]:0 [CLS]:2",
            pair="$A:0 [SEP]:0 $B:1 [SEP]:1 [CLS]:2",
            special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
        ),
    }[kind]
    made.add_special_tokens(special)
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token"), special, strict=True))
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    return PreTrainedTokenizerFast(tokenizer_object=made, truncation_side=side, model_input_names=inputs, **names)


class Slow:
    is_fast = False

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    def __call__(self, *args, **kwargs):
        return self.tokenizer(*args, **kwargs)

    def __getattr__(self, name):
        return getattr(self.tokenizer, name)


TOKENIZERS = {
    (kind, side): _tokenizer(kind, side) for kind in ("BERT", "RoBERTa", "XLNet") for side in ("left", "right")
}


@pytest.mark.parametrize("slow", [False, True])
@pytest.mark.parametrize("case", TOKENIZERS)
@settings(max_examples=25, deadline=None)
@given(PAIRS, st.integers(5, 30), st.integers(5, 30))
def test_pairs_are_cut_as_the_tokenizer_cuts_them(case, slow, pairs, first, second):
    tokenizer, names = TOKENIZERS[case], ("input_ids", "token_type_ids")
    whole = encoder_for(Slow(tokenizer) if slow else tokenizer).encode(pairs, names)
    cut = whole.truncate(second)
    expected = tokenizer(*map(list, zip(*pairs, strict=True)), truncation="longest_first", max_length=second)
    assert {name: rows_of(cut, name) for name in names} == {name: expected[name] for name in names}
    twice = whole.truncate(max(first, second)).truncate(second)
    assert np.array_equal(twice.truncated_lengths, cut.truncated_lengths)
    assert (np.abs(twice.parts - cut.parts) <= 1).all()  # parts that are equally long after the first cut
    order = np.arange(len(pairs))[::-1]
    joined = Tokens.concatenate([cut.take(order), cut])
    assert rows_of(joined.truncate(6))[-1] == rows_of(cut.truncate(6))[-1]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.sampled_from(ALL_WORDS), min_size=1, max_size=12), min_size=1, max_size=4), st.integers(6, 40)
)
def test_of_several_columns_the_longest_is_cut_first(columns, max_length):
    tokenizer = TOKENIZERS["BERT", "right"]
    text = "\n".join(map(" ".join, columns))
    tokens = encoder_for(tokenizer, by_line=True).encode([text, "cat"])
    assert rows_of(tokens)[0] == tokenizer(text)["input_ids"]  # what transformers reads, unless it is cut
    assert [*tokens.parts[0].tolist()[:-1], tokens.parts[0, -1]] == [*map(len, columns)]
    cut = tokens.truncate(max_length)
    kept = cut.parts[0]
    assert cut.truncated_lengths[0] == min(len(rows_of(tokens)[0]), max_length) == kept.sum() + 2
    shortened = kept[kept < tokens.parts[0]]
    if len(shortened):
        assert shortened.max() - shortened.min() <= 1
        assert kept.max() <= shortened.max() + 1
    expected = [word for column, n in zip(columns, kept, strict=True) for word in column[:n]]
    assert tokenizer.convert_ids_to_tokens(rows_of(cut)[0])[1:-1] == expected


# -- model ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", [*bert.MODULE_NAMES, "albert", "deberta-v2"])
def test_logits_of_pairs_are_those_of_hugging_face(architecture, tmp_path):
    """With the token types of BERT and the two separators of RoBERTa and MPNet."""
    folder = tiny_model(tmp_path / architecture, architecture, initializer_range=0.3)
    found = checkpoint.resolve(str(folder))
    model, tokenizer = load_model(found, Labels((0, 1, 2), ("a", "b", "c"))).eval(), load_tokenizer(found)
    if architecture in ("roberta", "xlm-roberta", "mpnet"):
        processor = processors.RobertaProcessing(("[SEP]", 3), ("[CLS]", 2), trim_offsets=False)
        tokenizer.backend_tokenizer.post_processor = processor
        assert tokenizer("cat", "dog")["input_ids"].count(3) == 3
    rng = np.random.default_rng(0)
    pairs = [tuple(" ".join(rng.choice(ALL_WORDS, n)) for n in rng.integers(1, 40, 2)) for _ in range(12)]
    loaded = LoadedModel(model, tokenizer, torch.device("cpu"), 30, template=Template(("a",), "b"))
    classifier = Classifier(loaded, Labels((0, 1, 2), ("a", "b", "c")), get_task())
    tokens = classifier.encode(pairs)
    assert ("token_type_ids" in tokens.columns) == ("token_type_ids" in tokenizer.model_input_names)
    inputs = tokenizer(
        *map(list, zip(*pairs, strict=True)), truncation=True, max_length=30, padding=True, return_tensors="pt"
    )
    with torch.no_grad():
        expected = model(**inputs).logits.numpy()
        packed = forward.inference_outputs(loaded, tokens).numpy()
    assert classifier.logits_of(tokens) == pytest.approx(expected, abs=2e-5)
    assert packed == pytest.approx(expected, abs=2e-5)
    swapped = classifier.logits_of(classifier.encode([(b, a) for a, b in pairs]))
    assert abs(swapped - expected).max() > 1e-2  # order matters


def test_token_types_are_left_out_where_a_model_has_one(tmp_path):
    found = checkpoint.resolve(str(tiny_model(tmp_path / "m", type_vocab_size=1)))
    loaded = LoadedModel(load_model(found, Labels((0, 1), ("a", "b"))), load_tokenizer(found), torch.device("cpu"), 32)
    assert loaded.columns == ("input_ids",)
    assert loaded.input_names == ("input_ids", "attention_mask")  # of an export, too


# -- runs -----------------------------------------------------------------------------------------------------------


def _table(rows=150, seed=0):
    """Return pairs of which one half is about the same topic, so that a single segment tells nothing."""
    rng = np.random.default_rng(seed)
    topics = rng.integers(0, 3, (rows, 2))
    same = np.arange(rows) % 2
    topics[same == 1, 1] = topics[same == 1, 0]
    topics[same == 0, 1] = (topics[same == 0, 0] + 1) % 3
    names = list(WORDS)
    texts = [[f"{rng.choice(WORDS[names[t]])} {i}" for t in pair] for i, pair in enumerate(topics)]
    frame = pd.DataFrame(texts, columns=["premise", "hypothesis"])
    return frame.assign(
        Label=np.where(same, "same", "other"), price=np.arange(rows) % 7, note=[None, "x"] * (rows // 2)
    )


@pytest.fixture(scope="module")
def paired(tmp_path_factory, tiny):
    """A run on pairs."""
    folder = tmp_path_factory.mktemp("paired") / "run"
    return train(
        tiny,
        folder,
        table=_table(),
        text_column="premise",
        pair_column="hypothesis",
        near_duplicates="ignore",
        explanations="auto",
        epochs=2,
    )


@pytest.fixture(scope="module")
def joined(tmp_path_factory, tiny):
    """A run on two text columns and two further columns."""
    return train(
        tiny,
        tmp_path_factory.mktemp("joined") / "run",
        table=_table(),
        text_column=["premise", "hypothesis"],
        with_columns="price,note",
        near_duplicates="ignore",
        no_ablation=True,
        epochs=1,
    )


def test_the_template_is_saved_with_the_run_and_its_model(paired, joined):
    assert paired.template == Template(("premise",), "hypothesis")
    assert joined.template == Template(("premise", "hypothesis"), None, ("price", "note"))
    for run in (paired, joined):
        assert bs.load(run, device="cpu", runtime="torch").template == run.template
        assert bs.load(run.layout.model, device="cpu").template == run.template
    assert "pair" in paired.predictions.columns
    assert "columns" not in joined.metrics
    text = joined.predictions["text"].iloc[0].split("\n")
    assert text[2].startswith("price: ")


def test_a_damaged_template_is_reported(joined, tmp_path):
    copy = tmp_path / "model"
    copy.mkdir()
    for file in joined.layout.model.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "bertsmith_template": {"text_column": 5}}))
    with pytest.raises(RunFolderError):
        bs.load(copy, device="cpu")


def test_the_report_says_what_the_pair_is_worth(paired):
    found = paired.metrics["columns"]
    assert (found["alone"], found["added"]) == ("premise", ["hypothesis"])
    difference = found["with"] - found["without"]
    assert found["difference"]["value"] == pytest.approx(difference)
    low, high = found["difference"]["interval"] or (difference, difference)  # none without variation
    assert low <= difference <= high
    assert found["texts"] == {"train": 120, "scored": 15}
    assert found["verdict"] in paired.layout.report.read_text().replace("&#39;", "'")


def test_the_ablation_of_many_texts_trains_both_models_on_a_sample(tmp_path, tiny, monkeypatch):
    monkeypatch.setattr(ablation, "MAX_TEXTS", 60)
    events, recipes = [], []
    fine_tune = trials.fine_tune

    def recorded(training, *settings, **more):
        recipes.append(training.recipe)
        return fine_tune(training, *settings, **more)

    monkeypatch.setattr(trials, "fine_tune", recorded)
    run = train(
        tiny,
        tmp_path / "run",
        table=_table(),
        text_column="premise",
        with_columns=["price"],
        near_duplicates="ignore",
        epochs=1,
        on_event=lambda event: events.append(type(event).__name__),
    )
    assert run.metrics["columns"]["texts"]["train"] == 60
    assert [dataclasses.asdict(recipe) for recipe in recipes] == [run.info["recipe"]] * 2
    assert events.count("AblationStarted") == 1


@pytest.mark.slow
@pytest.mark.parametrize("model", ["tiny", "pooled"])
def test_the_ablation_without_test_texts_is_cross_validated(model, tmp_path, request, monkeypatch):
    embedded, embed = [], baselines.embed
    monkeypatch.setattr(baselines, "embed", lambda *args: embedded.append(len(args[1])) or embed(*args))
    run = train(
        request.getfixturevalue(model),
        tmp_path / "run",
        table=_table(90),
        text_column="premise",
        pair_column="hypothesis",
        near_duplicates="ignore",
        epochs=1,
        cv=2,
        test_size=0,
    )
    assert run.metrics["columns"]["texts"] == {"train": 90, "scored": 90}
    of_baseline = [90] * (2 + 2 * 2)  # both splits, as pairs and by segment
    assert embedded == of_baseline + [90] * (model == "pooled")  # and once for the initial heads of the first column


def test_one_seed_measures_the_columns(tmp_path, tiny):
    run = train(
        tiny,
        tmp_path / "run",
        table=_table(),
        text_column="premise",
        pair_column="hypothesis",
        near_duplicates="ignore",
        epochs=1,
        seeds=2,
    )
    assert [("columns" in member.metrics) for member in run.members] == [True, False]
    assert run.metrics["columns"] == run.members[0].metrics["columns"]
    assert run.template.pair_column == "hypothesis"
    both = bs.load(run, ensemble=True, device="cpu")
    assert both.predict_proba([("cat", "dog")]).shape == (1, 2)
    with pytest.raises(DataError):
        both.predict_proba(["cat"])


@pytest.mark.parametrize("runtime", ["torch", "onnx", "openvino"])
def test_every_runtime_agrees_with_pipeline_on_pairs(runtime, paired):
    pytest.importorskip({"onnx": "onnxruntime"}.get(runtime, runtime))
    if runtime != "torch":
        pytest.importorskip("onnxscript" if runtime == "onnx" else "openvino")
        export = bs.export(paired, format=runtime, overwrite=True)
        assert export.about.template == paired.template
        assert export.about.parity["held"]
    classifier = bs.load(paired, runtime=runtime, device="cpu")
    pairs = [*texts_of(paired.predictions), ("cat " * 80, "red " * 50)]
    answers = pipeline("text-classification", str(paired.layout.model), top_k=None)(
        [{"text": a, "text_pair": b} for a, b in pairs], truncation=True
    )
    scores = [
        [{s["label"]: s["score"] for s in answer}[text] for text in classifier.labels.texts] for answer in answers
    ]
    assert classifier.predict_proba(pairs) == pytest.approx(np.array(scores), abs=1e-4)
    assert classifier.predict_proba(pairs[0]) == pytest.approx(np.array(scores[:1]), abs=1e-4)
    with pytest.raises(DataError):
        classifier.predict_proba(list(pairs[0]))


def test_runs_are_compared_on_both_texts_of_a_pair(paired, tmp_path):
    other = Run(shutil.copytree(paired.path, tmp_path / "other"))
    assert bs.compare(paired, other)[1]["difference"]["value"] == 0
    frame = other.predictions
    frame["pair"] = frame["pair"].to_numpy()[::-1]
    frame.to_parquet(other.path / "predictions" / "test.parquet")
    with pytest.raises(RunFolderError):
        bs.compare(paired, other)
    frame.drop(columns="pair").to_parquet(other.path / "predictions" / "test.parquet")  # reads fewer columns
    assert len(bs.compare(paired, other)) == 2


def test_a_run_without_a_pair_refuses_pairs(classifier, paired):
    with pytest.raises(DataError):
        classifier.predict_proba([("cat", "dog")])
    assert classifier.predict_proba(["cat", "dog"]).shape == (2, 3)
    with pytest.raises(ConfigError):
        bs.load(paired, long="window", device="cpu", runtime="torch")


def test_predict_needs_the_columns_by_name(paired, joined, tmp_path, cli):
    frame = _table(20, seed=1)
    whole = bs.predict(paired, frame, device="cpu").frame
    renamed = frame.rename(columns={"premise": "a", "hypothesis": "b"}).drop(columns="Label")
    other = bs.predict(paired, renamed, text_column="a", pair_column="b", device="cpu").frame
    assert whole["confidence"].tolist() == other["confidence"].tolist()
    assert bs.load(paired, device="cpu").predict_frame(frame)["predicted"].tolist() == whole["predicted"].tolist()
    frame.loc[3, "hypothesis"] = None
    assert bs.predict(paired, frame, device="cpu").empty == 1
    frame.drop(columns="hypothesis").to_csv(tmp_path / "t.csv", index=False)
    for arguments, named in (
        (("predict", paired.path, tmp_path / "t.csv"), "hypothesis"),
        (("evaluate", paired.path, tmp_path / "t.csv"), "hypothesis"),
        (("predict", joined.path, tmp_path / "t.csv"), "hypothesis"),
        (("predict", joined.path, tmp_path / "t.csv", "--with-columns", "price"), "--with-columns"),
        (("predict", paired.path, "-"), "hypothesis"),
        (("explain", paired.path, "--text", "cat"), "hypothesis"),
        (("explain", paired.path, "--text", '{"premise": "cat"}'), "hypothesis"),
    ):
        code, _, err = cli(*arguments)
        assert (code, named in err) == (2, True), err
    frame.drop(columns="price").to_csv(tmp_path / "t.csv", index=False)
    code, _, err = cli("predict", joined.path, tmp_path / "t.csv", "-o", tmp_path / "out.csv")
    assert (code, "price" in err) == (2, True)


def test_evaluate_renders_with_the_names_of_the_run(joined, paired):
    frame = _table(20, seed=1)
    renamed = frame.rename(columns={"price": "cost"})
    results = [
        bs.evaluate(joined, table, device="cpu", name=name, **more)["metrics"]["log_loss"]["value"]
        for table, name, more in ((frame, "a", {}), (renamed, "b", {"with_columns": ["cost", "note"]}))
    ]
    assert results[0] == results[1]
    table = bs.read_table(frame, text_column="premise")
    with pytest.raises(DataError):
        bs.evaluate(paired, table, device="cpu")
    again = bs.read_table(frame, text_column="premise", pair_column="hypothesis")
    assert bs.evaluate(paired, again, device="cpu", name="c")["texts"] == 20


def test_explanations_name_the_words_of_both_segments(paired, cli):
    pytest.importorskip("captum")
    classifier = bs.load(paired, device="cpu", runtime="torch")
    found = explain(classifier, ("cat 1", "dog. red"))
    assert found.text == "cat 1\ndog. red"
    assert [found.text[word.start : word.end] for word in found.words] == ["cat", "1", "dog", ".", "red"]
    assert abs(sum(word.attribution for word in found.words) - found.change) < 0.2
    assert explain(classifier, ("cat " * 50, "red")).unread > 0
    code, out, err = cli("explain", paired.path, "--text", '{"premise": "cat 1", "hypothesis": "dog"}', "--json")
    assert code == 0, err
    assert [word["text"] for word in json.loads(out)[0]["words"]] == ["cat", "1", "dog"]
    assert all(entry["text"].count("\n") == 1 for entry in paired.explanations)


def test_explanations_of_several_columns_cut_the_longest_first(joined):
    pytest.importorskip("captum")
    classifier = bs.load(joined, device="cpu", runtime="torch")
    limit = classifier.max_length
    item = {"premise": "cat " * 3 * limit, "hypothesis": "dog", "price": 3, "note": None}
    words = [word.text for word in explain(classifier, item).words]
    assert words[-4:] == ["dog", "price", ":", "3"]
    assert classifier.encode(item).truncated_lengths.tolist() == [limit]


def test_the_server_takes_pairs_in_both_formats(paired):
    pytest.importorskip("uvicorn")
    from bertsmith.serving.loader import Loader, ServerConfig
    from bertsmith.serving.prometheus import ServerMetrics
    from tests.unit.test_serving import running

    loader = Loader(ServerConfig(str(paired.path), device="cpu", runtime="torch"), ServerMetrics())
    loader.load()
    classifier = loader.service.batcher.classifier
    expected = classifier.predict_proba([("cat", "dog"), ("red", "pear")]).max(axis=1).tolist()
    with running(lambda: loader.service, loader.metrics) as ask:
        columns = [{"premise": "cat", "hypothesis": "dog"}, {"text": "red", "text_pair": "pear"}]
        for path, inputs, n in (
            ("/predict", ["cat", "dog"], 1),
            ("/predict", columns[0], 1),
            ("/predict", [["cat", "dog"], ["red", "pear"]], 2),
            ("/predict", columns, 2),
            ("/", columns[0], 1),
            ("/", columns, 2),
        ):
            status, answer, _ = ask(path, {"inputs": inputs})
            assert status == 200, answer
            best = (
                [answer[0]] if path == "/predict" and n == 1 else [a[0] if isinstance(a, list) else a for a in answer]
            )
            assert [entry["score"] for entry in best] == pytest.approx(expected[:n], abs=1e-5)
        for path, inputs, named in (
            ("/predict", "cat", "single text"),
            ("/predict", [["cat"]], "inputs[0]"),
            ("/predict", ["cat", "dog", "red"], "inputs"),
            ("/predict", {"premise": "cat"}, "hypothesis"),
            ("/predict", {"premise": "cat", "hypothesis": " "}, "empty"),
            ("/", ["cat", "dog"], "inputs[0]"),
            ("/", [{"premise": "cat"}], "hypothesis"),
            ("/", {"premise": ["cat"], "hypothesis": "dog"}, "inputs"),
        ):
            status, answer, _ = ask(path, {"inputs": inputs})
            assert (status, named in answer["error"]) == (422, True), answer
            assert path == "/predict" or '{"premise": "…", "hypothesis": "…"}' in answer["error"]
        assert ask("/info")[1]["columns"] == ["premise", "hypothesis"]
        status, answer, _ = ask("/explain", {"inputs": {"text": "cat", "text_pair": "dog"}})
        assert status in (200, 404)
        if status == 200:
            assert answer["text"] == "cat\ndog"


def test_a_run_on_pairs_is_resumed_only_with_the_same_columns(tmp_path, tiny):
    calls = iter([False] * 12)
    settings = {"text_column": "premise", "pair_column": "hypothesis", "near_duplicates": "ignore", "epochs": 2}
    with pytest.raises(Interrupted):
        train(tiny, tmp_path / "run", table=_table(), stop=lambda: next(calls, True), **settings)
    changed = _table().assign(hypothesis="the same")
    with pytest.raises(RunFolderError):
        train(tiny, tmp_path / "run", table=changed, resume=True, **settings)
    with pytest.raises(RunFolderError):
        train(tiny, tmp_path / "run", table=_table(), resume=True, **{**settings, "pair_column": None})
    run = train(tiny, tmp_path / "run", table=_table(), resume=True, no_ablation=False, **settings)
    assert run.info["status"] == "finished"
    assert "columns" in run.metrics


def test_a_checkpoint_of_pairs_can_be_trained_on_single_texts(tmp_path, paired):
    run = train(paired.layout.model, tmp_path / "run", table=tiny_table(), epochs=1)
    assert run.template.is_plain
    assert "bertsmith_template" not in json.loads((run.layout.model / "config.json").read_text())


def test_tuning_reads_pairs(tmp_path, tiny):
    pytest.importorskip("optuna")
    study = bs.tune(
        _table(),
        output=tmp_path / "study",
        trials=1,
        model=str(tiny),
        text_column="premise",
        pair_column="hypothesis",
        near_duplicates="ignore",
        no_ablation=True,
        epochs=1,
        device="cpu",
    )
    assert Run(study.path / "best").template.pair_column == "hypothesis"


def test_sentence_embedding_checkpoints_begin_with_a_head_for_pairs(tmp_path, pooled):
    table = bs.read_table(_table(), text_column="premise", pair_column="hypothesis")
    found = checkpoint.resolve(str(pooled))
    texts = texts_of(table.frame)
    mask = np.ones(len(texts), dtype=bool)
    template = table.columns.template
    loaded, tokens = prepare_model(found, Config(), get_task(), table.labels, texts, mask, template=template)
    assert loaded.mean_pooling
    assert tokens.parts.shape == (150, 2)
    run = train(
        pooled,
        tmp_path / "run",
        table=table,
        near_duplicates="ignore",
        no_ablation=True,
        epochs=1,
    )
    assert run.metrics["baseline"]["frozen_embeddings"]["texts"]["train"] == 120
    assert Classifier.load(run.path, device="cpu").predict_proba(Texts(texts[:3])).shape == (3, 2)
