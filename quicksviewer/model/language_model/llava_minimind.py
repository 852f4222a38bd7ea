"""MiniMind as the language model: a config and a class, and how its routers see packed and shared rows."""

from quicksviewer.minimind.config import llmconfig
from quicksviewer.minimind.model import MiniMindForCausalLM
from quicksviewer.minimind.moe import Sequences
from quicksviewer.model.language_model.multimodal import MultimodalCausalLM


class LlavaMiniMindConfig(llmconfig):
    """MiniMind's configuration with `mm`: a MultimodalConfig as plain data, or None for a model without
    eyes."""

    model_type = "llava_minimind"
    mm: dict | None = None


class LlavaMiniMindForCausalLM(MultimodalCausalLM, MiniMindForCausalLM):
    """MiniMind that sees."""

    config_class = LlavaMiniMindConfig

    def _about_rows(self, segment_ids_BT, places=None) -> dict:
        """Experts are to be equally busy in every document; of a team all together."""
        if not self.config.use_moe:
            return {}
        sequences = Sequences.of(segment_ids_BT)
        if places is None:
            return {"sequences": sequences}
        return {"sequences": sequences.at(places), "add_up": self.team.total}
