"""Tests of training and evaluation in several processes: two of them, over gloo, do what one does with their batch.

The processes are real. What is compared in the first part is trained in one process and, from the same config, in two.
"""

from __future__ import annotations

import csv
import math
import os
import signal
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
import torch.multiprocessing
from conftest import ROOT, TIMEOUT, bundle_command, run_process, small
from ignite.engine import Events
from monai.bundle import ConfigParser
from torch import nn

from scripts import ranks
from scripts.data import LabelCoding
from scripts.data.stream import DrawBatches
from scripts.methods import Objective
from scripts.methods.losses import dice_loss, masked_mean
from scripts.methods.reduction import mean_over_ranks, sum_over_ranks
from scripts.networks import synchronize_batch_norm
from scripts.training import FiniteLoss, RunState, SeededIterations, SemiSupervisedTrainer

TRAIN, EVALUATE = "configs/train.json", "configs/evaluate.json"
SEVERAL_TRAIN, SEVERAL_EVALUATE = "configs/multi_gpu_train.json", "configs/multi_gpu_evaluate.json"
PROCESSES = 2
STEPS = 3
# The methods whose two processes do what one does, with what would be random within a step switched off.
METHODS = {
    "dbisl": {},
    "supervised": {},
    "dtc": {},
    "dtml": {"objective#weights#supervised_distance": 1},
    "mc_net": {},
    "entropy_minimization": {},
    "urpc": {},
    "mean_teacher": {"objective#noise": 0.0},
    "ua_mt": {"objective#noise": 0.0},
    "dan": {"discriminator#dropout": 0.0},
    "sassnet": {"discriminator#dropout": 0.0},
}
# These have random numbers or statistics of each process's own crops, but still one network in both.
OTHER_METHODS = ("cct", "dual_networks")
QUICK = ("dbisl", "supervised")


def each_of(methods: Iterable[str]):
    marked = [method if method in QUICK else pytest.param(method, marks=pytest.mark.long) for method in methods]
    return pytest.mark.parametrize("method", marked)


class FrozenBatchNorm(nn.BatchNorm3d):
    """BatchNorm that stays in evaluation mode, with its initial statistics."""

    def train(self, mode: bool = True) -> nn.Module:
        return super().train(False)


def freeze_batch_norm(network: nn.Module) -> nn.Module:
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.BatchNorm3d):
                setattr(parent, name, FrozenBatchNorm(child.num_features))
    return network


class SpoilOneImage:
    """Puts NaN into the crops of one process, in one iteration."""

    def attach(self, engine) -> None:
        engine.add_event_handler(Events.ITERATION_STARTED(once=2), self._spoil)

    def _spoil(self, engine) -> None:
        if ranks.rank() == 1:
            engine.state.batch["image"].fill_(float("nan"))


def train(method: str, dataset: Path, *, processes: int, handlers: Iterable = ()) -> dict:
    """Trains ``STEPS`` iterations on a batch of 4 labeled and 4 unlabeled crops, with this process's share of it."""
    share = 4 // processes
    parser = ConfigParser()
    parser.read_config([str(ROOT / TRAIN), str(ROOT / f"configs/methods/{method}.json")])
    changes = {
        "max_iterations": STEPS,
        "num_labeled": 4,
        "labeled_batch_size": share,
        "unlabeled_batch_size": 0 if method == "supervised" else share,
        "network_def#dropout": 0.0,
        "normalization": "batch",  # which FrozenBatchNorm replaces
        **METHODS.get(method, {}),
    }
    parser.update({**small(dataset, dataset.parent / "unused"), **changes})
    parser["train"]["handlers"] = [
        h for h in parser["train"]["handlers"] if h["_target_"].endswith(("SeededIterations", "LrScheduleHandler"))
    ]
    torch.manual_seed(ranks.rank())  # the processes start with different weights, and take those of the first
    network = freeze_batch_norm(parser.get_parsed_content("network_def"))
    with torch.no_grad():  # heads that agree on most of the background, and not everywhere
        for name, bias in network.named_parameters():
            if "head" in name and name.endswith("bias"):
                bias += 0.3 if "distance" in name else -0.3
    trainer = parser.get_parsed_content("train#trainer")
    losses: list[dict[str, float]] = []

    def note(engine) -> None:
        loss = engine.state.loss
        losses.append({name: value.item() for name, value in {**loss.terms, **loss.measures}.items()})

    for handler in handlers:
        handler.attach(trainer)
    trainer.add_event_handler(Events.ITERATION_COMPLETED, note)
    trainer.run()
    weights = dict(trainer.network.named_parameters()) | dict(trainer.objective.named_parameters(prefix="objective"))
    return {"losses": losses, "weights": {name: weight.detach() for name, weight in weights.items()}}


