"""Summary: what a data set has become: scans and patients of each list, classes, and patients that lists may share."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scripts.data import DataError
from scripts.data.contents import Contents, inspect, inspect_once
from scripts.data.unlikely import Label, unlikely_labels

from .declared import class_names
from .every_case import for_every_case
from .splits import Split, patient_of

ROLES = ("labeled", "unlabeled", "validation", "test")
LISTED = 3
# Ends of names that tell scans of one patient apart: _t1, -visit2, _ses-01, _baseline, _followup, _pre, ...
TIME = re.compile(
    r"(?:[_\-. ]|(?<=\d))"
    r"(?:(?:t|tp|time|timepoint|visit|v|ses|session|scan|fu|follow[_\-]?up|week|wk|month|year|day)[_\-]?\d+"
    r"|baseline|bl|pre|post|preop|postop|follow[_\-]?up|(?:19|20)\d{6})$",
    re.IGNORECASE,
)
# A scan's number behind that of a patient: p01_2.
NUMBER = re.compile(r"(?<=\d)[_\-]\d{1,2}$")
SUBJECT = re.compile(r"^(sub-[A-Za-z0-9]+)(?=_)")


def counts(split: Split, patient_pattern: str | None) -> str:
    """The counts of a split, in words; with those of the patients where these are fewer than the scans."""
    parts = []
    for role in ROLES:
        cases = getattr(split, role)
        patients = len({patient_of(case.name, patient_pattern) for case in cases})
        parts.append(f"{len(cases)} {role}" + (f" ({patients} patients)" if patients < len(cases) else ""))
    text = ", ".join(parts)
    if split.left_out:
        text += f"; {len(split.left_out)} unlabeled scans of validation or test patients are left out"
    return text


def classes(split: Split, entries: Mapping[str, Mapping[str, Any]], header: dict[str, Any]) -> list[str]:
    """One line for each list with labels: how many of its cases have each class.

    Args:
        split: see there.
        entries: files of every case; labels are read.
        header: of dataset.json, for the names of the classes.
    """
    lines = []
    for role in ("labeled", "validation", "test"):
        labels = [entries[case.name]["label"] for case in getattr(split, role)]
        values = Counter(value for own in label_values(labels) for value in own)
        if values:
            names = class_names(header, max(values)) or []
            called = {v: names[v - 1] if v <= len(names) else f"class {v}" for v in sorted(values)}
            counted = ", ".join(f"{name}: {values[v]} of {len(labels)}" for v, name in called.items())
            lines.append(f"{role} cases: {counted}")
    return lines


def label_values(labels: Sequence[Path]) -> list[list[int]]:
    """The values above 0 of every label file that can be read."""
    return [[int(value) for value in label.values if value > 0] for label in _read(labels)]


def out_of_line(entries: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A warning for each label that is unlike the others.

    Args:
        entries: files of every case.
    """
    labels = _read([entry["label"] for entry in entries.values() if "label" in entry])
    return [f"warning: {problem}" for problem in unlikely_labels([Label(label) for label in labels])]


def _read(labels: Sequence[Path]) -> list[Contents]:
    """What is in every label file that can be read; none is read twice in one process."""
    files = [(str(path), True) for path in labels]
    found = inspect_once(files, inspect_all=lambda new: for_every_case(inspect, new))
    return [finding for finding in map(found.get, files) if isinstance(finding, Contents)]


def check_class_names(names: Sequence[str], entries: Mapping[str, Mapping[str, Any]]) -> None:
    """Raises DataError unless there is a name of its own for every label value.

    Args:
        names: of the values 1, 2, ...
        entries: files of every case.
    """
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise DataError(f"class_names has {twice[0]!r} twice: give each class a name of its own.")
    values = {v for own in label_values([e["label"] for e in entries.values() if "label" in e]) for v in own}
    if values and max(values) > len(names):
        raise DataError(
            f"class_names has {len(names)} names ({', '.join(names)}) and the labels have the values {sorted(values)}: "
            "name the values 1, 2, ..., or renumber them with --label_map."
        )


def separated(split: Split, patient_pattern: str | None) -> list[str]:
    """A warning where two scans whose names look like one patient's are in training and held out, or in both of those.

    Nothing is said with a ``patient_pattern``, which keeps a patient together.
    """
    if patient_pattern is not None:
        return []
    sides = {
        case.name: "training" if role in ("labeled", "unlabeled") else role
        for role in ROLES
        for case in getattr(split, role)
    }
    for find, pattern in ((SUBJECT, "^(sub-[A-Za-z0-9]+)"), (TIME, None), (NUMBER, "^(.+?)(?:[_-][0-9]{1,2})?$")):
        groups: dict[str, list[str]] = {}
        for name in sides:
            found = find.search(name)
            if found:
                groups.setdefault(found.group(1) if find is SUBJECT else name[: found.start()], []).append(name)
        for stem, names in groups.items():
            names += [stem] if stem in sides else []
        # One stem for nearly all names is the data set's.
        several = {stem: names for stem, names in groups.items() if stem and len(names) > 1}
        if not several or len(several) < 2 <= len(groups) or max(map(len, several.values())) > len(sides) / 2:
            continue
        apart = [names for names in several.values() if len({sides[name] for name in names}) > 1]
        if apart:
            first, second = next((a, b) for a in apart[0] for b in apart[0] if sides[a] != sides[b])
            remedy = pattern or _pattern_of(list(groups.values()))
            return [
                f"warning: {first} ({sides[first]}) and {second} ({sides[second]}) look like scans of "
                f"one patient ({len(apart)} such groups); if they are, results on them say nothing: keep them together "
                f'by --patient_pattern, such as "{remedy}"'
            ]
    return []


def _pattern_of(groups: Sequence[Sequence[str]]) -> str:
    """A patient_pattern that takes the patient out of names that end in a time."""
    ends = {
        re.sub(r"\d+", r"[0-9]+", re.escape(found.group(0))) for g in groups for n in g if (found := TIME.search(n))
    }
    return f"^(.+?)(?:{'|'.join(sorted(ends))})?$"
