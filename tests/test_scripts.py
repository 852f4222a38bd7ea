"""The launchers: what they would run on every kind of machine, read back from their dry run."""

import json
import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = ROOT / "scripts"
STAGES = ("stage1", "stage2", "stage3")
CLUSTER = (
    "NNODES",
    "NODE_RANK",
    "NPROC_PER_NODE",
    "MASTER_ADDR",
    "MASTER_PORT",
    "RECIPE",
    "CUDA_VISIBLE_DEVICES",
)
SHELL_FILES = sorted([*SCRIPTS.rglob("*.sh"), ROOT / ".ci" / "run"])

SCONTROL = """#!/usr/bin/env bash
[[ "$*" == "show hostnames node[03-04]" ]] || exit 1
printf 'node03\\nnode04\\n'
"""
SLURM = {
    "SLURM_NNODES": "2",
    "SLURM_NODEID": "1",
    "SLURM_JOB_NODELIST": "node[03-04]",
    "SLURM_JOB_ID": "1234567",
}
FOUR_GPUS = "for i in 0 1 2 3; do echo \"GPU $i: fake\"; echo '  MIG 1g: fake'; done"
NO_DRIVER = "echo 'it could not talk to the driver'; exit 9"


def program(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.write_text(text if text.startswith("#!") else f"#!/usr/bin/env bash\n{text}\n")
    path.chmod(0o755)


@pytest.fixture
def launch(tmp_path):
    """Run a launcher dry, on a made-up machine; gives what it did. The words it prints are `.words`."""
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    program(bin_folder, "scontrol", SCONTROL)

    def run(script: str, *flags: str, nvidia_smi: str = NO_DRIVER, cwd: Path = tmp_path, **environment: str):
        program(bin_folder, "nvidia-smi", nvidia_smi)
        inherited = {
            k: v
            for k, v in os.environ.items()
            if k not in CLUSTER and not k.startswith(("SLURM_", "BASH_FUNC"))
        }
        path = f"{bin_folder}:{os.environ['PATH']}"
        environment = inherited | {"DRY_RUN": "1", "PATH": path} | environment
        words = ["bash", str(SCRIPTS / f"{script}.sh"), *flags]
        done = subprocess.run(words, env=environment, cwd=cwd, capture_output=True, text=True)
        done.words = shlex.split(done.stdout)
        return done

    return run


def flags_before(words: list[str], module: str) -> dict[str, str]:
    """The launcher's own flags, "--nnodes 2 ..." as a dict; one without a value maps to ""."""
    found, name = {}, None
    for word in words[words.index("torch.distributed.run") + 1 : words.index("-m", 2)]:
        if word.startswith("--"):
            name = word
            found[name] = ""
        else:
            found[name] = word
    assert words[words.index("-m", 2) + 1] == module
    return found


@pytest.mark.parametrize("script", [*STAGES, *(f"quicksviewer/{stage}" for stage in STAGES)])
def test_a_stage_names_itself_and_the_users_flags_come_last(launch, script):
    done = launch(script, "--output_dir", "runs/a name with spaces", "--learning_rate", "1e-3", "")
    assert done.returncode == 0, done.stderr
    tail = done.words[done.words.index("quicksviewer.train.train") + 1 :]
    stage = Path(script).name
    user = ["--output_dir", "runs/a name with spaces", "--learning_rate", "1e-3", ""]
    assert tail == ["--recipe", "7b", "--stage", stage, *user]


PATIENCE = {"--shutdown_timeout": "110"}
ALONE = PATIENCE | {"--standalone": ""}
STATIC = PATIENCE | {"--nnodes": "1", "--node_rank": "0", "--nproc_per_node": "1", "--master_port": "29500"}
MACHINES = {
    "nothing set": ({}, ALONE | {"--nproc_per_node": "1"}),
    "processes": (
        {"NPROC_PER_NODE": "2"},
        ALONE | {"--nproc_per_node": "2"},
    ),
    "four gpus": (
        {"nvidia_smi": FOUR_GPUS},
        ALONE | {"--nproc_per_node": "4"},
    ),
    "two of four gpus": (
        {"nvidia_smi": FOUR_GPUS, "CUDA_VISIBLE_DEVICES": "1,3"},
        ALONE | {"--nproc_per_node": "2"},
    ),
    "gpus hidden": (
        {"nvidia_smi": FOUR_GPUS, "CUDA_VISIBLE_DEVICES": "-1"},
        ALONE | {"--nproc_per_node": "1"},
    ),
    "a port": (
        {"MASTER_PORT": "1234"},
        STATIC | {"--master_addr": "127.0.0.1", "--master_port": "1234"},
    ),
    "two nodes": (
        {"NNODES": "2", "NODE_RANK": "1", "NPROC_PER_NODE": "8", "MASTER_ADDR": "head"},
        STATIC | {"--nnodes": "2", "--nproc_per_node": "8", "--master_addr": "head", "--node_rank": "1"},
    ),
    "slurm": (
        SLURM,
        STATIC | {"--nnodes": "2", "--node_rank": "1", "--master_addr": "node03", "--master_port": "34567"},
    ),
    "slurm, one node": (
        SLURM | {"SLURM_NNODES": "1", "SLURM_NODEID": "0"},
        ALONE | {"--nproc_per_node": "1"},
    ),
    "own words before slurm's": (
        SLURM | {"NNODES": "3", "NODE_RANK": "2", "MASTER_ADDR": "head", "MASTER_PORT": "1"},
        STATIC | {"--nnodes": "3", "--node_rank": "2", "--master_addr": "head", "--master_port": "1"},
    ),
}


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("script", STAGES)
def test_the_cluster_is_read_from_the_environment(launch, script, machine):
    environment, expected = MACHINES[machine]
    done = launch(script, **environment)
    assert done.returncode == 0, done.stderr
    assert done.words[:3] == ["python", "-m", "torch.distributed.run"]
    assert flags_before(done.words, "quicksviewer.train.train") == expected


def test_the_recipe_is_chosen_by_the_environment(launch):
    words = launch("stage1", RECIPE="my recipes/tiny.yaml").words
    assert words[words.index("--recipe") + 1] == "my recipes/tiny.yaml"


def test_several_nodes_without_a_meeting_place_are_refused(launch):
    done = launch("stage1", NNODES="2")
    assert done.returncode != 0
    assert "needs MASTER_ADDR" in done.stderr
    assert done.stdout == ""


def test_a_host_list_that_slurm_cannot_read_is_refused(launch):
    done = launch("stage1", **(SLURM | {"SLURM_JOB_NODELIST": "elsewhere"}))
    assert done.returncode != 0
    assert done.stdout == ""


EXPORTED = ("DS_ACCELERATOR", "OMP_NUM_THREADS", "TOKENIZERS_PARALLELISM", "HF_HUB_OFFLINE")


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, ["cpu", "1", "false", "1"]),
        ({"OMP_NUM_THREADS": "4", "HF_HUB_OFFLINE": "0"}, ["cpu", "4", "false", "0"]),
        ({"nvidia_smi": FOUR_GPUS}, ["", "", "false", "1"]),
    ],
)
def test_what_a_run_inherits(launch, tmp_path, settings, expected):
    program(tmp_path / "bin", "python", "printf '%s|' " + " ".join(f'"${{{name}:-}}"' for name in EXPORTED))
    clean = {name: "" for name in EXPORTED if name not in settings}
    # An active environment, so that the launcher does not put the repository's own python first.
    done = launch("stage1", DRY_RUN="", VIRTUAL_ENV=str(tmp_path), **(clean | settings))
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("|")[:4] == expected


