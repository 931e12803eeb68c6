"""From a question's turns to prompt ids, by a FastChat template or the tokenizer's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from fastchat.conversation import conv_templates, get_conv_template

from model.logitspec.errors import InputError, brief

Message = Mapping[str, str]  # a role and a content
Encoder = Callable[[Sequence[Message]], list[int]]  # prompt ids, ready for the answer


@dataclass
class Conversation:
    """One multi-turn exchange: ask, generate, add the answer, ask again."""

    encode: Encoder
    stop_strings: tuple[str, ...] = ()  # an answer's text ends before the first of these
    _messages: list[Message] = field(default_factory=list)

    def ask(self, question: str) -> list[int]:
        """Add a user turn; the prompt ids of the whole conversation, ready for the answer."""
        self._messages.append({"role": "user", "content": question})
        return self.encode(self._messages)

    def answer(self, text: str) -> None:
        """Add the assistant's answer to the last turn."""
        self._messages.append({"role": "assistant", "content": text})


def encoded(tokenizer: Any, template: str, messages: Sequence[Message]) -> list[int]:
    """Prompt ids of messages in a FastChat template, or in the tokenizer's own."""
    if template == "tokenizer":
        rendered = tokenizer.apply_chat_template
        return list(rendered(list(messages), add_generation_prompt=True, return_dict=False))
    ids = list(tokenizer(fastchat_text(template, messages)).input_ids)
    bos = tokenizer.bos_token_id
    # one BOS even if both the template and the tokenizer write one, as apply_chat_template() gives
    return ids[1:] if bos is not None and ids[:2] == [bos, bos] else ids


def fastchat_text(template: str, messages: Sequence[Message]) -> str:
    """The text of messages in a FastChat template.

    System messages at the beginning are joined, and replace the template's own. InputError for an
    unknown role, or a system message after others.
    """
    conv = get_conv_template(template)
    roles = dict(zip(("user", "assistant"), conv.roles, strict=False))  # some have more
    examples = len(conv.messages)  # that come with some templates
    system: list[str] = []
    for number, message in enumerate(messages, start=1):
        if message["role"] == "system":
            if len(conv.messages) > examples:
                raise InputError(
                    f"message {number} is a system message after others, and FastChat's template "
                    f"{template} has a place for these at the beginning only; move it there"
                )
            system.append(message["content"])
        elif message["role"] in roles:
            conv.append_message(roles[message["role"]], message["content"])
        else:
            raise InputError(f"the role {message['role']!r} is none of system, user, assistant")
    if system:
        conv.set_system_message("\n\n".join(system))
    conv.append_message(conv.roles[1], None)
    return str(conv.get_prompt())


