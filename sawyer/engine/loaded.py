"""One model without its experts, loaded: trunk, tokenizer, chat template, and where they compute."""

from __future__ import annotations

from dataclasses import dataclass

from sawyer.engine.conversing import Conversing
from sawyer.engine.offload import Offload
from sawyer.engine.tokenizer import Tokenizer
from sawyer.engine.trunk import Trunk
from sawyer.model.artifacts import Artifacts
from sawyer.schemas.models import GenerationDefaults, ModelLayout


@dataclass(frozen=True)
class Engine:
    """What a router holds of one model, or a client with a trunk of its own. ONNX Runtime runs in `compute`, not on the
    event loop unless for a moment. `chat` is None for a model without a chat template; `generation` is what its maker
    said of sampling."""

    manifest: str
    layout: ModelLayout
    trunk: Trunk
    tokenizer: Tokenizer
    compute: Offload
    chat: Conversing | None
    generation: GenerationDefaults | None

    @classmethod
    def load(cls, artifacts: Artifacts) -> Engine:
        """Verify and load; blocks, so do it before anybody waits for this process."""
        tokenizer, template = Tokenizer(artifacts), artifacts.read_chat()
        return cls(
            artifacts.digest,
            artifacts.layout,
            Trunk(artifacts),
            tokenizer,
            Offload("trunk"),
            None if template is None else Conversing.of(template, tokenizer),
            artifacts.manifest.generation,
        )

    def close(self) -> None:
        """Idempotent."""
        self.compute.shutdown()
        if self.chat is not None:
            self.chat.close()
