"""Launch: torchrun that ends with the exit status of the process that failed, and without a traceback of its own.

python -m scripts.launch --standalone --nproc_per_node=8 -m monai.bundle run inference ...
"""

from __future__ import annotations

import logging
import sys

from torch.distributed import run
from torch.distributed.elastic.multiprocessing import api
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError


def main() -> None:
    """Does what torchrun does; one that was killed, whose message nobody could write, is still reported as there."""
    logging.getLogger(api.__name__).setLevel(logging.CRITICAL)
    try:
        run.main()
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        if failure.exitcode < 0:
            raise
        sys.exit(failure.exitcode)


if __name__ == "__main__":
    main()