class TwoHeads(nn.Module):
    """Two weights, one for each head."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.left_out = (nn.Parameter(torch.tensor(0.5)) for _ in range(2))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"logits": self.used * x, "other": self.left_out * x}


class WithShift(Objective):
    """Has a parameter of its own, calls the network in ``views``, too, and leaves one of the heads out."""

    TERMS = ("far",)

    def __init__(self, network: nn.Module) -> None:
        super().__init__(LabelCoding(1))
        self.shift = nn.Parameter(torch.tensor(1.0))
        self._network = (network,)
        self.steps: list[int] = []

    def views(self, labeled, unlabeled, iteration):
        return {**super().views(labeled, unlabeled, iteration), "goal": self._network[0](labeled["image"])["logits"]}

    def terms(self, heads, targets):
        return {"far": (heads["logits"] + self.shift - 2 * targets["goal"]).square().mean()}

    def after_step(self, iteration):
        self.steps.append(iteration)


def train_two_heads(*, processes: int, accumulation: int) -> dict[str, torch.Tensor]:
    """The weights after four iterations on batches of four crops, of which each process has its share."""
    network = TwoHeads()
    objective = WithShift(network)
    images = torch.arange(16.0).reshape(4, 4, 1, 1, 1, 1) / 10
    share = slice(4 // processes * ranks.rank(), 4 // processes * (ranks.rank() + 1))
    trainer = SemiSupervisedTrainer(
        device="cpu",
        max_epochs=1,
        epoch_length=4,
        train_data_loader=[{"image": image[share], "label": torch.zeros_like(image[share])} for image in images],
        network=network,
        objective=objective,
        optimizer=torch.optim.SGD([*network.parameters(), objective.shift], lr=0.1),
        accumulation_steps=accumulation,
        train_handlers=[FiniteLoss()],
    )
    trainer.run()
    named = {**dict(network.named_parameters()), "shift": objective.shift}
    return {"steps": torch.tensor(objective.steps), **{name: weight.detach() for name, weight in named.items()}}


def reductions() -> dict[str, torch.Tensor]:
    """What the reductions and the two ratios give and their gradients, on a different number in every process."""
    x = torch.tensor([2.0, 5.0][ranks.rank()], requires_grad=True)
    (total,) = sum_over_ranks(x)
    (total**2).backward()
    found = {"sum": total.detach(), "gradient of sum": x.grad.clone()}
    x.grad = None
    mean, other = mean_over_ranks(x, 3 * x)
    (mean**2).backward()
    found |= {"mean": mean.detach(), "second mean": other.detach(), "gradient of mean": x.grad.clone()}

    # Two voxels in the first process, of which one counts, and two in the second, of which both do.
    values = torch.tensor([[1.0, 100.0], [2.0, 6.0]][ranks.rank()], requires_grad=True)
    masked = masked_mean(values, torch.tensor([[True, False], [True, True]][ranks.rank()]))
    masked.backward()
    found |= {"masked": masked.detach(), "gradient of masked": values.grad}

    probability = torch.full((1, 1, 1, 1, 2), [0.5, 1.0][ranks.rank()])
    label = torch.tensor([[1.0, 0.0], [1.0, 1.0]][ranks.rank()]).reshape(1, 1, 1, 1, 2)
    return found | {"dice": dice_loss(probability, label, smooth=0.0)}


def process(number: int, dataset: Path, output: Path, names: list[str]) -> None:
    """What each of the two processes does: the reductions, their settings compared, and the trainings."""
    torch.set_num_threads(1)
    os.chdir(ROOT)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{output}/store", rank=number, world_size=PROCESSES
    )
    found: dict[str, object] = {"reductions": reductions()}
    found["shares"] = list(ranks.share_of("abcde"))
    found["of few"] = [list(ranks.share_for_a_mean(cases)) for cases in ("", "a", "ab")]
    found["any"] = [ranks.any_rank(condition) for condition in (False, number == 1)]
    seeded = SeededIterations(seed=0)
    engine = type("Engine", (), {"state": type("State", (), {"iteration": 7})})
    seeded._seed(engine)
    found["random"] = torch.rand(3)
    for name, call in {
        "unequal": lambda: ranks.check_equal({"labeled_batch_size": 2 + number, "seed": 0}),
        "too few": lambda: ranks.share_of("a"),
    }.items():
        try:
            call()
        except ValueError as error:
            found[name] = str(error)
    found["two heads"] = [train_two_heads(processes=PROCESSES, accumulation=number) for number in (1, 2)]
    guard = FiniteLoss("skip")
    found["spoilt"] = train("supervised", dataset, processes=PROCESSES, handlers=[guard, SpoilOneImage()])
    found["skipped"] = guard.skipped
    for name in names:
        found[name] = train(name, dataset, processes=PROCESSES)
    torch.save(found, output / f"{number}.pt")
    ranks.end_processes()


def in_two_processes(dataset: Path, output: Path, methods: Iterable[str]) -> list[dict]:
    """What the two processes found, by rank."""
    torch.multiprocessing.spawn(process, (dataset, output, list(methods)), nprocs=PROCESSES)
    return [torch.load(output / f"{number}.pt", weights_only=False) for number in range(PROCESSES)]


@pytest.fixture(scope="module")
def two_processes(tiny, tmp_path_factory) -> list[dict]:
    return in_two_processes(tiny, tmp_path_factory.mktemp("quick"), QUICK)


@pytest.fixture(scope="module")
def two_processes_of_all_methods(tiny, tmp_path_factory) -> list[dict]:
    return in_two_processes(tiny, tmp_path_factory.mktemp("all"), [*METHODS, *OTHER_METHODS])


@pytest.fixture
def found_of_method(method, request) -> list[dict]:
    """Losses and weights of the test's method, by rank."""
    fixture = "two_processes" if method in QUICK else "two_processes_of_all_methods"
    return [rank[method] for rank in request.getfixturevalue(fixture)]


