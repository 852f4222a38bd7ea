"""Several nodes: a made-up Slurm with 64, two real ones in network namespaces, and a torchrun restart."""

import os
import shlex
import shutil
import subprocess
import uuid
from pathlib import Path

import pytest
from tiny_runs import ROOT, logs_of, video_rows, write_recipe

NODES = 64
SRUN = """#!/usr/bin/env bash
# The job's command once for every node, as srun starts it; the worst exit code.
while [[ $1 == --* ]]; do echo "$1" >>"$SRUN_LOG"; shift; done
worst=0
for ((node = 0; node < SLURM_NNODES; node++)); do
  SLURM_NODEID=$node SLURMD_NODENAME="gpu-$node" "$@" || worst=$?
done
exit $worst
"""
SCONTROL = """#!/usr/bin/env bash
[[ $* == "show hostnames gpu-[0-63]" ]] && seq -f 'gpu-%g' 0 63
"""


@pytest.fixture
def slurm(tmp_path):
    """Call the sbatch template as Slurm does."""
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    job = {"SLURM_NNODES": str(NODES), "SLURM_JOB_NODELIST": "gpu-[0-63]", "SLURM_JOB_ID": "77001"}
    clean = {
        k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "MASTER", "NNODES", "NODE_RANK"))
    }
    clean |= {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SRUN_LOG": str(tmp_path / "log"), **job}

    def call(*flags, **environment):
        words = ["bash", "scripts/slurm.sbatch", *flags]
        return subprocess.run(words, cwd=ROOT, env=clean | environment, capture_output=True, text=True)

    call.log = tmp_path / "log"
    return call


def test_sixty_four_nodes_meet_at_the_first(slurm):
    done = slurm("stage2", "--output_dir", "runs/it's; $(a) run", DRY_RUN="1", NPROC_PER_NODE="8")
    assert done.returncode == 0, done.stderr
    commands = [shlex.split(line) for line in done.stdout.splitlines()]
    assert len(commands) == NODES
    for node, words in enumerate(commands):
        told = dict(zip(words, words[1:], strict=False))
        assert (told["--nnodes"], told["--node_rank"]) == (str(NODES), str(node))
        assert (told["--master_addr"], told["--master_port"]) == ("gpu-0", str(20000 + 77001 % 20000))
        assert told["--nproc_per_node"] == "8" and told["--stage"] == "stage2"
        assert words[-2:] == ["--output_dir", "runs/it's; $(a) run"]
    assert "--kill-on-bad-exit=1" in slurm.log.read_text()


def test_the_code_of_a_failing_node_is_the_jobs(slurm):
    done = slurm("stage1", RECIPE="no such recipe", SLURM_NNODES="1")
    assert done.returncode == 2 and "no such recipe" in done.stderr


def test_a_job_without_a_stage_is_refused(slurm):
    done = slurm()
    assert done.returncode != 0 and "name a stage" in done.stderr


@pytest.fixture(scope="module")
def recipe(tiny, tmp_path_factory):
    """Six steps over four captions, without noise: the same on any cluster."""
    steps = dict(max_steps=6, learning_rate=2e-3, per_device_train_batch_size=1)
    saves = dict(save_strategy="steps", save_steps=2, noise_start=0.0, noise_end=0.0)
    return write_recipe(tiny, tmp_path_factory.mktemp("cluster"), video_rows(tiny, 4), **steps, **saves)


def stage3(recipe, out, *flags, prefix=(), **environment) -> subprocess.Popen:
    words = [*prefix, "bash", "scripts/stage3.sh", "--output_dir", str(out), *flags]
    environment = {**os.environ, "RECIPE": str(recipe), "CUDA_VISIBLE_DEVICES": "", **environment}
    pipe = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return subprocess.Popen(words, cwd=ROOT, env=environment, **pipe)


def losses(out: Path) -> list[float]:
    return [entry["loss"] for entry in logs_of(out)]


@pytest.fixture(scope="module")
def one_node(recipe, tmp_path_factory):
    out = tmp_path_factory.mktemp("one") / "out"
    process = stage3(recipe, out, NPROC_PER_NODE="2")
    said = process.communicate(timeout=200)[0]
    assert process.returncode == 0, said[-3000:]
    return losses(out)


@pytest.fixture
def two_nodes():
    """Names of two network namespaces joined by a link; their addresses are 10.77.0.1 and 10.77.0.2."""
    ip = shutil.which("ip") or shutil.which("ip", path="/usr/sbin:/sbin")
    if ip is None:
        pytest.skip("iproute2 is not installed")
    tag = uuid.uuid4().hex[:6]
    names, links = [f"qv{tag}a", f"qv{tag}b"], [f"v{tag}a", f"v{tag}b"]

    def do(*words):
        subprocess.run([ip, *words], check=True, capture_output=True, text=True)

    try:
        for name in names:
            do("netns", "add", name)
        do("link", "add", links[0], "type", "veth", "peer", "name", links[1])
        for place, (name, link) in enumerate(zip(names, links, strict=True), start=1):
            do("link", "set", link, "netns", name)
            do("-n", name, "addr", "add", f"10.77.0.{place}/24", "dev", link)
            do("-n", name, "link", "set", link, "up")
            do("-n", name, "link", "set", "lo", "up")
        yield [(ip, "netns", "exec", name) for name in names], links
    except subprocess.CalledProcessError as error:
        pytest.skip(f"network namespaces are not permitted here: {error.stderr.strip()}")
    finally:
        for name in names:
            subprocess.run([ip, "netns", "del", name], capture_output=True)


def test_two_nodes_train_as_two_processes_of_one(recipe, one_node, two_nodes, tmp_path):
    prefixes, links = two_nodes
    cluster = dict(NNODES="2", MASTER_ADDR="10.77.0.1", MASTER_PORT="29500", NPROC_PER_NODE="1")
    nodes = [
        stage3(
            recipe, tmp_path / "out", prefix=prefix, NODE_RANK=str(rank), GLOO_SOCKET_IFNAME=link, **cluster
        )
        for rank, (prefix, link) in enumerate(zip(prefixes, links, strict=True))
    ]
    said = [node.communicate(timeout=200)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], said[0][-2000:] + said[1][-2000:]
    assert losses(tmp_path / "out") == pytest.approx(one_node, rel=1e-5)


DIE = """
import os, pathlib, signal, sys
from quicksviewer.train import llava_trainer, train
mark, whole, calls = pathlib.Path(sys.argv.pop(1)), llava_trainer.LLaVATrainer.training_step, []
def step(*args, **kwargs):
    calls.append(None)
    if len(calls) == 4 and os.environ["RANK"] == "1" and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return whole(*args, **kwargs)
llava_trainer.LLaVATrainer.training_step = step
sys.exit(train.main())
"""


def test_a_lost_process_is_replaced_and_the_run_goes_on(recipe, one_node, tmp_path):
    """A rank dies in its fourth step; torchrun starts both anew, and they go on from the second."""
    (tmp_path / "die.py").write_text(DIE)
    out, mark = tmp_path / "out", tmp_path / "mark"
    words = ["python", "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    words += ["--max_restarts", "1", str(tmp_path / "die.py"), str(mark), "--recipe", str(recipe)]
    words += ["--stage", "stage3", "--output_dir", str(out), "--resume_from_checkpoint", "last"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0 and mark.exists(), done.stderr[-30000:]
    assert losses(out) == pytest.approx(one_node, rel=1e-5)


def test_restarts_resume(tmp_path):
    environment = {**os.environ, "DRY_RUN": "1", "MAX_RESTARTS": "3", "NPROC_PER_NODE": "2"}
    done = subprocess.run(
        ["bash", "scripts/stage1.sh"], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert "--max_restarts 3" in done.stdout and "--resume_from_checkpoint last" in done.stdout
