"""`python -m worker.health`: exit status 0 if a worker lives on this host, as the database knows it; for health checks."""

from __future__ import annotations

import socket
import sys

from service.core.database import transaction
from service.workers import store as workers
from service.workers.tables import LIVE_WITHIN


def main() -> None:
    host = socket.gethostname()
    with transaction() as session:
        if not workers.any_on(session, host):
            sys.exit(f"no worker on {host} has been seen within {LIVE_WITHIN.seconds} s")


if __name__ == "__main__":
    main()
