"""A turn that has ended, as spans: a root and, where the model was given context, one for its answer.

The attributes are those that Langfuse and the OpenTelemetry conventions for generative AI know.
"""

import json

from turns import write_time

SCHEMA = "turn-traces-v1"
GENERATION = "memory-service.llm"


def closed_event(closing, session, owner, span):
    """The payload of `turn.closed`. `span` has what the operator has set."""
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
        "span": {"name": span["name"], **times, "attributes": root_attributes(closing, session, owner, span)},
    }
    if turn.current_context():
        attributes = generation_attributes(closing, session, owner, span)
        event["generation"] = {"name": GENERATION, **times, "attributes": attributes}
    return event


def root_attributes(closing, session, owner, span):
    turn = closing.turn
    trace, observation = {}, {}
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
        **_same(turn.input, "langfuse.trace.input", "langfuse.observation.input", "input.value"),
        **_same(turn.output, "langfuse.trace.output", "langfuse.observation.output", "output.value"),
    }


def generation_attributes(closing, session, owner, span):
    turn = closing.turn
    context = turn.current_context()
    messages, answer = _spoken(turn, context)
    prompt = "\n".join(f"{c.id}: {c.text}" if c.id else c.text for c in context if c.text.strip())
    if not messages and prompt.strip():
        messages = [{"role": "system", "content": prompt.strip()}]
    observation = {
        "conversation_id": turn.conversation,
        "turn_id": turn.id,
        "context_entry_count": len(context),
        "context_entry_ids": [c.id for c in context if c.id],
        "user_entry_id": turn.user_entry,
        "agent_entry_id": turn.agent_entry,
    }
    return {
        **_common(closing, session, owner, span, "generation"),
        "gen_ai.operation.name": "chat",
        "gen_ai.system": "memory-service",
        **_under("langfuse.trace.metadata.", _metadata(closing, owner)),
        **_under("langfuse.observation.metadata.", observation),
        **_same(_json(messages), "langfuse.observation.input", "input.value"),
        **_same(_json(answer), "langfuse.observation.output", "output.value"),
        **_same(prompt, "gen_ai.prompt"),
        **_same(turn.output, "gen_ai.completion"),
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


def _json(value):
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")) if value else ""


def _under(prefix, members):
    return {prefix + name: value for name, value in members.items() if value not in ("", [])}


def _same(value, *names):
    return dict.fromkeys(names, value) if value else {}