# --- two processes against one ---


@each_of(METHODS)
def test_two_processes_reach_the_losses_and_weights_of_one(method, tiny, found_of_method):
    expected = train(method, tiny, processes=1)
    for found in found_of_method:
        for now, then in zip(found["losses"], expected["losses"], strict=True):
            assert now == pytest.approx(then, rel=1e-4, abs=1e-6)
        assert found["weights"].keys() == expected["weights"].keys()
        for name, weight in expected["weights"].items():
            torch.testing.assert_close(found["weights"][name], weight, rtol=1e-4, atol=1e-6, msg=name)


@each_of([*METHODS, *OTHER_METHODS])
def test_both_processes_end_with_the_same_weights_bit_for_bit(method, found_of_method):
    first, second = (found["weights"] for found in found_of_method)
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_head_that_is_left_out_a_methods_own_weight_and_accumulation_equal_one_process(two_processes, accumulation):
    expected = train_two_heads(processes=1, accumulation=accumulation)
    assert expected["steps"].tolist() == ([0, 1, 2, 3] if accumulation == 1 else [1, 3])
    assert expected["left_out"] == 0.5 and expected["used"] != 0.5 and expected["shift"] != 1
    for rank in two_processes:
        torch.testing.assert_close(rank["two heads"][accumulation - 1], expected)


def test_a_batch_that_is_not_finite_in_one_process_is_skipped_in_both(two_processes):
    first, second = (rank["spoilt"] for rank in two_processes)
    assert [rank["skipped"] for rank in two_processes] == [1, 1]
    assert [list(map(math.isnan, rank["losses"][1].values())) for rank in (first, second)] == [[True], [True]]
    for name, weight in first["weights"].items():
        assert weight.isfinite().all() and torch.equal(weight, second["weights"][name]), name
    assert any(not torch.equal(first["weights"][n], w) for n, w in two_processes[0]["supervised"]["weights"].items())


