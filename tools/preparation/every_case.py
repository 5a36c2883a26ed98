"""Every case: applies a function to all cases, several at a time, and reports all that failed together."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from tqdm import tqdm

from scripts.data import DataError
from scripts.data.checks import raise_all

Case = TypeVar("Case")
Found = TypeVar("Found")


def for_every_case(function: Callable[[Case], Found], cases: Sequence[Case]) -> list[Found]:
    """``function`` of every case, in their order, with a progress bar where that takes longer than a second.

    A case that fails does not stop the others, so that one attempt shows all that is wrong.

    Raises:
        DataError: naming every case that cannot be used.
    """

    def attempt(case: Case) -> Found | DataError:
        try:
            return function(case)
        except DataError as error:
            return error

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        outcomes = list(tqdm(pool.map(attempt, cases), total=len(cases), desc="volumes", delay=1))
    errors = [str(outcome) for outcome in outcomes if isinstance(outcome, DataError)]
    raise_all(errors, f"{len(errors)} of {len(cases)} cases cannot be used")
    return [outcome for outcome in outcomes if not isinstance(outcome, DataError)]
