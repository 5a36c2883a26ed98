"""Comparison command: carries out a plan's runs that are not done yet, and collects all that are.

    python -m scripts compare --plan configs/plans/hippocampus.json --dataset_dir DIR --output_dir DIR

Each run is trained and evaluated by the bundle's own commands in a folder of <output_dir>. Called again, it goes on
with what is missing; called twice at once, the two share the runs. A case that cannot be evaluated is named and left
out.
"""

import signal
import sys
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from scripts.errors import print_briefly
from tools.command_line import run_command

from .cases import named
from .collect import failed_cases
from .executors import EXECUTORS, print_commands, submit
from .plan import PlanError, Run, read_plan
from .processes import Processes
from .progress import state
from .tables import write_report

INTERRUPTED = 130
WRITTEN = """  comparison.md                  the tables to read: share of the gap, means, tests, what failed
  comparison.csv, results.csv    the same figures for programs; every run with its settings, time and memory
  gap.png, dice.png, differences.png
  a folder per run               README.txt explains it; run.log has what its training and evaluation printed"""


def main(
    plan: str,
    output_dir: str,
    dataset_dir: str | None = None,
    devices: Sequence[str] | None = None,
    threads: int | None = None,
    collect_only: bool = False,
    evaluate_again: bool = False,
    only: Sequence[str] | None = None,
    list: bool = False,
    executor: str = "local",
    partition: str | None = None,
    gpus: int | None = None,
    hours: float | None = None,
    memory: float | None = None,
    verbose: bool = False,
) -> None:
    """Runs and collects a comparison.

    Args:
        plan: JSON file, see docs/comparison.md.
        output_dir: receives one folder per run, results.csv, comparison.csv, comparison.md, gap.png, dice.png and
            differences.png.
        dataset_dir: folder of the data set's dataset.json.
        devices: such as "cuda:0,cuda:1" or "cpu,cpu", one process at a time on each; without it, one process on the
            device that the configs choose.
        threads: CPU threads of each process; without it as many as torch chooses.
        collect_only: runs nothing; what is finished is collected.
        evaluate_again: also evaluates the runs that are finished, without training them: after a case was repaired, or
            on another list of cases.
        only: carries out these runs and collects nothing: names or patterns such as "dbisl_5_*,dtc_5_0".
        list: runs nothing; prints every run and how far it is.
        executor: "local", on this machine; "slurm", an array of jobs by submitit; "print", one command a line.
        partition: of Slurm, for its jobs.
        gpus: of a job of Slurm.
        hours: time limit of a job of Slurm, which is queued again at its end; without it 24.
        memory: of a job of Slurm, GB.
        verbose: also prints when a run begins and the text of comparison.md; run.log then has MONAI's messages, too.
    """
    print_briefly()
    of_slurm: dict[str, Any] = {"partition": partition, "gpus": gpus, "hours": hours, "memory": memory}
    if executor not in EXECUTORS:
        raise PlanError(f"executor is {executor!r}; it must be one of {', '.join(EXECUTORS)}.")
    if executor != "slurm" and (given := [name for name, value in of_slurm.items() if value is not None]):
        raise PlanError(f"--{given[0]} is for --executor slurm, and executor is {executor!r}.")
    content = read_plan(plan)
    runs = content.runs(output_dir)
    chosen = chosen_runs(runs, only)
    if list:
        for run in chosen:
            print(f"{run.name}: {state(run)}")
        return
    failed: Sequence[Run] = []
    if not collect_only:
        if dataset_dir is None:
            raise PlanError("dataset_dir is not given: name the folder of dataset.json, or add --collect_only.")
        for run in chosen:
            run.check_settings(dataset_dir, evaluate_again=evaluate_again)
        to_do = [run for run in chosen if evaluate_again or not run.finished]
        told = sys.stderr if executor == "print" else sys.stdout
        print(f"{len(chosen)} runs, {len(chosen) - len(to_do)} of them done before and skipped", file=told, flush=True)
        names = tuple(devices.split(",") if isinstance(devices, str) else devices or ())
        options = {"plan": plan, "output_dir": output_dir, "dataset_dir": dataset_dir, "threads": threads}
        options |= {"devices": ",".join(names) or None, "evaluate_again": evaluate_again, "verbose": verbose}
        if executor == "print":
            return print_commands(to_do, options)
        if executor == "slurm":
            folder = Path(output_dir, "slurm").absolute()
            jobs = submit(to_do, options, folder, **of_slurm) if to_do else []
            print(f"submitted {named(job.job_id for job in jobs)}: logs in {folder}. --list says how far they are.")
            return
        try:
            failed = Processes(dataset_dir, devices=names or (None,), threads=threads, verbose=verbose)(to_do)
        except KeyboardInterrupt:
            done = sum(run.finished for run in chosen)
            how = "evaluates all of them again" if evaluate_again else "goes on"
            print(f"\nstopped with {done} of {len(chosen)} runs done; the same command {how}", file=sys.stderr)
            sys.exit(INTERRUPTED)
    if only is None or collect_only:
        collect(content, runs, output_dir, show=collect_only or verbose)
    incomplete = {run.name: failed_cases(run) for run in chosen if run.finished and failed_cases(run)}
    if incomplete:
        cases = dict.fromkeys(case for of_run in incomplete.values() for case in of_run)
        print(
            f"error: {named(cases)} failed in the evaluation of {named(incomplete)}; comparison.md says why. Once that "
            "is repaired, --evaluate_again evaluates again without training.",
            file=sys.stderr,
        )
    if failed:
        print(
            f"error: {len(failed)} of {len(chosen)} runs failed: {', '.join(r.name for r in failed)}", file=sys.stderr
        )
    if failed or incomplete:
        sys.exit(1)


def chosen_runs(runs: Sequence[Run], only: Any) -> Sequence[Run]:
    """Those whose names are in ``only`` or match a pattern of it; all for None.

    Raises:
        PlanError: for a name or pattern that no run has.
    """
    if only is None:
        return runs
    patterns = only.split(",") if isinstance(only, str) else [str(name) for name in only]
    for pattern in patterns:
        if not any(fnmatchcase(run.name, pattern) for run in runs):
            raise PlanError(f"only names {pattern!r}; the plan's runs are {named(run.name for run in runs)}.")
    return [run for run in runs if any(fnmatchcase(run.name, pattern) for pattern in patterns)]


def collect(content: Any, runs: Sequence[Run], output_dir: str, *, show: bool) -> None:
    """Writes the report of the finished runs, prints it if ``show`` is set, and says what lies where.

    Ends with status 1 if no run is finished.
    """
    if not any(run.finished for run in runs):
        print(f"error: none of the {len(runs)} runs in {output_dir} is finished: nothing to collect", file=sys.stderr)
        sys.exit(1)
    report = write_report(content, runs, output_dir)
    if show:
        print(f"\n{report}")
    print(f"\nin {output_dir}:\n{WRITTEN}")


if __name__ == "__main__":
    # Whoever ends this process by its id wants no training to stay behind, either.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # By which Slurm tells all processes of a job that its time is over; submitit ends this one by SIGTERM.
    if hasattr(signal, "SIGUSR2"):
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    run_command(main)