def test_reductions_and_their_gradients_are_those_computed_by_hand(two_processes):
    for rank in two_processes:
        found = rank["reductions"]
        assert found["sum"] == 7.0
        # d(2 + 5)^2 / dx = 14, times the two processes, over whose gradients the trainer takes the mean.
        assert found["gradient of sum"] == 28.0
        assert (found["mean"], found["second mean"]) == (3.5, 10.5)
        # d((2 + 5) / 2)^2 / dx = 3.5; the mean over the two processes halves the 7.
        assert found["gradient of mean"] == 7.0
        assert found["masked"] == 3.0
        # sum p y = 0.5 + 2, sum p^2 = 0.5 + 2, sum y^2 = 1 + 2.
        assert found["dice"].item() == pytest.approx(1 - 2 * 2.5 / 5.5)
    first, second = (rank["reductions"]["gradient of masked"].tolist() for rank in two_processes)
    assert first == pytest.approx([2 / 3, 0]) and second == pytest.approx([2 / 3, 2 / 3])


def test_cases_are_shared_out_in_order_and_none_twice(two_processes):
    first, second = (rank["shares"] for rank in two_processes)
    assert first + second == list("abcde") and abs(len(first) - len(second)) == 1
    assert [rank["of few"] for rank in two_processes] == [[[], ["a"], ["a"]], [[], ["a"], ["b"]]]
    assert all(
        rank["too few"] == "1 cases cannot be shared out to 2 processes: start at most 1." for rank in two_processes
    )


def test_unequal_shares_are_refused_in_every_process_with_both_values(two_processes):
    for rank in two_processes:
        assert rank["unequal"].startswith(
            "labeled_batch_size is 2 in process 0 and 3 in process 1: every process takes"
        )


def test_all_processes_learn_that_one_was_asked_to_stop(two_processes):
    assert [rank["any"] for rank in two_processes] == [[False, True], [False, True]]


def test_dropout_differs_between_processes_and_that_of_the_first_is_that_of_one(two_processes):
    first, second = (rank["random"] for rank in two_processes)
    assert not torch.equal(first, second)
    seeded = SeededIterations(seed=0)
    seeded._seed(type("Engine", (), {"state": type("State", (), {"iteration": 7})}))
    assert torch.equal(torch.rand(3), first)


# --- parts that need no second process ---


@pytest.mark.parametrize("start", [0, 3])
def test_the_shares_of_a_batch_are_the_batch_of_one_process(start):
    whole = iter(DrawBatches(6, start=start))
    shares = [iter(DrawBatches(2, start=start, rank=number, ranks=3)) for number in range(3)]
    for _ in range(4):
        assert sum((next(share) for share in shares), []) == next(whole)


def test_without_a_process_group_the_reductions_return_their_arguments():
    a, b = torch.ones(2, requires_grad=True), torch.zeros(2)
    for reduction in (sum_over_ranks, mean_over_ranks):
        assert all(found is given for found, given in zip(reduction(a, b), (a, b), strict=True))
    assert (ranks.rank(), ranks.world_size()) == (0, 1)


def test_handlers_of_other_processes_are_those_named(monkeypatch):
    handlers = [SeededIterations(0), nn.Identity(), SeededIterations(1)]
    assert ranks.handlers_of_rank(handlers, ["SeededIterations"]) == handlers
    monkeypatch.setattr(ranks, "rank", lambda: 1)
    assert ranks.handlers_of_rank(handlers, ["SeededIterations"]) == [handlers[0], handlers[2]]


# Handlers that write, and are told apart from those that change the training or communicate.
FIRST_PROCESS_ONLY = {
    "FinalWeights",
    "TermsLog",
    "ProgressBar",
    "ValidationLog",
    "TrainingPictures",
    "RunPage",
    "MLflowTracking",
}


