"""The table of a study: shares of the gap, differences and surface distances from cases.csv."""

import csv

import pytest

from benchmarks.gap import gap

COLUMNS = ["arm", "num_labeled", "draw", "seed", "list", "case", "class", "masks", "dice", "hd95_mm", "asd_mm"]


def write_cases(path, dice, *, distance="2"):
    """``dice``: (arm, labels, draw) -> Dice of the cases; two classes, 0.1 above and below."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for (arm, labels, draw), values in dice.items():
            for case, value in enumerate(values):
                for name, offset in (("a", -0.1), ("b", 0.1)):
                    row = [arm, labels, draw, 0, "test", case, name, "network", value + offset, distance, "0.5"]
                    writer.writerow(row)
            writer.writerow([arm, labels, draw, 0, "validation", 0, "a", "network", 0, "99", "99"])


@pytest.fixture
def study(tmp_path):
    path = tmp_path / "cases.csv"
    write_cases(
        path,
        {
            ("supervised", 2, 0): [0.50, 0.52, 0.48, 0.50],
            ("supervised", 2, 1): [0.51, 0.50, 0.50, 0.53],
            ("bcp", 2, 0): [0.62, 0.63, 0.61, 0.62],
            ("bcp", 2, 1): [0.64, 0.63, 0.62, 0.63],
            ("all_labels", 160, 0): [0.75, 0.75, 0.75, 0.75],
        },
    )
    return path


def rows_of(text):
    return {line.split(" | ")[0].strip("| "): line.split(" | ") for line in text.splitlines() if line.startswith("|")}


def test_the_share_is_of_the_room_between_baseline_and_ceiling(study, tmp_path, capsys):
    gap(str(study), 2, picture=str(tmp_path / "gap.png"))
    rows = rows_of(capsys.readouterr().out)
    # Means over both draws: 0.505, 0.625 and 0.75.
    assert rows["bcp"][1:3] == ["0.620, 0.630", "0.6250"]
    assert rows["bcp"][3].startswith("+0.1200")
    assert rows["bcp"][6].startswith("49 %")
    assert rows["bcp"][7:] == ["2.00", "0.50 |"]
    assert (tmp_path / "gap.png").stat().st_size > 1000


def test_a_later_file_adds_arms_and_its_missing_distances_stay_out_of_the_mean(study, tmp_path, capsys):
    more = tmp_path / "more.csv"
    write_cases(more, {("dbisl", 2, 0): [0.55, 0.57, 0.55, 0.53]}, distance="nan")
    with pytest.warns(RuntimeWarning):
        gap([str(study), str(more)], 2)
    rows = rows_of(capsys.readouterr().out)
    # On draw 0 alone: 0.55 against 0.50, of a room of 0.25.
    assert rows["dbisl"][3].startswith("+0.0500")
    assert rows["dbisl"][6].startswith("20 %")
    assert rows["dbisl"][7] == "nan"
