"""Wrong words, folders and files through the command line: one line, exit code 2, nothing begun."""

import json
import shutil
import signal
import sys
from pathlib import Path

import pytest

import configs
from cluster.cli import app
from cluster.exits import run_app
from cluster.signals import handlers_kept
from configs.load import load_config, to_yaml

CONFIGS = Path(configs.__file__).parent


@pytest.fixture
def attune(monkeypatch, capsys):
    """Run the command line in this process: exit code, standard output, standard error."""

    def run(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()  # of what was made before
        monkeypatch.setattr(sys, "argv", ["attune", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            run_app(app)
        said = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return ended.value.code, said.out, said.err

    return run


@pytest.fixture
def refused(attune):
    """Run what should be refused, for so many mistakes; what was said, a line each."""

    def run(*words: object, mistakes: int = 1) -> str:
        code, _, said = attune(*words)
        assert code == 2, said
        lines = [line for line in said.splitlines() if not line.startswith("warning: ")]
        assert len(lines) == mistakes, said
        assert lines[0].startswith("error: ")
        return "\n".join(lines)

    return run


@pytest.fixture
def run_yaml(tmp_path, model_folder) -> Path:
    """A run whose files exist."""
    (tmp_path / "judge.py").write_text("def reward(p, r, rows): return [0.0] * len(r)\n")
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a"}\n')
    config = load_config(
        CONFIGS / "rloo.yaml",
        [f"model.path={model_folder()}", "model.max_length=64",
         "data.sampling.max_new_tokens=16", f"data.train={tmp_path / 'rows.jsonl'}",
         "feedback.rewards.rm=null", "feedback.rewards.judge.kind=function",
         f"feedback.rewards.judge.path={tmp_path / 'judge.py'}",
         f"cluster.run_dir={tmp_path / 'run'}"],
    )  # fmt: skip
    file = tmp_path / "run.yaml"
    file.write_text(to_yaml(config))
    return file


@pytest.fixture
def begun(run_yaml, tmp_path) -> Path:
    """The folder of a run that was begun."""
    (tmp_path / "run").mkdir()
    shutil.copy(run_yaml, tmp_path / "run" / "config.yaml")
    return tmp_path / "run"


# ---- words ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["rum"], "No such command 'rum'. Did you mean 'run'?; see attune --help"),
        (["run"], "Missing argument 'config'; see attune run --help"),
        (["scale", "a", "b", "c"], "unexpected extra argument"),
        (["scale", "a", "-1"], "No such option: -1"),
        (["run", "a", "--algorithm.num_steps=3"], "without dashes: algorithm.num_steps=VALUE"),
        (["demo", "--seed", "x"], "Invalid value for '--seed'"),
        (["plan", "a", "--gpus=-1"], "'--gpus': Input should be greater than or equal to 0"),
    ],
)
def test_words_that_no_command_takes_are_refused_in_one_line(refused, words, said):
    assert said in refused(*words)


def test_a_command_that_ends_well_ends_with_0_and_one_without_words_shows_its_help(attune):
    assert attune("methods", "rloo")[0] == 0
    code, said, error = attune("k8s")
    assert code == 2
    assert "render" in said
    assert not error


# ---- the folder of a run -------------------------------------------------------------------------


def test_a_run_that_was_moved_does_not_go_on_where_it_was(refused, attune, begun, tmp_path):
    moved = begun.rename(tmp_path / "moved")
    line = refused("run", moved, "--resume", "--dry-run")
    assert f"add cluster.run_dir={moved} to go on here" in line
    again = attune("run", moved, f"cluster.run_dir={moved}", "--resume", "--dry-run")
    assert again[0] == 0, again
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", [["run"], ["report"], ["inspect"], ["inspect", "--failure"],
                                     ["doctor"], ["plan"], ["scale", "2"]])  # fmt: skip