@pytest.mark.parametrize(
    "overlay, config, handlers, first_only",
    [(SEVERAL_TRAIN, TRAIN, "train", FIRST_PROCESS_ONLY), (SEVERAL_EVALUATE, EVALUATE, "validate", {"ProgressBar"})],
)
def test_every_handler_runs_in_every_process_or_is_known_to_only_write(overlay, config, handlers, first_only):
    parser = ConfigParser()
    parser.read_config([str(ROOT / path) for path in dict.fromkeys((TRAIN, config, overlay))])
    names = {handler["_target_"].rsplit(".", 1)[-1] for handler in parser[handlers]["handlers"]}
    assert names - set(parser["every_rank"]) == first_only
    assert set(parser["every_rank"]) <= names


def test_synchronised_batch_norm_is_refused_on_the_cpu_and_keeps_the_names_of_the_weights():
    cpu, gpu = torch.device("cpu"), torch.device("cuda", 0)
    network = nn.Sequential(nn.Conv3d(1, 2, 1), nn.BatchNorm3d(2))
    names = list(network.state_dict())
    assert synchronize_batch_norm(network, enabled=False, device=cpu) is network
    with pytest.raises(ValueError, match="sync_batchnorm is true and the device is cpu"):
        synchronize_batch_norm(network, enabled=True, device=cpu)
    converted = synchronize_batch_norm(network, enabled=True, device=gpu)
    assert isinstance(converted[1], nn.SyncBatchNorm) and list(converted.state_dict()) == names


def test_a_run_that_was_started_with_other_processes_is_not_continued(tmp_path, monkeypatch):
    state = RunState(tmp_path, {}, None, {"seed": 0})
    monkeypatch.setattr("scripts.training.resume.world_size", lambda: 2)
    with pytest.raises(ValueError, match="processes was 1 and is 2"):
        RunState(tmp_path, {}, None, {"seed": 0}).restore({"settings": state.settings}, None)


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert ranks.device_of_process() == torch.device("cuda", 1)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ValueError, match="process 2 of this machine has no GPU, 2 found"):
        ranks.device_of_process()


