"""Tests of who carries out a run: locks, commands for other schedulers, jobs by submitit, and what is said of it."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from comparisons import Programs, finished_run, plan_file, rows, some_runs
from conftest import ROOT, run_process, small

from tools.comparison.executors import submit
from tools.comparison.job import Job
from tools.comparison.planned_run import PlanError
from tools.comparison.progress import Progress, duration, locked, state
from tools.comparison.run import main

# A run's command: at its first start it tells submitit's process that the time is over, and waits to be ended.
TIMED_OUT = """
import os, signal, sys, time
from pathlib import Path
folder = Path(sys.argv[1])
def end(*_):
    (folder / "ended").touch()
    sys.exit(143)
if not (folder / "ended").exists():
    signal.signal(signal.SIGTERM, end)
    os.kill(os.getppid(), signal.SIGUSR2)
    time.sleep(60)
(folder / "finished").touch()
"""


@pytest.fixture(autouse=True)
def _in_the_bundles_root(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)


def until(happened, seconds: float = 120) -> None:
    """Waits for something to happen; ``seconds`` are the end of a test that would otherwise hang."""
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.05)


# Locks


def test_two_comparisons_of_one_plan_train_every_run_once(tmp_path):
    runs = some_runs(tmp_path, *"abcdef")
    both = [Programs("data"), Programs("data")]
    for processes in both:
        # The first run of each waits until the other has begun one, too.
        processes.source = """
if run_id == "training":
    with (folder / "trainings").open("a") as file:
        file.write("once")
import time
for _ in range(2400):
    if len(list(folder.parent.glob("*/trainings"))) >= 2:
        break
    time.sleep(0.025)
"""
    threads = [threading.Thread(target=processes, args=(runs,)) for processes in both]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [(run.folder / "trainings").read_text() for run in runs] == ["once"] * 6
    assert all(run.finished for run in runs)


def test_run_that_another_process_holds_is_left_to_it_and_is_no_failure(tmp_path, capsys):
    first, second = some_runs(tmp_path, "a", "b")
    with locked(first.folder) as lock:
        assert lock is not None
        assert Programs("data")([first, second]) == []
    assert not first.trained and second.finished
    assert "a_5_0 is being carried out by another process" in capsys.readouterr().out


def test_run_that_another_process_has_finished_since_is_not_repeated(tmp_path, capsys):
    first, second = some_runs(tmp_path, "a", "b")
    processes = Programs("data")
    processes.source = f"""
