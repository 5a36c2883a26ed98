"""Commands in processes of their own that need not import MONAI again, which takes eight seconds of a core.

Run as a program it imports the libraries, but nothing of the project, and forks once for each command that it is sent.
The forkserver of multiprocessing does not serve: its processes end without ``sys.excepthook`` and ``atexit``, which the
commands use.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import runpy
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn


@functools.cache
def _server() -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment["OMP_NUM_THREADS"] = "1"
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, __file__], env=environment, stdin=pipe, stdout=pipe, text=True, bufsize=1)


def run_forked(
    words: Sequence[str], cwd: Path, environment: Mapping[str, str], timeout: float
) -> subprocess.CompletedProcess[str]:
    """What ``subprocess.run`` returns, of ``python -m WORDS``.

    Args:
        words: a module and its arguments.
        cwd: working directory.
        environment: all variables of the process.
        timeout: seconds after which the process is killed.
    """
    server = _server()
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        request = {"words": [*words], "cwd": str(cwd), "environment": dict(environment), "files": [str(out), str(err)]}
        assert server.stdin is not None and server.stdout is not None
        print(json.dumps({**request, "timeout": timeout}), file=server.stdin, flush=True)
        status = int(server.stdout.readline())
        printed = [file.read_text(encoding="utf-8", errors="replace") for file in (out, err)]
    return subprocess.CompletedProcess([sys.executable, "-m", *words], status, *printed)


def _serve() -> None:
    import monai.bundle  # noqa: F401

    replies = os.dup(1)
    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            _become(request)
        watch = threading.Timer(request["timeout"], os.kill, (child, 9))
        watch.daemon = True
        watch.start()
        _, status = os.waitpid(child, 0)
        watch.cancel()
        os.write(replies, f"{os.waitstatus_to_exitcode(status)}\n".encode())


def _become(request: dict[str, Any]) -> NoReturn:
    """Runs a command as the interpreter would, and ends the process with its status."""
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["cwd"])
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, file in zip((1, 2), request["files"]):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), number)
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = open(2, "w", encoding="utf-8", buffering=1, errors="backslashreplace", closefd=False)
    words = sys.argv = request["words"]
    sys.path[0] = os.getcwd()  # as "python -m" has it, instead of the tests' folder
    status: Any = 0
    try:
        runpy.run_module(words[0], run_name="__main__", alter_sys=True)
    except SystemExit as end:
        status = end.code or 0
        if not isinstance(status, int):
            print(status, file=sys.stderr)
            status = 1
    except BaseException:
        try:
            sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
        except SystemExit as end:
            status = end.code
        else:
            status = 1
    try:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        traceback.print_exc()
    os._exit(status & 0xFF)


if __name__ == "__main__":
    _serve()