def test_without_torchrun_the_overlay_says_how_to_start(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(ValueError, match="was started alone"):
        ranks.start_processes(torch.device("cpu"))


# --- commands, as users give them ---

# A smooth loss: DBiSL's steep sigmoid makes of a rounding error of 1e-7 one of 1e-2 in two steps, in one process, too.
METHOD = "configs/methods/entropy_minimization.json"
# Nothing in a crop or a step depends on the other crops of the batch.
SETTINGS = {"normalization": "group", "network_def__dropout": 0.0, "num_labeled": 4, "unlabeled_batch_size": 1}


def torchrun_command(run_id: str, *config_files: str, restarts: int = 0, **overrides: object) -> list[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nnodes=1", f"--nproc_per_node={PROCESSES}"]
    launcher += [f"--max-restarts={restarts}"]
    python, *bundle = bundle_command(run_id, *config_files, **overrides)
    return [python, *launcher, *bundle]


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def weights(output: Path) -> dict[str, torch.Tensor]:
    return torch.load(output / "models" / "model.pt", weights_only=True)


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory) -> tuple[Path, str]:
    """Output folder and stderr of a training in two processes with one labeled and one unlabeled crop each."""
    output = tmp_path_factory.mktemp("trained")
    overrides = small(tiny, output, labeled_batch_size=1, **SETTINGS)
    finished = run_process(torchrun_command("training", TRAIN, METHOD, SEVERAL_TRAIN, **overrides))
    assert finished.returncode == 0, finished.stderr
    return output, finished.stderr


def test_torchrun_trains_to_the_weights_of_one_process_and_one_process_writes(trained, workflow, tiny, tmp_path):
    output, _ = trained
    changes = {**SETTINGS, "labeled_batch_size": 2, "unlabeled_batch_size": 2}
    one = workflow(TRAIN, METHOD, run_id="training", **small(tiny, tmp_path, **changes))
    one.initialize()
    one.run()
    for name, weight in weights(tmp_path).items():
        torch.testing.assert_close(weights(output)[name], weight, rtol=1e-4, atol=1e-6, msg=name)
    log, expected = rows(output / "training_log.csv"), rows(tmp_path / "training_log.csv")
    assert [row["iteration"] for row in log] == ["1", "2", "3", "4"]
    assert [float(r["loss"]) for r in log] == pytest.approx([float(r["loss"]) for r in expected], rel=1e-4)
    files = {str(path.relative_to(output)) for path in output.rglob("*") if path.name.split(".")[0][:9] != "iteration"}
    # The config of the run is known to the command alone.
    assert files - {"config.json"} == {
        str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.name.split(".")[0][:9] != "iteration"
    }


@pytest.mark.long
def test_torchrun_evaluates_every_case_once(trained, workflow, tiny, tmp_path):
    overrides = small(tiny, tmp_path, ckpt_dir=str(trained[0] / "models"), **SETTINGS)
    finished = run_process(torchrun_command("evaluation", TRAIN, METHOD, EVALUATE, SEVERAL_EVALUATE, **overrides))
    assert finished.returncode == 0, finished.stderr
    found = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    one = workflow(TRAIN, METHOD, EVALUATE, run_id="evaluation", **{**overrides, "output_dir": str(tmp_path / "one")})
    one.initialize()
    one.run()
    assert found == {path.name: path.read_bytes() for path in (tmp_path / "one").iterdir()}
    assert len(rows(tmp_path / "metrics.csv")) == 2


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def start_and_stop(command: list[str], output: Path, *, rows_before: int, stop) -> tuple[int, str]:
    """Starts torchrun, calls ``stop(its process, those of the ranks)``, and returns its exit status and output."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with (output / "said").open("w+") as said:
        launcher = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=said, stderr=said, start_new_session=True
        )
        log, deadline = output / "training_log.csv", time.monotonic() + TIMEOUT
        while not log.exists() or len(rows(log)) < rows_before:
            assert launcher.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        processes = children(launcher.pid)
        assert len(processes) == PROCESSES
        try:
            stop(launcher, processes)
            status = launcher.wait(TIMEOUT)
        finally:
            if launcher.poll() is None:
                os.killpg(launcher.pid, signal.SIGKILL)
        while any(Path(f"/proc/{pid}").exists() for pid in processes):  # until the system has cleared them away
            assert time.monotonic() < deadline
            time.sleep(0.05)
        said.seek(0)
        return status, said.read()


@pytest.mark.long
@pytest.mark.parametrize("how", ["killed", "killed and restarted by torchrun", "asked to stop"])
def test_a_stopped_run_ends_in_all_processes_and_continues_to_the_same_weights(tiny, tmp_path, how):
    if not Path("/proc/self/task").is_dir():
        pytest.skip("this system has no /proc to find the processes in")
    settings = {**SETTINGS, "normalization": "batch", "network_def__dropout": 0.5, "labeled_batch_size": 1}
    killed, restarted = how.startswith("killed"), how.endswith("torchrun")
    settings |= {"max_iterations": 12, "checkpoint_interval": 3 if killed else 12}
    for name in ("never", "stopped"):
        (tmp_path / name).mkdir()
    never, stopped = (
        torchrun_command(
            "training",
            *(TRAIN, SEVERAL_TRAIN),
            restarts=int(restarted),
            **small(tiny, tmp_path / name, **settings),
        )
        for name in ("never", "stopped")
    )
    assert run_process(never).returncode == 0

    def stop(launcher, processes):
        os.kill(processes[1] if killed else launcher.pid, signal.SIGKILL if killed else signal.SIGTERM)

    status, said = start_and_stop(stopped, tmp_path / "stopped", rows_before=4, stop=stop)
    told = {"killed": "Signal 9 (SIGKILL) received", "asked to stop": "as asked; the same command continues"}
    assert told.get(how, "exitcode: -9") in said
    # One that torchrun ends before it could say so says nothing.
    assert killed or "Another process of this run ended" not in said
    assert (status == 0) == restarted == (tmp_path / "stopped" / "models" / "model.pt").exists()
    if not restarted:
        finished = run_process(stopped)
        assert finished.returncode == 0, finished.stderr
        said = finished.stdout
    assert said.count("resuming at iteration") == 1
    expected, found = weights(tmp_path / "never"), weights(tmp_path / "stopped")
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []
