"""What the scripts of launch/ hand on, and what they refuse, without starting a trainer."""

import re
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
from deepspeed.launcher.multinode_runner import PDSHRunner
from deepspeed.launcher.runner import fetch_hostfile

from tests.support.launching import REPOSITORY
from tests.support.packages import require_programs
from tests.support.running import script, variables

_SCRIPTS = sorted((REPOSITORY / "launch").glob("*.sh"))
_PHASES = ("pptrain", "pretrain")
_LAUNCHED = (*_PHASES, "evaluate")


@pytest.mark.service  # which may have to be installed
@pytest.mark.parametrize("path", _SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_finds_nothing(path: Path) -> None:
    require_programs({"shellcheck": "shellcheck"})
    done = subprocess.run(["shellcheck", "-x", path], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def stub_environment(tmp_path: Path) -> dict[str, str]:
    """An installation whose programs only say how they were called."""
    programs = tmp_path / "stubs" / "bin"
    programs.mkdir(parents=True)
    for name in ("deepspeed", "srun", "pdsh"):
        (programs / name).write_text(
            f'#!/bin/bash\nprintf "%s\\n" {name} "$@" --\n'
            '[[ ! -e "$DS_ENV_FILE" ]] || cat "$DS_ENV_FILE" "$DS_ENV_FILE"\n'
        )
        (programs / name).chmod(0o755)
    return variables(DS_TRAIN_VENV=str(programs.parent), HOME=str(tmp_path / "home"))


def _call(name: str, *arguments: str, env: dict[str, str], cwd: Path = REPOSITORY) -> subprocess.CompletedProcess:
    return subprocess.run([*script(name), *arguments], cwd=cwd, env=env, capture_output=True, text=True)


def _handed_on(done: subprocess.CompletedProcess) -> list[str]:
    assert done.returncode == 0, done.stderr
    return done.stdout.split("\n--\n")[0].split("\n")


@pytest.mark.parametrize("phase", _LAUNCHED)
def test_hostfile_gives_the_trainer_what_was_asked_for(phase: str, stub_environment: dict[str, str]) -> None:
    hostfile = REPOSITORY / "launch" / "hostfile.example"
    nodes = fetch_hostfile(str(hostfile))
    stub_environment["HOSTFILE"] = str(hostfile)
    handed_on = _handed_on(_call(f"{phase}_hostfile", "--run_name", "two words", env=stub_environment))
    trainer = handed_on.index(str(REPOSITORY / "ds_train" / f"{phase}.py"))
    assert handed_on[trainer + 1 :] == [
        "--num_ranks", str(sum(nodes.values())), "--num_nodes", str(len(nodes)), "--run_name", "two words",
    ]  # fmt: skip
    assert handed_on[handed_on.index("--hostfile") + 1] == str(hostfile)
    assert "--force_multi" in handed_on[:trainer]


@pytest.mark.parametrize("script_name", ["pptrain_hostfile", "pptrain_srun"])
@pytest.mark.parametrize(
    ("name", "value"),
    [("NUM_RANKS", "0"), ("NUM_RANKS", "-1"), ("NUM_RANKS", "two"), ("MASTER_PORT", "0"), ("MASTER_PORT", "65536"),
     ("MASTER_PORT", "1e3"), ("DS_ENV_FILE", "/no/such/file")],
)  # fmt: skip
def test_bad_variable_is_one_error(script_name: str, name: str, value: str, stub_environment: dict[str, str]) -> None:
    done = _call(script_name, env={**stub_environment, name: value})
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith(f"error: {name} is '{value}', ") and done.stderr.count("\n") == 1


def test_hostfile_accepts_comments_blanks_and_a_last_line_without_end(
    tmp_path: Path, stub_environment: dict[str, str]
) -> None:
    (tmp_path / "hostfile").write_text("# mine\n\n  a.b-c\tslots=3   # big\nd slots=10")
    stub_environment["HOSTFILE"] = str(tmp_path / "hostfile")
    handed_on = _handed_on(_call("pptrain_hostfile", env=stub_environment))
    assert handed_on[-4:] == ["--num_ranks", "13", "--num_nodes", "2"]
    assert sum(fetch_hostfile(str(tmp_path / "hostfile")).values()) == 13


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "not a readable file"),
        ("", "names no node"),
        ("# worker-0 slots=8\n\n", "names no node"),
        ("worker-0\n", "line 1 is 'worker-0', expected"),
        ("worker-0 slots=8\nworker-1 slots=\n", "line 2 is 'worker-1 slots=', expected"),
        ("worker-0 slots=0\n", "line 1"),
        ("worker-0 slots=8 slots=4\n", "line 1"),
        ("worker-0 slots=4\nworker-0 slots=4\n", "line 2 names worker-0 again"),
    ],
)
def test_bad_hostfile_is_one_error(
    text: str | None, message: str, tmp_path: Path, stub_environment: dict[str, str]
) -> None:
    if text is not None:
        (tmp_path / "hostfile").write_text(text)
    stub_environment["HOSTFILE"] = str(tmp_path / "hostfile")
    done = _call("pptrain_hostfile", env=stub_environment)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("error: ") and message in done.stderr and done.stderr.count("\n") == 1


