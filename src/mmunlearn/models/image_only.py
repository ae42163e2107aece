"""Processors for text and images alone, where what transformers needs for videos is not installed.

The processors of some families insist on a video processor, which needs torchvision (and, for SmolVLM, num2words), though
nobody shows them a video here. These are the same classes without it. What they save is what the whole processor would save,
so that a folder opens elsewhere with `AutoProcessor`.
"""

import importlib.util
import json
from functools import cache
from pathlib import Path
from typing import Any

import transformers
from transformers import AutoProcessor, ProcessorMixin, SmolVLMProcessor
from transformers.utils.hub import cached_file
from transformers.utils.import_utils import is_torchvision_available

VIDEO_PROCESSORS = {
    "Qwen2VLProcessor": "Qwen2VLVideoProcessor",
    "Qwen2_5_VLProcessor": "Qwen2VLVideoProcessor",
    "Qwen3VLProcessor": "Qwen3VLVideoProcessor",
    "LlavaOnevisionProcessor": "LlavaOnevisionVideoProcessor",
    "InternVLProcessor": "InternVLVideoProcessor",
    "SmolVLMProcessor": "SmolVLMVideoProcessor",
}
"""What the whole processor of a class has in its video slot."""
SETTINGS_FILES = ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json")
VIDEO_FILE = "video_preprocessor_config.json"


def needs_image_only(name: str) -> bool:
    """Whether a processor class cannot be opened as it is, for want of what it needs for videos."""
    missing = not is_torchvision_available() or (name == "SmolVLMProcessor" and importlib.util.find_spec("num2words") is None)
    return name in VIDEO_PROCESSORS and missing


def processor_name(source: str, *, local_files_only: bool = False) -> str:
    """The class of the processor in a folder or hub repository, as its files name it; empty if they do not."""
    for file in SETTINGS_FILES:
        if name := _read(source, file, local_files_only).get("processor_class"):
            return str(name)
    return ""


@cache
def image_only(name: str) -> Any:
    """The class of a processor without its video slot.

    Args:
        name: of a class in `VIDEO_PROCESSORS`.
    """
    whole = SmolVLMForImages if name == "SmolVLMProcessor" else getattr(transformers, name)

    def get_attributes(cls: type) -> list[str]:
        return ["image_processor", "tokenizer"]

    def to_dict(self: Any) -> dict[str, Any]:
        settings = getattr(self, "video_settings", None) or {"video_processor_type": VIDEO_PROCESSORS[name]}
        return {**whole.to_dict(self), "video_processor": dict(settings), "processor_class": name}

    # The name is saved with the tokenizer; `__init__` stays as it is, since its signature says what is saved.
    return type(name, (whole,), {"get_attributes": classmethod(get_attributes), "to_dict": to_dict})


class Processors:
    """Opens any processor, as `AutoProcessor` does, also where what it needs for videos is missing."""

    @staticmethod
    def from_pretrained(source: str, *, local_files_only: bool = False, **options: Any) -> Any:
        """Open a processor; the settings of a slot for videos that cannot be filled are kept for saving.

        Args:
            source: a folder or hub id.
            local_files_only: do not ask the hub.
            options: of `AutoProcessor.from_pretrained`.
        """
        name = processor_name(source, local_files_only=local_files_only)
        if not needs_image_only(name):
            return AutoProcessor.from_pretrained(source, local_files_only=local_files_only, **options)
        processor = image_only(name).from_pretrained(source, local_files_only=local_files_only, **options)
        nested = _read(source, SETTINGS_FILES[0], local_files_only).get("video_processor")
        processor.video_settings = nested or _read(source, VIDEO_FILE, local_files_only)
        return processor


def _read(source: str, file: str, local_files_only: bool) -> dict[str, Any]:
    path = cached_file(
        source,
        file,
        local_files_only=local_files_only,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return dict(json.loads(Path(path).read_text(encoding="utf-8"))) if path else {}


class SmolVLMForImages(SmolVLMProcessor):  # type: ignore[misc] # transformers' own contract: a processor is a subclass
    """SmolVLM's processor without the words that it makes for videos, for which it insists on num2words."""

    def __init__(
        self,
        image_processor: Any,
        tokenizer: Any,
        video_processor: Any = None,
        image_seq_len: int = 169,
        chat_template: str | None = None,
        **kwargs: Any,
    ) -> None:
        """Set what SmolVLM's own constructor sets."""
        self.fake_image_token = getattr(tokenizer, "fake_image_token", "<fake_token_around_image>")
        self.image_token = getattr(tokenizer, "image_token", "<image>")
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
        self.end_of_utterance_token = getattr(tokenizer, "end_of_utterance_token", "<end_of_utterance>")
        self.global_image_token = getattr(tokenizer, "global_image_token", "<global-img>")
        self.image_seq_len = image_seq_len
        self.video_token = getattr(tokenizer, "video_token", "<video>")
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template, **kwargs)

    def apply_chat_template(self, conversation: Any, chat_template: str | None = None, **kwargs: Any) -> Any:
        """Render a conversation; SmolVLM's own method asks the video processor first."""
        return ProcessorMixin.apply_chat_template(self, conversation, chat_template, **kwargs)
