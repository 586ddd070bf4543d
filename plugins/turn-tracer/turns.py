"""Open turns, and the state that they are saved in."""

import hashlib

from millrace import format_time, parse_time

CONTENT_TYPE = "application/vnd.memory-service.turn-trace-checkpoint+json;v=1"
STATE_VERSION = 1
# Text of open turns that is kept at a time; beyond it the oldest turns end.
STATE_TEXT_BYTES_MAX = 2 << 20
# Cursors and entries that a turn knows, to count what comes twice once.
SEEN_MAX = 2_000


# The times that can be written, from the year 1 to 9999.
TIME_MIN, TIME_MAX = parse_time("0001-01-01T00:00:00Z"), parse_time("9999-12-31T23:59:59.999999Z")


def read_time(text, default):
    """A time of the service in microseconds; `default` where there is none, or one that cannot be read or written."""
    if not text:
        return default
    try:
        time = parse_time(text)
    except ValueError:
        return default
    return time if TIME_MIN <= time <= TIME_MAX else default


def write_time(micros):
    """What is due beyond the last year is due at its end."""
    return format_time(min(max(micros, TIME_MIN), TIME_MAX))


def moved_time(newest, ahead, at, ahead_max):
    """What time it is after an event, and the time of one that was too far ahead to be believed alone; 0 for none. An
    event that is wrong by years would end all that is open, and whatever is opened after it. Where the next one is as
    far ahead it was right: the stream was quiet. The first event of all is believed."""
    if not newest:
        return at, 0
    if at > newest + ahead_max:
        if not ahead or at == ahead:
            return newest, at
        newest, ahead = min(at, ahead), max(at, ahead)
    else:
        newest = max(newest, at)
    return (newest, ahead) if ahead > newest + ahead_max else (max(newest, ahead), 0)


class Context:
    """An entry of context that belongs to a turn."""

    __slots__ = ("id", "cursor", "content_type", "epoch", "text", "messages", "created_at")

    def __init__(self, id, cursor, content_type, epoch, text, messages, created_at):
        self.id, self.cursor, self.content_type, self.epoch = id, cursor, content_type, epoch
        self.text, self.messages, self.created_at = text, messages, created_at

    @classmethod
    def of(cls, entry, cursor, at, with_text):
        text, messages = (entry.text(), entry.messages()) if with_text else ("", [])
        return cls(entry.id, cursor, entry.content_type, entry.epoch, text, messages, at)

    @property
    def text_bytes(self):
        return len(self.text.encode()) + sum(len(message["content"].encode()) for message in self.messages)

    def to_json(self):
        members = {
            "id": self.id,
            "cursor": self.cursor,
            "contentType": self.content_type,
            "epoch": self.epoch,
            "text": self.text,
            "messages": self.messages,
        }
        return {**_present(members), "createdAt": write_time(self.created_at)}

    @classmethod
    def from_json(cls, saved):
        messages = [{"role": str(m["role"]), "content": str(m["content"])} for m in saved.get("messages") or []]
        return cls(
            str(saved["id"]),
            str(saved.get("cursor") or ""),
            str(saved.get("contentType") or ""),
            # A state that came through a store of doubles has whole numbers as such.
            int(saved.get("epoch") or 0),
            str(saved.get("text") or ""),
            messages,
            read_time(saved.get("createdAt"), 0),
        )


