"""Runs the CUDA tests and the benchmarks that lie beside this file: `python3 run.py`, by a Python that has PyTorch.

Needs no network and installs nothing: all is unpacked into a temporary folder. Only the kernels that are compiled stay, where
that Python lies. The JSON of the results is written into the folder that this is called in, unless --output names another.
--checkout FOLDER runs that checkout of the project instead of the one that came along. The other options are those of
`python -m benchmarks.gpu`.
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
        return told(f"these packages are for {', '.join(sorted(archives)) or 'nothing'}, and this is {this}: make"
                    " gpu-bundle GPU_PYTHON=… packs others")  # fmt: skip
    if importlib.util.find_spec("torch") is None:
        return told(f"{sys.executable} has no PyTorch: call this by a Python that has")
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


def told(sentence: str) -> int:
    print(sentence, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
