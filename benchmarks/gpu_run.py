"""Runs the CUDA tests and the benchmarks packed next to this file: `python3 run.py`, with a Python that has PyTorch.

It needs no network and installs nothing: everything is unpacked into a temporary folder. Only the compiled kernels remain, in the
environment of that Python. The JSON of the results is written to the working folder, or to the one in --output. --checkout FOLDER
uses another checkout of the project instead of the packed one. The other options are those of `python -m benchmarks.gpu`.
"""

import argparse
import importlib.util
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkout", type=Path, help="another checkout of the project")
    parser.add_argument("--output", type=Path, default=Path.cwd(), help="folder of the JSON")
    given, others = parser.parse_known_args()
    archives = {archive.name.removesuffix(".tar.xz"): archive for archive in HERE.glob("python*.tar.xz")}
    this = f"python{sys.version_info.major}.{sys.version_info.minor}"
    if this not in archives:
        return failed(f"these packages are for {', '.join(sorted(archives)) or 'nothing'}, and this is {this}: make"
                      " gpu-bundle GPU_PYTHON=… packs others")  # fmt: skip
    if importlib.util.find_spec("torch") is None:
        return failed(f"{sys.executable} has no PyTorch: run this with a Python that has it")
    with tempfile.TemporaryDirectory(prefix="amaml-gpu-") as place:
        with tarfile.open(archives[this]) as archive:
            archive.extractall(place, filter="data")
        checkout = given.checkout.resolve() if given.checkout else Path(place) / "checkout"
        paths = [str(Path(place) / "packages"), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
        modules = (["amaml.kernel.build"], ["benchmarks.gpu", "--output", str(given.output.resolve()), *others])
        for module in modules:
            done = subprocess.run([sys.executable, "-m", *module], cwd=checkout, env=environment, check=False)
            if done.returncode:
                return done.returncode
    return 0


def failed(sentence: str) -> int:
    print(sentence, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
