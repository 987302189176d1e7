"""Before torch is imported: on a busy machine its threads are to sleep while they wait, and not to spin."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