def test_empty_hostfile_variable_is_not_one_node(stub_environment: dict[str, str]) -> None:
    done = _call("pptrain_hostfile", env={**stub_environment, "HOSTFILE": ""})
    assert done.returncode == 1 and "HOSTFILE is ''" in done.stderr


def test_nodes_get_the_variables_that_training_needs(tmp_path: Path, stub_environment: dict[str, str]) -> None:
    for directory, text in (("home", "# own\n\nIN_HOME=1\n"), ("here", "NCCL_DEBUG=WARN\n")):
        (tmp_path / directory).mkdir()
        (tmp_path / directory / ".deepspeed_env").write_text(text)
    more = {"NCCL_DEBUG": "INFO", "GLOO_SOCKET_IFNAME": "eth 0", "WANDB_MODE": "offline", "EDITOR": "vi"}
    secrets = {"WANDB_API_KEY": "hidden", "HF_TOKEN": "hidden"}
    hostfile = {"HOSTFILE": str(REPOSITORY / "launch" / "hostfile.example")}
    done = _call("pptrain_hostfile", env={**stub_environment, **more, **secrets, **hostfile}, cwd=tmp_path / "here")
    lines = done.stdout.split("\n--\n")[1].splitlines()
    lines = lines[: len(lines) // 2]  # DeepSpeed reads the file twice: from home and from here
    assert not any(line in ("", "#") or "=" not in line for line in lines), "DeepSpeed fails at such a line"
    values = dict(line.split("=", 1) for line in lines)
    assert values["GLOO_SOCKET_IFNAME"] == "eth 0", "DeepSpeed adds quotes"
    assert values["WANDB_MODE"] == "offline" and values["DS_ACCELERATOR"] == "cpu"
    assert values["NCCL_DEBUG"] == "WARN" and values["IN_HOME"] == "1", "the user's own file comes last"
    assert "PATH" in values and "EDITOR" not in values and "CUDA_VISIBLE_DEVICES" not in values
    assert "hidden" not in done.stdout


def test_one_node_uses_the_devices_it_was_given(stub_environment: dict[str, str]) -> None:
    stub_environment["NUM_RANKS"] = "2"
    handed_on = _handed_on(_call("pretrain_hostfile", env=stub_environment))
    assert handed_on[handed_on.index("--num_gpus") + 1] == "2"
    assert handed_on[-4:] == ["--num_ranks", "2", "--num_nodes", "1"]


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        ("3,5,7", "localhost:3,5"),
        ("GPU-5c, GPU-1a2b-3c,2", "localhost:3,1"),  # their beginnings do, as for CUDA
        ("2,GPU-0", "GPU-0"),
        ("MIG-5c,2", "MIG-5c"),
    ],
)
def test_one_node_uses_the_gpus_that_are_visible(
    visible: str, expected: str, tmp_path: Path, stub_environment: dict[str, str]
) -> None:
    """DeepSpeed's launcher knows GPUs by their numbers only, and would fail with a traceback at a UUID."""
    listing = "0, GPU-0000-00\n1, GPU-1a2b-3c4d\n2, GPU-0000-01\n3, GPU-5c6d-7e8f\n"
    programs = tmp_path / "stubs" / "bin"
    for name, output in (("nvidia-smi", listing), ("python", "8\n")):  # 8 devices, and a port
        (programs / name).write_text(f'#!/bin/bash\nprintf "%s" "{output}"\n')
        (programs / name).chmod(0o755)
    del stub_environment["DS_ACCELERATOR"]
    done = _call("pretrain_hostfile", env={**stub_environment, "NUM_RANKS": "2", "CUDA_VISIBLE_DEVICES": visible})
    if expected.startswith("localhost"):
        handed_on = _handed_on(done)
        assert handed_on[handed_on.index("--include") + 1] == expected
    else:
        assert done.returncode == 1 and done.stdout == "" and done.stderr.count("\n") == 1
        assert f"CUDA_VISIBLE_DEVICES has '{expected}', expected numbers or UUIDs" in done.stderr


