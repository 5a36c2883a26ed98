"""Gradients: what each term of DBiSL asks of the network at some points of a labels-only training.

    python -m benchmarks.gradients --dataset_dir DIR --output_dir DIR

At every checkpoint, for fixed batches and several forms of the terms: the norm of the term's gradient on the weights,
its cosine with the gradient of the segmentation loss on held-out labeled crops (positive: the term helps there), the
change of that held-out loss after one step of equal length along the term alone, and the share of the heads' voxels
that carry the gradient: (sum |g|)^2 / (n sum g^2), 1 if all do alike and 1/n if one does. Writes gradients.csv.
"""

from __future__ import annotations

import csv
import logging
from pathlib import Path
from typing import Any

import fire
import torch
from ignite.engine import Events

from benchmarks.dynamics import parse
from scripts.methods.losses import segmentation_loss

LEFT_ATRIUM = {
    "spacing": [2.5, 2.5, 2.5],
    "patch_size": [32, 32, 16],
    "stride": [16, 16, 8],
    "num_labeled": 8,
    "base_filters": 8,
}
CASCADE = {"distance_transform": {"_target_": "scripts.distance.CascadedDistance"}}
EXTREMA = {"segmentation_to_distance#detach_extrema": False}
FORMS: dict[str, dict[str, Any]] = {
    "cascade": {**CASCADE, **EXTREMA, "objective#r2s_cross_entropy": True},
    "cascade, extrema detached": {**CASCADE, "objective#r2s_cross_entropy": False},
    "exact": {**EXTREMA},
    "exact, extrema detached": {},
}
# A form changes these terms alone; the others are measured once, with the first.
FORM_TERMS = {"supervised_s2r", "consistency_s2r", "supervised_r2s"}
STEP = 0.05


def flat(gradients: tuple[torch.Tensor | None, ...], weights: list[torch.Tensor]) -> torch.Tensor:
    """One vector of all gradients, zeros where a weight has none."""
    return torch.cat([(torch.zeros_like(w) if g is None else g).flatten() for g, w in zip(gradients, weights)])


def shift(weights: list[torch.Tensor], direction: torch.Tensor) -> None:
    """Adds ``direction``, flat, to the weights in place."""
    with torch.no_grad():
        for weight, part in zip(weights, direction.split([w.numel() for w in weights])):
            weight += part.view_as(weight)


def carrying_share(value: torch.Tensor, heads: dict[str, torch.Tensor]) -> float:
    """Share of the voxels of those heads that ``value`` depends on, by how evenly they carry its gradient."""
    gradients = torch.autograd.grad(value, list(heads.values()), retain_graph=True, allow_unused=True)
    sizes = torch.cat([g.abs().flatten() for g in gradients if g is not None]).double()
    return (sizes.sum() ** 2 / (len(sizes) * (sizes**2).sum())).item()


