"""OpenAI's completions and chat API as JSON: bodies out of requests, completions out of answers.

The extra fields are those of vLLM 0.32's server.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from data_gen.engines.base import Completion, FinishReason, Request, TokenLogprob, turns_of
from data_gen.engines.failures import Failure, error_message, status_failure
from ipt_jax.core.errors import UserError

_FINISH: dict[str, FinishReason] = {
    "stop": "stop",
    "length": "length",
    # Other servers' words for the same.
    "eos": "stop",
    "eos_token": "stop",
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
}


def request_path(request: Request) -> str:
    """The path below the API's address that answers this request."""
    return "completions" if isinstance(request.prompt, str) else "chat/completions"


def request_body(
    request: Request, *, model: str, vllm: bool, send_seed: bool, extra: Mapping[str, Any]
) -> bytes:
    """The request's JSON. Raises UserError for what only vLLM's dialect can say."""
    params = request.sampling
    body: dict[str, Any] = {
        "model": model,
        "max_tokens": params.max_tokens,
        "temperature": params.temperature,
        "top_p": params.top_p,
    }
    if isinstance(request.prompt, str):
        body["prompt"] = request.prompt
        if params.logprobs is not None:
            body["logprobs"] = params.logprobs
    else:
        body["messages"] = turns_of(request.prompt)
        if params.logprobs is not None:
            body |= {"logprobs": True, "top_logprobs": params.logprobs}
    if params.stop:
        body["stop"] = list(params.stop)
    if send_seed:
        body["seed"] = request.seed
    if vllm:
        body["skip_special_tokens"] = False
        if isinstance(request.prompt, str):
            body["add_special_tokens"] = False
        if params.top_k:
            body["top_k"] = params.top_k
        if params.regex is not None:
            body["structured_outputs"] = {"regex": params.regex}
    elif params.top_k or params.regex is not None:
        wrong = "`top_k`" if params.top_k else "a pattern (`engine.constrain`)"
        raise UserError(
            f"OpenAI's API knows no {wrong}: leave it out, or set `engine.server.dialect` to "
            "`vllm` where the server takes vLLM's extra fields.",
            key="engine.server.dialect",
        )
    return json.dumps(body | dict(extra)).encode()


def read_answer(request: Request, body: bytes, content_type: str) -> Completion | Failure:
    """The completion in the body of an answer with status 200, or what is wrong with it.

    Of several choices the one with index 0 counts. Tokens that the answer does not report are -1.
    """
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        kind = content_type or "of no type"
        return Failure("malformed", f"{len(body)} bytes {kind} that are no JSON")
    if not isinstance(answer, dict):
        return Failure("malformed", "JSON that is no object")
    if "choices" not in answer and ("error" in answer or answer.get("object") == "error"):
        inner = answer.get("error", answer)
        code = inner.get("code") if isinstance(inner, dict) else None
        if isinstance(code, int) and not isinstance(code, bool) and 400 <= code < 600:
            return status_failure(code, {}, body, 0.0)
        return Failure("malformed", f"an error under status 200: {error_message(body)}")
    try:
        choices = answer["choices"]
        choice = next((c for c in choices if c.get("index", 0) == 0), None) or choices[0]
        text, logprobs = _text(choice), _logprobs(choice.get("logprobs"))
        said = choice.get("finish_reason")
    except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
        return Failure("malformed", f"an answer of another form ({type(error).__name__}: {error})")
    reason = _FINISH.get(said) if isinstance(said, str) else None
    if reason is None:
        if said in (None, "abort"):
            return Failure("unfinished", f"the server gave up (finish reason {said!r})")
        return Failure(f"finish_{str(said)[:40]}", "the server withheld the answer", permanent=True)
    for stop in request.sampling.stop:
        if stop in text:  # some servers leave it in
            text, reason = text[: text.index(stop)], "stop"
    usage = answer.get("usage")
    return Completion(
        request.id,
        text,
        reason,
        _count(usage, "prompt_tokens"),
        _count(usage, "completion_tokens"),
        logprobs=logprobs if request.sampling.logprobs is not None else None,
    )


def _text(choice: Mapping[str, Any]) -> str:
    text = choice["message"]["content"] if "message" in choice else choice["text"]
    if text is None:  # a chat that was cut before it said anything
        return ""
    if not isinstance(text, str):
        raise ValueError(f"a text of type {type(text).__name__}")
    # Half a surrogate pair can be written in JSON, and in no file.
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _logprobs(found: Mapping[str, Any] | None) -> tuple[TokenLogprob, ...] | None:
    """Both forms: chat's list under `content`, completions' parallel lists."""
    if found is None:
        return None
    if "tokens" not in found:
        return tuple(
            TokenLogprob(
                place["token"],
                float(place["logprob"]),
                _best_first({e["token"]: e["logprob"] for e in place.get("top_logprobs") or ()}),
            )
            for place in found["content"] or ()
        )
    tops = found.get("top_logprobs") or [{}] * len(found["tokens"])
    return tuple(
        TokenLogprob(token, float(logprob), _best_first(top or {}))
        for token, logprob, top in zip(found["tokens"], found["token_logprobs"], tops, strict=True)
    )


def _best_first(top: Mapping[str, float]) -> tuple[tuple[str, float], ...]:
    return tuple(sorted(((t, float(v)) for t, v in top.items()), key=lambda pair: -pair[1]))


def _count(usage: Any, key: str) -> int:
    value = usage.get(key) if isinstance(usage, dict) else None
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else -1
