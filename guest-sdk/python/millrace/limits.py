"""Bounds of the host that an effect is checked against where it is made, so that the event at fault is named and not
the whole batch."""

# Bytes of a row's key and of its cells.
ROW_KEY_BYTES_MAX = 1_024
ROW_BYTES_MAX = 1 << 20
# Bytes of a keyed state's key and value.
STATE_KEY_BYTES_MAX = 512
STATE_VALUE_BYTES_MAX = 1 << 20
# Bytes of an emitted event's aggregate, agg-id, type and id, each; and of its payload.
NAME_BYTES_MAX = 512
EVENT_PAYLOAD_BYTES_MAX = 1 << 20
# Bytes of the names of a process and of a channel, of an entry's payload, and of the text of an `error` entry. The
# operator may have set the payload's bound lower.
PROCESS_NAME_BYTES_MAX = 128
CHANNEL_NAME_BYTES_MAX = 64
CHANNEL_PAYLOAD_BYTES_MAX = 10 << 20
CHANNEL_ERROR_BYTES_MAX = 4 << 10
# Entries and bytes in one answer of the host to a scan, and the fewest entries that a scan asks for: expired ones do
# not count towards its limit.
SCAN_ENTRIES_MAX = 1_000
SCAN_BYTES_MAX = 4 << 20
SCAN_ENTRIES_MIN = 8
# Expired entries of the keyed state that one event deletes as it meets them.
STATE_EXPIRED_DELETES_MAX = 64
# Bytes of a failure's message, and of a line that is printed; the rest is cut off.
FAILURE_MESSAGE_BYTES_MAX = 4 << 10
LINE_CHARS_MAX = 4 << 10
# Bytes of what an exception says and of where it was raised, in the last words of an instance: the host keeps 2 KiB.
TOLD_BYTES_MAX = 800
# Whole numbers that the host can keep.
INT_MIN, INT_MAX = -(1 << 63), (1 << 63) - 1
