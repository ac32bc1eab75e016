"""Tune: the search space, trials that never see the test texts, studies that lose nothing."""

import dataclasses
import io
import json
import threading

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState
from rich.console import Console
from sqlalchemy.exc import OperationalError

import bertsmith as bs
from bertsmith.cli.tuning_progress import TuningProgress
from bertsmith.config import Config
from bertsmith.errors import ConfigError, DeviceError, Interrupted, RunFolderError
from bertsmith.events import StorageAway, StudyStarted, TrialStarted
from bertsmith.report.study import advice
from bertsmith.testing import tiny_table
from bertsmith.training.arguments import problems_of
from bertsmith.training.recipe import Recipe
from bertsmith.tuning import store as stores
from bertsmith.tuning.plan import Plan
from bertsmith.tuning.space import Choice, Range, default_space, narrowed, read_space, with_values
from bertsmith.tuning.store import Store, is_done
from bertsmith.workflows import trials as trying
from bertsmith.workflows.trials import TrialData, scored_within_epochs, steps_between
from tests.conftest import same_weights, train, weights_of

QUICK = {
    "seed": 7,  # so that the winner of the study is not the default
    "consistency": 0,
    "epochs": 2,
    "precision": "fp32",
    "device": "cpu",
    "learning_rate": 1e-2,
    "head_rate": 1,
}
RECIPE = Recipe(4.0, 32, 1e-4, 10.0, 0.1, 0.01, "fp32", 3, "none")


def tune(tiny, output, **settings):
    table = settings.pop("table", tiny_table(150))
    return bs.tune(table, output=output, model=str(tiny), **{"trials": 3, **QUICK, **settings})


@pytest.fixture(scope="module")
def study(tmp_path_factory, tiny):
    return tune(tiny, tmp_path_factory.mktemp("study") / "s", trials=5)


# -- the search space ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("unequal", [1.0, 30.0])
@pytest.mark.parametrize("texts", [500, 50_000])
def test_the_space_holds_what_train_would_do(texts, unequal):
    recipe = dataclasses.replace(RECIPE, batch_size=16 if texts < 1000 else 32)
    space, usual = default_space(Config(), recipe, texts=texts, unequal=unequal, max_length=256, dropout=0.1)
    assert usual.keys() == space.keys()
    assert all(dimension.nearest(usual[name]) == usual[name] for name, dimension in space.items())
    assert ("imbalance" in space) == (unequal > 2)
    assert space["max_length"] == Choice((128, 256))


def test_what_the_user_gave_is_not_varied():
    config = Config(epochs=3, imbalance="focal", max_length=64, set={"weight_decay": 0.1})
    space, _ = default_space(config, RECIPE, texts=500, unequal=30, max_length=256, dropout=0.1, models=("a", "b"))
    assert not {"epochs", "imbalance", "max_length", "weight_decay"} & space.keys()
    assert space["model"] == Choice(("a", "b"))
    assert "learning_rate" in space


