"""Run folders as the pages meet them: with telemetry, events, samples and failures."""

import json
import os
import time

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from tests.unit.synthetic_runs import config_of, write_jsonl, write_online

EVIL = "<script>alert('reply')</script> & <b>bold</b>"
ACTORS = {
    "collector": ("sample", "score", "wait"),
    "engine-0": ("sample", "wait"),
    "learner-0": ("take", "update", "sync"),
}
SCHEMA = pa.schema(
    [
        ("step", pa.int64()),
        ("group_id", pa.int64()),
        ("sample", pa.int32()),
        ("prompt_row", pa.int64()),
        ("prompt", pa.string()),
        ("reply", pa.string()),
        ("prompt_tokens", pa.list_(pa.int32())),
        ("tokens", pa.list_(pa.int32())),
        ("rollout_logprobs", pa.list_(pa.float32())),
        ("old_logprobs", pa.list_(pa.float32())),
        ("ref_logprobs", pa.list_(pa.float32())),
        ("advantages", pa.list_(pa.float32())),
        (
            "versions",
            pa.list_(
                pa.struct([("version", pa.int64()), ("start", pa.int32()), ("end", pa.int32())])
            ),
        ),
        ("finish_reason", pa.string()),
        ("seed", pa.int64()),
        ("engine", pa.string()),
        ("source", pa.string()),
        ("label", pa.float64()),
        ("attempts", pa.int32()),
        ("score", pa.float64()),
        ("rewards", pa.map_(pa.string(), pa.float64())),
        ("extra", pa.string()),
    ]
)


def sample_row(step, group, sample, reply="of course. it opens at nine.", **changes):
    """A sample of five tokens, written by two versions of the policy."""
    return {
        "step": step,
        "group_id": group,
        "sample": sample,
        "prompt_row": group % 7,
        "prompt": f"when does museum {group % 7} open?",
        "reply": reply,
        "prompt_tokens": [1, 2],
        "tokens": [11, 12, 13, 14, 2],
        "rollout_logprobs": [-0.1, -0.7, -2.5, -0.02, -5.0],
        "old_logprobs": [-0.1, -0.7, -2.5, -0.02, -5.0],
        "ref_logprobs": [-0.1, -1.7, -2.0, -0.02, -5.25],
        "advantages": [0.5, 0.5, -0.25, 0.5, 0.5],
        "versions": [
            {"version": max(0, step - 2), "start": 0, "end": 3},
            {"version": step - 1, "start": 3, "end": 5},
        ],
        "finish_reason": "stop",
        "seed": 7,
        "engine": "engine-0",
        "source": "policy",
        "label": None,
        "attempts": 1,
        "score": 0.25 * sample,
        "rewards": [("rm", 0.25 * sample), ("gold", 0.5), ("gold/polite", 1.0)],
        "extra": '{"person": "ada"}',
    } | changes


def write_samples(run_dir, steps, *, groups=2, samples=2):
    """Steps of groups of samples; the second reply of each group tries to be a script."""
    for step in steps:
        folder = run_dir / "experience" / f"step={step:06d}"
        folder.mkdir(parents=True)
        rows = [
            sample_row(step, 10 * step + group, sample, **({"reply": EVIL} if sample else {}))
            for group in range(groups)
            for sample in range(samples)
        ]
        pq.write_table(pa.Table.from_pylist(rows, SCHEMA), folder / "rank=0.parquet")


def write_telemetry(run_dir, start, seconds):
    """Phases that take turns every second, and memory every other second."""
    folder = run_dir / "telemetry"
    folder.mkdir()
    for role, phases in ACTORS.items():
        rows = []
        for second in range(seconds):
            rows.append({"time": start + second, "phase": phases[second % len(phases)]})
            if second % 2 == 0:
                values = {"memory/host_mib": 300.0 + second}
                if role == "collector":
                    values |= {"fleet/wanted": 2.0, "fleet/live": 1.0, "queue/ready_batches": 0.0}
                rows.append({"time": start + second + 0.5, "values": values})
        write_jsonl(folder / f"{role}.jsonl", rows)


def write_events(run_dir, start):
    """An engine that was lost and replaced, for a reason that tries to be a script."""
    rows = [
        {"time": start + 1, "kind": "engine_lost", "engine": "engine-1", "reason": EVIL},
        {"time": start + 9, "kind": "engine_replaced", "engine": "engine-2", "after_s": 8.0},
        {"time": start + 20, "kind": "checkpoint_saved", "step": 10, "bytes": 1000},
    ]
    write_jsonl(run_dir / "events.jsonl", rows)


def write_failure_bundle(run_dir):
    """What a run leaves that ended with an error."""
    bundle = run_dir / "failure"
    (bundle / "logs").mkdir(parents=True)
    facts = {
        "time": "2026-01-01T00:00:00+0000",
        "error": f"CUDA out of memory {EVIL}",
        "step": 12,
        "cause": {"name": "gpu-memory", "cause": "a GPU ran out", "remedy": "lower the batch"},
        "phases": {"learner-0": "update"},
    }
    (bundle / "failure.json").write_text(json.dumps(facts))
    (bundle / "error.txt").write_text("torch.OutOfMemoryError: ... api_key=sk-1234567890abcdef12")
    (bundle / "logs" / "learner-0.log").write_text(f"the last words {EVIL}\n")
    return bundle


def write_finished(run_dir, num_steps=30):
    """A whole run."""
    write_online(run_dir, num_steps)
    start = time.time() - 4000
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    rows = [row | {"unix_time": start + 4 * row["step"]} for row in rows]
    write_jsonl(run_dir / "metrics.jsonl", rows)
    write_telemetry(run_dir, start, 4 * num_steps)
    write_events(run_dir, start)
    write_samples(run_dir, (1, 2, num_steps))
    age(run_dir)
    return run_dir


def write_running(run_dir, num_steps=30):
    """A run that goes on: no summary, and written to just now."""
    write_finished(run_dir, num_steps)
    (run_dir / "summary.json").unlink()
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write('{"step": 31, "reward/to')  # being written
    return run_dir


def write_torn(run_dir):
    """A run that was killed in the middle of everything."""
    write_finished(run_dir)
    write_failure_bundle(run_dir)
    (run_dir / "failure" / "failure.json").write_text('{"error": "Th')
    (run_dir / "summary.json").write_text('{"restarts": ')
    (run_dir / "config.yaml").write_text("model: [torn")
    (run_dir / "events.jsonl").write_text('{"time": 1.0, "kind": "engine_lo')
    for file in ("metrics.jsonl", "telemetry/learner-0.jsonl"):
        whole = (run_dir / file).read_bytes()
        (run_dir / file).write_bytes(whole[: 2 * len(whole) // 3] + b"\x00\xff{\n" + whole[-40:])
    samples = run_dir / "experience" / "step=000030" / "rank=0.parquet"
    samples.write_bytes(samples.read_bytes()[:300])
    age(run_dir)
    return run_dir


def write_empty(run_dir):
    """A run that has just begun: nothing but its configuration."""
    run_dir.mkdir(parents=True)
    (run_dir / "config.yaml").write_text(yaml.safe_dump(config_of("rloo", 30)))
    age(run_dir)
    return run_dir


def age(run_dir, seconds=3600):
    """Let all files have been written that long ago."""
    for path in [run_dir, *run_dir.rglob("*")]:
        os.utime(path, (time.time() - seconds,) * 2)
