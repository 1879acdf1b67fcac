"""Policies with a head on a vision-language model, as one of the families of policies."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import PreTrainedModel

from workloads.config.sections import Model
from workloads.engine import distributed
from workloads.engine.pretrained.base import Base
from workloads.engine.pretrained.files import Reporter
from workloads.errors import UserError
from workloads.run import Run
from workloads.vla.actions import ActionTokenizer
from workloads.vla.config import VlaConfig
from workloads.vla.data.prepare import Sources
from workloads.vla.family import Samples
from workloads.vla.processing import ImageProcessor
from workloads.vla.robovlms import loading
from workloads.vla.robovlms.actions import ActionScale
from workloads.vla.robovlms.export import PolicyExporter, keep_skeleton
from workloads.vla.robovlms.meter import HeadMeter
from workloads.vla.robovlms.modeling import PolicyModel
from workloads.vla.robovlms.policy import HeadPolicy, load_policy
from workloads.vla.robovlms.samples import WindowCollate, WindowMaker, WindowSamples

if TYPE_CHECKING:
    from workloads.engine.fake_step.step import FakeStep, Fields


class RoboVLMsFamily:
    """LSTM, GPT, FC and discrete heads; see `workloads.vla.family.Family`."""

    labels = "actions"
    head_file = loading.HEAD_FILE

    @property
    def exporter(self) -> PolicyExporter:
        return PolicyExporter()

    def read(self, model: Model, folder: Path) -> Any:
        return loading.read(model, folder)

    def load(
        self, config: VlaConfig, base: Base[Any], sources: Sources, report: Reporter
    ) -> PolicyModel:
        model = loading.build(config, base, loading.spec_of(config, base, sources), report)
        model.norm_stats = sources.statistics
        return model

    def trainable(self, model: PreTrainedModel, config: VlaConfig) -> nn.Module:
        assert isinstance(model, PolicyModel)
        return loading.trainable(model, config)

    def is_head(self, name: str) -> bool:
        return PolicyModel.is_head(name)

    def keep_skeleton(self, base: Base[Any], model: PreTrainedModel, run: Run) -> None:
        assert isinstance(model, PolicyModel)
        keep_skeleton(base, model, run)

    def processor(self, base: Base[Any]) -> ImageProcessor:
        return loading.image_processor(base.folder, loading.backbone_fields(base))

    def samples(
        self,
        config: VlaConfig,
        base: Base[Any],
        model: PreTrainedModel,
        sources: Sources,
        processor: ImageProcessor,
    ) -> Samples:
        assert isinstance(model, PolicyModel)
        spec, text = model.spec, loading.tokenizer(base.folder)
        stats = sources.statistics
        scales = {
            name: ActionScale(table["action"], spec.bounds, spec.head.gripper)
            for name, table in stats.items()
        }
        discrete = None
        if spec.is_discrete:
            discrete = ActionTokenizer(spec.usable, spec.bins, spec.low, spec.high)
        maker = WindowMaker(
            processor=processor,
            tokenizer=text,
            adapter=model.adapter,
            scales=scales,
            states={name: table["proprio"] for name, table in stats.items()}
            if spec.state_size
            else None,
            augmentation=config.data.augmentation,
            shift=config.data.shift or {},
            discrete=discrete,
            chunk=config.chunk,
            gripper=spec.head.gripper,
        )
        readers = distributed.world_size() * max(1, config.train.workers)
        train = WindowSamples(sources.train, maker, config, True, readers)
        held_out = None
        if sources.held_out:
            held_out = WindowSamples(sources.held_out, maker, config, False)
        return Samples(
            train,
            held_out,
            WindowCollate(_pad(text), _image_tokens(model, processor), model.latent),
            {
                training: HeadMeter(samples.parts, scales, spec.head.gripper, discrete)
                for training, samples in ((True, train), (False, held_out))
                if samples is not None
            },
            in_order=True,
        )

    def method(self, config: VlaConfig) -> str:
        head = config.action_head
        history = {"none": "no history", "head": "history in the head"}.get(
            head.history, "frames interleaved"
        )
        return f"{head.kind} head, window {config.window}, chunk {head.chunk}, {history}"

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
    ) -> HeadPolicy:
        """The policy of an exported folder.

        Raises UserError for `four_bit`, which policies with a head do not have.
        """
        if four_bit:
            raise UserError(
                "--four-bit: expected OpenVLA, found a policy with a head, "
                "which is served as exported; leave it out"
            )
        return load_policy(folder, facts, name, dtype, attn, device, report)

    def fake_step(self, config: VlaConfig, fields: "Fields") -> "FakeStep":
        from workloads.vla.robovlms.fake_step import build

        return build(config, fields)


def _pad(tokenizer: Any) -> int:
    """Id for padding; it is masked, so that any id will do if there is none."""
    own = tokenizer.pad_token_id
    return int(tokenizer.eos_token_id if own is None else own)


def _image_tokens(model: PolicyModel, processor: ImageProcessor) -> int:
    """Number of tokens of an image, found with a test image."""
    height, width = processor.geometry.crop
    pixels = torch.zeros(1, 3, height, width, dtype=model.dtype, device=model.device)
    with torch.no_grad():
        return int(model.image_tokens(pixels).shape[1])
