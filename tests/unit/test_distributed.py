"""Several processes train one model to the result of a single process."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid

import numpy as np
import psutil
import pytest
import torch

import bertsmith as bs
from bertsmith.cli.app import main
from bertsmith.compute import batching, processes
from bertsmith.compute.processes import SINGLE_PROCESS, ProcessGroup, init_process_group, rank_and_world_size
from bertsmith.errors import DeviceError
from bertsmith.events import Saved, Started
from bertsmith.folders.run import open_run
from bertsmith.testing import tiny_table
from bertsmith.training.engine import Engine
from tests.conftest import FAST, weights_of
from tests.processes import Command

FLAGS = [
    "--learning-rate",
    "1e-2",
    "--head-rate",
    "1",
    "--precision",
    "fp32",
    "--device",
    "cpu",
    "--batch-size",
    "16",
]

MORE = ["--dropout", "0", "--consistency", "0", "--set", "gradient_accumulation_steps=2", "--explanations", "off"]
MORE += ["--imbalance", "weights"]  # with few texts, one process would begin with a contrastive stage


TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]


def _command(table, output, tiny, *more):
    epochs = [] if "--epochs" in more else ["--epochs", "3"]
    return ["train", str(table), "-o", str(output), "--model", str(tiny), *FLAGS, *epochs, *more]


def _run_out_of_memory():
    """Process 1 has more micro-batches, and runs out of memory once in a step."""
    batching.TOKEN_BUDGETS["cpu"] = 64
    if os.environ["RANK"] == "0":
        return
    batching.TOKEN_BUDGETS["cpu"] = 32
    inputs, called = Engine._inputs, []

    def limited(self, part, index):
        called.append(index)
        if len(called) == 6:
            os.write(2, b"then no memory\n")  # sys.stderr is silent
            raise torch.OutOfMemoryError("out of memory")
        return inputs(self, part, index)

    Engine._inputs = limited


def _forked(*given, processes=2, before=None):
    """Train as torchrun does, in forked processes; return their exit codes, and all that they print."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"TORCHELASTIC_RUN_ID": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    shared["WORLD_SIZE"] = str(processes)
    workers = [
        Command(
            *_command(*given),
            environment={"BERTSMITH_CV": "0"}
            | ({**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} if processes > 1 else {}),
            before=before,
        )
        for rank in range(processes)
    ]
    printed = "".join([worker.finish() for worker in workers])
    return [worker.returncode for worker in workers], printed


@pytest.fixture
def table(tmp_path):
    tiny_table(121).to_csv(tmp_path / "t.csv", index=False)
    return tmp_path / "t.csv"


@pytest.fixture(scope="module")
def one(tmp_path_factory, pooled):
    """A run of one process, beside its table ``t.csv``."""
    folder = tmp_path_factory.mktemp("one")
    tiny_table(121).to_csv(folder / "t.csv", index=False)
    codes, printed = _forked(folder / "t.csv", folder / "run", pooled, *MORE, processes=1)
    assert codes == [0], printed
    return open_run(folder / "run")


def _assert_same(run, one):
    for name in ("train_loss", "validation_loss"):
        assert [e[name] for e in run.history] == pytest.approx([e[name] for e in one.history], rel=1e-4)
    found = weights_of(run)
    # Gradients of the added layer's attention are so small that Adam's steps depend on rounding.
    expected = {name: w for name, w in weights_of(one).items() if "layer.2." not in name}
    assert [name for name, w in expected.items() if not torch.allclose(found[name], w, atol=1e-4)] == []
    ours, theirs = (np.stack(each.predictions["probabilities"]) for each in (run, one))
    assert ours == pytest.approx(theirs, abs=1e-3)
    assert sorted(p.name for p in run.path.iterdir()) == sorted(p.name for p in one.path.iterdir())


