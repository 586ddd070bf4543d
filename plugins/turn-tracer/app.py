"""Traces turns: what passes between a user's words in a conversation and the agent's answer.

It reads entries and conversations of a memory service, as its event stream tells them. A turn is opened by an entry of
the user, entries of context are attached to it, and it ends with the agent's answer (`agent_history_entry`), with the
next words of the user (`new_user_input`), when its conversation is archived (`conversation_archived`), when it was idle
or open for too long (`idle_timeout`, `max_turn_age`), or when too many are open (`checkpoint_window_limit`). A turn
that has ended is a row of the table `turns` and an event `turn.closed`, whose payload has the spans ready to be
exported.

The state is the one that the service's own trace processor saves, under its content type, so that this plugin goes on
where that one stopped, and the other way round.

Time is that of the entries. Whether a turn has ended by its age is seen at the next event of its conversation and in
`flush`, against the newest time that any event had, and its end is the moment it was due: so a replay gives the same
turns, however fast it is. On a quiet stream nothing is due. With the setting `clock = wall`, in a component that was
built with the grant `clock`, `flush` goes by the clock on the wall instead: name the grant in `plugin.toml`, and the manifest follows.

Time is not moved by one event that is further ahead than `ahead_max` (`1d`, where it is not set): it counts when another
one is as far, and is told and counted as `time_ahead`.
"""

import json
import time

from millrace import (
    Failure,
    Processor,
    Refused,
    Table,
    config,
    export,
    format_time,
    has_clock,
    int_,
    json_,
    log,
    text,
    timestamp,
)

from entries import Conversation, Entry
from spans import closed_event
from turns import (
    CONTENT_TYPE,
    STATE_TEXT_BYTES_MAX,
    STATE_VERSION,
    TIME_MAX,
    TIME_MIN,
    Closing,
    Context,
    Turn,
    moved_time,
    owners_of,
    passed_of,
    read_time,
    turns_of,
    write_time,
)

VERSION = "0.1.0"
# Of a row's input and output, each: what is longer is in the event, as far as that goes.
ROW_TEXT_CHARS_MAX = 65_536

TURNS = Table(
    "turns",
    {
        "conversation": text().filterable(),
        "session": text().filterable(),
        "user": text().nullable().filterable(),
        "agent": text().nullable().filterable(),
        "client": text().nullable(),
        "reason": text().filterable(),
        "level": text().filterable(),
        "started_at": timestamp().sortable(),
        "ended_at": timestamp().sortable(),
        "start_cursor": text(),
        "end_cursor": text(),
        "user_entry": text(),
        "agent_entry": text().nullable(),
        "context_entries": int_(),
        "tags": json_(),
        "input": text(),
        "output": text(),
    },
)
# What was not traced, and why: entries without content, entries of no conversation, turns that could not be exported;
# and events whose time is too far ahead.
PASSED = Table("passed_entries", {"events": int_(), "last_cursor": text()})


