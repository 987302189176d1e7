"""Packs all that a machine with a GPU and PyTorch but without a network needs: `make gpu-bundle`, or `python -m
benchmarks.gpu_bundle`.

The folder holds two files: an archive of this working tree and of the packages of `requirements-gpu.txt` as they are when
installed, for one version of Python on Linux x86-64; and `run.py`, which runs it. The packages' own wheels would be too large
together: so packed they take two thirds of that.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent
MIB = 2**20
LARGEST = 50 * MIB
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")


def copy_working_tree(to: Path) -> None:
    """All files that git tracks or would track."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout.split("\0")
    for name in filter(None, names):
        if (ROOT / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, to / name)


def install(checkout: Path, python: str, to: Path) -> None:
    """Installs the packages for that Python, and the project with them, so that its metadata are found."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(to), "--no-deps", "--no-compile"]
    wheels = ["--only-binary=:all:", "--implementation", "cp", "--python-version", python]
    wheels += [part for platform in PLATFORMS for part in ("--platform", platform)]
    given = ["-c", str(ROOT / "constraints.txt"), "-r", str(HERE / "requirements-gpu.txt")]
    subprocess.run([*command, *wheels, *given], check=True)
    with tempfile.TemporaryDirectory() as place:  # building leaves files in the tree that is built
        source = shutil.copytree(checkout, Path(place) / "source")
        subprocess.run([*command, str(source)], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_bundle", description="Packs a folder for a GPU.")
    parser.add_argument("--python", default="3.12", help="the other machine's Python")
    parser.add_argument("--output", type=Path, default=ROOT / ".gpu-bundle", help="the folder, which is replaced")
    given = parser.parse_args()
    if not re.fullmatch(r"3\.\d+", given.python):
        parser.error(f"--python {given.python}: a version such as 3.12 is needed")
    with tempfile.TemporaryDirectory() as place:
        content, folder = Path(place) / "content", Path(place) / "folder"
        folder.mkdir()
        copy_working_tree(content / "checkout")
        try:
            install(content / "checkout", given.python, content / "packages")
        except subprocess.CalledProcessError:
            sys.exit(f"pip couldn't get the packages for Python {given.python}: it says above which")
        print("packing takes a minute", flush=True)
        with tarfile.open(folder / f"python{given.python}.tar.xz", "w:xz") as archive:
            for part in sorted(content.iterdir()):
                archive.add(part, part.name)
        shutil.copy2(HERE / "gpu_run.py", folder / "run.py")
        sizes = {file.name: file.stat().st_size for file in folder.iterdir()}
        if sum(sizes.values()) > LARGEST:
            shown = ", ".join(f"{name} {size / MIB:.1f} MiB" for name, size in sizes.items())
            sys.exit(
                f"{shown}: more than the {LARGEST // MIB} MiB that a bundle may have; shorten requirements-gpu.txt"
            )
        shutil.rmtree(given.output, ignore_errors=True)
        shutil.copytree(folder, given.output)
    print(
        f"{given.output}: {sum(sizes.values()) / MIB:.1f} MiB. There: python{given.python} {given.output.name}/run.py"
    )


if __name__ == "__main__":
    main()
