"""The server, asked by OpenAI's own client and by others that do not keep to the rules."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from evaluation.chatting.chat import Chat
from evaluation.chatting.server import make_app
from evaluation.chatting.web import LARGEST_BODY
from evaluation.serve import main
from model.logitspec import InputError, VanillaDrafter, decode
from model.logitspec.kv_cache import CachePool

from .serving import HELLO, make_chat, serving

ROOT = Path(__file__).parents[2]


def expected(chat: Chat, ids: list[int], tokens: int) -> tuple[str, list[int]]:
    result = decode(
        chat.model, ids, VanillaDrafter(), max_new_tokens=tokens,
        eos_token_ids=chat.target.eos_token_ids,
    )  # fmt: skip
    return chat.target.tokenizer.decode(result.tokens, skip_special_tokens=True), result.tokens


def test_a_chat_is_the_targets_own_answer(client: openai.OpenAI, chat: Chat) -> None:
    messages = [{"role": "system", "content": "Be brief."}, *HELLO]
    ids = chat.prompt(messages)
    text, tokens = expected(chat, ids, 20)
    answer = client.chat.completions.create(
        model="tiny", messages=messages, max_tokens=20, temperature=0
    )
    assert answer.choices[0].message.content == text
    assert answer.choices[0].finish_reason in ("length", "stop")
    usage = answer.usage
    assert usage is not None and usage.completion_tokens_details is not None
    assert (usage.prompt_tokens, usage.completion_tokens) == (len(ids), len(tokens))
    details = usage.completion_tokens_details
    speculation = usage.model_extra["speculation"]  # type: ignore[index]
    assert details.accepted_prediction_tokens == len(tokens) - speculation["steps"]
    assert sum(speculation["accept_lengths"]) == len(tokens)
    assert speculation["mean_accepted_tokens"] == pytest.approx(
        len(tokens) / speculation["steps"], abs=1e-4
    )


def test_a_stream_is_the_same_in_pieces(client: openai.OpenAI, chat: Chat) -> None:
    text, tokens = expected(chat, chat.prompt(HELLO), 30)
    stream = client.chat.completions.create(
        model="tiny", messages=HELLO, max_completion_tokens=30, temperature=0, stream=True,
        stream_options={"include_usage": True},
    )  # fmt: skip
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    pieces = [c.choices[0].delta.content or "" for c in chunks if c.choices]
    assert "".join(pieces) == text and sum(map(bool, pieces)) > 2
    assert chunks[-2].choices[0].finish_reason in ("length", "stop")
    assert all("usage" in chunk.model_fields_set for chunk in chunks)  # null but in the last
    assert chunks[-1].usage is not None and chunks[-1].usage.completion_tokens == len(tokens)


def test_a_completion_takes_text_or_ids(client: openai.OpenAI, chat: Chat) -> None:
    ids = chat.target.tokenizer("Once upon a time").input_ids
    text, _ = expected(chat, ids, 12)
    for prompt in ("Once upon a time", ids, ["Once upon a time"], [ids]):
        answer = client.completions.create(
            model="tiny", prompt=prompt, max_tokens=12, temperature=0
        )
        assert answer.choices[0].text == text
    pieces = client.completions.create(
        model="tiny", prompt=ids, max_tokens=12, temperature=0, stream=True
    )
    assert "".join(piece.choices[0].text for piece in pieces) == text


def test_a_stop_string_ends_the_text_before_it(client: openai.OpenAI, chat: Chat) -> None:
    text, _ = expected(chat, chat.prompt(HELLO), 30)
    stop = text[len(text) // 2 : len(text) // 2 + 4]
    for stream in (False, True):
        answer: Any = client.chat.completions.create(
            model="tiny", messages=HELLO, max_tokens=30, temperature=0, stop=["\0never", stop],
            stream=stream,
        )  # fmt: skip
        if stream:
            chunks = list(answer)
            got = "".join(c.choices[0].delta.content or "" for c in chunks)
            reason = chunks[-1].choices[0].finish_reason
        else:
            got, reason = answer.choices[0].message.content, answer.choices[0].finish_reason
        assert (got, reason) == (text[: text.index(stop)], "stop")


def test_seeds_decide(client: openai.OpenAI) -> None:
    def ask(seed: int | None) -> str:
        answer = client.chat.completions.create(
            model="tiny", messages=HELLO, max_tokens=12, temperature=1.5, top_p=0.9, seed=seed
        )
        return answer.choices[0].message.content or ""

    assert ask(1) == ask(1)
    assert len({ask(None) for _ in range(4)}) > 1


def test_top_p_0_is_the_best_token(client: openai.OpenAI, chat: Chat) -> None:
    text, _ = expected(chat, chat.prompt(HELLO), 12)
    answer = client.chat.completions.create(
        model="tiny", messages=HELLO, max_tokens=12, temperature=1.5, top_p=0
    )
    assert answer.choices[0].message.content == text


def test_a_stream_without_obfuscation_is_a_stream(client: openai.OpenAI, chat: Chat) -> None:
    text, _ = expected(chat, chat.prompt(HELLO), 12)
    options: Any = {"include_obfuscation": False, "include_usage": None}
    stream = client.chat.completions.create(
        model="tiny", messages=HELLO, max_tokens=12, temperature=0, stream=True,
        stream_options=options,
    )  # fmt: skip
    assert "".join(c.choices[0].delta.content or "" for c in stream) == text


def test_a_developer_is_the_system(client: openai.OpenAI, chat: Chat) -> None:
    text, _ = expected(chat, chat.prompt([{"role": "system", "content": "Be brief."}, *HELLO]), 12)
    answer = client.chat.completions.create(
        model="tiny", messages=[{"role": "developer", "content": "Be brief."}, *HELLO],
        max_tokens=12, temperature=0,
    )  # fmt: skip
    assert answer.choices[0].message.content == text


def test_what_a_template_leaves_out_is_refused(chat_path: str, tmp_path: Path) -> None:
    """One that knows users and assistants only, as Qwen's drops the roles it does not know."""
    place = tmp_path / "tiny"
    shutil.copytree(chat_path, place)
    (place / "chat_template.jinja").write_text(
        "{% for m in messages %}{% if m.role in ('user', 'assistant') %}"
        "<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>\n{% endif %}{% endfor %}"
    )
    chat = make_chat(str(place))
    try:
        with serving(make_app(chat, "tiny", 400)) as address:
            system = {"role": "system", "content": "Be brief."}
            asked = {"model": "tiny", "max_tokens": 2}
            answer = httpx.post(address + CHAT, json=asked | {"messages": [*HELLO, system]})
            assert answer.status_code == 400
            assert answer.json()["error"]["message"] == (
                "the tokenizer's chat template leaves out message 2, of the role system; leave it "
                "out yourself, or put it into another one"
            )
            spaces = {"role": "user", "content": "  Hello?\n"}
            answer = httpx.post(address + CHAT, json=asked | {"messages": [spaces]})
            assert answer.status_code == 200
    finally:
        chat.close()


