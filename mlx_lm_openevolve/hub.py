"""Hub: whether a model's name can be loaded here, in one line before anything is started.

mlx-lm takes a folder or a name on the Hub; what it cannot find ends in a long traceback.
"""

from __future__ import annotations

import os
from pathlib import Path

from .errors import UsageError

__all__ = ["check_model", "problem"]

TIMEOUT = 10.0  # seconds for the Hub to answer


def check_model(option: str, name: str) -> None:
    """Raise UsageError where `problem` knows one; `option` is named in the message."""
    reason = problem(name)
    if reason:
        raise UsageError(f"{option} {name}: {reason}")


def problem(name: str) -> str:
    """Why a model, a folder or a name on the Hub, cannot be loaded here; "" where nothing is known
    against it. Asks the Hub only for what is not in its cache yet."""
    path = Path(name).expanduser()
    if path.exists():
        return "" if (path / "config.json").exists() else "no model there (no config.json)"
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        return "no such folder"
    if os.environ.get("MLXLM_USE_MODELSCOPE", "").lower() == "true":
        return ""
    return _on_hub(name)


def _on_hub(name: str) -> str:
    import huggingface_hub
    from huggingface_hub import errors

    try:
        if isinstance(huggingface_hub.try_to_load_from_cache(name, "config.json"), str):
            return ""
        address = huggingface_hub.hf_hub_url(name, "config.json")
        huggingface_hub.get_hf_file_metadata(address, timeout=TIMEOUT)
    except errors.HFValidationError:
        return "neither a folder nor a name on the Hub"
    except errors.GatedRepoError:
        return "the Hub gives this model only to those who asked for it and are logged in"
    except errors.RepositoryNotFoundError:
        return "no such folder, and no such model on the Hub (or it wants a login)"
    except errors.EntryNotFoundError:
        return "no model on the Hub (no config.json)"
    except errors.OfflineModeIsEnabled:
        return "no such folder, not in the Hub's cache, and the Hub is switched off (offline mode)"
    except Exception as error:  # whatever the HTTP library of the day raises
        line = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        return f"no such folder, not in the Hub's cache, and the Hub cannot be reached: {line}"
    return ""
