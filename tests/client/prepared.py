"""Runs the `amaml` command in forks of itself, which have all imports done (see tests.client.commands.Prepared).

An order is a line of JSON on standard input; the line that answers it is the command's exit status.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import Any

from amaml_client.cli import main


def obey(order: dict[str, Any]) -> None:
    """Becomes the command; doesn't return."""
    signal.alarm(order["seconds"])
    os.environ.clear()
    os.environ.update(order["environment"])
    os.chdir(order["folder"])
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for descriptor, path in ((1, order["stdout"]), (2, order["stderr"])):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    sys.argv = ["amaml", *order["arguments"]]
    sys.exit(main())  # type: ignore[func-returns-value]  # as the installed script does


if __name__ == "__main__":
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            obey(json.loads(line))
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)
