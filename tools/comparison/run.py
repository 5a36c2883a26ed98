"""Comparison command: carries out a plan's runs that are not done yet, and collects all that are.

    python -m tools.comparison.run --plan configs/plans/hippocampus.json --dataset_dir DIR --output_dir DIR

Each run is trained and evaluated by the bundle's own commands in <output_dir>/<method>_<labels>_<seed>/. Called again,
it goes on with what is missing. A case that cannot be evaluated is named and left out.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from tools.command_line import run_command

from .cases import named
from .collect import failed_cases
from .plan import PlanError, Run, read_plan
from .processes import Processes
from .report import write_report

INTERRUPTED = 130


def main(
    plan: str,
    output_dir: str,
    dataset_dir: str | None = None,
    devices: Sequence[str] | None = None,
    threads: int | None = None,
    collect_only: bool = False,
    evaluate_again: bool = False,
) -> None:
    """Runs and collects a comparison.

    Args:
        plan: JSON file, see docs/comparison.md.
        output_dir: receives one folder per run, results.csv, comparison.csv, comparison.md, dice.png and
            differences.png.
        dataset_dir: folder of the data set's dataset.json.
        devices: such as "cuda:0,cuda:1" or "cpu,cpu", one process at a time on each; without it, one process on the
            device that the configs choose.
        threads: CPU threads of each process; without it as many as torch chooses.
        collect_only: runs nothing; what is finished is collected.
        evaluate_again: also evaluates the runs that are finished, without training them: after a case was repaired, or
            on another list of cases.
    """
    content = read_plan(plan)
    runs = content.runs(output_dir)
    failed: list[Run] = []
    if not collect_only:
        if dataset_dir is None:
            raise PlanError("dataset_dir is not given: name the folder of dataset.json, or add --collect_only.")
        for run in runs:
            run.check_settings(dataset_dir, evaluate_again=evaluate_again)
        to_do = [run for run in runs if evaluate_again or not run.finished]
        print(f"{len(runs)} runs, {len(runs) - len(to_do)} of them done before and skipped", flush=True)
        try:
            failed = Processes(dataset_dir, devices=tuple(devices or (None,)), threads=threads)(to_do)
        except KeyboardInterrupt:
            done = sum(run.finished for run in runs)
            how = "evaluates all of them again" if evaluate_again else "goes on"
            print(f"\nstopped with {done} of {len(runs)} runs done; the same command {how}", file=sys.stderr)
            sys.exit(INTERRUPTED)
    if not any(run.finished for run in runs):
        print(f"error: none of the {len(runs)} runs in {output_dir} is finished: nothing to collect", file=sys.stderr)
        sys.exit(1)
    print("\n" + write_report(content, runs, output_dir) + f"\nwritten to {Path(output_dir)}")
    incomplete = {run.name: failed_cases(run) for run in runs if run.finished and failed_cases(run)}
    if incomplete:
        cases = list(dict.fromkeys(case for of_run in incomplete.values() for case in of_run))
        print(
            f"error: {named(cases)} failed in the evaluation of {named(incomplete)}; comparison.md says why. Once that "
            "is repaired, --evaluate_again evaluates again without training.",
            file=sys.stderr,
        )
    if failed:
        print(f"error: {len(failed)} of {len(runs)} runs failed: {', '.join(r.name for r in failed)}", file=sys.stderr)
    if failed or incomplete:
        sys.exit(1)


if __name__ == "__main__":
    # Whoever ends this process by its id wants no training to stay behind, either.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    run_command(main)