def test_a_folder_without_a_run_is_refused(refused, tmp_path, command):
    (tmp_path / "empty").mkdir()
    line = refused(command[0], tmp_path / "empty", *command[1:])
    assert "holds no run: it has no config.yaml" in line
    assert list((tmp_path / "empty").iterdir()) == []


def test_bundles_that_are_not_whole_are_shown_as_far_as_they_go(attune, begun):
    bundle = begun / "failure"
    bundle.mkdir()
    assert "(missing: the bundle is not whole)" in attune("inspect", begun, "--failure")[1]
    (bundle / "failure.json").write_text("[]")
    (bundle / "batch.json").write_text('[{"a":')
    (bundle / "error.txt").write_bytes(b"RuntimeError: \xff")
    code, shown, _ = attune("inspect", begun, "--failure")
    assert code == 0
    assert "batch.json is torn" in shown
    assert "RuntimeError" in shown
    assert attune("inspect", begun)[0] == 0


def test_what_is_damaged_in_a_run_folder_is_named_or_left_out(refused, attune, begun):
    (begun / "summary.json").write_text("[]")
    (begun / "events.jsonl").write_bytes(b'\xff\n[]\n{"kind": "joined", "time": 1}\n')
    assert attune("report", begun)[0] == 0
    assert "joined" in attune("inspect", begun)[1]
    (begun / "ledger").mkdir()
    (begun / "ledger" / "step=000001.parquet").write_bytes(b"PAR1 torn")
    assert "step=000001.parquet is damaged" in refused("inspect", begun)
    (begun / "config.yaml").write_bytes(b"\xff\xfe")
    assert f"{begun / 'config.yaml'}: not YAML" in refused("report", begun)
    (begun / "config.yaml").write_text("extends: ../run.yaml\nfeedback: 3\n")
    assert attune("report", begun)[0] == 0, "sections may be elsewhere"


# ---- settings ------------------------------------------------------------------------------------


def test_a_dry_run_looks_for_files(refused, attune, run_yaml, tmp_path):
    assert attune("run", run_yaml, "--dry-run")[0] == 0
    for field in ("data.train", "feedback.rewards.judge.path", "model.reference"):
        line = refused("run", run_yaml, f"{field}={tmp_path}/nope", "--dry-run")
        assert f"{field}: {tmp_path}/nope does not exist" in line
    judged_elsewhere = "feedback.service=http://127.0.0.1:9"
    nowhere = f"feedback.rewards.judge.path={tmp_path}/nope"
    assert attune("run", run_yaml, nowhere, judged_elsewhere, "--dry-run")[0] == 0
    for elsewhere in ("cluster.address=10.0.0.1:6379", "cluster.kubernetes.image=r/a:1"):
        code, _, said = attune(
            "run", run_yaml, f"data.train={tmp_path}/nope", elsewhere, "--dry-run"
        )
        assert code == 0
        assert f"warning: data.train: {tmp_path}/nope is not on this machine" in said
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("mine: 1\n")
    assert "already holds a run" in refused("run", run_yaml, "--dry-run")


def test_a_dry_run_looks_at_loggers(refused, attune, run_yaml, tmp_path):
    wrong = f"cluster.metrics.loggers.jsonl.path={tmp_path}"
    assert "cannot be written" in refused("run", run_yaml, "--dry-run", wrong)
    code, _, said = attune("run", run_yaml, "--dry-run", wrong, "cluster.address=auto")
    assert code == 0, said
    assert "warning: on this machine, cluster.metrics.loggers.jsonl.path" in said


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("feedback.rewards=null", "feedback.rewards holds settings and cannot be null; name one"),
        ("model=", "model holds settings and cannot be null"),
        ("cluster.device=gpu", "did you mean cuda?"),
        ("algorithm.name=rlo", "did you mean rloo? `attune methods` lists them"),
        ("cluster.kubernetes.image=x", "REGISTRY/NAME:TAG"),
        ("cluster.kubernetes.image=a b", "REGISTRY/NAME:TAG"),
        ("cluster.kubernetes.mount_path=x", "an absolute path"),
    ],
)
def test_settings_are_refused_in_words(refused, run_yaml, override, said):
    image = ["cluster.kubernetes.image=r/a:1"] * override.startswith("cluster.kubernetes")
    assert said in refused("run", run_yaml, *image, override, "--dry-run")


