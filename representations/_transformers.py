"""Models of transformers: configured here, or read from a folder of which nothing but settings and tensors is used."""

import inspect
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from rdm.api import InputError, first_line, hub_file, nearest
from representations._weights import PRETRAINED, RANDOM, loading, local_file, untrained

FILES = ("model.safetensors",)
OTHERS = "auto_map", "transformers_weights", "quantization_config"  # code, another file, another library's reader
NATIVE = None, "eager", "sdpa"  # attention; others fetch kernels and run them


def configured(library: ModuleType, model: str, arguments: Mapping[str, Any], owner: str) -> Any:
    """An untrained model of a type ("vit"), of what its own configuration declares.

    Raises:
        InputError: no such type, or an argument that is none of its own.
    """
    try:
        plain = library.AutoConfig.for_model(model)
    except ValueError as error:
        raise InputError(f"{owner}: no such type of model ({str(error).partition('.')[0]})") from error
    own = _own(type(plain), library.PretrainedConfig)
    if strange := sorted(set(arguments) - own):
        raise InputError(f"{owner}: arguments: its configuration declares no {strange[0]!r}{nearest(strange[0], own)}")
    _refuse(arguments, owner)
    config = library.AutoConfig.for_model(model, **arguments)
    with loading(owner):
        return untrained(lambda: library.AutoModel.from_config(config, trust_remote_code=False))


def loaded(library: ModuleType, folder: Path, owner: str) -> tuple[Any, Mapping[str, Any]]:
    """The model of a folder and transformers' report of its weights: from safetensors, by classes of transformers.

    Raises:
        InputError: no model of transformers there, or one that asks for more than that.
    """
    try:
        held = json.loads((folder / "config.json").read_bytes())
        _refuse({key: value for key, value in held.items() if key != "auto_map"}, f"{owner}: {folder / 'config.json'}")
        with loading(owner):
            return library.AutoModel.from_pretrained(
                folder,
                local_files_only=True,
                trust_remote_code=False,  # without it, transformers asks on standard input
                use_safetensors=True,
                weights_only=True,
                output_loading_info=True,
            )
    except InputError:
        raise
    except (OSError, ValueError, RuntimeError, AttributeError) as error:
        raise InputError(f"{owner}: transformers cannot read {folder} ({first_line(error)})") from error


def model_file(model: str, weights: str, allow_download: bool, sha256: str | None, owner: str) -> Path:
    """The weights of a folder, or of the HuggingFace cache by the model's name, settings beside them.

    Raises:
        InputError: none there, or weights that are neither "pretrained" nor "random".
        MismatchError: a file of another hash.
    """
    if weights != PRETRAINED:
        raise InputError(
            f'{owner}: weights must be "{PRETRAINED}" or "{RANDOM}"; got {weights!r}; give the folder as the model'
        )
    folder = Path(model).expanduser()
    if folder.is_dir():
        found = [folder / file for file in FILES if (folder / file).is_file()]
        if not found:
            raise InputError(f"{owner}: the folder {folder} has none of {', '.join(FILES)}")
        return local_file(str(found[0]), sha256, owner)
    options: Any = {"allow_download": allow_download, "owner": owner, "instead": "a folder as the model"}
    path = hub_file(model, FILES, **options)
    for file in ("config.json", "preprocessor_config.json"):  # beside it, in the same snapshot
        hub_file(model, (file,), **options)
    return local_file(str(path), sha256, owner)


def _own(config: type, base: type) -> set[str]:
    """What a class of configurations declares beyond what all have: its hyperparameters."""
    declared = set(inspect.signature(config).parameters) | set(getattr(config, "attribute_map", {}))
    return declared - set(inspect.signature(base).parameters) - {"kwargs"} - set(OTHERS)


def _refuse(settings: Any, owner: str) -> None:
    for key, value in _pairs(settings):
        if key in OTHERS and value is not None:
            raise InputError(f"{owner} asks for {key}; expected hyperparameters alone; take it out")
        if "implementation" in key and value not in NATIVE and not isinstance(value, Mapping):
            raise InputError(f"{owner} asks for {key} {value!r}; expected 'eager' or 'sdpa'; take it out")


def _pairs(value: Any) -> Iterator[tuple[str, Any]]:
    """Keys and values at any depth."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield str(key), inner
            if isinstance(inner, Mapping):
                yield from _pairs(inner)
