"""Executors: the runs of a comparison as commands for any scheduler, and as an array of jobs on a Slurm cluster."""

import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .job import Job
from .planned_run import PlanError, Run

EXECUTORS = ("local", "slurm", "print")
# How often a job may end at its time limit and be queued again.
MOST_TIMEOUTS = 100


def run_command(run: Run, options: Mapping[str, Any]) -> list[str]:
    """The command that carries out ``run`` alone; ``options`` are those of the comparison, None and False left out."""
    given = {**options, "only": run.name}
    words = [word for name, value in given.items() if value not in (None, False) for word in (f"--{name}", str(value))]
    return [sys.executable, "-m", "tools.comparison.run", *words]


def print_commands(runs: Sequence[Run], options: Mapping[str, Any]) -> None:
    """Prints one command a line, which may be started anywhere and in any order."""
    for run in runs:
        print(f"cd {shlex.quote(str(Path.cwd()))} && {shlex.join(run_command(run, options))}")


def submit(
    runs: Sequence[Run],
    options: Mapping[str, Any],
    folder: str | Path,
    *,
    partition: str | None = None,
    gpus: int | None = None,
    hours: float | None = None,
    memory: float | None = None,
    cluster: str = "slurm",
) -> list[Any]:
    """Submits one array of jobs, a run each.

    Args:
        runs: at least one.
        options: of the comparison, for the commands.
        folder: receives the jobs' logs and submitit's files; the cluster's machines must see it.
        partition, gpus, hours, memory: see :func:`tools.comparison.run.main`.
        cluster: an executor of submitit; "local" starts the jobs on this machine.

    Returns:
        submitit's jobs.

    Raises:
        PlanError: without submitit, or without Slurm's commands.
    """
    try:
        import submitit
    except ImportError:
        raise PlanError("--executor slurm needs submitit: pip install submitit, or take --executor print.") from None
    if cluster == "slurm" and not all(shutil.which(name) for name in ("sbatch", "srun")):
        raise PlanError("--executor slurm needs sbatch and srun: start it where jobs are submitted, or print commands.")
    executor = submitit.AutoExecutor(folder, cluster=cluster, **{f"{cluster}_max_num_timeout": MOST_TIMEOUTS})
    executor.update_parameters(
        name="comparison",
        timeout_min=max(1, round(60 * (24 if hours is None else hours))),
        gpus_per_node=gpus,
        mem_gb=memory,
        cpus_per_task=options.get("threads"),
        slurm_partition=partition,
        slurm_signal_delay_s=120,
        slurm_additional_parameters={"requeue": True},
    )
    with executor.batch():
        return [executor.submit(Job(run_command(run, options))) for run in runs]