def test_a_file_that_is_no_text_is_refused(refused, tmp_path):
    (tmp_path / "x").write_bytes(b"\x80\xf8")
    for command in (["run"], ["ablate"], ["k8s", "validate"]):
        assert f"{tmp_path / 'x'}: is no text" in refused(*command, tmp_path / "x")


def test_figures_of_a_plan_are_above_0_and_gpus_are_for_runs_that_take_them(refused, run_yaml):
    for option in ("--tflops=-3", "--tflops=nan", "--tflops=0", "--gpu-gib=-5"):
        name, _, value = option.partition("=")
        assert f"{name}: {value} is not above 0" in refused("plan", run_yaml, option)
    assert "add cluster.device=cuda" in refused("plan", run_yaml, "--gpus=4")


def test_a_plan_names_the_model_that_it_cannot_judge(refused, run_yaml, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    line = refused("plan", run_yaml, f"model.path={tmp_path / 'model'}")
    assert f"model.path: {tmp_path / 'model'}: " in line
    assert "gpt2" in line


def test_a_run_is_no_ablation(refused, run_yaml, tmp_path):
    assert "is a run, not an ablation; use `attune run`" in refused("ablate", run_yaml)
    (tmp_path / "a.yaml").write_text("base: run.yaml\nseeds: 3\n")
    lines = refused("ablate", tmp_path / "a.yaml", mistakes=2)
    assert "a.yaml: seeds: should be a list" in lines
    assert "a.yaml: start: is required" in lines


# ---- manifests -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("kind: RayJob\nmetadata: x\nspec: []\napiVersion: ray.io/v1\n", "m.yaml: RayJob: "),
        ("- 1\n", "m.yaml: is a list, not a manifest"),
        ("? [a]\n: 1\n", "m.yaml:1: a key must be a plain name"),
        ("<<: 3\n", "m.yaml:1: "),
        ("a: &a [*a]\nkind: X\napiVersion: v1\n", "m.yaml: X: kind: v1 X is not a kind"),
        (
            None,
            "m.yaml: cannot be read (No such file or directory); give a file",
        ),
    ],
)
def test_manifests_of_any_shape_are_refused_and_not_tripped_over(attune, tmp_path, text, said):
    if text is not None:
        (tmp_path / "m.yaml").write_text(text)
    code, _, lines = attune("k8s", "validate", tmp_path / "m.yaml")
    assert code == 2
    assert said in lines


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"kind: CustomResourceDefinition\nspec: 3\n", "in it is not whole"),
        (b"\xff\xfe", "is no text"),
        (b"a: [\n", ":2: "),
    ],
)
def test_crds_of_any_shape_are_refused(refused, tmp_path, content, said):
    (tmp_path / "m.yaml").write_text("kind: X\n")
    (tmp_path / "crd.yaml").write_bytes(content)
    line = refused("k8s", "validate", tmp_path / "m.yaml", "--crds", tmp_path / "crd.yaml")
    assert f"--crds {tmp_path / 'crd.yaml'}" in line
    assert said in line


# ---- signals -------------------------------------------------------------------------------------


@pytest.mark.parametrize("raised", [SystemExit(15), ConnectionError("head gone"), None])
def test_a_sigterm_that_another_handler_takes_stops_the_run_all_the_same(raised):
    before = signal.getsignal(signal.SIGTERM)

    def theirs(number: int, frame: object) -> None:
        if raised:
            raise raised

    def terminated_meanwhile() -> None:
        with handlers_kept():
            signal.signal(signal.SIGTERM, theirs)  # as ray.init does
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt):
        terminated_meanwhile()
    assert signal.getsignal(signal.SIGTERM) is before
