"""Folders of weights on the Hugging Face hub: `avssl.load("hf:org/name")`, `avssl.push_to_hub`. Needs the extra hub.

Differs from the hub's own ModelHubMixin: what goes up is the folder that `export` wrote, with its card, so that a
folder on disk and one on the hub are the same.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from avssl.files import first_line

PREFIX = "hf:"
FILES = ("config.json", "encoders.safetensors", "README.md")  # of a folder of weights; nothing else is fetched


class HubError(ValueError):
    """A folder that cannot be fetched from the hub or put there."""


def fetch(name: str) -> Path:
    """The folder of hf:ORG/NAME, or hf:ORG/NAME@REVISION, in the hub's cache; what is there already is not fetched
    again.

    Raises:
        HubError: the extra hub is not installed, the name is wrong, or the hub refuses or cannot be reached.
    """
    repository, _, revision = name.removeprefix(PREFIX).partition("@")
    with _errors_named(name) as hub:
        files = [hub.hf_hub_download(repository, file, revision=revision or None) for file in FILES]
    return Path(files[0]).parent


def push_to_hub(folder: str | Path, name: str, *, private: bool = False, token: str | None = None) -> str:
    """Upload a folder that `export` or `avssl convert` wrote to ORG/NAME, which is made if missing; the address of the
    upload.

    Args:
        token: of the hub; None = that of `hf auth login` or HF_TOKEN.

    Raises:
        HubError: as `fetch`, or the folder lacks a file.
    """
    folder = Path(folder)
    missing = [file for file in FILES if not (folder / file).is_file()]
    if missing:
        raise HubError(f"{folder} has no {missing[0]}: write it with avssl convert RUN --to {folder}")
    with _errors_named(name) as hub:
        hub.create_repo(name, private=private, exist_ok=True, token=token)
        return str(hub.upload_folder(repo_id=name, folder_path=folder, allow_patterns=list(FILES), token=token))


@contextmanager
def _errors_named(name: str) -> Iterator[ModuleType]:
    """Yields huggingface_hub, whose errors become HubError."""
    try:
        import huggingface_hub as hub
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    except ImportError as error:
        raise HubError(f"{name} needs huggingface_hub: pip install 'avssl[hub]'") from error
    try:
        yield hub
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise HubError(f"{name}: the hub says: {first_line(error)}") from error
