"""Launch: torchrun with the exit status of the process that failed, and without a traceback unless it was killed.

python -m scripts.launch --standalone --nproc_per_node=8 -m monai.bundle run inference ...
"""

import logging
import sys

from torch.distributed import run
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

if __name__ == "__main__":
    logging.getLogger("torch.distributed.elastic.multiprocessing.api").setLevel(logging.CRITICAL)
    try:
        run.main()
    except ChildFailedError as error:
        status = error.get_first_failure()[1].exitcode
        if status < 0:
            raise
        sys.exit(status)