def test_a_file_narrows_widens_and_fixes(tmp_path):
    (tmp_path / "s.toml").write_text(
        "learning-rate = {low = 1e-6, high = 1e-5, log = true}\nbatch_size = [4, 8]\ndropout = 0.2\n"
        "adam_beta2 = {low = 0.9, high = 0.999}\nepochs = {low = 1, high = 3}\n"
    )
    read = read_space(tmp_path / "s.toml", problems_of)
    space, _ = default_space(Config(), RECIPE, texts=500, unequal=1, max_length=64, dropout=0.1)
    space, config = narrowed(space, Config(), read)
    assert space["learning_rate"] == Range(1e-6, 1e-5, log=True)
    assert space["batch_size"] == Choice((4, 8))
    assert space["adam_beta2"] == Range(0.9, 0.999)
    assert space["epochs"] == Range(1, 3, whole=True)
    assert "dropout" not in space
    assert config.dropout == 0.2
    assert with_values(config, {"adam_beta2": 0.95, "epochs": 2}).set == {"adam_beta2": 0.95}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("learning_rat = 1", "there is no such setting. Did you mean 'learning_rate'?"),
        ("learning_rate = {low = 1, high = 0.1}", "low is below high, not 1 and 0.1"),
        ("learning_rate = {low = 0.1, high = 0.1}", "low is below high"),
        ("learning_rate = {low = 0.1}", "a range has low, high"),
        ("learning_rate = {low = 0.1, high = 0.2, step = 2}", "not 'step'"),
        ("learning_rate = {low = 'a', high = 'b'}", "low and high are numbers"),
        ("learning_rate = {low = 1e-5, high = inf}", "low and high are numbers"),
        ("learning_rate = {low = 1e-5, high = 1e-3, log = 'yes'}", "log is true or false"),
        ("weight_decay = {low = 0.0, high = 1.0, log = true}", "with log, low is above 0"),
        ("learning_rate = {low = 1e-5, high = 2.0}", "less than or equal to 1, not 2.0"),
        ("batch_size = {low = 1.5, high = 4.5}", "integer"),
        ("batch_size = []", "there is nothing to choose from"),
        ("batch_size = [8, 8]", "a choice is there twice"),
        ("batch_size = [8, 'many']", "not 'many'"),
        ("imbalance = ['none', 'some']", "not 'some'"),
        ("weight_decay = 'much'", "not 'much'"),
        ("learning_rate = true", "not true"),
        ("seed = [1, 2]", "the best of many seeds is luck"),
        ("num_train_epochs = [1, 2]", "use epochs instead"),
        ("eval_steps = 3", "this is not for a search"),
        ("test = 'x.csv'", "this is not for a search"),
        ("epochs = 1\nlearning-rate = 0.1\nlearning_rate = 0.1", "twice, with - and with _"),
        ("learning_rate = ", "the search space is not TOML"),
    ],
)
def test_every_wrong_search_space_is_told(line, said, cli, tmp_path):
    (tmp_path / "s.toml").write_text(line)
    with pytest.raises(ConfigError, match="the search space is") as caught:
        read_space(tmp_path / "s.toml", problems_of)
    assert said in str(caught.value)
    assert str(tmp_path / "s.toml") in str(caught.value)


def test_a_flag_that_is_in_the_file_too_is_told():
    read = read_space({"epochs": (1, 2), "weight_decay": 0.1, "dropout": 0.1}, problems_of)
    with pytest.raises(ConfigError, match="a flag and in the search space: 'epochs', 'weight_decay'"):
        narrowed({}, Config(epochs=3, set={"weight_decay": 0.2}), read)


def test_a_space_can_be_a_dict_in_python():
    read = read_space({"batch_size": (4, 8), "dropout": 0.2, "epochs": {"low": 1, "high": 3}}, problems_of)
    assert read == {"batch_size": Choice((4, 8)), "dropout": 0.2, "epochs": Range(1, 3, whole=True)}
    with pytest.raises(ConfigError, match="the search space is wrong"):
        read_space({"epoch": 1}, problems_of)


def test_all_that_is_wrong_is_told_at_once(tmp_path):
    (tmp_path / "s.toml").write_text("epoch = 1\nbatch_size = [0]\nseed = 1")
    with pytest.raises(ConfigError) as caught:
        read_space(tmp_path / "s.toml", problems_of)
    assert str(caught.value).count("\n  - ") == 3
    with pytest.raises(ConfigError, match="cannot be read"):
        read_space(tmp_path / "none.toml", problems_of)


@pytest.mark.parametrize(
    ("plan", "said"),
    [
        ({"trials": 0}, "--trials: at least 1"),
        ({"trials": None}, "--trials or --minutes"),
        ({"minutes": -1.0}, "--minutes: above 0"),
        ({"jobs": 0}, "--jobs"),
        ({"cv": 1}, "--cv: at least 2"),
        ({"objectives": ("accuracy",)}, "there is no such objective"),
        ({"objectives": ("latency",)}, "macro_f1 is always one of them"),
        ({"objectives": ("macro_f1", "latency"), "jobs": 2}, "disturb its measurement"),
        ({"models": ("a", "a")}, "twice"),
    ],
)
def test_a_search_that_cannot_be_is_told(plan, said):
    with pytest.raises(ConfigError, match="not set up right") as caught:
        Plan(**plan)
    assert said in str(caught.value)


# -- a study -------------------------------------------------------------------------------------------------------


def test_the_first_trial_is_the_defaults_in_what_a_file_adds_too(tiny, tmp_path):
    added = {"adam_beta2": {"low": 0.9, "high": 0.9999}, "optim": ["sgd", "adamw_torch_fused"]}
    study = tune(tiny, tmp_path / "s", trials=1, space=added)
    assert study.result["settings"]["adam_beta2"] == 0.999
    assert study.result["is_default"]


def test_the_first_trial_is_the_defaults(study, tiny):
    first = study.trials.iloc[0]
    assert first["batch_size"] == 16
    assert first["layer_decay"] == 1
    assert first["label_smoothing_factor"] == 0
    assert first["dropout"] == 0.1
    assert study.info["searched"]["settings"]["epochs"] == 2  # given, and so not in the space
    assert "epochs" not in study.info["searched"]["space"]


def test_the_winner_is_the_best_and_reaches_its_score_again(study):
    trials = study.trials
    complete = trials[trials["state"] == "complete"]
    scores = complete["values"].str[0]
    assert study.result["score"] == scores.max()
    assert study.result["trial"] == complete["number"][scores.idxmax()]
    curve = next(t["curve"] for t in study.info["trials"] if t["number"] == study.result["trial"])
    assert not study.result["is_default"]
    assert [(e["epoch"], e["metrics"]["macro_f1"]) for e in study.best.history] == [tuple(point) for point in curve]
    assert study.best.info["status"] == "finished"
    assert study.best.metrics["splits"]["test"]["metrics"]["macro_f1"] == study.result["test"]
    # The checkpoint of the best trial has the weights of the winner, before calibration: the same body.
    from safetensors.torch import load_file

    kept, final = load_file(study.best_trial / "model.safetensors"), weights_of(study.best)
    body = {name for name in kept if name.startswith("bert.")}
    assert len(body) > 20
    assert same_weights({n: kept[n] for n in body}, {n: final[n] for n in body})


def test_the_defaults_beside_it_are_what_train_does(study, tiny, tmp_path):
    if study.result["is_default"]:
        assert study.result["verdict"] == "no trial was better on validation than what train does with the same flags"
        return
    plain = train(tiny, tmp_path / "run", table=tiny_table(150), **QUICK)
    assert same_weights(weights_of(plain), weights_of(study.defaults))
    ours, theirs = (run.metrics["splits"]["test"]["metrics"]["macro_f1"]["value"] for run in (study.best, plain))
    assert study.result["difference"]["value"] == pytest.approx(ours - theirs)


def test_the_settings_of_the_winner_train_it_again(study, tiny, tmp_path):
    run = bs.train(tiny_table(150), output=tmp_path / "run", config=study.settings)
    assert same_weights(weights_of(run), weights_of(study.best))


def test_no_trial_sees_a_test_text(tiny, tmp_path, monkeypatch):
    seen = set()
    prepare = trying.prepare_model

    def prepare_model(found, config, labels, texts, *rest):
        seen.update(texts)
        return prepare(found, config, labels, texts, *rest)

    monkeypatch.setattr(trying, "prepare_model", prepare_model)
    study = tune(tiny, tmp_path / "s", trials=1)
    tested = set(study.best.predictions["text"])
    assert len(tested) >= 15
    assert len(seen) + len(tested) == 150
    assert not seen & tested


def test_the_page_says_what_was_found(study):
    page = study.report.read_text()
    assert study.result["verdict"][1:] in page
    assert "http" not in page.replace("http-equiv", "").replace("http://www.w3.org", "")
    assert "Which settings matter?" in page


def test_advice_looks_at_the_edges_of_the_space_and_at_the_end_of_the_curve():
    info = {
        "searched": {
            "cv": None,
            "space": {
                "learning_rate": {"low": 1e-5, "high": 1e-3, "log": True, "whole": False},
                "layer_decay": {"low": 0.7, "high": 1.0, "log": False, "whole": False},
                "epochs": {"low": 1, "high": 3, "log": False, "whole": True},
            },
        },
        "trials": [
            {"number": n, "state": "complete", "values": [n / 100], "curve": [[1.0, 0.5], [2.0, 0.6]]}
            for n in range(12)
        ],
    }
    result = {
        "trial": 3,
        "is_default": False,
        "settings": {"learning_rate": 9.9e-4, "layer_decay": 1.0},
        "importance": {"learning_rate": 0.99, "dropout": 0.01},
        "difference": {"interval": [-0.1, 0.2]},
    }
    said = advice(info, result)
    assert any("learning_rate" in s and "above 0.001" in s for s in said)
    assert any("more epochs" in s for s in said)
    assert any("depends on dropout" in s for s in said)
    assert any("not distinguishable" in s for s in said)
    assert len(said) == 4  # nothing of layer_decay, which ends at 1
    result["difference"]["interval"] = [-0.3, -0.1]
    assert any("worse than the defaults" in s for s in advice(info, result))
    assert advice({**info, "trials": info["trials"][:9]}, result) == []  # too few to conclude anything
    result["settings"]["learning_rate"] = 1e-4
    info["trials"][3]["curve"] = [[1.0, 0.6], [2.0, 0.5]]
    result["difference"]["interval"] = [0.1, 0.2]
    result["importance"]["dropout"] = 0.5
    assert advice(info, result) == []
    for trial in info["trials"]:
        trial["values"] = [0.2]
    assert any("nothing was learned" in s for s in advice(info, result))


