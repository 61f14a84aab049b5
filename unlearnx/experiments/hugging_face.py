"""Models in a folder of HuggingFace's form: a config.json, and weights that the model is not needed to read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import nn


def folder_factory(folder: Path) -> Callable[[], nn.Module]:
    """A function that builds the model which the folder's config.json describes, with random weights.

    No code in the folder is run, and nothing is downloaded.

    Raises:
        FileNotFoundError: the folder holds no config.json.
        ImportError: transformers is not installed.
        ValueError: transformers has no such model.
    """
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder}: holds no config.json, expected the folder of a HuggingFace model")
    try:
        import transformers
    except ImportError as error:
        raise ImportError(f"a HuggingFace model needs transformers: pip install transformers ({error})") from error
    try:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # of any kind: the file may hold anything
        raise ValueError(f"{folder / 'config.json'}: transformers cannot read it: {error}") from error
    names = config.architectures or []
    found = next((kind for name in names if (kind := getattr(transformers, name, None)) is not None), None)
    if names and not (isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)):
        raise ValueError(f"{folder / 'config.json'}: transformers has no model {', '.join(map(str, names))}")
    dtype = getattr(config, "dtype", None) or getattr(config, "torch_dtype", None)

    def build() -> nn.Module:
        model = transformers.AutoModel.from_config(config) if found is None else found(config)
        return model if dtype is None else model.to(dtype)

    return build
