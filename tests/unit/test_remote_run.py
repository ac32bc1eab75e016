"""Runs at a URL: what is copied, in which order, and what an interrupted copy leaves."""

import json
import queue
import shlex
import shutil
import threading
from pathlib import Path

import pytest
from fsspec.implementations.memory import MemoryFileSystem

import bertsmith as bs
from bertsmith.compute.processes import ProcessGroup
from bertsmith.errors import ConfigError, Interrupted, MissingPackageError, OutputError, RunFolderError, UserError
from bertsmith.events import FoldDone, RunFinished, Saved
from bertsmith.folders import remote
from bertsmith.folders.atomic import MANIFEST, seal
from bertsmith.folders.new_run import RunFolder
from bertsmith.folders.remote import RemoteRun, run_output
from bertsmith.folders.run import Run
from bertsmith.testing import tiny_table
from bertsmith.tracking.listener import Tracking
from bertsmith.training.checkpoints import share_folder
from bertsmith.workflows.run_at_url import copied_from_url, copied_to_url

URL = "memory://bucket/runs/reviews"
ROOT = "/bucket/runs/reviews"


@pytest.fixture(autouse=True)
def storage(monkeypatch):
    """An empty storage that fails at once instead of after retries."""
    monkeypatch.setattr(MemoryFileSystem, "store", {})
    monkeypatch.setattr(MemoryFileSystem, "pseudo_dirs", [""])
    monkeypatch.setattr(remote, "RETRY_SECONDS", ())
    return MemoryFileSystem


def _names():
    return sorted(name.removeprefix(f"{ROOT}/") for name in MemoryFileSystem.store)


def _new_run(folder, created="2026-01-01", steps=(), status="running", **files):
    """Write the parts of a run that matter for copies."""
    folder.mkdir(parents=True)
    run = Run(folder)
    for name in ("labels.json", "splits.parquet", "history.jsonl"):
        (folder / name).write_text(f"{name} of {created}")
    run.update(created=created, status=status)
    for step in steps:
        _checkpoint(run, step)
    for name, content in files.items():
        (folder / name).mkdir()
        (folder / name / "file").write_text(content)
    return run


def _at(run, step):
    return run.layout.checkpoints / f"checkpoint-{step}"


def _checkpoint(run, step):
    folder = _at(run, step)
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_text(f"{step} of {run.info['created']}")
    (folder / "trainer_state.json").write_text(json.dumps({"best_model_checkpoint": None}))
    seal(folder)


def _finish(run):
    run.layout.model.mkdir()
    (run.layout.model / "model.safetensors").write_text(f"of {run.info['created']}")
    run.finish(keep_checkpoints=False)


def _fetched(folder):
    RemoteRun(URL).fetch(folder)
    return Run(folder)


def _record(monkeypatch, fail_after=None):
    """Record the writes to the storage, and let all after a number of them fail."""
    calls = []

    def recorded(name):
        do = getattr(MemoryFileSystem, name)

        def method(self, *paths, **options):
            if fail_after is not None and len(calls) >= fail_after:
                raise ConnectionError("the network is down")
            calls.append((name, paths[-1].removeprefix(f"{ROOT}/")))
            return do(self, *paths, **options)

        monkeypatch.setattr(MemoryFileSystem, name, method)

    recorded("put_file")
    recorded("rm_file")
    return calls


def test_only_changed_files_are_copied_and_what_makes_them_count_comes_last(tmp_path, monkeypatch):
    run, there = _new_run(tmp_path / "run", steps=[5]), RemoteRun(URL)
    (run.path / ".history.jsonl").write_text("temporary")
    there.put(run.path)
    assert _fetched(tmp_path / "1").last_checkpoint().name == "checkpoint-5"
    calls = _record(monkeypatch)
    there.put(run.path)
    assert calls == []
    _checkpoint(run, 9)
    run.log({"step": 9})
    there.put(run.path)
    names = ("model.safetensors", "trainer_state.json", MANIFEST)
    first, second, last = (f"checkpoints/checkpoint-9/{name}" for name in names)
    assert calls == [("put_file", name) for name in (first, second, "history.jsonl", last)]
    calls.clear()
    _finish(run)
    there.put(run.path)
    (saved, rest) = calls[:2], calls[2:]
    assert [name for _, name in saved] == ["model/model.safetensors", "run.json"]
    assert {do for do, _ in rest} == {"rm_file"}
    assert _names() == ["history.jsonl", "labels.json", "model/model.safetensors", "run.json", "splits.parquet"]


