"""Tests of federated training: the job folder's own settings, and two clients through two rounds of averaging."""

from __future__ import annotations

import json

import pytest
import torch
from conftest import ROOT, small, write_dataset
from monai.bundle import ConfigParser
from monai.fl.client import MonaiAlgo
from monai.fl.utils.constants import ExtraItems, FlStatistics, WeightType
from monai.fl.utils.exchange_object import ExchangeObject
from monai.utils import set_determinism

JOB = ROOT / "docs" / "federated" / "job"
SITES = ("site-1", "site-2")


def content(name: str) -> dict:
    return json.loads((JOB / name).read_text(encoding="utf-8"))


def component(config: dict, number: str) -> dict:
    (found,) = [part for part in config["components"] if part["id"] == number]
    return found


@pytest.fixture
def clients(monkeypatch, tmp_path):
    """The client of each site, made with the arguments of the job, on data sets of different sizes."""
    monkeypatch.chdir(ROOT)
    made = {}
    for site, cases in zip(SITES, (6, 4)):
        arguments = dict(component(content("app/config/config_fed_client.json"), "client_algo")["args"])
        arguments["bundle_root"] = str(ROOT)
        for name in ("train_kwargs", "eval_kwargs"):
            output = tmp_path / site / ("" if name == "train_kwargs" else "evaluation")
            arguments[name] = small(tmp_path / "data" / site, output, spacing=[1.25, 1.25, 1.25])
        write_dataset(tmp_path / "data" / site, counts=(cases, 1, 0))
        made[site] = MonaiAlgo(**arguments)
        made[site].initialize(extra={ExtraItems.CLIENT_NAME: site, ExtraItems.APP_ROOT: ""})
    yield made
    set_determinism(seed=None)


def copied(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: torch.as_tensor(value).detach().clone() for name, value in weights.items()}


def test_two_clients_go_through_two_rounds_of_averaging(clients, tmp_path):
    parser = ConfigParser()
    parser.read_config(str(ROOT / "configs/train.json"))
    parser.update(small(tmp_path, tmp_path))
    sent = start = copied(parser.get_parsed_content("network_def").state_dict())
    for number in (1, 2):
        differences = []
        for client in clients.values():
            metrics = client.evaluate(ExchangeObject(weights=copied(sent), weight_type=WeightType.WEIGHTS)).metrics
            assert 0 <= metrics["val_mean_dice"] <= 1
            client.train(ExchangeObject(weights=copied(sent), weight_type=WeightType.WEIGHTS))
            answer = client.get_weights()
            assert answer.weight_type == WeightType.WEIGHT_DIFF
            assert answer.statistics[FlStatistics.NUM_EXECUTED_ITERATIONS] == 4
            assert client.trainer.state.iteration == 4 * number
            differences.append(copied(answer.weights))
            # What came back is the way from the server's weights to the client's.
            for name, value in client.trainer.network.state_dict().items():
                reached = sent[name] + differences[-1][name]
                torch.testing.assert_close(reached, value, rtol=1e-5, atol=1e-6, check_dtype=False)
        assert any(not torch.equal(differences[0][name], differences[1][name]) for name in sent)
        sent = {name: value + (differences[0][name] + differences[1][name]) / 2 for name, value in sent.items()}
    trained = [name for name in start if not torch.equal(start[name], sent[name].to(start[name].dtype))]
    assert {"encoder.levels.0.0.0.weight", "segmentation_head_phi.weight"} <= set(trained)
    assert all(value.isfinite().all() for value in sent.values())
    # Both evaluate the average that they are sent and not what they hold.
    for client in clients.values():
        client.evaluate(ExchangeObject(weights=copied(sent), weight_type=WeightType.WEIGHTS))
        held = client.evaluator.network.state_dict()
        assert all(torch.equal(held[name], sent[name].to(held[name].dtype)) for name in held)


def test_the_ids_that_the_job_overrides_are_those_of_train_json():
    train = json.loads((ROOT / "configs/train.json").read_text(encoding="utf-8"))
    arguments = component(content("app/config/config_fed_client.json"), "client_algo")["args"]
    for name in ("train_kwargs", "eval_kwargs"):
        assert set(arguments[name]) == {"dataset_dir", "output_dir", "ckpt_dir"} <= set(train)
    assert not set(arguments["train_kwargs"].values()) & (
        set(arguments["eval_kwargs"].values()) - {"{data_root}/{SITE_NAME}"}
    )


def test_server_and_clients_of_the_job_agree():
    server, client = (content(f"app/config/config_fed_{side}.json") for side in ("server", "client"))
    arguments = component(client, "client_algo")["args"]
    persistor = component(server, "persistor")["args"]
    assert persistor["bundle_root"] == arguments["bundle_root"]
    assert persistor["config_train_filename"] == arguments["config_train_filename"]
    (executor,) = client["executors"]
    (workflow,) = server["workflows"]
    assert executor["executor"]["args"]["client_algo_id"] == "client_algo"
    assert workflow["args"]["train_task_name"] in executor["tasks"]
    assert component(server, "model_selector")["args"]["key_metric"] == executor["executor"]["args"]["key_metric"]
    kind = component(server, "aggregator")["args"]["expected_data_kind"]
    assert kind == ("WEIGHT_DIFF" if arguments["send_weight_diff"] else "WEIGHTS")
    ids = {part["id"] for part in server["components"]}
    assert {value for key, value in workflow["args"].items() if key.endswith("_id")} <= ids