# --- set-up ---


@pytest.fixture
def set_up(tmp_path):
    """Run a copy of setup.sh beside an invented environment, whose pip only notes what it was asked."""
    (tmp_path / "scripts").mkdir()
    for name in ("setup.sh", "system_packages.sh"):
        shutil.copy(SCRIPTS / name, tmp_path / "scripts")
    (tmp_path / "configs" / "assets").mkdir(parents=True)
    for name in ("pyproject.toml", "constraints.txt", "configs/assets/small.txt", "configs/assets/test.txt"):
        shutil.copy(ROOT / name, tmp_path / name)
    bin_folder = tmp_path / ".venv" / "bin"
    bin_folder.mkdir(parents=True)
    note = f'echo "$*" >>"{tmp_path}/asked"'
    real = f'exec "{shutil.which("python3")}" "$@"'
    program(bin_folder, "python", f'case "$*" in *install*) {note} ;; -c*) {real} ;; esac')

    def run(*extras: str) -> list[str]:
        asked = tmp_path / "asked"
        asked.unlink(missing_ok=True)
        subprocess.run(
            ["bash", str(tmp_path / "scripts" / "setup.sh"), *extras], check=True, capture_output=True
        )
        return asked.read_text().splitlines() if asked.exists() else []

    return run


def test_set_up_takes_the_pinned_torch_first_and_does_nothing_twice(set_up, tmp_path):
    torch, package, files = set_up()
    assert torch.endswith("-c constraints.txt torch==2.13.0")
    assert package.endswith("-c constraints.txt -e .[test]")
    assert files.endswith("--no-deps -r configs/assets/test.txt")
    assert set_up() == set_up("test") == []
    package, *files = set_up("test", "small")[1:]
    assert package.endswith("-e .[test,small]")
    assert [words.split("/")[-1] for words in files] == ["test.txt", "small.txt"]
    assert set_up("test") == set_up("test", "small") == []
    with (tmp_path / "constraints.txt").open("a") as file:
        file.write("rich==14.0.0\n")
    assert len(set_up("test")) == 3
    assert len(set_up("test", "small")) == 4


