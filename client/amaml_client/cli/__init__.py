"""The `amaml` command."""

from __future__ import annotations

import sys

from amaml_client.cli.app import app
from amaml_client.cli.output import complain
from amaml_client.errors import AmamlError


def main() -> None:
    """Exit codes: 0 good, 1 the job failed or was cancelled, 2 usage, 3 server unreachable, 4 refused."""
    try:
        app()
    except (AmamlError, OSError) as error:
        sys.exit(complain(error))
