"""Uploads your own table and trains on it: python examples/table.py

It needs a running service (`make up`). The table has sixty sensors; the reading of each is a different linear function of the
temperature.
"""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

from amaml_client import Client


def table() -> str:
    lines = ["sensor,place,temperature,reading"]
    for sensor in range(60):
        slope = 1 + math.sin(7 * sensor)
        for row in range(20):
            temperature = 15 + 15 * math.sin(20 * sensor + 3 * row)
            place = "in" if row % 2 else "out"
            lines.append(f"s{sensor},{place},{temperature:.3f},{50 + slope * temperature:.4f}")
    return "\n".join(lines) + "\n"


def main() -> None:
    with Client() as client:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "sensors.csv"
            file.write_text(table())
            dataset = client.upload_dataset(file, name="sensors")
        family = {
            "kind": "table",
            "dataset": dataset.id,
            "task": "sensor",
            "inputs": ["temperature", "place"],
            "targets": ["reading"],
            "shots": 5,
            "queries": 10,
        }
        job = client.submit(
            {
                "name": "sensors, 5 readings of each",
                "family": family,
                "trajectory": {"length": 1.0},
                "solver": {"kind": "euler", "step": 0.05},
                "meta": {"iterations": 200, "tasks_per_batch": 8, "optimizer": {"lr": 3e-3}},
                "evaluation": {"every": 200, "epochs": 100},
            }
        )
        job = client.wait(job.id).check()
        print({name: value for name, value in job.metrics.items() if name.startswith("nrmse")})


if __name__ == "__main__":
    main()
