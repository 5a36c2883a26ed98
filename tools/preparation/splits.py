"""Splits: divides patients, not scans, into labeled, unlabeled, validation and test, and into folds."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from scripts.data import DataError

from .pairing import CaseFiles


@dataclass
class Split:
    """Cases by role. No patient of ``validation`` or ``test`` is in another list."""

    labeled: list[CaseFiles] = field(default_factory=list)
    unlabeled: list[CaseFiles] = field(default_factory=list)
    validation: list[CaseFiles] = field(default_factory=list)
    test: list[CaseFiles] = field(default_factory=list)
    left_out: list[CaseFiles] = field(default_factory=list)  # without label, of a patient of validation or test


def patient_of(name: str, pattern: str | None) -> str:
    """The patient of a case: its name, or what ``pattern`` finds there (its first group, if it has one).

    Raises:
        DataError: when the pattern is no regular expression or finds nothing.
    """
    if pattern is None:
        return name
    try:
        found = re.search(pattern, name)
    except re.error as error:
        raise DataError(f"patient_pattern {pattern!r} is no regular expression ({error}).") from None
    if found is None:
        raise DataError(f"patient_pattern {pattern!r} finds nothing in the case name {name!r}: make it fit all names.")
    return found.group(1) if found.groups() else found.group(0)


def count_of(value: int | float, total: int, name: str) -> int:
    """A number of patients, given as such or as a fraction of ``total``.

    Raises:
        DataError: when it is negative, above the total, or neither an integer nor a fraction.
    """
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if is_number and 0 < value < 1:
        return max(1, round(value * total))
    if not is_number or value != int(value) or not 0 <= value <= total:
        raise DataError(
            f"{name} is {value!r}; it must be a number of patients from 0 to {total} (those with a label), "
            "or a fraction between 0 and 1."
        )
    return int(value)


def split_cases(
    cases: Sequence[CaseFiles],
    *,
    labeled: int | float | None,
    validation: int | float,
    test: int | float,
    seed: int,
    patient_pattern: str | None = None,
) -> Split:
    """Draws patients with a label for test, validation and training, in this order, from one seeded shuffle.

    So a larger ``labeled`` adds patients to the list and changes neither its beginning nor the other two lists.
    Scans without a label are unlabeled, unless their patient is in validation or test: then they are left out, since
    a network that has seen a patient is not tested on a new one. Patients with a label beyond ``labeled`` become
    unlabeled.

    Args:
        cases: with unique names.
        labeled: patients, or a fraction of those with a label; None for all that are left.
        validation: patients or fraction.
        test: patients or fraction.
        seed: of the shuffle.
        patient_pattern: see :func:`patient_of`.

    Raises:
        DataError: when the counts exceed the patients with a label, or leave none for training.
    """
    patients = {case.name: patient_of(case.name, patient_pattern) for case in cases}
    with_label = sorted({patients[case.name] for case in cases if case.label})
    total = len(with_label)
    num_test, num_validation = count_of(test, total, "test"), count_of(validation, total, "validation")
    rest = total - num_test - num_validation
    num_labeled = rest if labeled is None else count_of(labeled, total, "labeled")
    if num_labeled < 1 or num_labeled > rest:
        raise DataError(
            f"{total} patients have a label; test takes {num_test}, validation {num_validation} and labeled "
            f"{num_labeled}: at least one must be labeled and the three must not exceed {total}. Lower one of them."
        )
    order = [with_label[i] for i in np.random.default_rng(seed).permutation(total)]
    held_out = {patient: "test" for patient in order[:num_test]}
    held_out.update({patient: "validation" for patient in order[num_test : num_test + num_validation]})
    training = order[num_test + num_validation :][:num_labeled]
    position = {patient: i for i, patient in enumerate(order)}
    split = Split()
    for case in sorted(cases, key=lambda case: (position.get(patients[case.name], total), case.name)):
        patient = patients[case.name]
        if patient in held_out:
            (getattr(split, held_out[patient]) if case.label else split.left_out).append(case)
        else:
            (split.labeled if case.label and patient in training else split.unlabeled).append(case)
    return split


def fold_splits(split: Split, folds: int, *, patient_pattern: str | None = None) -> list[Split]:
    """Splits that each hold another part of the labeled patients out for validation; test and unlabeled stay.

    Unlabeled scans of the patients that a fold holds out are left out of that fold.

    Raises:
        DataError: when there are fewer labeled patients than folds, or fewer than two folds.
    """
    patients = list(dict.fromkeys(patient_of(case.name, patient_pattern) for case in split.labeled))
    if isinstance(folds, bool) or not isinstance(folds, int) or not 2 <= folds <= len(patients):
        raise DataError(f"folds is {folds!r}; it must be from 2 to {len(patients)}, the number of labeled patients.")
    result = []
    for fold in range(folds):
        held_out = set(patients[fold::folds])  # the list is shuffled already

        def out(case: CaseFiles, held_out: set[str] = held_out) -> bool:
            return patient_of(case.name, patient_pattern) in held_out

        result.append(
            Split(
                labeled=[case for case in split.labeled if not out(case)],
                unlabeled=[case for case in split.unlabeled if not out(case)],
                validation=[case for case in split.labeled if out(case)],
                test=split.test,
                left_out=[*split.left_out, *(case for case in split.unlabeled if out(case))],
            )
        )
    return result