def main(
    dataset_dir: str,
    output_dir: str,
    checkpoints: tuple[int, ...] = (0, 100, 400, 800),
    batches: int = 16,
    dropout: float = 0.0,
    seed: int = 0,
    threads: int = 1,
) -> None:
    """Trains labels-only to the last of ``checkpoints`` and measures at each.

    Args:
        dataset_dir: the left atrium's folder; labeled 0-7, unlabeled 8-55, held out 56-63.
        output_dir: receives gradients.csv.
        checkpoints: iterations.
        batches: fixed batches to average over.
        dropout: of the network; with the papers' 0.5 the cosines are of its noise.
        seed: of the training and of the batches.
        threads: CPU threads.
    """
    logging.disable(logging.INFO)
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    common = {
        **LEFT_ATRIUM,
        "normalization": "batch",  # as in docs/methods/dbisl.md
        "dropout": dropout,
        "dataset_dir": dataset_dir,
        "output_dir": output_dir,
        "ckpt_dir": f"{output_dir}/models",
        "seed": seed,
    }
    data = parse(["configs/train.json"], {**common, "splits": {"training": [0, 56]}})
    held_out = parse(["configs/train.json"], {**common, "splits": {"training": [56, 64]}})
    streams = [data.get_parsed_content(f"train#{name}") for name in ("dataloader", "unlabeled_dataloader")]
    streams.append(held_out.get_parsed_content("train#dataloader"))
    # Far along the streams, where the training below never comes.
    for stream in streams:
        stream.batch_sampler.start = 10**6
    fixed = [batch for _, batch in zip(range(batches), zip(*streams))]

    off = {f"objective#weights#{term}": 0 for term in data["objective"]["weights"] if term != "supervised_segmentation"}
    labels_only = {
        "splits": {"training": [0, 56]},
        "max_iterations": max(checkpoints),
        "unlabeled_batch_size": 0,
        **off,
    }
    trainer = parse(["configs/train.json"], {**common, **labels_only}).get_parsed_content("train#trainer")
    network = trainer.network
    weights = list(network.parameters())
    objectives: dict[str, Any] = {
        form: parse(["configs/train.json"], {**common, "splits": {"training": [0, 56]}, **overrides})
        for form, overrides in FORMS.items()
    }
    objectives = {form: parser.get_parsed_content("objective") for form, parser in objectives.items()}
    rows: list[dict[str, Any]] = []

    def held_out_loss(batch: dict[str, torch.Tensor]) -> torch.Tensor:
        heads = network.forward_heads(batch["image"])
        label = objectives["exact"].label_coding.encode(batch["label"])
        return segmentation_loss(heads["logits_phi"], label) + segmentation_loss(heads["logits_psi"], label)

    def measure_batch(labeled: dict, unlabeled: dict, other: dict, results: dict[tuple[str, str], list]) -> None:
        torch.manual_seed(seed)
        before = held_out_loss(other)
        goal = flat(torch.autograd.grad(before, weights, allow_unused=True), weights)
        heads = network.forward_heads(torch.cat([labeled["image"], unlabeled["image"]]))
        for number, (form, objective) in enumerate(objectives.items()):
            terms = objective(heads, {"label": labeled["label"]}, 0).terms
            for term, value in terms.items():
                if number and term not in FORM_TERMS:
                    continue
                gradient = flat(torch.autograd.grad(value, weights, retain_graph=True, allow_unused=True), weights)
                norm = gradient.norm()
                results.setdefault((term, form), []).append(
                    (
                        norm.item(),
                        torch.dot(gradient / norm, goal / goal.norm()).item(),
                        gradient / norm,
                        carrying_share(value, heads),
                    )
                )
        for entries in results.values():
            norm, cosine, direction, share = entries[-1]
            shift(weights, -STEP * direction)
            torch.manual_seed(seed)
            with torch.no_grad():
                change = (held_out_loss(other) - before).item()
            shift(weights, STEP * direction)
            entries[-1] = (norm, cosine, change, share)

    def measure(iteration: int) -> None:
        state = {name: value.clone() for name, value in network.state_dict().items()}
        network.train()
        results: dict[tuple[str, str], list] = {}
        for labeled, unlabeled, other in fixed:
            measure_batch(labeled, unlabeled, other, results)
        network.load_state_dict(state)
        for (term, form), entries in results.items():
            norm, cosine, change, share = (sum(column) / len(entries) for column in zip(*entries))
            rows.append(
                {
                    "iteration": iteration,
                    "term": term,
                    "form": form if term in FORM_TERMS else "",
                    "norm": round(norm, 3),
                    "cosine": round(cosine, 3),
                    "held_out_change": round(change, 5),
                    "carrying_share": round(share, 4),
                }
            )

    measure_at = set(checkpoints)
    if 0 in measure_at:
        measure(0)
    for iteration in sorted(measure_at - {0}):
        trainer.add_event_handler(Events.ITERATION_COMPLETED(once=iteration), lambda _, i=iteration: measure(i))
    trainer.run()
    path = Path(output_dir) / "gradients.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    for row in rows:
        print(*row.values(), sep="\t")


if __name__ == "__main__":
    fire.Fire(main)