class PromptFormat:
    """The template of a run.

    `name` is the model's, by which FastChat knows it or not. `template` is a FastChat template's
    name, "tokenizer", or None to choose: FastChat's for the paper's families, whose published runs
    use it; for others the tokenizer's, unless it has none or both give the same prompts.
    InputError if there is no such template, or none to choose.
    """

    def __init__(self, name: str, tokenizer: Any, template: str | None = None) -> None:
        self.note = ""  # why the template was chosen, if that needs a word
        if template is None:
            template, self.note = chosen_template(name, tokenizer)
            if template == "tokenizer" and not tokenizer.chat_template:
                raise InputError(
                    f"FastChat knows no template for {name}, its tokenizer has no chat template; "
                    "name one with --conv-template (raw gives the question as it is)"
                )
        elif template == "tokenizer" and not tokenizer.chat_template:
            raise InputError(
                f"the tokenizer of {name} has no chat template; "
                "give --conv-template a FastChat name"
            )
        elif template != "tokenizer" and template not in conv_templates:
            raise InputError(
                f"FastChat has no template {template!r}; it has {', '.join(sorted(conv_templates))}"
            )
        self.name = name
        self.template = template
        self._tokenizer = tokenizer
        self._ids = partial(encoded, tokenizer, template)
        try:
            self._ids([{"role": "user", "content": "Does this template work?"}])
        except Exception as error:  # a template may raise anything
            raise InputError(f"the template {template} gives no prompt: {brief(error)}") from error
        conv = None if template == "tokenizer" else get_conv_template(template)
        stop = conv.stop_str if conv else None
        self.stop_token_ids: set[int] = set((conv and conv.stop_token_ids) or ())
        # Strings that end an answer; token ids may end it too.
        self.stop_strings = tuple([stop] if isinstance(stop, str) else stop or ())

    def __str__(self) -> str:
        return self.called + (f" ({self.note})" if self.note else "")

    @property
    def called(self) -> str:
        """The template as a phrase for messages."""
        if self.template == "tokenizer":
            return "the tokenizer's chat template"
        return f"FastChat's template {self.template}"

    def chat(self, messages: Sequence[Message]) -> list[int]:
        """Prompt ids of a conversation of roles and contents, ready for the assistant's answer.

        InputError if the template leaves a message out, or cannot have it where it stands; any
        exception if the template refuses the messages.
        """
        # Marks instead of the texts show which messages the template keeps: it may change texts.
        marks = [f"message{number}end" for number in range(1, len(messages) + 1)]
        marked = [{**m, "content": mark} for m, mark in zip(messages, marks, strict=True)]
        if self.template == "tokenizer":
            text = self._tokenizer.apply_chat_template(
                marked, add_generation_prompt=True, tokenize=False
            )
        else:
            text = fastchat_text(self.template, marked)
        for message, mark in zip(messages, marks, strict=True):
            # Templates may leave out the reasoning of an assistant's answers, or older answers.
            if mark not in text and message["role"] != "assistant":
                raise InputError(
                    f"{self.called} leaves out message {marks.index(mark) + 1}, of the role "
                    f"{message['role']}; leave it out yourself, or put it into another one"
                )
        return self._ids(messages)

    def start(self) -> Conversation:
        """A new conversation in this template."""
        return Conversation(self._ids, self.stop_strings)


PAPERS_FAMILIES = ("VicunaAdapter", "Llama2Adapter", "CodeLlamaAdapter")  # of FastChat


def fastchat_template(name: str) -> str | None:
    """FastChat's template for a model of this name; None if it has only a generic one."""
    from fastchat.model.model_adapter import BaseModelAdapter, get_model_adapter

    adapter = get_model_adapter(name)
    if type(adapter) is BaseModelAdapter:
        return None
    return str(adapter.get_default_conv_template(name).name)


def chosen_template(name: str, tokenizer: Any) -> tuple[str, str]:
    """The default template for a model of this name, and a note on the choice.

    FastChat finds templates by parts of a name, which another model's name may contain too.
    """
    from fastchat.model.model_adapter import get_model_adapter

    template = fastchat_template(name)
    if template is None or not tokenizer.chat_template:
        return template or "tokenizer", ""
    if type(get_model_adapter(name)).__name__ in PAPERS_FAMILIES:
        return template, ""
    try:
        own = two_turns(partial(encoded, tokenizer, "tokenizer"))
    except Exception as error:  # a Jinja template may raise anything
        return template, f"the tokenizer's chat template fails: {brief(error)}"
    try:
        same = two_turns(partial(encoded, tokenizer, template)) == own
    except Exception:  # FastChat lists styles that it cannot print
        same = False
    if same:
        return template, ""
    return "tokenizer", (
        f"FastChat takes {name} for {template} by its name, which gives other prompts than the "
        f"tokenizer's chat template; --conv-template {template} gives these"
    )


def two_turns(encode: Encoder) -> list[list[int]]:
    """The prompts of two questions."""
    conversation = Conversation(encode)
    prompts = [conversation.ask("How many?")]
    conversation.answer("Three.")
    return [*prompts, conversation.ask("Which ones?")]


def answer_text(tokenizer: Any, ids: list[int], stop_strings: tuple[str, ...]) -> str:
    """Generated ids as the answer's text: no special tokens, cut before a stop string, stripped."""
    text: str = tokenizer.decode(ids, skip_special_tokens=True, spaces_between_special_tokens=False)
    for stop in stop_strings:
        if text.find(stop) > 0:
            text = text[: text.find(stop)]
    return text.strip()
