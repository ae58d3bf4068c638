"""Training in two processes: both end with the same network, which one of them writes, and a step is the step of one process."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cli import tinynet
from conftest import ROOT
from trainnets import differing, one_thread

from kqgen import store

_one_thread = one_thread
SCRIPT = """
import json, os, sys
sys.path.insert(0, {tests!r})
import torch
torch.set_num_threads(1)
import torch.distributed as dist
import torch.nn.functional as F
from pathlib import Path
from trainnets import LeNet, make
from kqgen import cli, train_job, training

rank, folder = int(os.environ["RANK"]), Path(sys.argv[1])

def gradients():
    # Half a batch in each process, averaged, and the whole batch in one; nothing that depends on which samples are together is left.
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.rand((24, 1, 8, 8), generator=generator), torch.randint(0, 10, (24,), generator=generator)
    module = make(LeNet)
    module.drop.p = 0.0
    made = []
    for halves in (True, False):
        model = training.prepare(module, example_inputs=(images[:1],), calibration=images.numpy())
        model.step = 101  # a step in which ranges are not looked at
        wrapped = torch.nn.parallel.DistributedDataParallel(model) if halves else model
        part = slice(12 * rank, 12 * rank + 12) if halves else slice(None)
        F.cross_entropy(wrapped(images[part]), labels[part]).backward()
        made.append({{name: value.grad for name, value in model.named_parameters() if value.grad is not None}})
    assert made[0].keys() == made[1].keys()
    far = max(float((made[0][name] - made[1][name]).abs().max() / made[1][name].abs().max().clamp_min(1e-9)) for name in made[0])
    (folder / f"gradients{{rank}}.json").write_text(json.dumps([len(made[0]), far]))

dist.init_process_group("gloo")
gradients()
dist.barrier()
dist.destroy_process_group()
finetune = train_job.finetune

def spy(model, *given, **more):
    progress = finetune(model, *given, **more)
    torch.save(model.net.state_dict(), folder / f"rank{{rank}}.pt")
    return progress

train_job.finetune = spy
cli.main(sys.argv[2:])
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """(folder, standard output, standard error) of the command line in two processes, started with the variables that torchrun sets."""
    folder = tmp_path_factory.mktemp("processes")
    tinynet.save(tinynet.make(), folder / "tiny.pt2")
    tinynet.write_labelled(folder / "train.npz", 72)
    (folder / "script.py").write_text(SCRIPT.format(tests=str(ROOT / "tests")), encoding="utf-8")
    (folder / "out").mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = ["--train", str(folder / "train.npz"), "--epochs", "3", "--batch", "16", "--hold-out", "8", "--augment", "crop,flip"]
    asked = ["finetune", str(folder / "tiny.pt2"), *options, "--codewords", "12", "--out", str(folder / "out" / "net.kq.safetensors")]
    common = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "120", "GLOO_SOCKET_IFNAME": "lo"}
    torchrun = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    started = [
        subprocess.Popen(
            [sys.executable, str(folder / "script.py"), str(folder), *asked], cwd=folder, text=True, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, env={**os.environ, **common, **torchrun, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in (0, 1)
    ]  # fmt: skip
    try:
        said = [each.communicate(timeout=240) for each in started]
    finally:
        for each in started:
            each.kill()
    assert [each.returncode for each in started] == [0, 0], said
    return folder, "".join(out for out, _ in said), "".join(err for _, err in said)


def test_both_processes_end_with_the_same_network(run: tuple[Path, str, str]) -> None:
    left, right = (torch.load(run[0] / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    assert len(left) > 20
    assert any(name.endswith(".codes") for name in left)
    assert any(name.endswith(".lo") for name in left)
    assert differing(left, right) == []


def test_one_process_writes_and_speaks(run: tuple[Path, str, str]) -> None:
    folder, out, err = run
    assert [path.name for path in (folder / "out").iterdir()] == ["net.kq.safetensors"]
    assert store.read(folder / "out" / "net.kq.safetensors")[0].name == "net"
    assert out.count("written") == 1
    assert [line.split()[1] for line in err.splitlines() if line.startswith("epoch ")] == ["1/3", "2/3", "3/3"]


@pytest.mark.parametrize("rank", [0, 1])
def test_two_halves_of_a_batch_give_the_gradients_of_the_whole(run: tuple[Path, str, str], rank: int) -> None:
    """To float32: sums of 24 samples' gradients in another order, a few hundred terms a tap."""
    count, far = json.loads((run[0] / f"gradients{rank}.json").read_text(encoding="utf-8"))
    assert count >= 10
    assert 0 < far < 1e-3