def test_two_processes_give_the_result_of_one(one, tmp_path, pooled):
    """Both begin with the same head. One of them runs out of memory, and has no text in the last step of an epoch."""
    codes, printed = _forked(one.path.parent / "t.csv", tmp_path / "2", pooled, *MORE, before=_run_out_of_memory)
    assert codes == [0, 0], printed
    assert printed.count("test macro-F1") == 1  # only one process prints
    assert printed.count("then no memory") == 1
    _assert_same(open_run(tmp_path / "2"), one)


@pytest.mark.skipif(sys.platform != "linux", reason="reads the names of processes")
@pytest.mark.filterwarnings(*(f"ignore::{kind}Warning" for kind in ("Deprecation", "Future", "Resource")))  # of Ray
def test_a_ray_cluster_gives_the_result_of_one_process_even_if_a_worker_is_killed(one, tmp_path, pooled, monkeypatch):
    ray = pytest.importorskip("ray")
    settings = {"dropout": 0, "set": {"gradient_accumulation_steps": 2}, "explanations": "off", "batch_size": 16}
    settings["imbalance"] = "weights"  # as `MORE`
    settings = {**FAST, **settings, "model": str(pooled), "threads": 1}
    killed, started = [], []
    there = tmp_path / f"ray-{uuid.uuid4()}"  # a name that no folder of another process has

    def kill_a_worker(event):
        if isinstance(event, Started):
            started.append(event.step)
        if isinstance(event, Saved) and not killed:
            processes = psutil.Process().children(recursive=True)
            killed.extend([p for p in processes if "RayTrainWorker" in " ".join(p.cmdline())][-1:])
            killed[0].kill()

    def on_ray(workers):
        where = {"output": there.as_uri(), "ray": "local", "workers": workers}
        return bs.train(one.path.parent / "t.csv", **where, **settings, on_event=kill_a_worker)

    monkeypatch.setenv("RAY_worker_niceness", "0")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # one process less, which imports torch too
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        with pytest.raises(DeviceError, match="9"):
            on_ray(workers=9)
        assert not any(path.is_file() for path in tmp_path.rglob("*"))
        run = on_ray(workers=2)
    finally:
        ray.shutdown()
    assert killed
    assert started[0] == 0 < started[1]
    _assert_same(run, one)
    assert _files(there) == _files(run.path)
    assert not (there / "checkpoints").exists()
    assert [entry.name for entry in run.path.parent.iterdir()] == [there.name]
    assert list(run.path.parents[1].glob(f"bertsmith.{there.name}.*")) == []  # the folders of the workers
    shutil.rmtree(run.path.parent)


def _files(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_interrupted_processes_resume_together(table, tmp_path, tiny):
    more = ["--epochs", "10", "--patience", "10"]  # time enough for the signal
    codes, printed = _forked(table, tmp_path / "whole", tiny, *more)
    assert codes == [0, 0], printed
    command = [*TORCHRUN, "-m", "bertsmith", *_command(table, tmp_path / "cut", tiny, *more)]
    history = tmp_path / "cut" / "history.jsonl"
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None and not (history.is_file() and history.read_text()):
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)  # which torchrun hands on
        stderr = process.communicate(timeout=120)[1]
    assert stderr.count("the same command with --resume") == 1, stderr
    codes, printed = _forked(table, tmp_path / "cut", tiny, *more, "--resume")
    assert codes == [0, 0], printed
    cut, one = open_run(tmp_path / "cut"), open_run(tmp_path / "whole")
    assert [e["validation_loss"] for e in cut.history] == [e["validation_loss"] for e in one.history]
    assert all(w.equal(weights_of(cut)[name]) for name, w in weights_of(one).items())


def test_an_error_ends_all_processes_with_one_message(table, tmp_path, tiny):
    """This also holds if the process that prints is the last one."""
    slow = tmp_path / "slow.py"
    slow.write_text(
        "import os, sys, time\ntime.sleep(3 * (os.environ['RANK'] == '0'))\n"
        "from bertsmith.cli.app import main\nmain(sys.argv[1:])"
    )
    command = [*TORCHRUN, slow, *_command(table, tmp_path / "run", tiny, "--text-column", "Txt")]
    found = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert found.returncode != 0
    assert found.stderr.count("no column 'Txt'") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("rank", ["0", "1"])
