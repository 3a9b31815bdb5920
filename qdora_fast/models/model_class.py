"""Which class of Transformers a checkpoint is opened with: the one it was published under.

Most bases of today are vision models (Qwen3.5, Gemma 3 and 4, Ministral 3) whose `config.json` names a
`...ForConditionalGeneration`. Opened as a causal language model some of them lose their tower and get other names for
their tensors, others cannot be opened at all. So whoever builds, loads or reopens a model asks here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qdora_fast.models.base_files import folder_of
from qdora_fast.system.errors import ConfigError, first_line
from qdora_fast.system.remote_code import BASE_SETTING, foreign_files, remote_code_allowed

TOKENS = 8
"""Of a forward without weights."""


def auto_class(model_config: Any) -> Any:
    """AutoModelForImageTextToText for a checkpoint that was published as a vision model, else AutoModelForCausalLM.

    Args:
        model_config: of Transformers, as AutoConfig reads it.
    """
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    kind, named = type(model_config), (model_config.architectures or [None])[0]
    if kind not in AutoModelForImageTextToText._model_mapping:
        return AutoModelForCausalLM
    published = AutoModelForImageTextToText._model_mapping[kind].__name__
    also_text = kind in AutoModelForCausalLM._model_mapping and named not in (None, published)
    return AutoModelForCausalLM if also_text else AutoModelForImageTextToText


def read_config(name: str, revision: str | None, *, setting: str = BASE_SETTING) -> Any:
    """A base's config, of Transformers; from where it lies if that is known: a hub would be asked whether it is the
    newest.

    Raises:
        ConfigError: it cannot be read.
    """
    from transformers import AutoConfig

    with foreign_files("config", name, revision, setting=setting):
        here = folder_of(name, revision)
        options = {} if here else {"revision": revision}
        return AutoConfig.from_pretrained(here or name, trust_remote_code=remote_code_allowed(), **options)


def config_in(folder: Path) -> Any:
    """The config of a model's folder, of Transformers."""
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=remote_code_allowed())


def empty_model(model_config: Any) -> Any:
    """The model of a config without its weights, on torch's meta device.

    Raises:
        ConfigError: not a model that Transformers can build, or not one that writes text.
    """
    import torch

    try:
        with torch.device("meta"):
            return auto_class(model_config).from_config(model_config, trust_remote_code=remote_code_allowed())
    except ValueError as error:
        kind, why = model_config.model_type, first_line(error)
        raise ConfigError(f"model type `{kind}` is not a text model we can train: {why}") from None
    except ImportError as error:
        raise ConfigError(
            f"a `{model_config.model_type}` model needs a package that is not installed here: {first_line(error)}"
        ) from None
    except (ArithmeticError, AssertionError, AttributeError, KeyError, RuntimeError, TypeError) as error:
        raise ConfigError(
            f"no `{model_config.model_type}` model can be built from config.json: {first_line(error)}; its sizes or "
            "token ids do not go together: copy or download it again"
        ) from None


def run_empty(model: Any) -> Any:
    """What a model without weights returns for a few tokens of text; None where it looks at its numbers on the way."""
    import torch

    trains, experts = model.training, getattr(model.config, "_experts_implementation", None)
    model.eval()  # training, some models throw dice for each block
    try:
        if experts:
            model.set_experts_implementation("batched_mm")  # the others look which experts were chosen, or want bf16
        with torch.no_grad(), torch.device("meta"):
            # A mask of four dimensions is taken as it is; one of two would be looked at for padding.
            mask = torch.zeros((1, 1, TOKENS, TOKENS))
            return model(input_ids=torch.zeros((1, TOKENS), dtype=torch.long), attention_mask=mask, use_cache=False)
    except Exception:  # noqa: BLE001 - a model that needs its numbers may fail in any way
        return None
    finally:
        model.train(trains)
        if experts:
            model.set_experts_implementation(experts)