def test_system_messages_in_a_fastchat_template(chat_path: str) -> None:
    chat = make_chat(chat_path, conv_template="vicuna_v1.1")
    try:
        with serving(make_app(chat, "tiny", 400)) as address:
            first, second = ({"role": "system", "content": text} for text in ("One.", "Two."))
            developer = {"role": "developer", "content": "Three."}
            joined = chat.prompt([{"role": "system", "content": "One.\n\nTwo.\n\nThree."}, *HELLO])
            assert chat.target.tokenizer.decode(joined).startswith("One.\n\nTwo.\n\nThree. USER")
            assert chat.prompt([first, second, {**developer, "role": "system"}, *HELLO]) == joined
            asked = {"model": "tiny", "max_tokens": 2}
            answer = httpx.post(
                address + CHAT, json=asked | {"messages": [first, second, developer, *HELLO]}
            )
            assert answer.json()["usage"]["prompt_tokens"] == len(joined)
            answer = httpx.post(address + CHAT, json=asked | {"messages": [*HELLO, first]})
            assert answer.status_code == 400
            assert answer.json()["error"]["message"] == (
                "message 2 is a system message after others, and FastChat's template vicuna_v1.1 "
                "has a place for these at the beginning only; move it there"
            )
    finally:
        chat.close()


def test_the_model_is_named(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError, match="does not exist; this server has 'tiny'"):
        client.chat.completions.create(model="gpt-4", messages=HELLO)


CHAT = "/v1/chat/completions"
JSON = {"content-type": "application/json"}