class Turn:
    """An open turn. Nothing but `attach` changes one: what an event makes of it is another, so that an event that is
    refused leaves no trace."""

    __slots__ = (
        "id",
        "conversation",
        "group",
        "start_cursor",
        "latest_cursor",
        "user_entry",
        "agent_entry",
        "context",
        "started_at",
        "latest_event_at",
        "user",
        "agent",
        "client",
        "input",
        "output",
        "cursors",
        "entries",
        "text_bytes",
    )

    def copy(self, **changed):
        copy = Turn()
        for name in Turn.__slots__:
            setattr(copy, name, changed[name] if name in changed else getattr(self, name))
        return copy

    @classmethod
    def opened(cls, entry, cursor, at):
        turn = cls()
        turn.id = turn_id(entry.conversation, cursor, entry.id)
        turn.conversation, turn.group = entry.conversation, entry.group
        turn.start_cursor = turn.latest_cursor = cursor
        turn.started_at = turn.latest_event_at = at
        turn.user_entry, turn.agent_entry = entry.id, ""
        turn.user, turn.agent, turn.client = entry.user, entry.agent, entry.client
        turn.input, turn.output, turn.context = entry.text(), "", []
        turn.cursors, turn.entries = {cursor: True}, {entry.id: True} if entry.id else {}
        turn.text_bytes = len(turn.input.encode())
        return turn

    def answered(self, entry):
        return self.copy(
            agent_entry=entry.id,
            agent=entry.agent or self.agent,
            client=entry.client or self.client,
            output=entry.text(),
        )

    def told(self, conversation, cursor, at):
        return self.copy(
            agent=conversation.agent or self.agent,
            group=conversation.group or self.group,
            latest_cursor=cursor,
            latest_event_at=max(at, self.latest_event_at),
        )

    def attach(self, context, entry, context_max):
        if context.id and context.id not in self.entries:
            self.context.append(context)
            self.text_bytes += context.text_bytes
            if len(self.context) > context_max:
                self.text_bytes -= self.context.pop(0).text_bytes
        self.agent, self.client = entry.agent or self.agent, entry.client or self.client
        self.group = entry.group or self.group
        self.latest_cursor, self.latest_event_at = context.cursor, max(context.created_at, self.latest_event_at)
        for known, seen in ((self.cursors, context.cursor), (self.entries, context.id)):
            if seen:
                known[seen] = True
            if len(known) > SEEN_MAX:
                del known[next(iter(known))]

    def has_seen(self, cursor, entry):
        return cursor in self.cursors or entry in self.entries

    def current_context(self):
        """The context of the newest epoch: what came before it was given up."""
        newest = max((context.epoch for context in self.context), default=0)
        return [context for context in self.context if context.epoch == newest]

    def age_key(self):
        return self.started_at, self.id

    def to_json(self):
        members = {
            "turnId": self.id,
            "conversationId": self.conversation,
            "startCursor": self.start_cursor,
            "latestCursor": self.latest_cursor,
            "userEntryId": self.user_entry,
            "agentEntryId": self.agent_entry,
            "contextEntryIds": [context.id for context in self.context],
            "contextEntries": [context.to_json() for context in self.context],
            "startedAt": write_time(self.started_at),
            "latestEventAt": write_time(self.latest_event_at),
            "userId": self.user,
            "agentId": self.agent,
            "clientId": self.client,
            "input": self.input,
            "output": self.output,
            "seenCursors": self.cursors,
            "seenEntryIds": self.entries,
            "metadata": {"conversation_group_id": self.group} if self.group else {},
        }
        return _present(members)

    @classmethod
    def from_json(cls, saved):
        turn = cls()
        turn.id, turn.conversation = str(saved["turnId"]), str(saved["conversationId"])
        turn.start_cursor, turn.latest_cursor = str(saved.get("startCursor")), str(saved.get("latestCursor"))
        turn.user_entry = str(saved.get("userEntryId") or "")
        turn.agent_entry = str(saved.get("agentEntryId") or "")
        turn.started_at = parse_time(saved["startedAt"])
        turn.latest_event_at = parse_time(saved["latestEventAt"])
        turn.user, turn.agent = str(saved.get("userId") or ""), str(saved.get("agentId") or "")
        turn.client = str(saved.get("clientId") or "")
        turn.input, turn.output = str(saved.get("input") or ""), str(saved.get("output") or "")
        turn.cursors, turn.entries = dict(saved.get("seenCursors") or {}), dict(saved.get("seenEntryIds") or {})
        turn.group = str((saved.get("metadata") or {}).get("conversation_group_id") or "")
        turn.context = [Context.from_json(context) for context in saved.get("contextEntries") or []]
        known = {context.id for context in turn.context}
        for id in saved.get("contextEntryIds") or []:
            if id not in known:
                turn.context.append(Context(str(id), "", "", 0, "", [], turn.started_at))
        turn.text_bytes = len(turn.input.encode()) + sum(context.text_bytes for context in turn.context)
        return turn


class Closing:
    """The end of a turn."""

    __slots__ = ("turn", "reason", "end_cursor", "ended_at")

    def __init__(self, turn, reason, end_cursor, ended_at):
        self.turn, self.reason, self.end_cursor, self.ended_at = turn, reason, end_cursor, ended_at

    @property
    def by_event(self):
        """Whether an event of its own conversation ended it."""
        return self.reason in ("agent_history_entry", "new_user_input", "conversation_archived")

    @property
    def level(self):
        return "DEFAULT" if self.reason == "agent_history_entry" else "WARNING"

    def tags(self):
        tags = ["memory-service", "turn-trace", f"end:{self.reason}"]
        return [*tags, f"agent:{self.turn.agent}"] if self.turn.agent else tags


def turn_id(conversation, cursor, entry):
    digest = hashlib.sha1("\0".join((conversation, cursor, entry)).encode()).digest()
    return f"{conversation}:{digest[:8].hex()}"


def turns_of(state):
    return {key: Turn.from_json(turn) for key, turn in (state.get("openTurns") or {}).items()}


def owners_of(state):
    return {str(key): str(owner) for key, owner in (state.get("conversationOwners") or {}).items()}


def passed_of(state):
    return {str(why): int(count) for why, count in (state.get("passed") or {}).items()}


def _present(members):
    """Without what is empty, as its readers expect it."""
    return {name: value for name, value in members.items() if value not in ("", [], {}, 0)}
