"""`python -m tests.bench.memory`: the memory plan of three models against what their runs took.

Each model is untrained and of its own shape; each run is `attune run` in processes of its own. One
JSON line per size: per role, the plan's estimate, the measured peak and their ratio.

What is measured is the proportional set size (PSS, /proc/PID/smaps_rollup): private pages, and of
every shared page the share of one of the processes that map it. So libraries and mapped weight
files are counted once over all processes, and roles add up to what the machine gave. Processes are
looked at several times a second; what came and went between two looks is taken from the kernel's
own record of the highest resident size (VmHWM), and added: such pages are private.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3ForSequenceClassification

from configs.load import load_config, to_yaml
from configs.machine import available_cores
from configs.memory import model_shape
from configs.plan import derive
from configs.schema import RunConfig
from configs.sizes import count_parameters
from configs.timing import ASSUMED, step_time
from rl.world.model import build_tokenizer

LOOK_S = 0.25
MOVED_MIB, SETTLED_S = 4.0, 5.0
PAGE = os.sysconf("SC_PAGE_SIZE")
RUN_LIMIT_S = 540
ROLES = {
    "VLLM::": "engine",
    "ray::LoggedEngine": "engine",
    "ray::RolloutEngine": "engine",
    "ray::RayTrainWorker": "learner",
    "ray::Reward": "reward",
    "ray::Reference": "reference",
}
"""How the title of a role's processes begins; all others are Ray's and the run's own."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """A model, and the run that it is tried in."""

    hidden: int
    layers: int
    vocabulary: int
    overrides: tuple[str, ...]


SIZES = (
    Size(hidden=256, layers=10, vocabulary=8000, overrides=("data.prompts_per_step=8",)),
    Size(hidden=512, layers=14, vocabulary=32000, overrides=()),
    Size(
        hidden=768,
        layers=12,
        vocabulary=32000,
        overrides=("algorithm.tokens_per_micro_batch=1024",),
    ),
)


def write_models(size: Size, folder: Path) -> None:
    """An untrained policy and a reward model of one shape, with the built-in world's tokenizer."""
    tokenizer = build_tokenizer()
    shape: dict[str, Any] = {
        "vocab_size": size.vocabulary,
        "hidden_size": size.hidden,
        "intermediate_size": 3 * size.hidden,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.hidden // 32,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "max_position_embeddings": 256,
        "tie_word_embeddings": True,
        "dtype": "float32",
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": tokenizer.bos_token_id,
    }
    torch.manual_seed(0)
    for name, kind, extra in (
        ("policy", Qwen3ForCausalLM, {}),
        ("judge", Qwen3ForSequenceClassification, {"num_labels": 1}),
    ):
        kind(Qwen3Config(**shape, **extra)).save_pretrained(folder / name)
        tokenizer.save_pretrained(str(folder / name))


def write_run(size: Size, folder: Path) -> RunConfig:
    """Two steps of RLOO with a reward model and a reference; config.yaml in `folder`."""
    prompts = folder / "prompts.jsonl"
    prompts.write_text("".join(f'{{"prompt": "{"hello " * (20 + n % 8)}"}}\n' for n in range(64)))
    judge = folder / "judge.py"
    judge.write_text("def reward(prompts, replies, rows):\n    return [0.0] * len(replies)\n")
    config = load_config(
        None,
        [
            f"model.path={folder}/policy",
            "model.max_length=128",
            f"data.train={prompts}",
            "data.prompts_per_step=4",
            "data.samples_per_prompt=4",
            "data.sampling.max_new_tokens=96",
            "data.validation_prompts=4",
            f"feedback.rewards.rm={{kind: model, path: {folder}/judge}}",
            f"feedback.rewards.rule={{kind: function, path: {judge}, weight: 0}}",
            "algorithm.name=rloo",
            "algorithm.num_steps=2",
            "algorithm.tokens_per_micro_batch=2048",
            f"cluster.run_dir={folder}/run",
            "cluster.dashboard=false",
            "cluster.rollout.max_num_seqs=32",
            *size.overrides,
        ],
    )
    (folder / "run.yaml").write_text(to_yaml(config))
    return config


