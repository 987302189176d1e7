"""All benchmarks, one after another, each in a process of its own, then figures and tables: what `make bench` runs."""

from __future__ import annotations

import subprocess
import sys
import time

BENCHMARKS = ("speed", "memory", "scaling", "work_precision", "adjoints", "stress", "tails", "conv4")

for name in (*BENCHMARKS, "plots", "tables"):
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], check=True)
    print(f"{name}: {time.perf_counter() - begin:.0f} s", flush=True)