@pytest.mark.parametrize("state", ["new", "resumed", "finished"])
def test_an_interrupted_copy_leaves_the_older_state_or_the_newer_one(tmp_path, monkeypatch, state):
    """A storage that fails after any number of writes has an intact checkpoint of this run, or none yet."""
    resumed = state == "resumed"
    for n in range(50):
        folder = tmp_path / str(n)
        MemoryFileSystem.store.clear()
        MemoryFileSystem.pseudo_dirs[:] = [""]
        run, there = _new_run(folder / "run", steps=[5]), RemoteRun(URL)
        if resumed:
            there.put(run.path)
            _checkpoint(run, 9)
        elif state == "finished":
            _finish(run)
        with monkeypatch.context() as patch:
            _record(patch, fail_after=n)
            try:
                there.put(run.path)
                complete = True
            except OutputError:
                complete = False
        found = RemoteRun(URL)
        if found.info:
            copy = _fetched(folder / "copy")
            last = copy.last_checkpoint()
            assert found.is_resumable == (last is not None)
            assert not resumed or last is not None
            if copy.info["status"] == "finished":
                assert complete
            else:
                RunFolder(copy.path).check(resume=True)
        else:
            assert not resumed
        if complete:
            assert last == {"new": _at(copy, 5), "resumed": _at(copy, 9), "finished": None}[state]
            assert (copy.info["status"] == "finished") == (state == "finished")
            break
    assert complete
    assert n > 2


@pytest.mark.parametrize("status", ["finished", "interrupted"])
def test_an_interrupted_replacement_never_mixes_two_runs(tmp_path, monkeypatch, status):
    seen = set()
    for n in range(50):
        folder = tmp_path / str(n)
        MemoryFileSystem.store.clear()
        MemoryFileSystem.pseudo_dirs[:] = [""]
        old = _new_run(folder / "old", created="2025", steps=[7], status=status)
        if status == "finished":
            old.layout.model.mkdir()
            (old.layout.model / "model.safetensors").write_text("of 2025")
        RemoteRun(URL).put(old.path)
        there = RemoteRun(URL)
        there.check(overwrite=True)
        run = _new_run(folder / "run", steps=[5])
        with monkeypatch.context() as patch:
            _record(patch, fail_after=n)
            try:
                there.put(run.path)
                complete = True
            except OutputError:
                complete = False
        copy = _fetched(folder / "copy")
        seen.add(copy.info["created"])
        assert RemoteRun(URL).is_resumable == (copy.last_checkpoint() is not None)
        if copy.info["status"] == "finished":
            assert copy.info["created"] == "2025"
            assert (copy.layout.model / "model.safetensors").read_text() == "of 2025"
        elif copy.info["created"] == "2025":
            assert status == "interrupted"
        else:
            last = copy.last_checkpoint()
            assert last is None or (last / "model.safetensors").read_text() == "5 of 2026-01-01"
            if last is None:  # the next command begins again without asking
                RemoteRun(URL).check()
        if complete:
            assert last is not None
            assert not copy.layout.model.exists()
            break
    assert complete
    assert seen == {"2025", "2026-01-01"}


CASES = {
    "nothing": (None, {}, None),
    "nothing to resume": (None, {"resume": True}, None),
    "both": (None, {"resume": True, "overwrite": True}, RunFolderError),
    "finished": ("finished", {}, RunFolderError),
    "finished, resumed": ("finished", {"resume": True}, RunFolderError),
    "finished, replaced": ("finished", {"overwrite": True}, None),
    "unfinished": ("running", {}, RunFolderError),
    "unfinished, resumed": ("running", {"resume": True}, None),
    "unfinished, replaced": ("running", {"overwrite": True}, None),
}