@pytest.mark.parametrize("user", ["0", "1000"])
@pytest.mark.parametrize("works", [True, False])
def test_programs_of_the_system_are_installed_where_that_is_allowed(tmp_path, user, works):
    (tmp_path / "scripts").mkdir()
    shutil.copy(SCRIPTS / "system_packages.sh", tmp_path / "scripts")
    (tmp_path / "configs/assets").mkdir(parents=True)
    (tmp_path / "configs/assets/test.apt").write_text("# a comment\nthere\nbrowser\n")
    (tmp_path / "bin").mkdir()
    program(tmp_path / "bin", "dpkg", "[[ $2 == there ]]")
    program(tmp_path / "bin", "id", f"echo {user}")
    program(tmp_path / "bin", "apt-get", f'echo "$*" >>"{tmp_path}/asked"; {"true" if works else "false"}')
    env = os.environ | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    words = ["bash", str(tmp_path / "scripts/system_packages.sh"), "small", "test"]
    done = subprocess.run(words, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    asked = (tmp_path / "asked").read_text().splitlines() if (tmp_path / "asked").exists() else []
    assert bool(asked) == (user == "0")
    assert (asked[-1:] == ["install -q -y --no-install-recommends browser"]) == (user == "0" and works)
    assert ("not installed: browser" in done.stderr) == (user != "0" or not works)


def test_set_up_refuses_an_old_python(tmp_path):
    (tmp_path / "scripts").mkdir()
    shutil.copy(SCRIPTS / "setup.sh", tmp_path / "scripts")
    program(tmp_path, "old", '[[ $1 == --version ]] && echo "Python 3.9.2" && exit; exit 1')
    words = ["bash", str(tmp_path / "scripts" / "setup.sh")]
    done = subprocess.run(
        words, env=os.environ | {"PYTHON": str(tmp_path / "old")}, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "Python 3.9.2: Python 3.11 or newer is needed" in done.stderr
    assert not (tmp_path / ".venv").exists()


# --- files ---


@pytest.mark.parametrize("path", SHELL_FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_script_parses(path):
    subprocess.run(["bash", "-n", str(path)], check=True)


@pytest.mark.parametrize("stage", [2, 3])
def test_the_deepspeed_files(stage):
    name = f"zero{stage}.json"
    assert os.readlink(SCRIPTS / name) == f"../{name}"
    settings = json.loads((ROOT / name).read_text())
    assert settings["zero_optimization"]["stage"] == stage
    assert "optimizer" not in settings
    assert settings["bf16"]["enabled"] == "auto"
    for key in ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_clipping"):
        assert settings[key] == "auto"