other = Path({str(second.folder)!r})
other.mkdir(exist_ok=True)
(other / 'metrics.csv').write_text('case,class\\na,1\\n')
(other / 'metrics_summary.csv').touch()
"""
    assert processes([first, second]) == []
    assert not (second.folder / "training.json").exists()
    assert "b_5_0 was carried out by another process" in capsys.readouterr().out


def test_training_holds_the_lock_when_the_process_that_started_it_is_gone(tmp_path):
    with locked(tmp_path) as lock:
        training = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=[lock])
    try:
        with locked(tmp_path) as again:
            assert again is None
    finally:
        training.communicate(b"\n")
    with locked(tmp_path) as again:
        assert again is not None


def test_file_system_without_locks_is_said_and_does_not_stop_the_run(tmp_path, monkeypatch):
    def refused(*_: object) -> None:
        raise OSError("Function not implemented")

    monkeypatch.setattr("tools.comparison.progress.fcntl.flock", refused)
    with pytest.warns(UserWarning, match="Function not implemented"), locked(tmp_path) as lock:
        assert lock is not None


# What is said


def log(run, iteration: int, seconds: float, planned: object) -> None:
    run.folder.mkdir(exist_ok=True)
    (run.folder / "run.log").touch()
    (run.folder / "run.json").write_text(json.dumps({"config": {"max_iterations": planned}}))
    (run.folder / "training_log.csv").write_text(
        f"iteration,seconds,loss\r\n1,2.0,0.5\r\n{iteration},{seconds},0.4\r\n"
    )


def test_states_of_runs(tmp_path):
    waiting, training, evaluating, stopped, failed, trained = some_runs(tmp_path, *"abcdef")
    done = finished_run(tmp_path, "g", 0, {("a", "1"): 0.5})
    log(training, 20, 60.0, 100)
    for run in (evaluating, trained):
        run.folder.mkdir()
        (run.folder / "record.json").touch()
    log(stopped, 20, 60.0, 100)
    (stopped.folder / "checkpoints").mkdir()
    (stopped.folder / "checkpoints" / "checkpoint_iteration_10.pt").touch()
    failed.folder.mkdir()
    (failed.folder / "run.log").touch()
    with locked(training.folder), locked(evaluating.folder):
        assert state(training) == "being carried out: iteration 20 of 100, 4 min left"
        assert state(evaluating) == "being carried out: evaluation"
    assert state(waiting) == "not begun" and not waiting.folder.exists()
    assert state(stopped).startswith("stopped at iteration 20 of 100")
    assert state(failed).startswith("stopped; run.log")
    assert (state(trained), state(done)) == ("trained, not evaluated", "finished")
    log(training, 20, 60.0, "$2 * 50")
    with locked(training.folder):
        assert state(training) == "being carried out: starting"


def test_line_has_the_time_left_of_the_run_and_of_all(tmp_path, monkeypatch, capsys):
    now = [1000.0]
    monkeypatch.setattr("tools.comparison.progress.time.monotonic", lambda: now[0])
    runs = some_runs(tmp_path, "a", "b", "c")
    progress = Progress(runs)
    assert progress.line() == "0 of 3 done"
    with progress.of(runs[0]):
        log(runs[0], 50, 500.0, 100)
        now[0] += 450
        # 0.45 of a run in 450 s: 2.55 of them are left.
        assert progress.line() == "0 of 3 done; a_5_0: iteration 50 of 100, 8 min left; all: about 42 min left"
        progress.show()
        progress.show()
    now[0] += 550
    progress.leave_out(runs[1])
    assert progress.line() == "1 of 2 done; all: about 17 min left"
    assert capsys.readouterr().out.count("iteration 50 of 100") == 1
    assert [duration(s) for s in (40, 720, 12_000)] == ["40 s", "12 min", "3 h 20 min"]


# The command


def test_list_says_how_far_every_run_is_and_runs_nothing(tmp_path, capsys):
    finished_run(tmp_path, "supervised", 0, {("a", "1"): 0.5})
    main(str(plan_file(tmp_path, num_labeled=[5], seeds=[0])), str(tmp_path), list=True)
    assert capsys.readouterr().out == "supervised_5_0: finished\ndbisl_5_0: not begun\n"


def test_print_gives_a_command_for_every_run_that_is_not_finished_and_nothing_else(tmp_path, capsys):
    plan = str(plan_file(tmp_path, seeds=[0]))
    finished_run(tmp_path, "supervised", 0, {("a", "1"): 0.5})
    main(plan, str(tmp_path), "my data", executor="print", threads=2, devices="cpu,cpu", only="*_5_0,dbisl_20_0")
    lines = [shlex.split(line) for line in capsys.readouterr().out.splitlines()]
    head = ["cd", str(ROOT), "&&", sys.executable, "-m", "tools.comparison.run", "--plan", plan, "--output_dir"]
    options = [str(tmp_path), "--dataset_dir", "my data", "--threads", "2", "--devices", "cpu,cpu", "--only"]
    assert lines == [[*head, *options, name] for name in ("dbisl_5_0", "dbisl_20_0")]


@pytest.mark.parametrize(
    "options, value",
    [
        ({"executor": "pbs"}, "pbs"),
        ({"gpus": 1}, "--gpus"),
        ({"only": "dbisl_5_0,none_5_0"}, "none_5_0"),
        ({"executor": "slurm", "only": "dbisl_5_0"}, "sbatch"),
    ],
)
def test_options_that_cannot_work_are_refused(tmp_path, monkeypatch, options, value):
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(PlanError, match=value):
        main(str(plan_file(tmp_path)), str(tmp_path / "out"), "data", **options)


def test_slurm_without_submitit_names_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(PlanError, match="pip install submitit"):
        submit(some_runs(tmp_path, "a"), {}, tmp_path)


def instead(monkeypatch, source: str) -> None:
    """A small program in place of the command of a run; it gets the run's folder, which is made."""

    def command(run, _) -> list[str]:
        run.folder.mkdir(parents=True, exist_ok=True)
        return [sys.executable, "-c", source, str(run.folder)]

    monkeypatch.setattr("tools.comparison.executors.run_command", command)


