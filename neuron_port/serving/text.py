"""The model's tokenizer as the server uses it: prompts and chats to ids, ids to text, which ids end a text."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from neuron_port.errors import CheckpointError
from neuron_port.serving.bundle import Bundle
from neuron_port.serving.errors import ApiError

_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")
Result = TypeVar("Result")


class Text:
    """Encodes in a thread of its own, so that a long prompt does not stop the event loop.

    There are two tokenizers: one for that thread, one for the engine's. The fast tokenizers' shared state refuses
    ("already borrowed") to be read in one thread while another encodes.
    """

    def __init__(self, bundle: Bundle) -> None:
        self._encoder, self._decoder = _load(bundle), _load(bundle)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="tokenizer")
        self.end_tokens = _end_tokens(bundle, self._decoder)
        rows = bundle.json_file("config.json").get("vocab_size")
        self.vocabulary = min(len(self._decoder), rows or len(self._decoder))

    async def encode(self, text: str) -> list[int]:
        """Ids of a prompt, with what the tokenizer puts around one."""
        return await self._in_thread(lambda: list(self._encoder(text)["input_ids"]))

    async def encode_chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Ids of a conversation in the model's own template, up to where the assistant speaks.

        Raises: ApiError (400) when the model has no template, or the template refuses the messages.
        """
        if not self._encoder.chat_template:
            raise ApiError(
                400,
                "The model has no chat template: it continues text. Use /v1/completions.",
                param="messages",
                code="no_chat_template",
            )
        return await self._in_thread(functools.partial(self._templated, messages))

    def _templated(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        import jinja2

        try:
            encoded = self._encoder.apply_chat_template(
                list(messages), add_generation_prompt=True, tokenize=True, return_dict=True
            )
        except (jinja2.TemplateError, TypeError, ValueError) as error:
            raise ApiError(
                400, f"The model's chat template refuses these messages: {error}", param="messages"
            ) from error
        return list(encoded["input_ids"])

    def decode(self, ids: list[int]) -> str:
        """The text of ids, special tokens left out."""
        return str(self._decoder.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def token_text(self, token: int) -> str:
        """One token by itself, as log-probabilities name it: special tokens too."""
        return str(self._decoder.decode([token], clean_up_tokenization_spaces=False))

    async def _in_thread(self, work: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)


def _load(bundle: Bundle) -> Any:
    from transformers import AutoTokenizer

    if not any((bundle.folder / name).is_file() for name in _FILES):
        raise CheckpointError(
            f"`{bundle.folder}` has no tokenizer, so that texts cannot be read or written",
            hint="Put the checkpoint's tokenizer files beside its weights and convert it again.",
        )
    try:
        return AutoTokenizer.from_pretrained(bundle.folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the tokenizers library raises plain Exception
        raise CheckpointError(
            f"The tokenizer of `{bundle.folder}` cannot be read: {error}", hint="Convert the model again."
        ) from error


def _end_tokens(bundle: Bundle, tokenizer: Any) -> frozenset[int]:
    """The ids after which the model has said all: those of generation_config.json, config.json and the tokenizer."""
    found: set[int] = set()
    for name in ("generation_config.json", "config.json"):
        ids = bundle.json_file(name).get("eos_token_id")
        found |= {ids} if isinstance(ids, int) else set(ids or ())
        if found:
            break
    if tokenizer.eos_token_id is not None:
        found.add(tokenizer.eos_token_id)
    return frozenset(found)
