"""A turn that has ended, as spans: a root and, where the model was given context, one for its answer.

The attributes are those that Langfuse and the OpenTelemetry conventions for generative AI know.

Promises: a turn is never too long to be told. Where its words would not fit into an event they are cut, of context the
oldest first, and the span says so (`truncated`). Names and ids are not cut.
"""

import json

from turns import write_time

SCHEMA = "turn-traces-v1"
GENERATION = "memory-service.llm"

# Of an event's payload; the host takes 1 MiB.
EXPORT_BYTES_MAX = 1_000_000
# How much of the payload each text may take: the first of these with which all of it fits. Some are there several times,
# and what is JSON in JSON doubles its quotes and line ends.
ROOMS = (128 << 10, 64 << 10, 32 << 10, 16 << 10, 8 << 10)


def closed_event(closing, session, owner, span):
    """The payload of `turn.closed`. `span` has what the operator has set."""
    for room in ROOMS:
        event = _event(closing, session, owner, span, room)
        if _written(event) <= EXPORT_BYTES_MAX:
            break
    return event


def _event(closing, session, owner, span, room):
    turn = closing.turn
    times = {"startTime": write_time(turn.started_at), "endTime": write_time(closing.ended_at)}
    resource = {"service.name": span["service"]}
    if span["environment"]:
        resource |= {
            "langfuse.environment": span["environment"],
            "deployment.environment.name": span["environment"],
        }
    event = {
        "turnId": turn.id,
        "conversationId": turn.conversation,
        "endReason": closing.reason,
        "resource": resource,
        "span": {"name": span["name"], **times, "attributes": root_attributes(closing, session, owner, span, room)},
    }
    if turn.current_context():
        attributes = generation_attributes(closing, session, owner, span, room)
        event["generation"] = {"name": GENERATION, **times, "attributes": attributes}
    return event


def root_attributes(closing, session, owner, span, room):
    turn = closing.turn
    trace, observation = {}, {}
    given, answered = _cut(turn.input, room), _cut(turn.output, room)
    if (given, answered) != (turn.input, turn.output):
        observation["truncated"] = True
    context_count = len(turn.current_context())
    for place in (trace, observation):
        place["conversation_id"] = turn.conversation
        place["turn_id"] = turn.id
        place["turn_end_reason"] = closing.reason
        place["context_entry_count"] = context_count
    trace |= _metadata(closing, owner)
    return {
        **_common(closing, session, owner, span, "span"),
        **_under("langfuse.trace.metadata.", trace),
        **_under("langfuse.observation.metadata.", observation),
        **_same(given, "langfuse.trace.input", "langfuse.observation.input", "input.value"),
        **_same(answered, "langfuse.trace.output", "langfuse.observation.output", "output.value"),
    }


def generation_attributes(closing, session, owner, span, room):
    turn = closing.turn
    context = turn.current_context()
    told, answer = _spoken(turn, context)
    texts = [f"{c.id}: {c.text}" if c.id else c.text for c in context if c.text.strip()]
    shown = _newest(texts, room, _written, _cut)
    prompt = "\n".join(shown)
    if not told and prompt.strip():
        told = [{"role": "system", "content": prompt.strip()}]
    messages = _newest(told, room, _written_in_json, _cut_message)
    ids = [c.id for c in context if c.id]
    named = _newest(ids, room, _written, lambda id, _: id)
    completion = _cut(turn.output, room)
    answered = _cut_message(answer, room) if answer else None
    observation = {
        "conversation_id": turn.conversation,
        "turn_id": turn.id,
        "context_entry_count": len(context),
        "context_entry_ids": named,
        "user_entry_id": turn.user_entry,
        "agent_entry_id": turn.agent_entry,
    }
    if (shown, messages, named, answered, completion) != (texts, told, ids, answer, turn.output):
        observation["truncated"] = True
    return {
        **_common(closing, session, owner, span, "generation"),
        "gen_ai.operation.name": "chat",
        "gen_ai.system": "memory-service",
        **_under("langfuse.trace.metadata.", _metadata(closing, owner)),
        **_under("langfuse.observation.metadata.", observation),
        **_same(_json(messages), "langfuse.observation.input", "input.value"),
        **_same(_json(answered), "langfuse.observation.output", "output.value"),
        **_same(prompt, "gen_ai.prompt"),
        **_same(completion, "gen_ai.completion"),
    }


def _common(closing, session, owner, span, kind):
    return {
        "langfuse.trace.name": span["name"],
        **_same(session, "langfuse.session.id", "session.id"),
        "langfuse.version": SCHEMA,
        "langfuse.observation.type": kind,
        "langfuse.observation.level": closing.level,
        **_same(owner or closing.turn.user, "langfuse.user.id", "user.id"),
        **_same(span["release"], "langfuse.release"),
        **_same(span["environment"], "langfuse.environment"),
        "langfuse.trace.tags": closing.tags(),
    }


def _metadata(closing, owner):
    turn = closing.turn
    return {
        "conversation_id": turn.conversation,
        "turn_id": turn.id,
        "turn_end_reason": closing.reason,
        "start_cursor": turn.start_cursor,
        "end_cursor": closing.end_cursor,
        "user_entry_id": turn.user_entry,
        "agent_entry_id": turn.agent_entry,
        "agent_id": turn.agent,
        "client_id": turn.client,
        "conversation_group_id": turn.group,
        "user_source": "conversation_owner" if owner else "entry_user_id",
    }


def _spoken(turn, context):
    """What the model was told, and what it answered: the last message of context where that is its own, else the words
    in the history."""
    messages = [message for c in context for message in c.messages]
    if messages and messages[-1]["role"] == "assistant":
        return messages[:-1], messages[-1]
    if not turn.output.strip():
        return messages, None
    return messages, {"role": "assistant", "content": turn.output}


def _newest(items, room, size, cut):
    """The last of these that fit into so many bytes, in their order: the newest one is cut, older ones are left out."""
    found, left = [], room
    for item in reversed(items):
        item = item if found else cut(item, left)
        left -= size(item)
        if left < 0:
            break
        found.append(item)
    return found[::-1]


def _written(value):
    """Its bytes in the payload."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return len(text.encode("utf-8", "surrogatepass"))


def _written_in_json(value):
    """Its bytes in JSON that is text in the payload."""
    return _written(_json(value))


def _cut(text, room, size=_written):
    """As much of a text as fits into so many bytes."""
    # No letter takes more than seven.
    if len(text) * 7 + 2 <= room or size(text) <= room:
        return text
    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        if size(text[:middle]) <= room:
            low = middle
        else:
            high = middle - 1
    return text[:low]


def _cut_message(message, room):
    content = _cut(message["content"], room, lambda content: _written_in_json({**message, "content": content}))
    return message if content == message["content"] else {**message, "content": content}


def _json(value):
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")) if value else ""


def _under(prefix, members):
    return {prefix + name: value for name, value in members.items() if value not in ("", [])}


def _same(value, *names):
    return dict.fromkeys(names, value) if value else {}
