"""Packages that only some configs need, asked for before anything begins."""

import configparser
import importlib.util
import netrc
import os
import pathlib
import sys
from urllib.parse import urlsplit


def require(field: str, package: str, command: str) -> None:
    """Refuses a field whose package is not installed.

    Args:
      field: The field and its value, as "wandb_project='x'".
      package: The name that is imported.
      command: What installs it.

    Raises:
      ValueError: If it is not installed.
    """
    if sys.modules.get(package) is None and importlib.util.find_spec(package) is None:
        raise ValueError(f"{field} needs {package}, which is not installed: {command}.")


def require_wandb(project: str) -> None:
    """Refuses a project of Weights & Biases that nothing could be logged to.

    Raises:
      ValueError: If wandb is not installed, or is online and has no key.
    """
    field = f"wandb_project={project!r}"
    require(field, "wandb", "pip install 'vdiff_jax[wandb]'")
    if not (_is_offline() or _has_key()):
        raise ValueError(
            f"{field} has no key to log in with: run `wandb login`, or set"
            " WANDB_API_KEY, or WANDB_MODE=offline to send it later."
        )


def _is_offline() -> bool:
    mode = os.environ.get("WANDB_MODE") or _setting("mode")
    return mode not in ("", "online", "shared") or _setting("disabled") == "true"


def _has_key() -> bool:
    names = ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE")
    if any(os.environ.get(name) for name in names) or _setting("api_key"):
        return True
    url = os.environ.get("WANDB_BASE_URL") or _setting("base_url")
    host = urlsplit(url or "https://api.wandb.ai").netloc
    home = pathlib.Path.home()
    for path in (os.environ.get("NETRC"), home / ".netrc", home / "_netrc"):
        try:
            if path and netrc.netrc(os.path.expanduser(path)).authenticators(host):
                return True
        except FileNotFoundError:
            continue
        except (OSError, netrc.NetrcParseError):
            return True  # for wandb to make out
    return False


def _setting(name: str) -> str:
    """A value of wandb's own settings, as `wandb offline` writes them."""
    folder = os.environ.get("WANDB_CONFIG_DIR") or "~/.config/wandb"
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read([f"{os.path.expanduser(folder)}/settings", "wandb/settings"])
    except (configparser.Error, UnicodeDecodeError):
        return ""
    return parser.get("default", name, fallback="")