@pytest.mark.parametrize(("status", "how", "refused"), CASES.values(), ids=list(CASES))
def test_a_url_is_claimed_like_a_folder(status, how, refused, tmp_path):
    if status is not None:
        RemoteRun(URL).put(_new_run(tmp_path / "run", steps=[5], status=status).path)
    before, there = dict(MemoryFileSystem.store), RemoteRun(URL)
    if refused is None:
        there.check(**how)
        assert there.created == (None if status is None else "2026-01-01")
    else:
        with pytest.raises(refused) as caught:
            there.check(**how)
        assert caught.value.where in (None if how == CASES["both"][1] else URL, URL)
    assert before == MemoryFileSystem.store


def test_a_run_without_a_checkpoint_is_begun_again_without_asking(tmp_path):
    RemoteRun(URL).put(_new_run(tmp_path / "run").path)
    RemoteRun(URL).check()


@pytest.mark.parametrize(
    ("name", "content", "overwrite"),
    [
        ("/notes.txt", "mine", False),
        ("/data/more.txt", "mine", False),
        ("", "mine", False),
        ("/evaluations/new.json", "mine", True),
        ("/run.json", "{", False),
    ],
)
def test_other_files_are_never_replaced(name, content, overwrite, tmp_path):
    if name.startswith("/evaluations"):
        RemoteRun(URL).put(_new_run(tmp_path / "run").path)
    MemoryFileSystem().pipe_file(f"{ROOT}{name}", content.encode())
    before = _names()
    with pytest.raises(RunFolderError) as caught:
        RemoteRun(URL).check(overwrite=overwrite)
    assert caught.value.where.startswith(URL)
    assert _names() == before


def test_a_damaged_run_can_be_replaced(tmp_path):
    MemoryFileSystem().pipe_file(f"{ROOT}/run.json", b"{")
    there = RemoteRun(URL)
    there.check(overwrite=True)
    there.put(_new_run(tmp_path / "run").path)
    assert RemoteRun(URL).info["status"] == "running"


def test_a_run_that_another_process_wrote_meanwhile_is_not_replaced(tmp_path):
    there = RemoteRun(URL)
    there.check()
    RemoteRun(URL).put(_new_run(tmp_path / "theirs", created="2027").path)
    with pytest.raises(RunFolderError) as caught:
        there.put(_new_run(tmp_path / "ours").path)
    assert caught.value.where == URL
    assert RemoteRun(URL).info["created"] == "2027"


def test_a_failed_copy_is_repeated(tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "RETRY_SECONDS", (0.0, 0.0))
    failures = [ConnectionError("reset"), TimeoutError()]
    put = MemoryFileSystem.put_file

    def failing(self, *paths, **options):
        if failures and paths[1].endswith("labels.json"):
            raise failures.pop()
        return put(self, *paths, **options)

    monkeypatch.setattr(MemoryFileSystem, "put_file", failing)
    RemoteRun(URL).put(_new_run(tmp_path / "run", steps=[5]).path)
    assert failures == []
    assert _fetched(tmp_path / "copy").last_checkpoint() is not None


def test_a_storage_with_folders_keeps_no_empty_ones(tmp_path):
    there = RemoteRun((tmp_path / "there").as_uri())
    run = _new_run(tmp_path / "run", steps=[5, 9], model="x")
    there.put(run.path)
    shutil.rmtree(_at(run, 5))
    there.put(run.path)
    assert [p.name for p in (tmp_path / "there" / "checkpoints").iterdir()] == ["checkpoint-9"]
    run.finish(keep_checkpoints=False)
    there.put(run.path)
    names = sorted(p.relative_to(run.path) for p in run.path.rglob("*"))
    assert sorted(p.relative_to(tmp_path / "there") for p in (tmp_path / "there").rglob("*")) == names


def test_names_that_leave_the_folder_are_not_fetched(tmp_path):
    RemoteRun(URL).put(_new_run(tmp_path / "run").path)
    MemoryFileSystem().pipe_file(f"{ROOT}/../../escaped", b"x")
    MemoryFileSystem().pipe_file(f"{ROOT}/.hidden/file", b"x")
    copy = _fetched(tmp_path / "in" / "copy")
    assert sorted(p.name for p in copy.path.iterdir()) == ["history.jsonl", "labels.json", "run.json", "splits.parquet"]
    assert [p.name for p in (tmp_path / "in").iterdir()] == ["copy"]