# -- nothing is lost -----------------------------------------------------------------------------------------------


def test_a_study_goes_on_where_it_stopped_to_the_same_trials(study, tiny, tmp_path):
    seen = []

    def stop():
        return sum(type(e).__name__ == "TrialEnded" for e in seen) == 2 and type(seen[-1]).__name__ == "TrialScored"

    with pytest.raises(Interrupted, match="stopped after step"):
        tune(tiny, tmp_path / "s", trials=5, on_event=seen.append, stop=stop)
    kept = bs.Study(tmp_path / "s")
    assert len(kept.trials) == 2
    assert kept.result is None
    started = []
    again = tune(tiny, tmp_path / "s", trials=5, on_event=started.append)
    assert next(e for e in started if type(e).__name__ == "StudyStarted").done == 2
    columns = [n for n in study.trials.columns if n not in ("number", "seconds")]
    assert again.trials[columns].to_dict("records") == study.trials[columns].to_dict("records")
    assert again.result["score"] == study.result["score"]


def test_a_stop_while_the_winner_is_trained_goes_on_with_it(study, tiny, tmp_path):
    seen = []

    def stop():
        names = [type(event).__name__ for event in seen]
        return "FinalStarted" in names and "Saved" in names[names.index("FinalStarted") :]

    with pytest.raises(Interrupted, match="a checkpoint is saved"):
        tune(tiny, tmp_path / "s", trials=5, on_event=seen.append, stop=stop)
    kept = bs.Study(tmp_path / "s")
    assert len(kept.trials) == 5
    assert kept.best.info["status"] == "interrupted"
    events = []
    again = tune(tiny, tmp_path / "s", trials=5, on_event=events.append)
    assert not [e for e in events if type(e).__name__ == "TrialStarted"]
    assert next(e for e in events if type(e).__name__ == "Started").step > 0
    assert same_weights(weights_of(again.best), weights_of(study.best))
    assert again.result["test"] == study.result["test"]


def test_a_finished_study_is_not_done_again_and_more_trials_go_on(tiny, tmp_path):
    study = tune(tiny, tmp_path / "s", trials=2)
    before = study.best.info["finished"], study.trials
    events = []
    again = tune(tiny, tmp_path / "s", trials=2, on_event=events.append)
    assert not [e for e in events if type(e).__name__ in ("TrialStarted", "Started")]
    assert again.best.info["finished"] == before[0]
    more = tune(tiny, tmp_path / "s", trials=3)
    assert more.trials.iloc[:2].equals(before[1])
    assert len(more.trials) == 3


def test_other_settings_or_data_are_refused_by_name(study, tiny, tmp_path):
    before = study.file.read_text()
    with pytest.raises(RunFolderError, match=r"epochs: 2\.0 then, 3\.0 now"):
        tune(tiny, study.path, trials=5, epochs=3)
    with pytest.raises(RunFolderError, match="the texts, labels or splits"):
        tune(tiny, study.path, trials=5, table=tiny_table(151))
    assert study.file.read_text() == before
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(RunFolderError, match="a folder with other things"):
        tune(tiny, tmp_path / "full")
    tune(tiny, tmp_path / "s", trials=1)
    (tmp_path / "s" / "notes.txt").write_text("mine")
    with pytest.raises(RunFolderError, match=r"would be lost: 'notes.txt'"):
        tune(tiny, tmp_path / "s", trials=1, overwrite=True)
    (tmp_path / "s" / "notes.txt").unlink()
    assert len(tune(tiny, tmp_path / "s", trials=2, epochs=1, overwrite=True).trials) == 2


def test_overwrite_throws_nothing_away_before_all_else_is_good_nor_under_others(tiny, tmp_path):
    study = tune(tiny, tmp_path / "s", trials=1)
    before = study.file.read_text()
    bad = tiny_table(150).assign(Text="")
    for wrong in ({"table": bad}, {"table": tiny_table(150), "max_length": 4096}):
        with pytest.raises(bs.UserError):
            tune(tiny, study.path, trials=1, overwrite=True, **wrong)
        assert study.file.read_text() == before
        assert study.best.info["status"] == "finished"
    other = _store(study.path)
    with pytest.raises(RunFolderError, match="another process is working on this study"):
        tune(tiny, study.path, trials=1, overwrite=True)
    assert study.file.read_text() == before
    other.close()
    assert len(tune(tiny, study.path, trials=1, epochs=1, overwrite=True).trials) == 1


