"""One job from submission to download with the Python SDK: python examples/submit.py [SPEC [OUTPUT]]

Needs a running service (`make up`). `amaml_client.AsyncClient` has the same calls for asyncio.
"""

from __future__ import annotations

import sys
from pathlib import Path

from amaml_client import Client, read_spec


def main(spec: str, output: str) -> None:
    with Client() as client:
        job = client.submit(read_spec(spec).spec)
        print(f"submitted: job {job.id}")
        for event in client.stream(job.id):
            if event.kind == "progress":
                print(f"{event.data['phase']} {event.data['iteration']}/{event.data['iterations']}")
        job = client.wait(job.id).check()  # raises JobFailed or JobCancelled, with the reason
        print({name: value for name, value in job.metrics.items() if name.startswith("nrmse")})
        print(f"{client.download(job.id, output)}: sha256 {job.initialization.sha256} verified")


if __name__ == "__main__":
    given = dict(enumerate(sys.argv))
    main(given.get(1, str(Path(__file__).with_name("sinusoid.json"))), given.get(2, "init.safetensors"))