@pytest.mark.parametrize("verb", ["ls", "put_file", "rm_file"])
def test_a_storage_that_refuses_is_reported_before_training(verb, monkeypatch):
    def refuse(self, *paths, **options):
        raise PermissionError("Access Denied")

    monkeypatch.setattr(MemoryFileSystem, verb, refuse)
    with pytest.raises(OutputError, match="Access Denied") as caught:
        RemoteRun(URL).check()
    assert caught.value.where == URL


@pytest.mark.parametrize("url", ["memory://", "memory:/bucket/run", "nosuch://bucket/run", "file:///", "s3://"])
def test_unusable_urls(url, cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if not url.startswith("s3"):
        with pytest.raises(ConfigError) as caught:
            RemoteRun(url)
        assert caught.value.where == url
    tiny_table(30).to_csv("t.csv", index=False)
    code, _, err = cli("train", "t.csv", "-o", url, "--ray", "local")
    assert code == 2
    assert url in err
    assert [path.name for path in tmp_path.iterdir()] == ["t.csv"]


def test_the_package_of_a_storage_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "s3fs", None)
    with pytest.raises(MissingPackageError) as caught:
        RemoteRun("s3://bucket/run")
    assert caught.value.package == "s3fs"


def test_the_command_prints_the_url_and_how_to_copy_the_run(cli, tmp_path, finished, monkeypatch):
    pytest.importorskip("ray")
    monkeypatch.chdir(tmp_path)
    tiny_table(30).to_csv("t.csv", index=False)
    there, temporary = RemoteRun(URL), tmp_path / "temporary"
    others = {Path(path).name for path in Run(finished).foreign_files()}  # of other tests
    shutil.copytree(finished, tmp_path / "source", ignore=lambda folder, names: others & {*names})
    there.put(tmp_path / "source")

    def train_on_ray(source, config, output, **_):
        RemoteRun(output).fetch(temporary / "reviews")
        return Run(temporary / "reviews")

    monkeypatch.setattr("bertsmith.workflows.train_on_ray.train_on_ray", train_on_ray)
    code, out, _ = cli("train", "t.csv", "-o", URL, "--ray", "local", "--overwrite")
    assert code == 0, out
    assert URL in out.splitlines()[-3]
    assert not temporary.exists()
    command = shlex.split(out.splitlines()[-1])
    assert command[:2] == ["python", "-c"]
    exec(command[2])
    copy = Run(tmp_path / "reviews")
    copy.check_model()
    assert copy.metrics == Run(finished).metrics
    code, out, _ = cli("train", "t.csv", "-o", URL, "--ray", "local", "--overwrite", "--json")
    assert json.loads(out)["run"] == URL


def test_only_ray_takes_a_url(tmp_path):
    assert run_output(URL, ray=True) == URL
    assert run_output(str(tmp_path), ray=True) == tmp_path
    assert run_output(tmp_path, ray=False) == tmp_path
    for output, ray in ((URL, False), (Path(URL), True)):
        with pytest.raises(ConfigError):
            run_output(output, ray=ray)
    with pytest.raises(ConfigError) as caught:
        bs.train(tiny_table(30), output=URL)
    assert caught.value.where == URL
    with pytest.raises(UserError):
        bs.load(URL)


def test_tensorboard_needs_a_folder():
    pytest.importorskip("tensorboard")
    from bertsmith.config import Config

    with pytest.raises(ConfigError) as caught:
        Tracking("tensorboard", URL, Config(), print)
    assert caught.value.where == URL


def _train(folder, seen, **how):
    options = {"resume": False, "overwrite": False, "observe": seen.append, "is_main": True, **how}
    return copied_to_url(URL, folder, **options)


