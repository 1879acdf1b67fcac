"""OpenVLA as one of the families of policies."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import PreTrainedModel

from workloads.config.sections import Model
from workloads.engine.pretrained.base import Base
from workloads.engine.pretrained.files import Reporter
from workloads.run import Run
from workloads.vla.config import VlaConfig
from workloads.vla.data.prepare import Sources
from workloads.vla.data.steps import Collate, Maker, Steps
from workloads.vla.evaluate.action_errors import ActionMeter
from workloads.vla.family import Samples
from workloads.vla.openvla import layout
from workloads.vla.openvla.config import OpenVLASpec
from workloads.vla.openvla.export import OpenVLAExporter, keep_skeleton
from workloads.vla.openvla.loading import (
    image_processor,
    load_model,
    oft_spec,
    spec_of,
    trainable,
)
from workloads.vla.openvla.modeling import OpenVLA
from workloads.vla.openvla.policy import OpenVLAPolicy, load_policy
from workloads.vla.openvla.tokenizer import LlamaTokenizer
from workloads.vla.processing import ImageProcessor

if TYPE_CHECKING:
    from workloads.engine.fake_step.step import FakeStep, Fields


class OpenVLAFamily:
    """OpenVLA and its OFT variant; see `workloads.vla.family.Family`."""

    labels = "labels"
    head_file = layout.OFT_WEIGHTS

    @property
    def exporter(self) -> OpenVLAExporter:
        return OpenVLAExporter()

    def read(self, model: Model, folder: Path) -> OpenVLASpec:
        return spec_of(folder)

    def load(
        self, config: VlaConfig, base: Base[OpenVLASpec], sources: Sources, report: Reporter
    ) -> OpenVLA:
        oft = oft_spec(config, sources.action_dim, sources.proprio_dim)
        return load_model(config, base.folder, oft, sources.statistics, report)

    def trainable(self, model: PreTrainedModel, config: VlaConfig) -> nn.Module:
        assert isinstance(model, OpenVLA)
        return trainable(model, config)

    def is_head(self, name: str) -> bool:
        return layout.is_head(name)

    def keep_skeleton(self, base: Base[OpenVLASpec], model: PreTrainedModel, run: Run) -> None:
        assert isinstance(model, OpenVLA)
        keep_skeleton(base, model, run)

    def processor(self, base: Base[OpenVLASpec]) -> ImageProcessor:
        return image_processor(base.folder)

    def samples(
        self,
        config: VlaConfig,
        base: Base[OpenVLASpec],
        model: PreTrainedModel,
        sources: Sources,
        processor: ImageProcessor,
    ) -> Samples:
        assert isinstance(model, OpenVLA)
        maker = Maker(
            processor=processor,
            tokenizer=LlamaTokenizer(base.folder),
            actions=model.action_tokenizer,
            statistics=sources.statistics,
            augmentation=config.data.augmentation,
            chunk=config.chunk,
            proprio=config.action_head.kind == "oft" and config.action_head.proprio,
        )
        seed, most = config.train.seed, config.evaluation.samples
        train = Steps(sources.train, maker, seed, True)
        held_out = Steps(sources.held_out, maker, seed, False, most) if sources.held_out else None
        patches = base.config.patches * len(sources.train[0].cameras)
        return Samples(
            train,
            held_out,
            Collate(base.config.pad_token_id, patches, config.regresses),
            {
                training: ActionMeter(
                    model.action_tokenizer, sources.statistics, steps.parts, config.chunk
                )
                for training, steps in ((True, train), (False, held_out))
                if steps is not None
            },
        )

    def method(self, config: VlaConfig) -> str:
        head = config.action_head
        chunk = f"{head.chunk} step" + ("s" if head.chunk > 1 else "")
        return "action tokens" if head.kind == "tokens" else f"OFT {head.decode}, {chunk}"

    def load_policy(
        self,
        folder: Path,
        facts: Mapping[str, Any],
        name: str,
        dtype: torch.dtype | None,
        attn: str,
        device: torch.device,
        four_bit: bool,
        report: Reporter,
    ) -> OpenVLAPolicy:
        kind = "sdpa" if attn == "auto" else attn
        return load_policy(folder, facts, name, dtype, kind, device, four_bit, report)

    def fake_step(self, config: VlaConfig, fields: "Fields") -> "FakeStep":
        from workloads.vla.openvla.fake_step import build

        return build(config, fields)
