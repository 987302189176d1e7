"""The initialization file: it restores the model, equal contents give equal bytes, damaged files are refused."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from amaml.families.scaling import Scaling
from amaml.models.mlp import MLP
from amaml.registry import build_family, build_model
from amaml.run.initialization import InitializationError, metadata_of, put, read, write
from amaml.run.learned_model import LearnedModel, load
from amaml.spec import CosMixtureSpec, JobSpec, MLPSpec, RuntimeSpec

SPEC = JobSpec(
    family=CosMixtureSpec(dim=2, train_tasks=3, test_tasks=2),
    model=MLPSpec(hidden=[4, 3], activation="softplus"),
    runtime=RuntimeSpec(dtype="float64", seed=5),
)


def theta(dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    torch.manual_seed(1)
    net = MLP(2, [4, 3], 1, "softplus").to(dtype)
    return {name: parameter.detach() for name, parameter in net.named_parameters()}


def metadata(spec: JobSpec = SPEC) -> dict[str, str]:
    family = build_family(spec.family, seed=5, dtype=torch.float64, device=torch.device("cpu"), datasets={})
    return metadata_of(spec, family, 7)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "init.safetensors"
    write(path, theta(), {**metadata(), "job_id": "a job"})
    return path


def test_the_file_alone_rebuilds_the_model(file: Path) -> None:
    model = load(file)
    assert isinstance(model, nn.Module)
    x = torch.randn(5, 2, dtype=torch.float64)
    own = MLP(2, [4, 3], 1, "softplus").double()
    own.load_state_dict(theta())
    assert torch.equal(model(x), own(x))
    learned = LearnedModel.of(model)
    assert learned is not None
    assert learned.module is model
    assert learned.spec == SPEC
    assert isinstance(learned.scaling, Scaling)
    assert learned.inputs == ["x1", "x2"]
    assert (learned.in_features, learned.out_features, learned.iteration) == (2, 1, 7)
    said = learned.metadata
    assert said["job_id"] == "a job"
    assert (said["iteration"], said["seed"], said["spec_sha256"]) == ("7", "5", SPEC.sha256())
    assert set(json.loads(said["versions"])) == {"amaml", "numpy", "python", "safetensors", "torch"}


def test_scaling_survives_to_the_last_bit(file: Path) -> None:
    family = build_family(SPEC.family, seed=5, dtype=torch.float64, device=torch.device("cpu"), datasets={})
    assert LearnedModel.read(file).scaling == family.scaling


def test_any_safetensors_reader_finds_the_parameters(file: Path) -> None:
    tensors = safetensors.torch.load_file(file)
    assert load(file).state_dict().keys() == tensors.keys()
    for name, tensor in theta().items():
        assert torch.equal(tensors[name], tensor)
    offsets = json.loads(file.read_bytes()[8:][: int.from_bytes(file.read_bytes()[:8], "little")])
    assert {entry["dtype"] for name, entry in offsets.items() if name != "__metadata__"} == {"F64"}
    assert (8 + int.from_bytes(file.read_bytes()[:8], "little")) % 8 == 0


def test_equal_contents_are_equal_bytes(tmp_path: Path) -> None:
    files = []
    for number in range(5):
        path = tmp_path / f"{number}.safetensors"
        shuffled = dict(np.random.default_rng(number).permutation(np.array(list(metadata().items()))).tolist())
        write(path, dict(reversed(theta().items())) if number % 2 else theta(), shuffled)
        files.append(path.read_bytes())
    assert len(set(files)) == 1
    assert not list(tmp_path.glob("*.part"))


def flip_a_byte(data: bytes) -> bytes:
    return data[:-9] + bytes([data[-9] ^ 1]) + data[-8:]


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda data: data[:-20], "cut short"),
        (lambda data: data[:5], "cut short"),
        (flip_a_byte, "damaged"),
        (lambda _: b"", "not a safetensors file"),
        (lambda _: b"nothing of the kind" * 100, "not a safetensors file"),
        (lambda _: pickle.dumps({"0.weight": [1.0]}), "not a safetensors file"),
        (lambda _: safetensors.torch.save({"a": torch.ones(2)}), "not one of amaml's"),
    ],
)
def test_damaged_and_foreign_files_are_refused(file: Path, damage: Callable[[bytes], bytes], said: str) -> None:
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(InitializationError, match=said) as caught:
        load(file)
    assert str(file) in str(caught.value)


def test_a_missing_file_is_an_oserror(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "nothing")


def test_a_family_that_is_not_installed_here(tmp_path: Path) -> None:
    said = metadata()
    spec = json.loads(said["spec"])
    spec["family"]["kind"] = "of_a_plugin"
    write(tmp_path / "x", theta(), {**said, "spec": json.dumps(spec)})
    with pytest.raises(InitializationError, match="isn't installed here"):
        load(tmp_path / "x")


def test_metadata_without_a_field(tmp_path: Path) -> None:
    said = metadata()
    del said["scaling"]
    write(tmp_path / "x", theta(), said)
    with pytest.raises(InitializationError, match="scaling"):
        load(tmp_path / "x")


def test_parameters_of_another_model(tmp_path: Path) -> None:
    other = MLP(2, [4, 4], 1)
    write(tmp_path / "x", dict(other.named_parameters()), metadata())
    with pytest.raises(InitializationError, match=r"parameter 2.weight has shape \(4, 4\), but in the model \(3, 4\)"):
        load(tmp_path / "x")
    with pytest.raises(InitializationError, match=r"parameter 4\.weight has shape none"):
        put(MLP(2, [4, 3], 1), {name: tensor for name, tensor in theta().items() if name[0] != "4"}, "a file")


def test_what_a_checkpoint_adds_is_no_parameter(file: Path) -> None:
    tensors, said = read(file)
    write(file, {**tensors, "optimizer/0/step": torch.ones(1)}, said)
    assert list(load(file).state_dict()) == list(theta())


def test_the_random_start_is_a_function_of_the_seed() -> None:
    def start(seed: int) -> Tensor:
        torch.manual_seed(torch.seed())
        state = torch.get_rng_state()
        first = next(build_model(MLPSpec(), in_features=2, out_features=1, seed=seed).parameters()).detach()
        assert torch.equal(torch.get_rng_state(), state)  # the global generator isn't used
        return first

    assert torch.equal(start(0), start(0))
    assert not torch.equal(start(0), start(1))