@dataclass
class Process:
    """The latest and the highest readings of one process, in MiB."""

    role: str
    title: str
    pss: float = 0.0
    rss: float = 0.0
    looked: float = 0.0
    """Seconds of the clock when `pss` was read."""
    most_pss: float = 0.0
    most_rss: float = 0.0
    highest: float = 0.0
    """By the kernel's own record."""
    parts: dict[str, float] = field(default_factory=dict)
    """Of the reading with the most PSS."""

    @property
    def missed(self) -> float:
        """What was resident between two looks, above all looks."""
        return max(0.0, self.highest - self.most_rss)


class Watch:
    """Looks at a process and all its descendants until it ends."""

    def __init__(self, pid: int) -> None:
        self.root = psutil.Process(pid)
        self.processes: dict[int, Process] = {}
        self.peak: dict[str, float] = defaultdict(float)
        """Role -> most PSS of its processes at one time."""
        self.total = 0.0
        self.at_total: list[tuple[float, str, str]] = []
        """MiB, role and title of every process when the total was largest."""
        self.looks = 0

    def look(self) -> None:
        """One reading of every process that changed."""
        alive: dict[int, Process] = {}
        for process in [self.root, *self.root.children(recursive=True)]:
            try:
                title = " ".join(process.cmdline()).strip()
                seen = self.processes.setdefault(process.pid, Process(role="ray", title=title))
                parent = self.processes.get(process.ppid())
                self._read(process.pid, seen)
            except (psutil.Error, OSError, StopIteration):
                continue  # it ended
            own = next((role for start, role in ROLES.items() if title.startswith(start)), "")
            helper = parent.role if parent and "raylet" not in parent.title else ""
            if own or helper not in ("", "ray"):
                seen.role, seen.title = own or helper, title
            elif title.startswith("ray::"):
                seen.title = title
            alive[process.pid] = seen
        now: dict[str, float] = defaultdict(float)
        for seen in alive.values():
            now[seen.role] += seen.pss
        for role, size in now.items():
            self.peak[role] = max(self.peak[role], size)
        if sum(now.values()) > self.total:
            self.total = sum(now.values())
            self.at_total = [(seen.pss, seen.role, seen.title) for seen in alive.values()]
        self.looks += 1

    def _read(self, pid: int, seen: Process) -> None:
        """PSS takes milliseconds to find: only where the resident size moved, or a while passed."""
        rss = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE / 2**20
        if abs(rss - seen.rss) > MOVED_MIB or time.monotonic() - seen.looked > SETTLED_S:
            readings = rollup(pid)
            seen.rss, seen.pss, seen.looked = rss, readings["Pss"], time.monotonic()
            if seen.pss > seen.most_pss:
                seen.most_pss, seen.parts = seen.pss, readings
        seen.most_rss = max(seen.most_rss, rss)
        seen.highest = max(seen.highest, high_water(pid))

    def missed(self, role: str) -> float:
        """The most that one process of the role held between looks."""
        return max((p.missed for p in self.processes.values() if p.role == role), default=0.0)

    def table(self) -> str:
        """Every process, for whoever wants to know where memory went."""
        lines = ["peaks of each process, MiB"]
        for p in sorted(self.processes.values(), key=lambda p: (p.role, -p.most_pss)):
            if p.most_pss > 20:
                parts = " ".join(
                    f"{n[4:]} {p.parts.get(n, 0):5.0f}"
                    for n in ("Pss_Anon", "Pss_File", "Pss_Shmem")
                )
                lines.append(
                    f"{p.role:<10}{p.most_pss:6.0f} {parts} rss {p.most_rss:5.0f} "
                    f"missed {p.missed:4.0f}  {p.title[-70:]!r}"
                )
        lines.append(f"when the total was largest: {self.total:.0f}")
        lines += [
            f"{r:<10}{s:6.0f}  {t[-70:]!r}"
            for s, r, t in sorted(self.at_total, reverse=True)
            if s > 20
        ]
        return "\n".join(lines)


