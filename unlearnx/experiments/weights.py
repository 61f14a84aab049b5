"""Files of weights: read without running code in them, written in one step, and identified by their hashes."""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import pathlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from unlearnx._extras import extra
from unlearnx._files import write_atomically

WEIGHT_ENTRIES = ("model_state_dict", "state_dict", "model")  # where checkpoints keep their weights
WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")  # torch.compile, FSDP, checkpoints
INDEX = ".index.json"  # ends the name of the index of a model that lies in several files
IN_FOLDERS = (  # the names that HuggingFace gives the file of a model in its folder
    *("model.safetensors", f"model.safetensors{INDEX}"),
    *("pytorch_model.bin", f"pytorch_model.bin{INDEX}"),
)
COUNTER = "num_batches_tracked"  # of a BatchNorm; files older than torch 1.0 have none, and outputs do not depend on it
# What training scripts keep beside weights, such as their arguments and best accuracy. None of it runs code when read.
PLAIN: list[Any] = [argparse.Namespace, np.dtype]
PLAIN += [type(np.dtype(kind)) for kind in (np.bool_, np.int32, np.int64, np.float32, np.float64)]
PLAIN += [(np.float64(0).__reduce__()[0], f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
PLAIN += [(pathlib.PosixPath, f"{module}.PosixPath") for module in ("pathlib", "pathlib._local")]
MAX_LISTED_NAMES = 5  # in an error


@dataclass(frozen=True)
class Weights:
    """The weights in a file, and what is needed to write others in the same form.

    Attributes:
        file: where they were read.
        tensors: by name, on the CPU.
        format: ``"safetensors"`` or ``"torch"``.
        sha256: of the bytes of the file; of several files, of their index followed by them, in order of their names.
        nest: entry of the checkpoint that held the weights; None if the file held nothing else.
        left_out: the checkpoint's other entries, such as ``optimizer``. They are neither used nor written
            again, because they may hold information on the forget set.
        metadata: of a safetensors file, texts by name.
    """

    file: Path
    tensors: dict[str, Tensor]
    format: str
    sha256: str
    nest: str | None = None
    left_out: tuple[str, ...] = ()
    metadata: dict[str, str] | None = None

    @classmethod
    def read(cls, file: Path) -> Weights:
        """Read a safetensors file, a state dict that ``torch.save`` wrote, or several files with an index.

        A state dict may be the entry ``model_state_dict``, ``state_dict`` or ``model`` of a checkpoint, or the only
        entry with tensors by name. Of a folder, the file is read that HuggingFace's libraries would read.

        No code in the file is run: pickles are read for tensors and plain values only
        (``torch.load(weights_only=True)``).

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is neither of the two, is damaged, or holds something other than weights.
            ImportError: it is a safetensors file, and safetensors is not installed.
        """
        if file.is_dir():
            file = _file_in(file)
        if not file.is_file():
            raise FileNotFoundError(f"{file}: no such file")
        content = file.read_bytes()
        if file.name.endswith(INDEX):
            return cls._read_parts(file, content)
        sha256 = hashlib.sha256(content).hexdigest()
        if _is_safetensors(content):
            tensors, metadata = _read_safetensors(file, content)
            return cls(file, _checked(file, tensors), "safetensors", sha256, metadata=metadata)
        if content.startswith(
            (b"PK\x03\x04", b"\x80")
        ):  # a zip archive, as torch.save writes, or a pickle, as it once did
            state, nest, left_out = _unnested(_read_torch(file, content))
            return cls(file, _checked(file, state), "torch", sha256, nest, left_out)
        raise ValueError(f"{file}: is neither a safetensors file nor one that torch.save wrote")

    @classmethod
    def _read_parts(cls, index: Path, content: bytes) -> Weights:
        """Read the files that an index of HuggingFace's form names."""
        try:
            names = sorted(set(json.loads(content)["weight_map"].values()))
            if not names or any(name != Path(name).name or name.endswith(INDEX) for name in names):
                raise ValueError("it has to name files beside it")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{index}: is no index of weights: {error}") from error
        parts = [cls.read(index.with_name(name)) for name in names]
        digest = hashlib.sha256(content)
        for part in parts:
            digest.update(part.file.read_bytes())
        tensors = {name: tensor for part in parts for name, tensor in part.tensors.items()}
        return replace(parts[0], file=index, tensors=tensors, sha256=digest.hexdigest())

    def described(self, model: nn.Module) -> str | None:
        """What was not as plain as weights of `model` by their names, in a sentence; None if everything was."""
        names = self._names(state_tensors(model))
        renamed = [name for name, known in names.items() if name != known]
        said = [f"the weights are its entry {self.nest!r}"] if self.nest else []
        if renamed:
            said.append(f"{renamed[0]!r} is the model's {names[renamed[0]]!r}, and so on")
        unused = [*self.left_out, *(name for name in self.tensors if name not in names)]
        if unused:
            said.append(f"not used: {_listed(unused)}")
        return f"{self.file}: {'; '.join(said)}" if said else None

    def _names(self, own: Mapping[str, Tensor]) -> dict[str, str]:
        """The model's name for each of the file's: wrappers are taken off, and a prefix that all names share.

        Where all the model's weights are below one of several prefixes, the names with that one: those of a loss, or
        the count of an average, may be beside them.
        """
        known = {_unwrapped(name): name for name in own}
        if all(name.startswith("module.") for name in known):  # the model is a DataParallel
            known |= {name.removeprefix("module."): original for name, original in known.items()}
        plain = {name: _unwrapped(name) for name in self.tensors}
        best, most = plain, -1
        for depth in range(1 + max(name.count(".") for name in plain.values())):
            below: dict[str, dict[str, str]] = {}
            for name, p in plain.items():
                *prefix, last = p.split(".", depth)
                if len(prefix) == depth:
                    below.setdefault(".".join(prefix), {})[name] = known.get(last, last)
            if any(len(names) == len(plain) for names in below.values()):
                (shorter,) = below.values()
                fitting = sum(name in own for name in shorter.values())
                if fitting > most:
                    best, most = shorter, fitting
            elif _lacking(own, best.values()):
                whole = [prefix for prefix, names in below.items() if not _lacking(own, names.values())]
                if len(whole) > 1:
                    raise ValueError(
                        f"{self.file}: holds the weights of the model several times, under {_listed(whole)}, expected "
                        "once; save those that are meant by themselves"
                    )
                if whole:
                    return below[whole[0]]
        return best if most else {name: name for name in self.tensors}

    def load_into(self, model: nn.Module) -> None:
        """Load the weights into `model`.

        Names may begin with ``module.`` or another prefix that the model does not have, as ``DataParallel`` writes
        them, and have ``_orig_mod.`` in them, as ``torch.compile`` does.

        Raises:
            ValueError: names, shapes or dtypes differ from those of the model.
        """
        own, names = state_tensors(model), self._names(state_tensors(model))
        tensors = {known: self.tensors[name] for name, known in names.items()}
        if len(tensors) < len(names):
            raise ValueError(f"{self.file}: does not fit the model: some of its weights have the same name there")
        missing = _lacking(own, tensors)
        unexpected = [name for name, known in names.items() if known not in own]
        for wrong, what in ((missing, "it lacks the weights"), (unexpected, "the model has no weights")):
            if wrong:
                raise ValueError(f"{self.file}: does not fit the model: {what}: {_listed(wrong)}")
        for name, tensor in tensors.items():
            found, expected = (f"{t.dtype} of shape {list(t.shape)}" for t in (tensor, own[name]))
            if found != expected:
                raise ValueError(f"{self.file}: does not fit the model: {name!r} is {found}, expected {expected}")
        model.load_state_dict(tensors, strict=False)

    def write(self, model: nn.Module, stem: Path) -> Weights:
        """Write the weights of `model` in the form of this file: the same format, names and nesting, as one file.

        Args:
            model: has weights of the same names.
            stem: path of the new file, without its suffix, which depends on the format.

        Returns:
            The written weights and their file.
        """
        own = state_tensors(model)
        # safetensors needs contiguous tensors that do not share their memory.
        tensors = {
            name: own[known].detach().cpu().clone(memory_format=torch.contiguous_format)
            for name, known in self._names(own).items()
        }
        if self.format == "safetensors":
            content = _safetensors().save(tensors, self.metadata)
        else:
            buffer = io.BytesIO()
            torch.save({self.nest: tensors} if self.nest else tensors, buffer)
            content = buffer.getvalue()
        file = stem.with_name(stem.name + (".safetensors" if self.format == "safetensors" else ".pt"))
        write_atomically(file, lambda f: f.write(content))
        return replace(self, file=file, tensors=tensors, sha256=hashlib.sha256(content).hexdigest(), left_out=())


def state_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The state dict of `model`.

    Raises:
        ValueError: it holds anything but tensors.
    """
    state = model.state_dict()
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise ValueError(f"model: entry {name!r} of its state dict is {type(value).__name__}, expected a tensor")
    return state


def tensor_hash(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of named tensors, which does not depend on file format, memory order or device.

    It is of each tensor in ascending order of names: a line ``name dtype [shape]``, such as
    ``0.weight torch.float32 [4, 8]``, then the values in row-major order, little-endian.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        t = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {t.dtype} {list(t.shape)}\n".encode())
        digest.update(t.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _is_safetensors(content: bytes) -> bool:
    """Whether the content starts as safetensors does: 8 bytes with the length of a header, then the header, in JSON."""
    return content[8:9] == b"{" and int.from_bytes(content[:8], "little") <= len(content) - 8


def _read_safetensors(file: Path, content: bytes) -> tuple[dict[str, Tensor], dict[str, str] | None]:
    library = _safetensors()
    try:
        tensors = library.load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    except Exception as error:  # of any kind: the file may hold anything
        raise ValueError(f"{file}: is a damaged safetensors file: {error}") from error
    return tensors, header.get("__metadata__")


def _safetensors() -> Any:
    with extra("a safetensors file", "safetensors"):
        import safetensors.torch
    return safetensors.torch


def _read_torch(file: Path, content: bytes) -> Any:
    try:
        with torch.serialization.safe_globals(PLAIN):
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # of any kind: the file may hold anything
        found = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"it refers to {found[1]}, which could run code" if found else str(error).splitlines()[0]
        raise ValueError(
            f"{file}: holds more than tensors, or is damaged: {reason}; expected torch.save(model.state_dict(), ...)"
        ) from error


def _unnested(content: Any) -> tuple[Any, str | None, tuple[str, ...]]:
    """The state dict in a checkpoint, the entry that held it, and the names of the other entries."""
    if isinstance(content, Mapping):
        for nest in WEIGHT_ENTRIES:
            if isinstance(content.get(nest), Mapping):
                return content[nest], nest, tuple(str(key) for key in content if key != nest)
        states = [key for key, value in content.items() if isinstance(key, str) and _is_state(value)]
        if len(states) == 1 and not any(isinstance(value, Tensor) for value in content.values()):
            return content[states[0]], states[0], tuple(str(key) for key in content if key != states[0])
    return content, None, ()


def _lacking(own: Mapping[str, Tensor], names: Iterable[str]) -> list[str]:
    """What of a model's own state dict is not among the names."""
    given = set(names)
    # Where tensors share their memory, a safetensors file holds only one of them.
    held = {_place(own[name]) for name in given if name in own}
    missing = [name for name, t in own.items() if name not in given and _place(t) not in held]
    return [name for name in missing if name.split(".")[-1] != COUNTER]


def _is_state(value: Any) -> bool:
    return isinstance(value, Mapping) and bool(value) and all(isinstance(t, Tensor) for t in value.values())


def _unwrapped(name: str) -> str:
    for wrapper in WRAPPERS:
        name = name.replace(wrapper, "")
    return name


def _file_in(folder: Path) -> Path:
    for name in IN_FOLDERS:
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(f"{folder}: holds no weights, expected one of {', '.join(IN_FOLDERS)}")


def _checked(file: Path, state: Any) -> dict[str, Tensor]:
    if not isinstance(state, Mapping) or not state:
        what = "no weights" if isinstance(state, Mapping) else type(state).__name__
        raise ValueError(f"{file}: holds {what}, expected a state dict")
    several = [str(name) for name, value in state.items() if _is_state(value)]
    if len(several) > 1:
        raise ValueError(f"{file}: holds several state dicts, {_listed(several)}, expected one; save it by itself")
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, Tensor) or value.layout != torch.strided:
            kind = type(value).__name__ if not isinstance(value, Tensor) else value.layout
            raise ValueError(f"{file}: entry {name!r} is {kind}, expected a name with a dense tensor")
    return {name: value.detach() for name, value in state.items()}


def _place(t: Tensor) -> tuple[int, torch.Size]:
    return t.data_ptr(), t.shape


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - MAX_LISTED_NAMES} more" if len(names) > MAX_LISTED_NAMES else ""
    return ", ".join(names[:MAX_LISTED_NAMES]) + more
