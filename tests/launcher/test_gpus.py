"""Which GPUs get a worker, by the settings; on machines with NVIDIA's driver, what it lists."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from launcher.children import StartFailed
from launcher.gpus import assigned

HERE = shutil.which("nvidia-smi")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("0", ["0"]),
        ("0,1", ["0", "1"]),
        (" 1 , GPU-8f3c2a1e ", ["1", "GPU-8f3c2a1e"]),
        ("MIG-aa,MIG-bb", ["MIG-aa", "MIG-bb"]),
        ("0,-1,2", ["0"]),
        ("none", []),
    ],
)
def test_the_setting_names_the_gpus(value: str, expected: list[str]) -> None:
    assert assigned({"AMAML_GPUS": value, "CUDA_VISIBLE_DEVICES": "7"}) == expected


def test_no_gpu_gets_two_workers() -> None:
    with pytest.raises(StartFailed, match="AMAML_GPUS=0,1,0 names GPU 0 twice: name each GPU once"):
        assigned({"AMAML_GPUS": "0,1,0"})


@pytest.mark.skipif(HERE is not None, reason="this machine has an NVIDIA driver")
@pytest.mark.parametrize("visible", [{}, {"CUDA_VISIBLE_DEVICES": "0"}, {"AMAML_GPUS": ""}])
def test_without_a_driver_there_are_none(visible: dict[str, str]) -> None:
    assert assigned(visible) == []


@pytest.mark.cuda
@pytest.mark.skipif(HERE is None, reason="this machine has no NVIDIA driver")
def test_the_driver_names_those_that_nvidia_smi_lists() -> None:
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=True).stdout
    found = assigned({})
    assert found
    assert all(uuid in listed for uuid in found)
    assert assigned({"CUDA_VISIBLE_DEVICES": ""}) == []
    assert assigned({"CUDA_VISIBLE_DEVICES": "0"}) == ["0"]
