"""The result file of a run: θ as safetensors, one tensor for each named parameter, with all metadata needed to rebuild and use
the network.

Metadata (strings; JSON where structured): `format`, `spec`, `spec_sha256`, `iteration`, `seed`, `in_features`, `out_features`,
`objective`, `scaling`, `inputs`, `outputs`, `picture`, `versions`, `tensors_sha256`, and `job_id` where there is a job. Where the
method also trains the flow, there are tensors `learned/NAME` (see `LearnedFlow`). Checkpoints have the same format with more
tensors. Names of parameters have no slash, all other names do. The file holds no time, so that equal contents give equal bytes.
"""

from __future__ import annotations

import hashlib
import json
import platform
import struct
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from amaml.families.base import Family
from amaml.spec import JobSpec

FORMAT = "amaml-initialization-1"


class InitializationError(ValueError):
    """The file isn't an initialization, doesn't fit, or is damaged; the message says which and what to do."""


def require_like(model: nn.Module, theta: Mapping[str, Tensor], source: object) -> None:
    """Raises InitializationError where θ's names or shapes differ from those of the model's parameters."""
    own = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    given = {name: tuple(tensor.shape) for name, tensor in theta.items()}
    if own != given:
        name = next(name for name in [*own, *given] if own.get(name) != given.get(name))
        raise InitializationError(
            f"{source}: parameter {name} has shape {given.get(name, 'none')}, but in the model {own.get(name, 'none')}: "
            "give an initialization of the same model, inputs and outputs"
        )


def put(model: nn.Module, theta: Mapping[str, Tensor], source: object) -> None:
    """Sets the model's parameters to θ and its dtype to that of θ. Raises InitializationError where names or shapes differ."""
    require_like(model, theta, source)
    model.to(next(iter(theta.values())).dtype)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(theta[name])


def metadata_of(spec: JobSpec, family: Family, iteration: int) -> dict[str, str]:
    """The metadata of a run's files."""
    return {
        "spec": spec.canonical(),
        "spec_sha256": spec.sha256(),
        "iteration": str(iteration),
        "seed": str(spec.runtime.seed),
        "in_features": str(family.in_features),
        "out_features": str(family.out_features),
        "objective": family.objective.name,
        "scaling": json.dumps(asdict(family.scaling), sort_keys=True),
        "inputs": json.dumps(family.inputs, ensure_ascii=False),
        "outputs": json.dumps(family.outputs, ensure_ascii=False),
        "picture": json.dumps(family.picture),
        "versions": json.dumps(versions(), sort_keys=True),
    }


def versions() -> dict[str, str]:
    """The versions of the libraries that a run's bits depend on."""
    libraries = {name: version(name) for name in ("numpy", "safetensors", "torch")}
    return {"amaml": version("amaml-service"), "python": platform.python_version(), **libraries}


def write(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], *, form: str = FORMAT) -> None:
    """Writes the file, whole or not at all; equal contents give equal bytes."""
    own = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    whole = {**metadata, "format": form, "tensors_sha256": _hash(own)}
    part = path.with_name(path.name + ".part")
    part.write_bytes(_canonical(safetensors.torch.save(own, whole)))
    part.replace(path)


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors and metadata of an initialization or a checkpoint. Raises InitializationError, OSError."""
    path.stat()  # raises OSError for a missing file, which safetensors would report as a damaged one
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            if not metadata.get("format", "").startswith("amaml-"):
                raise InitializationError(
                    f"{path}: a safetensors file, but not one of amaml's: give the file that a job's initialization "
                    "or checkpoint was downloaded to"
                )
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - the file isn't a dict
    except safetensors.SafetensorError as error:
        raise InitializationError(
            f"{path}: not a safetensors file, or cut short ({error}): download it again"
        ) from error
    if metadata.get("tensors_sha256") != _hash(tensors):
        raise InitializationError(f"{path}: its tensors don't match their checksum: it is damaged, download it again")
    return tensors, metadata


def read_theta(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """θ and the metadata, without the other tensors of a checkpoint."""
    tensors, metadata = read(path)
    return theta_among(tensors), metadata


def theta_among(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of θ among all tensors of a file."""
    return {name: tensor for name, tensor in tensors.items() if "/" not in name}


def _hash(tensors: Mapping[str, Tensor]) -> str:
    """The SHA-256 of the tensors' names, dtypes, shapes and bytes, in the order of names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _canonical(data: bytes) -> bytes:
    """The safetensors bytes with the header's keys sorted, since the library writes metadata in no fixed order."""
    (length,) = struct.unpack("<Q", data[:8])
    header = json.dumps(json.loads(data[8 : 8 + length]), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    encoded = header.encode()
    encoded += b" " * (-len(encoded) % 8)  # tensors start at a multiple of 8
    return struct.pack("<Q", len(encoded)) + encoded + data[8 + length :]
