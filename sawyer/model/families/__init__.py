"""The model families. A family is one file here that says what a checkpoint's config and tensor names mean.

`FAMILIES` is the registry; what a family must say is the `Family` protocol. Nothing outside this
folder knows a family by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from sawyer.errors import UnsupportedModel
from sawyer.model.families.dbrx import Dbrx
from sawyer.model.families.deepseek_v2 import DeepseekV2
from sawyer.model.families.family import Family
from sawyer.model.families.mixtral import Mixtral
from sawyer.model.families.olmoe import Olmoe
from sawyer.model.families.qwen2_moe import Qwen2Moe
from sawyer.model.families.qwen3_moe import Qwen3Moe

_ALL: Final[tuple[Family, ...]] = (Mixtral(), Qwen2Moe(), DeepseekV2(), Dbrx(), Olmoe(), Qwen3Moe())
FAMILIES: Final[Mapping[str, Family]] = MappingProxyType({family.name: family for family in _ALL})


def family_of(config: Mapping[str, Any]) -> Family:
    """The family of a checkpoint, by the `model_type` of its config. Raises UnsupportedModel."""
    return family_named(str(config.get("model_type")))


def family_named(name: str) -> Family:
    """Raises UnsupportedModel for a name that is not registered."""
    family = FAMILIES.get(name)
    if family is None:
        raise UnsupportedModel(f"model family {name!r} is not known; known: {', '.join(FAMILIES)}")
    return family
