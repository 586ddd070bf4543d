// Bounds of the host. An effect is checked against them where it is made, so that the event at fault is named and not
// the whole batch.

export const ROW_KEY_BYTES_MAX = 1_024;
export const ROW_BYTES_MAX = 1 << 20;
export const STATE_KEY_BYTES_MAX = 512;
export const STATE_VALUE_BYTES_MAX = 1 << 20;
// Of an emitted event's aggregate, agg-id, type and id, each.
export const NAME_BYTES_MAX = 512;
export const EVENT_PAYLOAD_BYTES_MAX = 1 << 20;
export const PROCESS_NAME_BYTES_MAX = 128;
export const CHANNEL_NAME_BYTES_MAX = 64;
export const CHANNEL_PAYLOAD_BYTES_MAX = 10 << 20;
export const CHANNEL_ERROR_BYTES_MAX = 4 << 10;
// Entries in one answer of the host to a scan, and their bytes.
export const SCAN_ENTRIES_MAX = 1_000;
export const SCAN_BYTES_MAX = 4 << 20;
// Expired entries of the keyed state that one event deletes as it meets them: a batch of events stays far below the
// effects that a call may hand back.
export const STATE_EXPIRED_DELETES_MAX = 64;
// Of a failure's message; the rest is cut off.
export const FAILURE_MESSAGE_BYTES_MAX = 4 << 10;
// Of what is logged of an error that nobody caught.
export const LAST_WORDS_LETTERS_MAX = 2_000;
// What the effects keep of their memory from batch to batch.
export const ROOM_BYTES_MAX = 512 << 10;
export const ROOM_RECORDS_MAX = 4 << 10;
