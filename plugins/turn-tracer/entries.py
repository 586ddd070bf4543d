"""What the service says of an entry and of a conversation, in the shapes that occur."""

import json


def _text(members, name):
    value = members.get(name)
    return value if isinstance(value, str) else ""


class Entry:
    """An entry. One that was told in short has no content and other names for its members: it is known as `summary`."""

    __slots__ = (
        "id",
        "conversation",
        "group",
        "user",
        "client",
        "agent",
        "channel",
        "content_type",
        "epoch",
        "content",
        "created_at",
        "summary",
        "text_chars_max",
    )

    def __init__(self, payload, text_chars_max):
        self.id = _text(payload, "id")
        self.conversation = _text(payload, "conversationId")
        self.group = _text(payload, "conversationGroupId")
        self.user = _text(payload, "userId")
        self.client = _text(payload, "clientId")
        self.agent = _text(payload, "agentId")
        self.channel = _text(payload, "channel").lower()
        self.content_type = _text(payload, "contentType")
        epoch = payload.get("epoch")
        self.epoch = epoch if type(epoch) is int else 0
        content = payload.get("content")
        self.content = content if isinstance(content, list) else []
        self.created_at = _text(payload, "createdAt")
        self.summary = "conversationId" not in payload and "entry_channel" in payload
        self.text_chars_max = text_chars_max

    @property
    def is_history(self):
        kind = self.content_type
        return self.channel == "history" and (kind == "history" or kind.startswith("history/"))

    @property
    def is_context(self):
        return self.channel == "context"

    @property
    def role(self):
        """Whose words they are, in capitals; empty where nobody says."""
        first = self.content[0] if self.content else None
        return _text(first, "role").strip().upper() if isinstance(first, dict) else ""

    def text(self):
        """The words of all blocks."""
        parts = (_block_text(block) for block in self.content)
        return self._cut("\n".join(part for part in parts if part))

    def messages(self):
        """The blocks that say who speaks, as language models take them."""
        found = []
        for block in self.content:
            inner = block.get("messages") if isinstance(block, dict) else None
            for message in inner if isinstance(inner, list) else [block]:
                role = _text(message, "role").strip().lower() if isinstance(message, dict) else ""
                words = _spoken(message) if role else ""
                if words:
                    role = "assistant" if role == "ai" else role
                    found.append({"role": role, "content": self._cut(words)})
        return found

    def _cut(self, text):
        return text[: self.text_chars_max]


class Conversation:
    """A conversation."""

    __slots__ = ("id", "group", "owner", "agent", "archived_at", "summary")

    def __init__(self, payload):
        self.id = _text(payload, "id")
        self.group = _text(payload, "conversationGroupId")
        self.owner = _text(payload, "ownerUserId")
        self.agent = _text(payload, "agentId")
        self.archived_at = _text(payload, "archivedAt")
        # Told in short, it is named by another member.
        self.summary = "id" not in payload and ("conversation" in payload or "conversation_id" in payload)


def _spoken(block):
    """What a block says: as `text`, as `content`, or told by the events of its making."""
    for name in ("text", "content"):
        words = _text(block, name)
        if words.strip():
            return words
    return _told_by_events(block.get("events"))


def _block_text(block):
    words = _spoken(block) if isinstance(block, dict) else ""
    if words or block is None:
        return words
    return json.dumps(block, ensure_ascii=False, separators=(",", ":"))


def _told_by_events(events):
    """The finished message where there is one, else its pieces."""
    events = [event for event in events if isinstance(event, dict)] if isinstance(events, list) else []
    for event in reversed(events):
        message = event.get("aiMessage")
        words = _text(message, "text") if isinstance(message, dict) else ""
        if words.strip():
            return words
    return "".join(chunk for chunk in (_text(event, "chunk") for event in events) if chunk.strip())