def test_job_at_its_time_limit_is_ended_queued_again_and_goes_on(tmp_path, monkeypatch):
    pytest.importorskip("submitit")
    instead(monkeypatch, TIMED_OUT)
    (run,) = some_runs(tmp_path, "a")
    (job,) = submit([run], {"threads": 1}, tmp_path / "jobs", hours=1, cluster="local")
    until((run.folder / "finished").exists)
    assert job.result() is None and (run.folder / "ended").exists()


def test_job_whose_command_fails_has_failed(tmp_path):
    with pytest.raises(RuntimeError, match="exit status 3"):
        Job([sys.executable, "-c", "raise SystemExit(3)"])()


def test_slurm_gets_one_array_with_its_limits_and_queues_again_what_timed_out(tmp_path, monkeypatch, capsys):
    pytest.importorskip("submitit")
    instead(monkeypatch, TIMED_OUT)
    cluster = tmp_path / "cluster"
    shutil.copytree(ROOT / "tests" / "slurm", cluster)
    monkeypatch.setenv("PATH", f"{cluster}{os.pathsep}{os.environ['PATH']}")
    output = tmp_path / "out"
    limits = {"partition": "gpu", "gpus": 1, "hours": 1.5, "memory": 24}
    main(str(plan_file(tmp_path, num_labeled=[5], seeds=[0])), str(output), "data", executor="slurm", **limits)
    assert "submitted 77_0, 77_1" in capsys.readouterr().out
    lines = {line for line in (cluster / "script").read_text().splitlines() if line.startswith("#SBATCH")}
    wanted = ("array=0-1%2", "partition=gpu", "gpus-per-node=1", "time=90", "mem=24GB", "requeue", "signal=USR2@120")
    assert {f"#SBATCH --{option}" for option in wanted} <= lines
    for name in ("supervised_5_0", "dbisl_5_0"):
        until((output / name / "finished").exists)
        assert (output / name / "ended").exists()


@pytest.mark.long
def test_a_real_cluster_queues_again_what_timed_out(tmp_path, monkeypatch):
    pytest.importorskip("submitit")
    if not shutil.which("sbatch") or subprocess.run(["sinfo"], capture_output=True).returncode:
        pytest.skip("needs a Slurm cluster that sees the folder for temporary files")
    instead(monkeypatch, TIMED_OUT)
    runs = some_runs(tmp_path, "a", "b")
    submit(runs, {"threads": 1}, tmp_path / "jobs", hours=0.5)
    # Slurm lets a job that is queued again wait for two minutes.
    until(lambda: all((run.folder / "finished").exists() and (run.folder / "ended").exists() for run in runs), 600)


@pytest.mark.long
def test_printed_commands_do_the_comparison_and_collecting_reports_it(tiny_copy, tmp_path):
    changes = small(tiny_copy, tmp_path).items()
    common = {k: v for k, v in changes if not k.endswith("_dir") and k not in ("device", "num_labeled")}
    methods = {"supervised": ["configs/methods/supervised.json"]}
    plan = plan_file(
        tmp_path, methods=methods, num_labeled=[3], seeds=[0], labeled_draws=[0, 1], common={**common, "spacing": None}
    )
    command = [sys.executable, "-m", "tools.comparison.run", "--plan", str(plan), "--output_dir", str(tmp_path / "out")]
    printed = run_process([*command, "--dataset_dir", str(tiny_copy), "--devices", "cpu", "--executor", "print"])
    for line in printed.stdout.splitlines():
        run_process(["bash", "-c", line], cwd=tmp_path)
    run_process([*command, "--collect_only"])
    assert [row["labeled_draw"] for row in rows(Path(tmp_path, "out", "results.csv"))] == ["0", "1"]
    # The digest of the labeled cases of a training says that another draw has others.
    starts = [
        json.loads((tmp_path / "out" / name / "run.json").read_text())["starts"][0]["data"]["labeled"]["digest"]
        for name in ("supervised_3_0", "supervised_3_0_draw1")
    ]
    assert len(set(starts)) == 2