def test_ds_accelerator_cpu_leaves_gpus_alone(tmp_path: Path, stub_environment: dict[str, str]) -> None:
    """A rank a core, and no choice among GPUs."""
    python = tmp_path / "stubs" / "bin" / "python"
    python.write_text('#!/bin/bash\n[[ "$*" != *device_count* ]] || exit 1\necho 29999\n')
    python.chmod(0o755)
    done = _call("pretrain_hostfile", env={**stub_environment, "CUDA_VISIBLE_DEVICES": "3,5,7"})
    handed_on = _handed_on(done)
    assert "--include" not in handed_on and int(handed_on[handed_on.index("--num_gpus") + 1]) >= 1


@pytest.mark.parametrize("phase", _LAUNCHED)
def test_srun_script(phase: str, stub_environment: dict[str, str]) -> None:
    more = {"SRUN_OPTIONS": "-N 2  --gres=gpu:8", "NUM_RANKS": "16"}
    handed_on = _handed_on(_call(f"{phase}_srun", "--run_name", "two words", env={**stub_environment, **more}))
    assert handed_on == [
        "srun", "--kill-on-bad-exit=0", "--wait=60", "-N", "2", "--gres=gpu:8", "python",
        str(REPOSITORY / "ds_train" / f"{phase}.py"), "--num_ranks", "16", "--run_name", "two words",
    ]  # fmt: skip


@pytest.mark.parametrize("phase", _PHASES)
def test_job_script(phase: str, stub_environment: dict[str, str]) -> None:
    options = set(re.findall(r"^#SBATCH (\S+)$", (REPOSITORY / "launch" / f"{phase}_job.sh").read_text(), re.MULTILINE))
    assert options >= {
        "--signal=USR1@180", "--requeue", "--open-mode=append", "--mem=0", f"--output=slurm/%j_{phase}.out",
        "--mail-type=BEGIN,END,FAIL,REQUEUE",
    }  # fmt: skip
    done = _call(f"{phase}_job", env=stub_environment)
    assert done.returncode != 0 and "submit this file with sbatch" in done.stderr
    done = _call(f"{phase}_job", env={**stub_environment, "SLURM_SUBMIT_DIR": "/"})
    assert done.returncode == 1 and "error: submit in the repository" in done.stderr