@pytest.mark.parametrize(
    ("path", "content", "complaint", "param"),
    [
        (CHAT, b"{", "the body is not JSON", None),
        (CHAT, b"\xff\xfe", "", None),
        (CHAT, b"[]", "", None),
        (CHAT, b'"text"', "the body: Input should be", None),
        (CHAT, {"messages": HELLO}, "model: Field required", "model"),
        (CHAT, {"model": "tiny"}, "messages: Field required", "messages"),
        (CHAT, {"messages": []}, "messages:", "messages"),
        (CHAT, {"messages": [{"role": "user"}]}, "messages.0.content", None),
        (CHAT, {"messages": HELLO, "temperature": -1}, "temperature is -1.0", "temperature"),
        (CHAT, {"messages": HELLO, "temperature": "hot"}, "temperature:", "temperature"),
        (CHAT, {"messages": HELLO, "top_p": -0.1}, "top_p is -0.1; give more than 0", "top_p"),
        (CHAT, {"messages": HELLO, "top_p": 0, "top_k": -1}, "top_k is -1; give 0", "top_k"),
        (CHAT, {"messages": HELLO, "top_p": 0, "temperature": -3}, "temperature is -3.0", None),
        (CHAT, {"messages": HELLO, "top_p": 1.5}, "top_p is 1.5", "top_p"),
        (CHAT, {"messages": HELLO, "max_tokens": 0}, "max_tokens:", "max_tokens"),
        (CHAT, {"messages": HELLO, "max_tokens": 401}, "this server gives 400", "max_tokens"),
        (CHAT, {"messages": HELLO, "n": 2}, "n is not supported", "n"),
        (CHAT, {"messages": HELLO, "top_logprobs": 2}, "wants logprobs to be", "top_logprobs"),
        (CHAT, {"messages": HELLO, "top_logprobs": 21}, "top_logprobs: ", "top_logprobs"),
        (CHAT, {"messages": HELLO, "tools": [{}]}, "tools is not supported", "tools"),
        (CHAT, {"messages": HELLO, "presence_penalty": 1}, "presence_penalty is not", None),
        (CHAT, {"messages": HELLO, "stop": [""]}, "stop is more than 16", "stop"),
        (CHAT, {"messages": HELLO, "stop": "x" * 201}, "over 200 characters", "stop"),
        (CHAT, {"messages": HELLO, "stream_options": {"x": 1}}, "stream_options.x", None),
        (CHAT, {"messages": [HELLO[0]] * 90_000}, "is too long for", "messages"),
        (CHAT, {"messages": [{"role": "x" * 10**6, "content": ""}]}, "xxx…' of a message", None),
        *[
            (
                CHAT,
                {"messages": [HELLO[0], {"role": role, "content": "x"}]},
                f"the role {role!r} of a message is not supported; give system, developer, user",
                "messages",
            )
            for role in ("User", "banana", "", "tool", "function")
        ],
        (
            CHAT,
            {"messages": HELLO, "stream_options": {"include_obfuscation": True}},
            "include_obf",
            None,
        ),
        ("/v1/completions", {"prompt": ["a", "b"]}, "2 prompts; this server answers 1", "prompt"),
        ("/v1/completions", {"prompt": [[5], [6], [7]]}, "3 prompts; this server", "prompt"),
        ("/v1/completions", {"prompt": [""]}, "the prompt is empty", "prompt"),
        ("/v1/completions", {"prompt": [[]]}, "the prompt is empty", "prompt"),
        ("/v1/completions", {"prompt": [[10**9]]}, "what is no token id", "prompt"),
        (CHAT, {"messages": [HELLO[0] | {"name": "me"}]}, "name of a message", "messages"),
        (CHAT, {"messages": [HELLO[0] | {"content": "\ud800"}]}, "chat template", "messages"),
        (CHAT, {"messages": [{"role": "\ud800", "content": "x"}]}, "", None),
        (CHAT, {"messages": HELLO, "use_beam_search": True}, "use_beam_search is not", None),
        (CHAT, {"messages": HELLO, "temprature": 1}, "temprature is not supported", "temprature"),
        (CHAT, {"messages": HELLO, "temperature": 0, "top_p": 5}, "top_p is 5.0", "top_p"),
        (CHAT, {"messages": HELLO, "stream_options": 3}, "stream_options:", "stream_options"),
        (
            CHAT,
            {"messages": [{"role": "user", "content": "x", "tool_calls": [{}]}]},
            "tool_calls of a message",
            "messages",
        ),
        (CHAT, {"messages": [{"role": "user", "content": "x" * 10**6}]}, "is too long for", None),
        (
            CHAT,
            {"messages": [{"role": "user", "content": "Hi " * 600}]},
            "exceed the model's",
            None,
        ),
        (
            CHAT,
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]},
            "image_url in a message is not supported",
            "messages",
        ),
        ("/v1/completions", {"prompt": "\ud800"}, "the prompt is no text", "prompt"),
        ("/v1/completions", {"prompt": [1] * 10**6}, "is too long for", "prompt"),
        ("/v1/completions", {"prompt": []}, "the prompt is empty", "prompt"),
        ("/v1/completions", {"prompt": [10**9]}, "what is no token id", "prompt"),
        ("/v1/completions", {"prompt": "x", "logprobs": 6}, "logprobs: ", "logprobs"),
        ("/v1/completions", {"prompt": "x", "echo": True}, "echo is not supported", "echo"),
    ],
)
def test_malformed_requests_are_refused_in_openais_form(
    address: str, path: str, content: Any, complaint: str, param: str | None
) -> None:
    if isinstance(content, dict):
        with_model = {"model": "tiny"} | content if "model: Field" not in complaint else content
        content = json.dumps(with_model).encode()
    answer = httpx.post(address + path, content=content, headers=JSON)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error" and complaint in error["message"]
    if param is not None:
        assert error["param"] == param