def _store(folder, **settings):
    folder.mkdir(exist_ok=True)
    pruner = optuna.pruners.NopPruner()
    return Store(folder, "s", **{"url": None, "directions": ["maximize"], "pruner": pruner, "seed": 0, **settings})


SPACE = {"learning_rate": Range(1e-5, 1e-3, log=True), "epochs": Range(1, 9, whole=True)}


def test_workers_take_exactly_the_trials_wanted_each_another(tmp_path):
    done = []

    def work():
        store = _store(tmp_path)
        while (trial := store.claim(SPACE, 12)) is not None:
            store.study.tell(trial, 0.5)
            done.append(trial.params["learning_rate"])
        store.close()

    workers = [threading.Thread(target=work) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(done) == len(set(done)) == 12


def test_the_trial_of_a_killed_worker_is_tried_again_but_not_for_ever(tmp_path):
    survivor = _store(tmp_path)
    settings = None
    for attempt in range(3):
        killed = _store(tmp_path)
        trial = killed.claim(SPACE, 1)
        assert settings in (None, trial.params)
        settings = trial.params
        assert survivor.claim(SPACE, 1) is None  # as long as it lives, the trial is its own
        killed.alive.release()  # which is what the end of a process does
        if attempt < 2:
            assert [t.state for t in survivor.trials].count(TrialState.RUNNING) == 1
    assert survivor.claim(SPACE, 1) is None
    assert [is_done(t) for t in survivor.trials] == [False, False, True]
    assert "killed" in survivor.trials[-1].user_attrs["error"]


def test_ctrl_c_costs_no_trial_however_often(tmp_path):
    store = _store(tmp_path)
    for _ in range(9):
        trial = store.claim(SPACE, 2)
        store.give_back(trial.number, killed=False)
    last = store.claim(SPACE, 2)
    assert last.params == trial.params
    assert [is_done(t) for t in store.trials] == [False] * 10


def test_a_trial_counts_by_what_a_decision_rule_adds(tiny, tmp_path, monkeypatch):
    from bertsmith.evaluation.decision import Decision

    plain = tune(tiny, tmp_path / "off", trials=1, decision_rule="off")
    rule = Decision(np.zeros(3), True, 0.25, 0.01)
    monkeypatch.setattr(trying, "tune_offsets", lambda targets, probabilities, seed: rule)
    ruled = tune(tiny, tmp_path / "auto", trials=1)
    assert ruled.result["score"] == pytest.approx(plain.result["score"] + 0.25)
    assert ruled.info["trials"][0]["curve"] == plain.info["trials"][0]["curve"]


def test_a_journal_cut_short_loses_its_last_line_only(tmp_path):
    store = _store(tmp_path)
    for value in (0.1, 0.2):
        store.study.tell(store.claim(SPACE, None), value)
    store.close()
    journal = tmp_path / "journal.log"
    whole = journal.read_bytes()
    journal.write_bytes(whole + b'{"op_code": 4, "wor')
    again = _store(tmp_path)
    assert journal.read_bytes().startswith(whole)
    assert [t.value for t in again.trials] == [0.1, 0.2]
    again.study.tell(again.claim(SPACE, None), 0.3)
    assert [t.value for t in _store(tmp_path).trials] == [0.1, 0.2, 0.3]


def test_a_storage_that_goes_away_and_comes_back_loses_nothing(tiny, tmp_path, monkeypatch):
    from sqlalchemy.exc import OperationalError

    monkeypatch.setattr(stores.time, "sleep", lambda seconds: None)
    away, events = {"tell": 2, "report": 3, "ask": 1, "importance": 1, "best": 1}, []

    def failing(name, action):
        def attempt(*arguments, **named):
            if away[name]:
                away[name] -= 1
                raise OperationalError("SELECT 1", {}, Exception("server closed the connection"))
            return action(*arguments, **named)

        return attempt

    monkeypatch.setattr(optuna.Study, "tell", failing("tell", optuna.Study.tell))
    monkeypatch.setattr(optuna.Study, "ask", failing("ask", optuna.Study.ask))
    monkeypatch.setattr(optuna.Trial, "report", failing("report", optuna.Trial.report))
    # What is read after the winner was trained, when a database may have been away for hours.
    importances = optuna.importance.get_param_importances
    monkeypatch.setattr(optuna.importance, "get_param_importances", failing("importance", importances))
    monkeypatch.setattr(optuna.Study, "best_trials", property(failing("best", optuna.Study.best_trials.fget)))
    study = tune(tiny, tmp_path / "s", trials=2, storage=f"sqlite:///{tmp_path / 'study.db'}", on_event=events.append)
    assert away == {"tell": 0, "report": 0, "ask": 0, "importance": 0, "best": 1}
    assert sum(type(e).__name__ == "StorageAway" for e in events) == 7
    assert "server closed the connection" in next(e.why for e in events if type(e).__name__ == "StorageAway")
    assert list(study.trials["state"]) == ["complete", "complete"]

    study = tune(
        tiny,
        tmp_path / "front",
        trials=1,
        objectives=("macro_f1", "latency"),
        storage=f"sqlite:///{tmp_path / 'front.db'}",
    )
    assert not away["best"]
    assert study.info["result"]["front"] == [0]


def test_a_storage_that_goes_away_after_it_has_heard_and_before_it_answers(tmp_path, monkeypatch):
    monkeypatch.setattr(stores.time, "sleep", lambda seconds: None)
    store = _store(tmp_path, url=f"sqlite:///{tmp_path / 'study.db'}")
    tell, left = optuna.Study.tell, [1]

    def unanswered(*arguments, **named):
        tell(*arguments, **named)
        if left:
            left.pop()
            raise OperationalError("COMMIT", {}, Exception("server closed the connection"))

    monkeypatch.setattr(optuna.Study, "tell", unanswered)
    trial = store.claim(SPACE, None)
    store.tell(trial, TrialState.COMPLETE, [0.5])
    assert left == []
    assert [(t.state, t.value) for t in store.trials] == [(TrialState.COMPLETE, 0.5)]


def test_what_others_ended_meanwhile_is_taken_over_and_another_is_claimed(tmp_path, monkeypatch):
    store = _store(tmp_path, url=f"sqlite:///{tmp_path / 'study.db'}")
    trial = store.claim(SPACE, None)
    store.study.tell(trial.number, state=TrialState.FAIL)  # by another worker, after a long silence
    with pytest.raises(stores.TakenOverError):
        store.tell(trial, TrialState.COMPLETE, [0.5])
    with pytest.raises(stores.TakenOverError):
        store.fail(trial.number, "it went wrong")
    note = stores.Store.note
    left = [1]

    def silent(self, trial, **attributes):
        if left:
            left.pop()
            self.study.tell(trial.number, state=TrialState.FAIL)
        note(self, trial, **attributes)

    monkeypatch.setattr(stores.Store, "note", silent)
    assert store.claim(SPACE, None).number == 2
    assert left == []


def test_a_storage_that_stays_away_is_told_without_its_password(tmp_path, monkeypatch):
    monkeypatch.setattr(stores, "AWAY_SECONDS", 0.0)
    with pytest.raises(ConfigError, match="the database cannot be used") as caught:
        _store(tmp_path, url="postgresql+psycopg://me:secret@127.0.0.1:1/none")
    assert "secret" not in str(caught.value)
    with pytest.raises(ConfigError, match="cannot be used"):
        _store(tmp_path, url="nonsense")


def test_a_trial_that_fails_is_told_and_the_others_go_on(tiny, tmp_path, monkeypatch):
    run_trial, seen = trying.run_trial, []

    def sometimes(bench, config, **rest):
        seen.append(config)
        if len(seen) == 2:
            raise DeviceError("memory does not suffice even for one text")
        return run_trial(bench, config, **rest)

    monkeypatch.setattr("bertsmith.workflows.workers.run_trial", sometimes)
    study = tune(tiny, tmp_path / "s", trials=3)
    assert list(study.trials["state"]) == ["complete", "failed", "complete"]
    assert study.trials["why"][1] == "memory does not suffice even for one text"
    assert study.result["trials"] == {"complete": 2, "pruned": 0, "failed": 1}


def test_where_every_trial_fails_the_reason_is_told(tiny, tmp_path, monkeypatch):
    def never(*_, **__):
        raise DeviceError("memory does not suffice even for one text")

    monkeypatch.setattr("bertsmith.workflows.workers.run_trial", never)
    with pytest.raises(DeviceError, match="memory does not suffice"):
        tune(tiny, tmp_path / "s", trials=9)
    assert len(bs.Study(tmp_path / "s").trials) == 3


def test_a_trial_that_falls_behind_is_given_up(tiny, tmp_path, monkeypatch):
    number = iter(range(100))

    def made_up(bench, config, *, heard, stop, latency):
        good = next(number) < 5
        for epoch in (0.5, 1.0, 1.5, 2.0):
            heard(epoch, (0.5 if good else 0.1) + epoch / 100)
        return trying.TrialResult(0.5, [(2.0, 0.5)], None, None)

    monkeypatch.setattr("bertsmith.workflows.workers.run_trial", made_up)
    study = tune(tiny, tmp_path / "s", trials=7)
    assert list(study.trials["state"]) == ["complete"] * 5 + ["pruned"] * 2
    assert all(len(curve) == 1 for curve in [t["curve"] for t in study.info["trials"]][5:])


def test_the_time_ends_a_search(tiny, tmp_path, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr("bertsmith.workflows.workers.time.time", lambda: now[0])

    def tick(event):
        if type(event).__name__ == "TrialEnded":
            now[0] += 40

    study = tune(tiny, tmp_path / "s", trials=None, minutes=1, on_event=tick)
    assert len(study.trials) == 2


def test_a_trial_that_the_end_of_the_time_cuts_short_is_begun_again(tiny, tmp_path, monkeypatch):
    now, told = [1000.0], []
    monkeypatch.setattr("bertsmith.workflows.workers.time.time", lambda: now[0])

    def tick(event):
        told.append(event)
        if type(event).__name__ == "TrialScored" and event.number == cut:
            now[0] += 120

    cut = 0
    with pytest.raises(ConfigError, match="no trial gave a result"):
        tune(tiny, tmp_path / "s", trials=2, minutes=1, on_event=tick)
    cut = 2
    study = tune(tiny, tmp_path / "s", trials=2, minutes=1, on_event=tick)
    assert list(study.trials["number"]) == [1]
    study = tune(tiny, tmp_path / "s", trials=2, minutes=1, on_event=told.append)
    assert list(study.trials["number"]) == [1, 3]
    settings = {e.number: e.settings for e in told if type(e).__name__ == "TrialStarted"}
    assert settings[0] == settings[1]  # the defaults
    assert settings[2] == settings[3]
    ends = {e.number: e.state for e in told if type(e).__name__ == "TrialEnded"}
    assert ends == {0: "cut short", 1: "complete", 2: "cut short", 3: "complete"}


def test_several_seeds_in_the_end_are_all_told_and_compared(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("bertsmith.workflows.tune.rank", lambda trial, plan: trial.number)  # not the defaults
    assert "seeds" not in tune(tiny, tmp_path / "s", trials=2).result
    study = tune(tiny, tmp_path / "s", trials=2, final_seeds=2)  # asked for when the search is over
    result = study.result
    means = []
    for run, found in ((study.best, result), (study.defaults, result["defaults"])):
        scores = [m.metrics["splits"]["test"]["metrics"]["macro_f1"]["value"] for m in run.members]
        assert found["seeds"]["n"] == len(scores) == 2
        assert found["seeds"]["mean"] == pytest.approx(np.mean(scores))
        means.append(np.mean(scores))
    assert result["difference"]["value"] == pytest.approx(means[0] - means[1])
    low, high = result["difference"]["interval"]
    assert low <= result["difference"]["value"] <= high
    assert "in the mean of 2 seeds" in result["verdict"]
    assert result["told"] == 2
    assert "test result number 2 of this study" in study.report.read_text()
    assert "Over 2 seeds" in study.report.read_text()


# -- other ways to score -------------------------------------------------------------------------------------------


def test_cross_validation_scores_every_text_once_and_keeps_groups_together(tiny, tmp_path, monkeypatch):
    table = tiny_table(150)
    table["Author"] = np.arange(150) // 3
    benches = []
    run_trial = trying.run_trial
    monkeypatch.setattr(
        "bertsmith.workflows.workers.run_trial",
        lambda bench, *a, **k: (benches.append(bench), run_trial(bench, *a, **k))[1],
    )
    study = tune(tiny, tmp_path / "s", trials=1, cv=3, table=table, group_column="Author", epochs=1)
    folds = benches[0].folds
    assert len(folds) == len(benches[0].train) + len(benches[0].validation)
    assert set(folds) == {0, 1, 2}
    authors = np.concatenate([p.frame["group"] for p in (benches[0].train, benches[0].validation)])
    assert all(len(set(folds[authors == a])) == 1 for a in set(authors))
    curve = study.info["trials"][0]["curve"]
    assert [at for at, _ in curve] == [1, 2, 3]
    assert study.result["score"] == pytest.approx(np.mean([value for _, value in curve]))


def test_two_objectives_give_a_front(tiny, tmp_path):
    study = tune(tiny, tmp_path / "s", trials=3, objectives=("macro_f1", "latency"))
    values = {t["number"]: t["values"] for t in study.info["trials"]}
    assert all(ms > 0 for _, ms in values.values())
    for number in values:
        beaten = any(
            o[0] >= values[number][0] and o[1] <= values[number][1] and o != values[number] for o in values.values()
        )
        assert beaten != (number in study.result["front"])
    assert study.result["score"] == max(f1 for f1, _ in values.values())
    assert "What does speed cost?" in study.report.read_text()


def test_a_checkpoint_can_be_a_choice(tiny, tmp_path):
    from bertsmith.testing import tiny_model

    other = tiny_model(tmp_path / "other", "distilbert")
    study = bs.tune(tiny_table(150), output=tmp_path / "s", trials=6, models=(str(tiny), str(other)), **QUICK)
    assert set(study.trials["model"]) == {str(tiny), str(other)}
    assert study.trials["model"][0] == str(tiny)


@pytest.mark.parametrize("steps", range(1, 200))
def test_trials_are_scored_at_fractions_that_end_with_the_epoch(steps):
    between = steps_between(steps * 8, 8)
    if between is None:
        assert all(steps % parts for parts in (2, 3, 4))
    else:
        assert steps % between == 0
        assert 2 <= steps // between <= 4


@pytest.mark.parametrize(("validation", "expected"), [(20, {"eval_strategy": "steps", "eval_steps": 5}), (21, {})])
def test_many_validation_texts_are_scored_once_an_epoch(validation, expected):
    bench = TrialData(range(80), range(validation))
    assert scored_within_epochs(Config(model="m"), bench, 8).set == expected


# -- the command ---------------------------------------------------------------------------------------------------


def test_what_a_user_should_know_before_a_search_is_printed():
    console = Console(file=io.StringIO(), width=200)
    with TuningProgress(console) as progress:
        progress(StudyStarted(9, 4, 0.5, {}, (300, 250, 80, 0), unseen=("rare",), shared=("bertsmith-1f", 2)))
        progress(StorageAway("sqlite: connection refused"))
        progress(StorageAway("the same"))
        progress(TrialStarted(4, {"epochs": 1.0}))
    said = console.file.getvalue().splitlines()
    assert said == [
        "300 texts to train and 250 to validate (80 for the test at the end)",
        "no text to validate on has the label 'rare': trials gain nothing by finding it",
        "study bertsmith-1f of the database; 2 of other data, flags or ranges there",
        "going on: 4 of 9 trials are done, the best with 0.500",
        "the storage does not answer, and is asked again for ten minutes (sqlite: connection refused)",
        "the storage answers again",
    ]


def test_the_command_prints_what_was_found(cli, tiny, tmp_path):
    tiny_table(150).to_csv(tmp_path / "t.csv", index=False)
    flags = ("--model", tiny, "--trials", "2", "--epochs", "1", "--device", "cpu")
    code, out, err = cli("tune", tmp_path / "t.csv", "-o", tmp_path / "s", *flags)
    assert code == 0, err
    assert "trial 0 complete" in err
    assert "winner: trial" in out
    code, out, err = cli("tune", tmp_path / "t.csv", "-o", tmp_path / "s", *flags, "--json")
    assert code == 0
    assert "2 trials are done and 2 wanted: nothing is left to search" in err
    assert json.loads(out)["trials"] == {"complete": 2, "pruned": 0, "failed": 0}
    code, _, err = cli("tune", tmp_path / "t.csv", "-o", tmp_path / "s", *flags, "--models", "a,,b")
    assert code == 2
    assert "a name is empty" in err
    code, _, err = cli("tune", tmp_path / "none.csv", "-o", tmp_path / "n", *flags)
    assert code == 2
    assert "none.csv" in err
    assert not (tmp_path / "n").exists() or not any((tmp_path / "n").iterdir())


def test_tables_that_another_worker_makes_at_the_same_time_are_waited_for(tmp_path, monkeypatch):
    url, real, tries = f"sqlite:///{tmp_path / 's.db'}", stores.RDBStorage, []

    def refused_once(*given, **how):
        tries.append(given)
        if len(tries) == 1:
            raise OperationalError("CREATE TABLE", {}, Exception("table alembic_version already exists"))
        return real(*given, **how)

    monkeypatch.setattr(stores, "RDBStorage", refused_once)
    monkeypatch.setattr(stores.time, "sleep", lambda seconds: None)
    stores._database(url).remove_session()
    assert len(tries) == 2
