"""Saved form of a model with an adapter: `config.json`, `adapter/`, and `base/` where the backbone has no public id."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from transformers import AutoModel, BitsAndBytesConfig

from ..errors import ConfigError, loading
from ..files import blocks
from ..hub import EARLIER, HUB_OPTIONS, hub_copy

if TYPE_CHECKING:
    from peft import PeftModel

    from .model import PersonalizedRewardModel

ADAPTER = "adapter/adapter_config.json"
_LOADING = ("dtype", "device_map", "attn_implementation", "trust_remote_code")


def save_with_adapter(model: PersonalizedRewardModel, peft_model: PeftModel, folder: str | Path, **kwargs) -> None:
    """Writes the adapter with the user model in it, and the backbone unless its weights can be had by id.

    Raises:
        ConfigError: A quantised backbone that has neither an id nor a folder: its full weights are gone.
    """
    folder = Path(folder)
    name = model.config.backbone_name_or_path
    quantized = getattr(model, "is_quantized", False)
    if quantized and not name:
        raise ConfigError(
            "The backbone is quantised and has no `backbone_name_or_path`, so that its weights cannot be saved. "
            "Load it from an id or a folder."
        )
    peft_model.save_pretrained(str(folder / "adapter"), **kwargs)
    # PEFT writes a card of its own beside the adapter; the model's card is the folder's.
    (folder / "adapter" / "README.md").unlink(missing_ok=True)
    if not quantized and (not name or Path(name).is_dir()):
        prefix = peft_model.base_model.prefix
        weights = {
            key.removeprefix("backbone.").replace(".base_layer.", "."): value
            for key, value in model.state_dict().items()
            if key.startswith("backbone.") and f".{prefix}" not in key
        }
        model.backbone.config.save_pretrained(folder / "base")
        model.backbone.save_pretrained(folder / "base", state_dict=weights)
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)


def load_with_adapter(cls, folder: Path, config=None, **kwargs) -> PersonalizedRewardModel:
    """Loads what `save_with_adapter` wrote; the adapter's modules live inside the returned model."""
    from peft import PeftModel  # brings bitsandbytes: seconds that only a model with an adapter needs

    config = config or cls.config_class.from_pretrained(folder)
    base = folder / "base"
    source = base if base.is_dir() else config.backbone_name_or_path
    if not source:
        raise ConfigError(f"{folder} holds an adapter, but neither `base/` nor the id of a backbone.")
    quantization = (config.backbone or {}).get("quantization_config")
    options = {key: kwargs[key] for key in (*_LOADING, *HUB_OPTIONS) if key in kwargs}
    if quantization and not base.is_dir():
        options["quantization_config"] = BitsAndBytesConfig.from_dict(quantization)
    with loading("backbone_name_or_path", source):
        backbone = AutoModel.from_pretrained(source, **options)
    model = cls(config, backbone)
    model.user_model.to(model.backbone.device)
    model.config.name_or_path = str(folder)
    model.attach_adapter(PeftModel.from_pretrained(model, str(folder / "adapter")))
    return model.eval()


def weights_sha256(name: str | Path) -> str:
    """Hash of a saved model's weights, its summariser's among them, in a folder or on the Hub; not of its checkpoints."""
    folder = hub_copy(name, "config.json") or Path(name)
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*.safetensors")):
        parts = file.relative_to(folder).parts
        if not any(part.startswith("checkpoint-") or part in (EARLIER, "best", "start") for part in parts):
            digest.update("/".join(parts).encode())
            with open(file, "rb") as stream:
                for block in blocks(stream):
                    digest.update(block)
    return digest.hexdigest()
