"""What `ray job list` and the dashboard's Jobs page say of a run: method, model, run folder."""

import asyncio
import json
import logging
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from configs.schema import RunConfig

logger = logging.getLogger(__name__)

INJECTED = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Ray hands the runtime environment and metadata of a submitted job to its driver by this name."""


def submitted_job() -> dict[str, Any]:
    """`runtime_env` and `metadata` that this driver was submitted with; empty for another one."""
    given = json.loads(os.environ.get(INJECTED, "{}"))
    return {name: given.get(name) or {} for name in ("runtime_env", "metadata")} if given else {}


def metadata_of(config: RunConfig, pages: str | None = None) -> dict[str, str]:
    """Facts of a run for people who look at a list of jobs; `pages`: where it shows itself."""
    facts = {
        "attune_method": config.algorithm.name,
        "attune_model": config.model.path,
        "attune_run_dir": config.cluster.run_dir,
        "attune_report": str(Path(config.cluster.run_dir) / "report.html"),
    }
    return facts | ({"attune_pages": f"{pages}/attune/"} if pages else {})


def publish_metadata(config: RunConfig, pages: str | None = None) -> None:
    """Add the run's facts to those that the job was submitted with; a no-op for any other driver.

    Ray has no public way to change a job's metadata from inside it; where this one fails the list
    only shows less.
    """
    submission_id = submitted_job().get("metadata", {}).get("job_submission_id")
    if not submission_id:
        return
    try:
        asyncio.run(_add(submission_id, metadata_of(config, pages)))
    except Exception:  # a help for people, never a reason to stop
        logger.warning("the job's metadata could not be set", exc_info=True)


async def _add(submission_id: str, facts: dict[str, str]) -> None:
    import ray
    from ray._raylet import GcsClient  # pyright: ignore[reportAttributeAccessIssue] - compiled
    from ray.dashboard.modules.job.common import JobInfoStorageClient

    store = JobInfoStorageClient(GcsClient(address=ray.get_runtime_context().gcs_address))
    info = await store.get_info(submission_id)
    if info is not None:
        await store.put_info(
            submission_id, replace(info, metadata={**(info.metadata or {}), **facts})
        )