def test_only_train_accepts_several_processes(rank, monkeypatch, capsys):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("bertsmith.cli.app.RANK_0_SECONDS", 0.1)
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, getattr(sys, name))  # and back again
    with pytest.raises(SystemExit) as ended:
        main(["inspect", "t.csv"])
    if rank != "0":
        sys.stdout.close()  # a devnull that `main` opened
    assert ended.value.code == 2
    assert "error: torchrun" in capsys.readouterr().err


def test_unrelated_rank_variables_are_ignored(monkeypatch):
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert rank_and_world_size() == (0, 1)
    assert init_process_group() is SINGLE_PROCESS
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    assert rank_and_world_size() == (3, 4)


def test_a_process_stays_in_its_group(monkeypatch):
    monkeypatch.setattr(processes, "_joined", SINGLE_PROCESS)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    for name, value in {"TORCHELASTIC_RUN_ID": "1", "RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    for _ in range(2):  # the first training removes the variables
        assert init_process_group() == ProcessGroup(1, 2)
        assert rank_and_world_size() == (1, 2)


def test_processes_exchange_flags_without_the_gpus(monkeypatch):
    backends, sent = [], []
    monkeypatch.setattr(processes, "_joined", SINGLE_PROCESS)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda backend, **_: backends.append(backend))
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor: sent.append(tensor.device))
    monkeypatch.setattr(processes.atexit, "register", lambda function: None)
    for name, value in {"TORCHELASTIC_RUN_ID": "1", "RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    group = init_process_group("cpu")  # with more processes than GPUs
    assert group == ProcessGroup(1, 2)
    assert backends == ["gloo"]
    assert group.any(True, False) == (True, False)
    monkeypatch.setattr(processes, "_joined", SINGLE_PROCESS)
    for name, value in {"TORCHELASTIC_RUN_ID": "1", "RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert init_process_group().any(False) == (False,)
    assert backends == ["gloo", processes.GPU_BACKENDS]
    assert sent == [torch.device("cpu")] * 2  # no step waits for the GPU


def test_texts_are_distributed_by_length():
    lengths = np.array([3, 9, 1, 7, 7])
    shares = [ProcessGroup(rank, 3).share(lengths).tolist() for rank in range(3)]
    assert shares == [[1, 0], [3, 2], [4]]
    assert SINGLE_PROCESS.share(lengths).tolist() == [1, 3, 4, 0, 2]
    assert [ProcessGroup(rank, 7).share(lengths[:1]).tolist() for rank in range(2)] == [[0], []]


def test_gradients_are_summed_in_place(monkeypatch):
    """The other process has the same gradients, and replies late."""
    sent = []

    class Message:
        def __init__(self, tensor):
            self.tensor, self.values = tensor, tensor.clone()
            sent.append(tensor.shape)

        def wait(self):
            assert self.tensor.equal(self.values), "changed while it was sent"
            self.tensor += self.values

    def all_reduce(tensor, async_op=False):
        message = Message(tensor)
        return message if async_op else message.wait()

    monkeypatch.setattr("torch.distributed.all_reduce", all_reduce)
    monkeypatch.setattr(processes, "SENT_ALONE", 8)
    frozen, used, unused = torch.nn.Linear(4, 4).requires_grad_(False), torch.nn.Linear(4, 3), torch.nn.Linear(4, 5)
    model = torch.nn.ModuleList([frozen, used, unused])
    used(frozen(torch.ones(2, 4))).square().sum().backward()
    trained = [*used.parameters(), *unused.parameters()]
    before = [p.grad for p in trained]
    expected = [torch.zeros_like(p) if p.grad is None else 2 * p.grad for p in trained]
    ProcessGroup(0, 2).sum_gradients(model.parameters())
    torch.testing.assert_close([p.grad for p in trained], expected)
    assert before[0] is trained[0].grad
    assert sent == [(3, 4), (5, 4), (8,)]  # the biases share a message
    assert frozen.weight.grad is None
