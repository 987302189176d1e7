"""The `amaml` command."""

from __future__ import annotations

import sys
from typing import cast

import typer

from amaml_client.cli.app import app
from amaml_client.cli.output import complain
from amaml_client.errors import AmamlError

# Click's UsageError, of which typer keeps its own copy without a public name.
_UsageError = cast("type[Exception]", typer.BadParameter.__base__)


def main() -> None:
    """Exit codes: 0 good, 1 the job failed or was cancelled, 2 usage, 3 server unreachable, 4 refused."""
    try:
        sys.exit(app(standalone_mode="--json" not in sys.argv))  # alone, it would tell usage errors as text
    except (AmamlError, OSError, _UsageError) as error:
        sys.exit(complain(error))
