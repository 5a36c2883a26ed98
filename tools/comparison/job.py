"""Job: a command as submitit runs it on a cluster's machine, which has no need of torch and MONAI for that."""

import os
import shlex
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from typing import Any


class Job:
    """A command as submitit takes it: when the job's time is over, the command is ended and the job queued again."""

    def __init__(self, command: Sequence[str]) -> None:
        self.command = list(command)
        self.process: subprocess.Popen | None = None

    def __call__(self) -> None:
        self.process = subprocess.Popen(self.command, stdin=subprocess.DEVNULL)
        if status := self.process.wait():
            raise RuntimeError(f"exit status {status} of {shlex.join(self.command)}")

    def checkpoint(self) -> Any:
        """Called by submitit before the job is stopped; started again, the command goes on from its checkpoint."""
        import submitit

        if self.process is not None:
            self.process.terminate()
            # A signal handler calls this within the wait above, whose lock Popen.wait would wait for without end.
            with suppress(ChildProcessError):
                os.waitpid(self.process.pid, 0)
        return submitit.helpers.DelayedSubmission(Job(self.command))