@export
class TurnTracer(Processor):
    manifest = dict(
        name="turn-tracer",
        version=VERSION,
        summary="Traces the turns of conversations",
        # A conversation's entries and the conversation itself have no name in common that lanes could go by.
        ordering_key="single",
        types=["entry.*", "conversation.*"],
        state_content_type=CONTENT_TYPE,
        tables=[TURNS, PASSED],
        grants=["clock"] if has_clock() else [],
        flush_interval_ms=5_000,
    )

    def load(self, context, saved):
        self.idle_timeout = config.duration("idle_timeout", "5m")
        self.max_turn_age = config.duration("max_turn_age", "30m")
        self.max_open_turns = _positive("max_open_turns", 1_000)
        self.owners_max = _positive("owners_max", 10_000)
        self.context_entries_max = _positive("context_entries_max", 1_000)
        self.text_chars_max = _positive("text_chars_max", 32_768)
        self.session = config.one_of("session_id", ("conversation", "conversation-group"))
        self.drop = config.flag("drop_on_export_failure", False)
        self.ahead_max = config.duration("ahead_max", "1d")
        self.wall = config.one_of("clock", ("events", "wall")) == "wall"
        if self.wall and not has_clock():
            raise Refused("setting `clock` is `wall`, which needs a component that was built with the grant `clock`")
        config.one_of("overlap_policy", ("cut-short",))
        self.span = dict(
            name=config.get("span_name", "memory-service.turn"),
            service=config.get("service_name", "memory-service-turn-traces"),
            environment=config.get("environment", ""),
            release=VERSION,
        )
        if saved is not None and saved.state in (b"", b"null"):
            saved = None
        state = {} if saved is None else saved.json(CONTENT_TYPE)
        if not isinstance(state, dict) or state and state.get("version") != STATE_VERSION:
            version = state.get("version") if isinstance(state, dict) else None
            raise Refused(f"a state of turn traces has version {version}; this plugin reads {STATE_VERSION}")
        try:
            self.turns, self.owners, self.passed = turns_of(state), owners_of(state), passed_of(state)
            self.newest, self.ahead = read_time(state.get("updatedAt"), 0), read_time(state.get("aheadAt"), 0)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise Refused(f"the saved turns cannot be read: {type(error).__name__}: {error}") from None
        self.cursor = str(state.get("lastEventCursor") or "")
        self.text_bytes = sum(turn.text_bytes for turn in self.turns.values())

    def handle(self, event, out):
        payload = event.json()
        if not isinstance(payload, dict):
            raise Failure.reject(f"the payload of `{event.type}` is no object")
        if not TIME_MIN <= event.at <= TIME_MAX:
            raise Failure.reject(f"the event is at {event.at} microseconds, which is no time of the years 1 to 9999")
        # A foreign source's events have its cursor; others are known by their place.
        cursor = event.cursor or str(event.position)
        kind = event.kind or event.aggregate
        if kind == "entry":
            self.handle_entry(Entry(payload, self.text_chars_max), cursor, event.at, out)
        elif kind == "conversation":
            # A source says when an entry was made, and of a conversation only what it is like by now: what comes from
            # one is as late as the entries around it.
            at = self.newest if event.cursor else event.at
            self.handle_conversation(Conversation(payload), cursor, at, out)
        else:
            self.cursor = cursor

    def handle_entry(self, entry, cursor, at, out):
        if entry.summary or not entry.conversation:
            self.pass_over("summary" if entry.summary else "no_conversation", cursor, out)
            return
        at = read_time(entry.created_at, at)
        turn = self.turns.get(entry.conversation)
        if turn is not None and turn.has_seen(cursor, entry.id):
            return
        closings = self.due_at(turn, max(self.newest, at))
        if closings:
            turn = None
        # First all that may fail, then the state: an event that is refused must leave it as it was.
        if entry.is_history and entry.role == "USER":
            if turn is not None:
                closings.append(Closing(turn, "new_user_input", cursor, at))
            opened = Turn.opened(entry, cursor, at)
            closings += self.to_make_room(opened, closings, at)
            self.close(closings, cursor, out)
            self.turns[entry.conversation] = opened
            self.text_bytes += opened.text_bytes
        elif entry.is_history and entry.role == "AI":
            if turn is not None:
                closings.append(Closing(turn.answered(entry), "agent_history_entry", cursor, at))
            self.close(closings, cursor, out)
        else:
            self.close(closings, cursor, out)
            if entry.is_context and turn is not None:
                self.attach(turn, entry, cursor, at)
        self.moved(cursor, at, out)

    def handle_conversation(self, conversation, cursor, at, out):
        if not conversation.id:
            self.pass_over("summary" if conversation.summary else "no_conversation", cursor, out)
            return
        turn = self.turns.get(conversation.id)
        closings = self.due_at(turn, max(self.newest, at))
        if closings:
            turn = None
        if turn is not None:
            turn = turn.told(conversation, cursor, at)
            if conversation.archived_at:
                ended = read_time(conversation.archived_at, at)
                closings.append(Closing(turn, "conversation_archived", cursor, ended))
        owner = conversation.owner or self.owners.get(conversation.id)
        # What was over before knows nothing of this event.
        self.close(closings, cursor, out, {} if turn is None else {conversation.id: owner})
        if turn is not None and not conversation.archived_at:
            self.turns[conversation.id] = turn
        if owner:
            self.owners.pop(conversation.id, None)
            self.owners[conversation.id] = owner
            if len(self.owners) > self.owners_max:
                del self.owners[next(iter(self.owners))]
        self.moved(cursor, at, out)

    def flush(self, reason, out):
        now = time.time_ns() // 1_000 if self.wall else self.newest
        closings = []
        for turn in sorted(self.turns.values(), key=Turn.age_key):
            closings += self.due_at(turn, now)
        self.close(closings, self.cursor, out)

    def snapshot(self):
        return json.dumps(
            {
                "version": STATE_VERSION,
                "runtimeId": "turn-traces",
                "runtimeVersion": VERSION,
                "lastEventCursor": self.cursor,
                "updatedAt": write_time(self.newest),
                **({"aheadAt": write_time(self.ahead)} if self.ahead else {}),
                "openTurns": {conversation: turn.to_json() for conversation, turn in self.turns.items()},
                # Those that were told last stand last: what is over the bound goes from the front.
                "conversationOwners": self.owners,
                "passed": self.passed,
            },
            ensure_ascii=False,
            separators=(",", ":"),
        )

    def due_at(self, turn, now):
        """What ends a turn by its age. Its end is when it was due first, and so is its reason, not what is seen
        first when somebody looks: the processor that this one takes over from asks for the age first."""
        if turn is None:
            return []
        ends = []
        if self.max_turn_age:
            ends.append((turn.started_at + self.max_turn_age, "max_turn_age"))
        if self.idle_timeout:
            ends.append((turn.latest_event_at + self.idle_timeout, "idle_timeout"))
        if not ends:
            return []
        # Of two at the same moment, the age: it stands first.
        due, reason = min(ends, key=lambda end: end[0])
        return [Closing(turn, reason, turn.latest_cursor, due)] if now >= due else []

    def to_make_room(self, opened, closings, at):
        """The oldest turns that have to end for another one. Those that are over by their age go first, as in a `flush`
        at this moment: how often there is one must not matter."""
        ending = {closing.turn.conversation for closing in closings}
        others = [turn for turn in self.turns.values() if turn.conversation not in ending]
        if self.has_room(others, opened):
            return []
        others.sort(key=Turn.age_key)
        now, _ = moved_time(self.newest, self.ahead, at, self.ahead_max)
        found = [closing for turn in others for closing in self.due_at(turn, now)]
        over_by_age = {closing.turn.conversation for closing in found}
        others = [turn for turn in others if turn.conversation not in over_by_age]
        size = sum(turn.text_bytes for turn in others)
        over = len(others) + 1 - self.max_open_turns
        for turn in others:
            if over <= 0 and size + opened.text_bytes <= STATE_TEXT_BYTES_MAX:
                break
            found.append(Closing(turn, "checkpoint_window_limit", turn.latest_cursor, opened.started_at))
            over -= 1
            size -= turn.text_bytes
        return found

    def has_room(self, others, opened):
        size = sum(turn.text_bytes for turn in others) if self.text_bytes > STATE_TEXT_BYTES_MAX // 2 else 0
        return len(others) < self.max_open_turns and size + opened.text_bytes <= STATE_TEXT_BYTES_MAX

    def close(self, closings, cursor, out, owners=None):
        """Exports turns, then forgets them. Where an event's own turn cannot be exported it stays open, and the event
        is refused, unless the operator rather does without it. Turns that end by themselves must not hold up what has
        nothing to do with them: they are done without."""
        dropped = 0
        for closing in closings:
            turn = closing.turn
            owner = (owners or {}).get(turn.conversation) or self.owners.get(turn.conversation)
            try:
                self.export(closing, owner, out)
            except Failure as failure:
                if closing.by_event and not self.drop:
                    raise
                dropped += 1
                log.warn(f"turn {turn.id} is dropped: {failure.message}")
        for closing in closings:
            gone = self.turns.pop(closing.turn.conversation, None)
            self.text_bytes -= gone.text_bytes if gone else 0
        for _ in range(dropped):
            self.count("export_failed", cursor, out)

    def export(self, closing, owner, out):
        """Asks for the event and the row of a turn that has ended."""
        turn = closing.turn
        session = turn.conversation
        if self.session == "conversation-group":
            session = turn.group or session
        event = closed_event(closing, session, owner, self.span)
        out.emit(aggregate="turn", agg_id=turn.id, type="turn.closed", at=closing.ended_at, payload=event)
        row = {
            "conversation": turn.conversation,
            "session": session,
            "user": owner or turn.user or None,
            "agent": turn.agent or None,
            "client": turn.client or None,
            "reason": closing.reason,
            "level": closing.level,
            "started_at": turn.started_at,
            "ended_at": closing.ended_at,
            "start_cursor": turn.start_cursor,
            "end_cursor": closing.end_cursor,
            "user_entry": turn.user_entry,
            "agent_entry": turn.agent_entry or None,
            "context_entries": len(turn.current_context()),
            "tags": closing.tags(),
            "input": turn.input[:ROW_TEXT_CHARS_MAX],
            "output": turn.output[:ROW_TEXT_CHARS_MAX],
        }
        out.put(TURNS, turn.id, 0, row)

    def attach(self, turn, entry, cursor, at):
        # With a state that is full, an entry is still counted, and its text left out.
        context = Context.of(entry, cursor, at, self.text_bytes < STATE_TEXT_BYTES_MAX)
        before = turn.text_bytes
        turn.attach(context, entry, self.context_entries_max)
        self.text_bytes += turn.text_bytes - before

    def pass_over(self, why, cursor, out):
        self.count(why, cursor, out)
        self.cursor = cursor

    def count(self, why, cursor, out):
        events = self.passed.get(why, 0) + 1
        out.put(PASSED, why, 0, {"events": events, "last_cursor": cursor})
        self.passed[why] = events

    def moved(self, cursor, at, out):
        before = self.ahead
        self.cursor = cursor
        self.newest, self.ahead = moved_time(self.newest, before, at, self.ahead_max)
        if self.ahead == at != before:
            times = f"{format_time(at)}, and the newest at {format_time(self.newest)}"
            log.warn(f"event {cursor} is at {times}: time waits for another one that is as far ahead")
            self.count("time_ahead", cursor, out)


def _positive(name, default):
    value = config.whole(name, default)
    if value <= 0:
        raise Refused(f"setting `{name}` is {value}; it has to be 1 or more")
    return value