def rollup(pid: int) -> dict[str, float]:
    """MiB of a process by name: Rss, Pss, Pss_Anon, Pss_File, Pss_Shmem."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    return {line.split(":")[0]: int(line.split()[1]) / 1024 for line in lines}


def high_water(pid: int) -> float:
    """MiB that a process had resident at most, as the kernel counts it."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def measure(size: Size, folder: Path) -> dict[str, Any]:
    """Write the models, run, and compare; raises RuntimeError where the run fails."""
    write_models(size, folder)
    config = write_run(size, folder)
    started = time.monotonic()
    watch = watched_run(folder)
    if "--processes" in sys.argv:
        print(watch.table(), file=sys.stderr)
    model = json.loads((folder / "policy" / "config.json").read_text())
    plan = derive(config, model, None)
    estimates: dict[str, float] = defaultdict(float)
    for role in plan.roles:
        estimates[role.name.split()[0]] += role.count * role.gib("host")
    roles = {
        name: compared(estimate, (watch.peak[name] + watch.missed(name)) / 1024)
        | {"between_looks_gib": round(watch.missed(name) / 1024, 3)}
        for name, estimate in estimates.items()
    }
    return {
        "parameters": count_parameters(model),
        "roles": roles,
        "total": compared(plan.host_gib, watch.total / 1024),
        "seconds": seconds(config, model, folder),
        "looks": watch.looks,
        "wall_s": round(time.monotonic() - started, 1),
    }


def watched_run(folder: Path) -> Watch:
    """Run `attune run` on the folder's run.yaml, with kernels compiled anew, and watch it."""
    command = [str(Path(sys.executable).with_name("attune")), "run", str(folder / "run.yaml")]
    environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(folder / "kernels")}
    started = time.monotonic()
    with (folder / "out").open("w") as out:
        run = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=environment)
        watch = Watch(run.pid)
        while run.poll() is None:
            looked = time.monotonic()
            watch.look()
            time.sleep(max(0.0, LOOK_S - (time.monotonic() - looked)))
            if looked - started > RUN_LIMIT_S:
                run.terminate()
    if run.returncode != 0:
        raise RuntimeError(f"the run failed: {(folder / 'out').read_text()[-2000:]}")
    return watch


def compared(estimated: float, measured: float) -> dict[str, float]:
    """Both in GiB, and estimate over measurement."""
    return {
        "estimated_gib": round(estimated, 3),
        "measured_gib": round(measured, 3),
        "ratio": round(estimated / measured, 3),
    }


def seconds(config: RunConfig, model: dict[str, Any], folder: Path) -> dict[str, list[float]]:
    """Phase -> seconds in the last step, estimated and measured; other work slows the latter."""
    lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    took = json.loads(lines[-1])
    time = step_time(config, model_shape(model), ASSUMED["cpu"], available_cores())
    return {
        name: [round(getattr(time, name), 2), round(took[f"time/{name}"], 2)]
        for name in ("sample", "score", "train", "sync")
    }


def memory(folder: Path) -> dict[str, Any]:
    """Every size in turn."""
    sizes = []
    for number, size in enumerate(SIZES):
        (folder / str(number)).mkdir()
        sizes.append(measure(size, folder / str(number)))
    return {"sizes": sizes}


def main() -> None:
    """All sizes, or those whose numbers (0, 1, 2) are given; `--processes` lists every process."""
    numbers = [int(argument) for argument in sys.argv[1:] if argument.isdigit()]
    for number in numbers or range(len(SIZES)):
        with tempfile.TemporaryDirectory() as folder:
            figures = measure(SIZES[number], Path(folder))
        print(json.dumps({"benchmark": "memory", **figures}), flush=True)


if __name__ == "__main__":
    main()