def test_a_body_that_is_not_called_json_is_told_so(address: str) -> None:
    header = {"content-type": "text/plain"}
    answer = httpx.post(address + CHAT, content=b'{"model": "tiny"}', headers=header)
    assert answer.status_code == 400
    assert "header content-type: application/json" in answer.json()["error"]["message"]


def test_other_paths_methods_and_sizes_are_refused(address: str) -> None:
    assert httpx.get(address + "/v1/nothing").status_code == 404
    assert "error" in httpx.get(address + "/v1/nothing").json()
    wrong = httpx.get(address + CHAT)
    assert wrong.status_code == 405 and wrong.headers["allow"] == "POST"
    answer = httpx.post(address + CHAT, content=b" " * (LARGEST_BODY + 1), headers=JSON)
    assert answer.status_code == 413 and "larger than" in answer.json()["error"]["message"]


def test_null_is_as_good_as_nothing(address: str) -> None:
    given_back = {"role": "assistant", "content": "a", "refusal": None}
    body = {"model": "tiny", "messages": [*HELLO, given_back, *HELLO]}
    names = ("temperature", "top_p", "stream", "stop", "seed", "n", "tools", "user")
    nothing = dict.fromkeys(names)
    answer = httpx.post(
        address + CHAT, json=body | nothing | {"max_tokens": 2, "presence_penalty": 0.0}
    )
    assert answer.status_code == 200


def test_flags_are_checked(chat_path: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--model-path", "nowhere"]) == 2
    assert "no model directory 'nowhere'" in capsys.readouterr().err
    assert main(["--model-path", chat_path, "--host", "a..b"]) == 2
    assert "cannot listen on a..b" in capsys.readouterr().err
    assert main(["--model-path", chat_path, "--method", "baseline"]) == 2
    assert "transformers' own loop" in capsys.readouterr().err
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        argv = ["--model-path", chat_path, "--method", "pld", "--port", port, "--device", "cpu"]
        assert main(argv) == 2
    assert f"cannot listen on 127.0.0.1:{port}" in capsys.readouterr().err


def test_a_conversation_is_not_read_again(client: openai.OpenAI, chat: Chat) -> None:
    chat.model.caches = CachePool()  # other tests' conversations begin alike
    messages: list[Any] = [{"role": "user", "content": "Tell me of whales."}]
    cached = []
    for turn in ("And of gulls?", "And of crabs?", ""):
        answer = client.chat.completions.create(
            model="tiny", messages=messages, max_tokens=20, temperature=0
        )
        assert answer.usage is not None and answer.usage.prompt_tokens_details is not None
        cached.append(answer.usage.prompt_tokens_details.cached_tokens)
        text, _ = expected(chat, chat.prompt(messages), 20)
        assert answer.choices[0].message.content == text
        before = len(chat.prompt(messages))
        messages += [{"role": "assistant", "content": text}, {"role": "user", "content": turn}]
    assert cached[0] == 0
    assert 0 < cached[1] < cached[2] < before


def test_what_is_learnt_outlives_the_server(chat_path: str, tmp_path: Path) -> None:
    file = tmp_path / "learnt.npz"
    steps = []
    for _ in range(2):
        chat = make_chat(chat_path, "recycling", state=file)
        with pytest.raises(InputError, match="is kept by another server"):
            make_chat(chat_path, "recycling", state=file)
        with serving(make_app(chat, "tiny", 400)) as address:
            client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
            answer = client.chat.completions.create(
                model="tiny", messages=HELLO, max_tokens=60, temperature=0
            )
        chat.close()
        assert file.is_file() and len(list(tmp_path.iterdir())) == 1
        assert answer.usage is not None
        steps.append(answer.usage.model_extra["speculation"]["steps"])  # type: ignore[index]
    assert steps[1] < steps[0]


@pytest.mark.parametrize(
    ("method", "content", "said"),
    [
        ("pld", None, "the method pld keeps nothing from answer to answer"),
        ("calibrated", b"torn", "is no state, or a torn one"),
    ],
)
def test_a_state_that_cannot_be_kept_is_refused(
    chat_path: str, tmp_path: Path, method: str, content: bytes | None, said: str
) -> None:
    file = tmp_path / "learnt.npz"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(InputError, match=said):
        make_chat(chat_path, method, state=file)
