"""What a network offers: its published models, with shape and price. Owns the reading of a NetworkReply, no rule."""

from __future__ import annotations

from dataclasses import dataclass

from sawyer.economy.pricing import price_tokens
from sawyer.errors import RefusedError
from sawyer.schemas.events import PricingPublished
from sawyer.schemas.messages import NetworkReply


@dataclass(frozen=True)
class OfferedModel:
    """A published model. `manifest` names its exact weights and format; a token costs `moe_layers` * `top_k` expert
    rows. `pricing` is the price sheet in force, None if it names no price for this model."""

    model: str
    manifest: str
    family: str
    format: str
    moe_layers: int
    experts: int
    top_k: int
    expert_parameters: int
    pricing: PricingPublished | None

    def price(self, input_tokens: int, output_tokens: int) -> int:
        """Budget tokens that a request of so many text tokens costs. Raises RefusedError if the model has no price."""
        if self.pricing is None:
            raise RefusedError(f"the network has published no price for {self.model}", hint="Ask its operator.")
        return price_tokens(self.pricing, self.model, self.format, input_tokens, output_tokens)


def offered(network: NetworkReply) -> tuple[OfferedModel, ...]:
    """The models that this network publishes, by name."""
    sheet = network.pricing
    priced = {(each.model, each.format) for each in sheet.prices} if sheet else set()
    return tuple(
        OfferedModel(
            model=each.model,
            manifest=each.manifest,
            family=each.family,
            format=each.format,
            moe_layers=each.moe_layers,
            experts=each.experts,
            top_k=each.top_k,
            expert_parameters=each.expert_parameters,
            pricing=sheet if (each.model, each.format) in priced else None,
        )
        for each in sorted(network.models, key=lambda each: each.model)
    )