def test_a_worker_copies_each_checkpoint_and_the_finished_run(tmp_path):
    seen = []
    with _train(tmp_path / "local", seen, resume=True) as (path, observe):  # nothing to resume yet
        run = _new_run(path, steps=[5])
        assert _names() == []
        observe(Saved(5, path))
        assert RemoteRun(URL).is_resumable
        _finish(run)
        observe(RunFinished(path))
        assert RemoteRun(URL).info["status"] == "finished"
    assert seen == [Saved(5, path), RunFinished(Path())]
    assert list(tmp_path.iterdir()) == []
    with copied_from_url(URL, seen.append) as (copy, observe):
        observe(seen.pop())
    assert seen[1:] == [RunFinished(copy)]
    assert (copy / "model" / "model.safetensors").is_file()
    with copied_from_url(URL, seen.append) as (copy, _):  # a worker died after the last copy
        pass
    assert Run(copy).info["status"] == "finished"


def test_an_interrupted_worker_is_resumed_by_another(tmp_path):
    with pytest.raises(Interrupted), _train(tmp_path / "local", []) as (path, observe):
        run = _new_run(path, steps=[5])
        observe(FoldDone(1, 2, 0.5))
        run.update(status="interrupted")
        raise Interrupted("stopped")
    assert RemoteRun(URL).info["status"] == "interrupted"
    with _train(tmp_path / "local", [], resume=True) as (path, observe):
        run = Run(path)
        assert run.last_checkpoint().name == "checkpoint-5"
        _checkpoint(run, 9)
        observe(Saved(9, path))
    assert _fetched(tmp_path / "copy").last_checkpoint().name == "checkpoint-9"
    with _train(tmp_path / "other", [], resume=True, is_main=False) as (path, _):
        assert not path.exists()


def test_a_run_to_replace_is_unchanged_until_the_new_one_has_a_checkpoint(tmp_path):
    RemoteRun(URL).put(_new_run(tmp_path / "old", created="2025", status="finished").path)
    before = dict(MemoryFileSystem.store)
    with pytest.raises(UserError), _train(tmp_path / "local", [], overwrite=True) as (path, _):
        _new_run(path, status="failed")
        raise UserError("diverged", where=str(path))
    assert before == MemoryFileSystem.store


def test_a_run_that_cannot_be_copied_is_kept_and_named(tmp_path, monkeypatch):
    with pytest.raises(OutputError) as caught, _train(tmp_path / "local", []) as (path, observe):
        _new_run(path, steps=[5])
        _record(monkeypatch, fail_after=3)
        observe(Saved(5, path))
    assert caught.value.where == URL
    assert str(path) in caught.value.remedy
    assert Run(path).last_checkpoint() is not None


class _Threads(ProcessGroup):
    """Processes in threads, without torch."""

    def __new__(cls, *given):
        return super().__new__(cls)

    def any(self, *flags):
        QUEUES["flags"].put(flags)
        TOGETHER.wait()
        found = list(QUEUES["flags"].queue)
        TOGETHER.wait()
        return tuple(map(any, zip(*found, strict=True)))

    def broadcast(self, value):
        if self.is_main:
            QUEUES["sent"].put(value)
            return value
        return QUEUES["sent"].get(timeout=10)


QUEUES = {"flags": queue.Queue(), "sent": queue.Queue()}
TOGETHER = threading.Barrier(2, timeout=10)


def test_a_checkpoint_reaches_a_process_on_another_machine(tmp_path, monkeypatch):
    monkeypatch.setattr("bertsmith.training.checkpoints.SHARED_BYTES", 4)
    there = [tmp_path / str(rank) / "checkpoint-5" for rank in range(2)]
    there[0].mkdir(parents=True)
    files = {"a": b"0123456789", "b": b"", "c": b"01234567"}
    for name, content in files.items():
        (there[0] / name).write_bytes(content)
    found = {}

    def share(rank):
        found[rank] = share_folder(_Threads(rank, 2), there[rank])

    threads = [threading.Thread(target=share, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20)
    assert found[0] == there[0]
    assert found[1].parent == there[1].parent
    assert {p.name: p.read_bytes() for p in found[1].iterdir()} == files
    assert share_folder(ProcessGroup(), there[0]) == there[0]
