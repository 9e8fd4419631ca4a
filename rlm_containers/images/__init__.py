"""Images: built, cached, moved between engines, and removed."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rlm_containers.images.build import derive_image, warm_image
    from rlm_containers.images.cache import ImageCache
    from rlm_containers.images.index import note_use
    from rlm_containers.images.inventory import list_images, prune_images
    from rlm_containers.images.recipe import Recipe, recipe_of, with_instructions

__all__ = [
    "ImageCache",
    "Recipe",
    "derive_image",
    "list_images",
    "note_use",
    "prune_images",
    "recipe_of",
    "warm_image",
    "with_instructions",
]

#: Maps each name to its module, which is imported with the first use.
_MODULES = {
    "derive_image": "build",
    "warm_image": "build",
    "ImageCache": "cache",
    "note_use": "index",
    "list_images": "inventory",
    "prune_images": "inventory",
    "Recipe": "recipe",
    "recipe_of": "recipe",
    "with_instructions": "recipe",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