def test_experiment_script(tmp_path: Path, stub_environment: dict[str, str]) -> None:
    """Paths count from where it is called, the small config is the default, and $LAUNCHER is handed on."""
    python = tmp_path / "stubs" / "bin" / "python"
    python.write_text(
        '#!/bin/bash\n[[ "$1" != -m ]] || { printf "%s\\n" "$@" "NUM_RANKS ${NUM_RANKS:-}" --; exit; }\necho 0\n'
    )
    python.chmod(0o755)
    small = str(REPOSITORY / "ds_configs" / "experiments" / "small.yaml")
    prefix = ["-m", "ds_train.experiment"]
    found = _handed_on(_call("experiment", env=stub_environment, cwd=tmp_path))
    scratch = str(REPOSITORY / "runs" / "experiment_small")
    assert found[:-1] == [*prefix, small, scratch, "--launcher", "bash launch/{}_hostfile.sh"]
    assert found[-1] in ("NUM_RANKS 1", "NUM_RANKS 2", "NUM_RANKS 4", "NUM_RANKS 8")
    more = {"LAUNCHER": "bash launch/{}_srun.sh"}
    found = _handed_on(
        _call("experiment", "a b.yaml", "out", "--seeds", "1", "2", env={**stub_environment, **more}, cwd=tmp_path)
    )
    expected = [str(tmp_path / "a b.yaml"), str(tmp_path / "out"), "--launcher", "bash launch/{}_srun.sh"]
    assert found == [*prefix, *expected, "--seeds", "1", "2", "NUM_RANKS "]


_AWKWARD = [
    "it's", "run(2)", "$HOME/x", "$HOME and more", "a b", 'say "hi" to it', '"', "`id`", "`id` -u", "back\\slash",
    "back\\slash and\\ more", "100%", "%h of %n %", "*", "[ab]", "~/x", "a;b|c&d", "<in>", "#", "!!", "",
    "--lr=1e-3", "é",
]  # fmt: skip


def _through_pdsh(words: list[str], shell: str) -> str:
    """What a shell on a node makes of them; pdsh joins them, and replaces %n and its like."""
    command = re.sub("%(.)", lambda found: {"%": "%", "n": "0"}.get(found[1], "replaced"), " ".join(words))
    return subprocess.run([shell, "-c", command], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("shell", ["sh", "bash"])
def test_arguments_and_variables_reach_the_nodes_as_they_are(shell: str, stub_environment: dict[str, str]) -> None:
    """The words go through DeepSpeed's own code, as far as the command of pdsh."""
    stub_environment["HOSTFILE"] = str(REPOSITORY / "launch" / "hostfile.example")
    values = {f"HF_{number}": value for number, value in enumerate(_AWKWARD) if value}
    done = _call("pptrain_hostfile", *_AWKWARD, env={**stub_environment, **values})
    handed_on = _handed_on(done)
    given = handed_on[handed_on.index("--num_nodes") + 2 :]
    runner = PDSHRunner(SimpleNamespace(user_args=given, user_script="x.py"), "")
    assert _through_pdsh(["printf", "'%%s\\n'", *runner.user_arguments], shell).split("\n")[:-1] == _AWKWARD
    for line in done.stdout.split("\n--\n")[1].splitlines():
        runner.add_export(*line.split("=", maxsplit=1))
    for name, value in values.items():
        exported = [f"export {name}={runner.exports[name]};", "printenv", name]
        assert _through_pdsh(exported, shell) == f"{value}\n"


def test_a_directory_that_deepspeed_would_not_quote_is_refused(
    tmp_path: Path, stub_environment: dict[str, str]
) -> None:
    """The `cd` on the node would fail, and training would succeed in another directory."""
    stub_environment["HOSTFILE"] = str(REPOSITORY / "launch" / "hostfile.example")
    for name in ("two words", "a$b", "it's", "100%"):
        (tmp_path / name).mkdir()
        done = _call("pptrain_hostfile", "--scratch_dir", "s", env=stub_environment, cwd=tmp_path / name)
        assert done.returncode == 1 and done.stdout == ""
        assert done.stderr.startswith(f"error: '{tmp_path / name}' has characters") and done.stderr.count("\n") == 1


def test_two_lines_in_an_argument_are_refused_and_home_may_be_unset(stub_environment: dict[str, str]) -> None:
    stub_environment["HOSTFILE"] = str(REPOSITORY / "launch" / "hostfile.example")
    assert "has two lines" in _call("pptrain_hostfile", "a\nb", env=stub_environment).stderr
    del stub_environment["HOME"]
    assert _call("pptrain_hostfile", env=stub_environment).returncode == 0
