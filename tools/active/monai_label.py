"""MONAI Label app: says which study to label next and trains with the unlabeled ones; main.py of the app monaibundle.

It stands beside the app's own main.py, renamed bundle_app.py (docs/clients.md). The ranking runs in a process of its
own, since the server unloads the package ``scripts`` for that of its bundle.
"""

import csv
import json
import logging
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import bundle_app
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.tasks.strategy import Strategy
from monailabel.tasks.train.bundle import BundleTrainTask

STRATEGIES = ("disagreement", "diversity", "combined")  # random is MONAI Label's own
logger = logging.getLogger(__name__)


class Ranking(Strategy):
    """The next unlabeled study by a strategy of tools/active/strategies.py, with the mask of the model to correct.

    Studies are ranked when the weights change or studies are added, not after every label: what is labeled in between
    is taken from the ranking in its order. The mask is saved as the study's label with the tag "original".

    Args:
        app: the server's.
        name: of the strategy.
        model: name of the bundle.
        bundle: its folder.
        repository: root of the repository, with tools/.
    """

    def __init__(self, app: Any, name: str, model: str, bundle: Path, repository: Path) -> None:
        super().__init__(f"Ranks the studies by {name}, with the predictions of {model}")
        self.app, self.name, self.model, self.bundle, self.repository = app, name, model, bundle, repository
        self.ranked: list[str] = []
        self.weights = 0.0

    def __call__(self, request: dict[str, Any], datastore: Any) -> dict[str, Any] | None:
        unlabeled = datastore.get_unlabeled_images()
        if not unlabeled:
            return None
        weights = (self.bundle / "models" / "model.pt").stat().st_mtime
        if weights != self.weights or not set(unlabeled) <= set(self.ranked):
            self.ranked, self.weights = self.rank(unlabeled, datastore, request.get("device")), weights
        study = next(study for study in self.ranked if study in unlabeled)
        options = {"save_label": True, "label_tag": "original", "result_extension": ".nii.gz"}
        device = {"device": request["device"]} if request.get("device") else {}
        try:
            self.app.infer({"model": self.model, "image": study, **options, **device})
        except Exception:  # a study that cannot be segmented can still be labeled
            logger.exception("%s has no proposal", study)
        return {"id": study, "weight": 1 - self.ranked.index(study) / len(self.ranked)}

    def rank(self, unlabeled: list[str], datastore: Any, device: str | None) -> list[str]:
        """The unlabeled studies in their order; those that cannot be read are last."""
        studies = {str(datastore.get_image_uri(study)): study for study in unlabeled}
        labeled = [{key: case[key] for key in ("image", "label")} for case in datastore.datalist()]
        with tempfile.TemporaryDirectory() as folder:
            lists = {"training": labeled, "unlabeled": [{"image": image} for image in studies]}
            Path(folder, "dataset.json").write_text(json.dumps(lists), encoding="utf-8")
            command = [sys.executable, "-m", "tools.active.rank", "--runs", str(self.bundle / "models" / "model.pt")]
            command += ["--dataset_dir", folder, "--output_dir", folder, "--num_labeled", str(len(labeled))]
            command += ["--strategy", self.name, "--pictures", "false", *(["--device", device] if device else [])]
            done = subprocess.run(command, cwd=self.repository, capture_output=True, text=True)
            table = Path(folder, "ranking.csv")
            if not table.is_file():
                raise RuntimeError(f"the studies cannot be ranked: {done.stderr.strip()}")
            with table.open(newline="", encoding="utf-8") as file:
                return [studies[row["image"]] for row in csv.DictReader(file)]


class SemiSupervisedTrain(BundleTrainTask):
    """Trains the bundle on the labeled studies, with all other studies of the datastore as unlabeled data."""

    def __call__(self, request: dict[str, Any], datastore: Any) -> dict[str, Any]:
        self.unlabeled = [{"image": datastore.get_image_uri(study)} for study in datastore.get_unlabeled_images()]
        return super().__call__(request, datastore)

    def _update_overrides(self, overrides: dict[str, Any]) -> dict[str, Any]:
        logger.info("Training with %d unlabeled studies", len(self.unlabeled))
        if self.unlabeled:
            overrides["train#unlabeled_dataset#data"] = self.unlabeled
        return overrides


class SemiSupervisedApp(bundle_app.MyApp, MONAILabelApp):
    """The app monaibundle with the strategies and the training above.

    ``--conf repository DIR`` names the repository.
    """

    def init_trainers(self) -> dict[str, Any]:
        return {name: SemiSupervisedTrain(self.models[name], self.conf) for name in super().init_trainers()}

    def init_strategies(self) -> dict[str, Strategy]:
        repository = Path(self.conf.get("repository", ""))
        if not (repository / "tools" / "active" / "rank.py").is_file():
            raise RuntimeError(f"--conf repository is {repository}: give the root of the bundle's repository.")
        strategies = super().init_strategies()
        model, bundle = next(iter(self.models.items()))
        for name in STRATEGIES:
            strategies[name] = Ranking(self, name, model, Path(bundle), repository)
        return strategies
