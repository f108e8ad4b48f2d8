"""What the gate looks at: the files just written, and how far they may be from the checkpoint."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from tokprune.manifest import EncoderPrecision, Graphs, GraphSpec, LlmForm, Precision
from tokprune_export.oracle import Expected
from tokprune_export.parity_report import RULES, STATIC, Rule
from tokprune_export.static_scales import Probe
from tokprune_export.widen import widen, widened_form
from tokprune_runtimes import Graph, load_graph


@dataclass(frozen=True)
class Bench:
    """The files under test, and what they are held to."""

    folder: Path
    graphs: Graphs
    family: str
    precision: Precision = "fp32"
    atol: float | None = None  # None: the precision's own
    rounded: Sequence[Expected] | None = (
        None  # what graphs are compared with whose weights have fewer bits
    )
    encoder_precision: EncoderPrecision | None = None  # None: as the rest
    probes: Sequence[Probe] = ()  # what the encoder says of pictures before it is rounded

    @property
    def encoder(self) -> Rule:
        """What the vision encoder is held to."""
        match self.encoder_precision:
            case "int8":
                return self._at(RULES["int8"])
            case "int8-static":
                return self._at(STATIC)
            case None:
                return self.beside

    @property
    def whole(self) -> Rule:
        """What answers from pixels on are held to."""
        return self.rule if self.encoder_precision is None else self._at(RULES["int8"])

    @property
    def beside(self) -> Rule:
        """What the first layer is held to, and a vision encoder that has not its own precision."""
        return RULES["fp32"] if self.precision == "int8" else self.rule

    @property
    def rule(self) -> Rule:
        """What the LLM is held to, and what is as narrow."""
        return self._at(RULES[self.precision])

    def _at(self, rule: Rule) -> Rule:
        return rule if self.atol is None else replace(rule, atol=self.atol)

    @property
    def forms(self) -> list[LlmForm]:
        """The LLM's forms, as they are fed here."""
        narrow = self.precision == "bf16"
        return [widened_form(form) if narrow else form for form in self.graphs.llm]

    def open(self, spec: GraphSpec) -> Graph:
        """Load a graph as the device would; in bfloat16 one that says the same in float32."""
        if self.precision != "bf16" or spec == self.graphs.scorer:
            return load_graph(self.folder / spec.file, "cpu")
        # beside the bundle's own files, where preflight has asked for the room
        with TemporaryDirectory(dir=self.folder) as folder:
            return load_graph(widen(self.folder / spec.file, Path(folder)), "cpu")
