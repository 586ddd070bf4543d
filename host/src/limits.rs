//! Every bound, with its reason and what happens at it. What an operator may
//! change has a setting of the same name in the config file.

mod artifacts;
mod cache;
mod channel_sockets;
mod channels;
mod cluster;
mod commits;
mod control;
mod control_fleet;
mod grpc;
mod guests;
mod nats;
mod presence;
mod rebuild;
mod redis;
mod source;
mod trial;

use std::time::Duration;

pub use artifacts::*;
pub use cache::*;
pub use channel_sockets::*;
pub use channels::*;
pub use cluster::*;
pub use commits::*;
pub use control::*;
pub use control_fleet::*;
pub use grpc::*;
pub use guests::*;
pub use nats::*;
pub use presence::*;
pub use rebuild::*;
pub use redis::*;
pub use source::*;
pub use trial::*;

// Events and batches.

/// Longest tenant name; it stands in metrics and file names.
pub const TENANT_BYTES_MAX: usize = 63;
/// Longest aggregate, id, type, scope, kind, cursor or trace context. Longer is refused.
pub const NAME_BYTES_MAX: usize = 512;
/// Largest payload of one event. Larger is refused: a big object belongs in a blob store, its address in an event.
pub const EVENT_PAYLOAD_BYTES_MAX: usize = 1 << 20;
/// Most events that are appended or handled together. A longer upload is cut into batches of this size.
pub const BATCH_EVENTS_MAX: usize = 1_000;
/// Most bytes that are appended or handled together.
pub const BATCH_BYTES_MAX: usize = 4 << 20;
/// How many processors may emit in a row before a chain counts as feeding itself. Beyond, the event is refused.
pub const CAUSATION_DEPTH_MAX: u32 = 16;

// Log and tail.

/// How many of the newest events the dedup window remembers. An older repeat is a new event.
pub const DEDUP_EVENTS_MAX: usize = 1_000_000;
/// Bytes of recent events kept in memory for tails, over all tenants. A slower reader reads from the store.
pub const TAIL_BYTES_MAX: usize = 64 << 20;
/// Most events in one page of a read.
pub const PAGE_EVENTS_MAX: usize = 4_096;
/// Most bytes in one page of a read; a page always holds at least one event.
pub const PAGE_BYTES_MAX: usize = 4 << 20;
/// Longest name of a stream that is appended to by name.
pub const STREAM_NAME_BYTES_MAX: usize = 63;
/// Streams of one tenant that are appended to by name. One more is refused: whoever may publish chooses the names.
pub const NAMED_STREAMS_MAX: usize = 1_000;
/// Aggregates for which one plugin declares change scopes, and scopes of one of them: every event of such an
/// aggregate is written into so many indexes.
pub const CHANGE_AGGREGATES_MAX: usize = 64;
pub const CHANGE_SCOPES_MAX: usize = 8;
/// Change streams whose numbers, and aggregates whose last known values, the embedded store keeps in memory.
/// Others are read from the store.
pub const CHANGE_NUMBERS_CACHED_MAX: usize = 100_000;
pub const CHANGE_VALUES_CACHED_MAX: usize = 100_000;
/// Longest name of a change scope.
pub const SCOPE_NAME_BYTES_MAX: usize = 63;
/// How long a conflated subscriber of changes waits for a later event of an aggregate; its bounds.
pub const CHANGE_WINDOW: Duration = Duration::from_millis(150);
pub const CHANGE_WINDOW_MIN: Duration = Duration::from_millis(1);
pub const CHANGE_WINDOW_CEILING: Duration = Duration::from_secs(10);
/// Bytes of events that wait for the end of one window. Beyond, they are delivered before it ends.
pub const CHANGE_PENDING_BYTES_MAX: usize = 4 << 20;
/// Deliveries and bytes that wait for one subscriber of changes. Beyond, a conflated one is told of a gap and a raw
/// one of its end: nobody waits for it.
pub const CHANGE_QUEUE_BATCHES_MAX: usize = 64;
pub const CHANGE_QUEUE_BYTES_MAX: usize = 4 << 20;
/// Events of one page of changes, or of a stream with a name of its own, when the request does not say.
pub const CHANGE_PAGE_EVENTS_DEFAULT: usize = 500;

// Consumer groups.

/// Longest name of a group or a consumer; a group's name stands in paths and metrics.
pub const GROUP_NAME_BYTES_MAX: usize = 64;
/// Groups of one tenant on one stream. More are refused: each is looked at when events are trimmed.
pub const GROUPS_MAX: u64 = 64;
/// Groups of one tenant on all of its streams, of which there may be any number.
pub const TENANT_GROUPS_MAX: u64 = 1_000;
/// Consumers that a group remembers. More are refused until some have been silent for `GROUP_CONSUMER_IDLE_MAX`.
pub const GROUP_CONSUMERS_MAX: usize = 1_000;
/// A consumer that holds nothing and was not heard of for this long is forgotten.
pub const GROUP_CONSUMER_IDLE_MAX: Duration = Duration::from_secs(600);
/// Entries of a group, and of one of its consumers, that are delivered and not yet acknowledged. A read beyond is refused.
pub const GROUP_IN_FLIGHT_MAX: usize = 10_000;
pub const GROUP_CONSUMER_IN_FLIGHT_MAX: usize = 1_000;
/// Events that a group holds in memory because they are not acknowledged, and their bytes: delivered ones, ones that
/// wait for another try, and ones behind these. When full, nothing further is taken out of the log until some are done.
pub const GROUP_WINDOW_EVENTS_MAX: usize = 20_000;
pub const GROUP_WINDOW_BYTES_MAX: usize = 16 << 20;
/// Entries and bytes of one read; an answer always holds at least one entry, where there is one.
pub const GROUP_READ_EVENTS_MAX: usize = 1_000;
pub const GROUP_READ_EVENTS_DEFAULT: usize = 100;
pub const GROUP_READ_BYTES_MAX: usize = 4 << 20;
/// The longest that a read waits for an entry, and how many reads of one group may wait. More are refused.
pub const GROUP_READ_WAIT_MAX: Duration = Duration::from_secs(30);
pub const GROUP_WAITERS_MAX: usize = 1_000;
/// Receipts in one request.
pub const GROUP_RECEIPTS_MAX: usize = 1_000;
/// How long a consumer has an entry to itself; the least and the most that this may be set to.
pub const GROUP_LEASE: Duration = Duration::from_secs(30);
pub const GROUP_LEASE_FLOOR: Duration = Duration::from_millis(50);
pub const GROUP_LEASE_CEILING: Duration = Duration::from_secs(12 * 3600);
/// Deliveries after which an entry that fails becomes a dead letter, and the most that this may be set to.
pub const GROUP_ATTEMPTS_MAX: u32 = 5;
pub const GROUP_ATTEMPTS_CEILING: u32 = 1_000;
/// First and longest wait before an entry that failed is delivered again; doubles in between.
pub const GROUP_BACKOFF_MIN: Duration = Duration::from_secs(1);
pub const GROUP_BACKOFF_MAX: Duration = Duration::from_secs(60);
/// The longest delay that a consumer may ask for.
pub const GROUP_DELAY_MAX: Duration = Duration::from_secs(12 * 3600);
/// Bytes of the reason that a consumer gives; the rest is cut off.
pub const GROUP_REASON_BYTES_MAX: usize = 1 << 10;
/// Dead letters of one group. With one more, an entry that fails is tried again after `GROUP_BACKOFF_MAX`, and its key waits.
pub const GROUP_DEAD_LETTERS_MAX: usize = 10_000;
/// Bytes of one page of dead letters; it always holds at least one, where there is one.
pub const GROUP_LETTERS_BYTES_MAX: usize = PAGE_BYTES_MAX;
/// How often leases that nobody waits for are looked at, and what was counted meanwhile is written.
pub const GROUP_SWEEP: Duration = Duration::from_secs(1);
/// A group that nobody has asked for anything for this long, and of which nothing is delivered, leaves memory.
pub const GROUP_IDLE_MAX: Duration = Duration::from_secs(60);
/// Unread events that are counted for a group's lag; of more it says that there are at least so many.
pub const GROUP_LAG_EVENTS_MAX: u64 = 1_000_000;
/// Groups whose lag `/metrics` shows: those that are furthest behind.
pub const GROUP_METRICS_MAX: usize = 100;
/// A group that goes on losing events is reported in the log this often.
pub const GROUP_LOST_LOG_EVERY: Duration = Duration::from_secs(60);
/// Bytes of the body of a request to a group: receipts, reasons and options.
pub const GROUP_BODY_BYTES_MAX: u64 = 2 << 20;

const _: () = assert!(GROUPS_MAX <= TENANT_GROUPS_MAX, "one stream's share is a part");
const _: () = assert!(GROUP_CONSUMER_IN_FLIGHT_MAX <= GROUP_IN_FLIGHT_MAX, "one consumer's share is a part");
const _: () = assert!(GROUP_IN_FLIGHT_MAX <= GROUP_WINDOW_EVENTS_MAX, "what is delivered is in the window");
const _: () = assert!(EVENT_PAYLOAD_BYTES_MAX < GROUP_WINDOW_BYTES_MAX, "any event fits the window");

// Committer (embedded store).

/// Requests that wait for the committer. When full, callers wait: that is the back-pressure.
pub const COMMIT_QUEUE_MAX: usize = 4_096;
/// Most events and effects in one group commit, so that one sync is not late for the first in line.
pub const GROUP_ITEMS_MAX: usize = 20_000;
/// How long a group waits for one more request while it has fewer than the one before it had together with those that came
/// during its sync, and for all of them: writers that were answered together write again within microseconds, and a sync
/// takes hundreds of them. Without the ones of the sync, writers stay in two halves that take turns.
pub const COMMIT_PATIENCE_EACH: Duration = Duration::from_micros(40);
pub const COMMIT_PATIENCE: Duration = Duration::from_micros(300);
/// Bytes of events and effects after which a group commit takes in no more.
pub const GROUP_BYTES_MAX: usize = 16 << 20;
/// Connections that read. When all are busy, readers wait; a read covers one page.
pub const READERS_MAX: usize = 4;
/// Events that one transaction trims, so that appends get their turn in between.
pub const TRIM_EVENTS_MAX: u64 = 1_000;
/// Former deployments that are kept of a plugin. The oldest go first.
pub const DEPLOYMENT_HISTORY_MAX: u32 = 100;
/// Bytes of rows in one answer; the rest is behind its cursor. An answer always holds at least one row.
pub const ROW_PAGE_BYTES_MAX: usize = 16 << 20;
/// What is kept of committed changes for one watcher that has not taken them yet. Beyond it the watcher is told
/// to read the table again.
pub const ROW_CHANGES_BYTES_MAX: usize = 16 << 20;
/// How deep the groups of a query's filter may be nested. Deeper is refused.
pub const QUERY_NESTING_MAX: usize = 8;
/// Values of one query over all its conditions, under what SQLite can bind. More is refused.
pub const QUERY_VALUES_MAX: usize = 4_096;
/// How long a read may go on once the WAL is beyond its hard bound. Longer is cut off.
pub const READER_CUT_AFTER: Duration = Duration::from_secs(1);
/// How long a commit waits for a copy of the WAL that is under way, once the WAL is beyond its hard bound.
pub const WAL_COPY_WAIT_MAX: Duration = Duration::from_secs(10);
/// Free disk space under which new events are refused, so that commits of what was acknowledged still fit.
pub const DISK_FREE_BYTES_MIN: u64 = 256 << 20;
/// Size of the WAL beyond which it is copied back into the database.
pub const WAL_BYTES_SOFT_MAX: u64 = 32 << 20;
/// Size of the WAL beyond which readers are waited for and the log is truncated.
pub const WAL_BYTES_HARD_MAX: u64 = 256 << 20;
/// What a WAL that small transactions make grow gets at once, so that not each of their syncs waits for its new length.
pub const WAL_ROOM_BYTES: u64 = 1 << 20;
/// Room in the WAL with which it gets the next piece. Under twice as much it gets none.
pub const WAL_ROOM_LEFT_MIN: u64 = 128 << 10;

// Processors.

/// Batches that wait for a lane. When full, the feed waits, and the log keeps the rest.
pub const LANE_QUEUE_BATCHES_MAX: usize = 4;
/// Most lanes of a processor.
pub const LANES_MAX: u32 = 64;
/// Instances that may be loaded at once, over all plugins. The idle ones go first; then new tasks wait.
pub const INSTANCES_MAX: usize = 1_000;
/// Events that may be in one commit of a task.
pub const COMMIT_EVENTS_MAX: usize = 4_000;
/// Bytes of effects after which a task commits.
pub const COMMIT_BYTES_MAX: usize = 4 << 20;
/// How often an event is tried again after `retry` before it becomes a dead letter.
pub const RETRIES_MAX: u32 = 5;
/// First and longest wait between tries; doubles in between, less up to a half at random, so that keys
/// that failed together do not come back together.
pub const RETRY_WAIT_MIN: Duration = Duration::from_millis(50);
pub const RETRY_WAIT_MAX: Duration = Duration::from_secs(5);
/// Events of one task that wait for their key, held keys included, and their bytes. They are kept in memory
/// and in the store. When full, the lane stops until a key goes on.
pub const PARKED_EVENTS_MAX: usize = 10_000;
pub const PARKED_BYTES_MAX: usize = 32 << 20;
/// Bytes of an ordering key as it is kept; a longer one is kept as its hash.
pub const PARKED_KEY_BYTES_MAX: usize = 2 << 10;
/// Dead letters of one processor. With one more it stops until some are replayed or discarded.
pub const DEAD_LETTERS_MAX: u64 = 100_000;
/// How long a decision about a dead letter waits for its task, which a plugin that was just resumed has not yet begun.
/// Beyond, the decision is refused.
pub const DECISION_WAIT_MAX: Duration = Duration::from_secs(2);
/// How many of the newest events `replay` looks through for an id.
pub const REPLAY_SEARCH_EVENTS_MAX: u64 = 1_000_000;
/// Effects that the report of a replay lists; it counts them all.
pub const REPLAY_EFFECTS_MAX: usize = 1_000;
/// Failed calls in a row after which a processor rests, and how long; doubles up to the longest.
pub const BREAKER_FAILURES_MAX: u32 = 50;
pub const BREAKER_WAIT_MIN: Duration = Duration::from_secs(1);
pub const BREAKER_WAIT_MAX: Duration = Duration::from_secs(60);
/// First and longest wait before a failed processor is started again; doubles in between.
pub const RESTART_WAIT_MIN: Duration = Duration::from_millis(200);
pub const RESTART_WAIT_MAX: Duration = Duration::from_secs(30);
/// Versions of a plugin with metrics of their own: the newest. Older ones are only in the sums of its status.
pub const METRIC_VERSIONS_MAX: usize = 4;
/// Tenants whose oldest undone event is looked up for the lag in seconds of one plugin.
pub const LAGGING_TENANTS_MAX: usize = 16;
/// A task without events for this long gives its instance back; with the last one, a plugin gives back its code,
/// and loads it again from the precompiled cache when an event comes. So long, too, a task without an instance
/// waits between two flushes.
pub const TASK_IDLE_MAX: Duration = Duration::from_secs(60);
/// After a plugin's code could not be loaded again, until that is tried anew, however many of its tasks ask.
pub const CODE_LOAD_WAIT_MIN: Duration = Duration::from_secs(1);
/// Events that a candidate handles in the shadow, and the time it takes for it where there is traffic.
/// When it is quiet, the newest events of the log are handled instead, and nobody waits.
pub const SHADOW_EVENTS: u64 = 1_000;
pub const SHADOW_TIME: Duration = Duration::from_secs(5);
/// The longest shadow run. Beyond, the candidate is judged by what it has done.
pub const SHADOW_TIME_MAX: Duration = Duration::from_secs(60);
/// How many times as long as the running version a candidate may take for an event.
pub const SHADOW_TIME_RATIO_MAX: u32 = 3;
/// What a running version that is faster counts as, when a candidate's time for an event is compared with its: noise must
/// refuse nobody.
pub const SHADOW_EVENT_TIME_MIN: Duration = Duration::from_micros(20);
/// The same while there are only a few batches to go by.
pub const SHADOW_FEW_EVENT_TIME_MIN: Duration = Duration::from_micros(200);
/// Events that a candidate may fail on where the running version did not.
pub const SHADOW_ERRORS_MAX: u64 = 0;
/// Batches and bytes that wait for a candidate. When full, its stretch ends, and it begins another one
/// from a later state: the running version never waits.
pub const SHADOW_QUEUE_BATCHES_MAX: usize = 8;
pub const SHADOW_QUEUE_BYTES_MAX: usize = 32 << 20;
/// Events and bytes of effects that are compared together. Beyond, a new stretch begins.
pub const SHADOW_STRETCH_EVENTS_MAX: u64 = 10_000;
pub const SHADOW_STRETCH_BYTES_MAX: usize = 32 << 20;
/// Bytes of keyed state that are remembered from before the running version's writes. Beyond, the stretch is dropped.
pub const SHADOW_STATE_BYTES_MAX: usize = 16 << 20;
/// Tasks of a plugin that have a candidate's instance at once, and that are replayed. The others do without.
pub const SHADOW_TASKS_MAX: usize = 16;
/// Silence after which a stream counts as quiet.
pub const SHADOW_QUIET: Duration = Duration::from_millis(100);
/// Events that are looked at, for each one wanted, to find the newest that a candidate subscribes to.
pub const SHADOW_SCAN_FACTOR: u64 = 64;
/// Memory that a candidate may use beyond twice the running version's, and that it may grow by in the
/// shadow before it is looked at for a leak. The collector of a JavaScript engine begins at 70 MiB; beside an instance
/// that has just begun, that is much.
pub const SHADOW_MEMORY_BYTES_SPARE: u64 = 96 << 20;
pub const SHADOW_GROWTH_BYTES_MIN: u64 = 4 << 20;
/// Differences that a report shows, and characters of a value in it. The others are counted.
pub const SHADOW_EXAMPLES_MAX: usize = 10;
pub const SHADOW_EXAMPLE_CHARS_MAX: usize = 120;
/// How long a candidate waits to be confirmed. Beyond, it is dropped.
pub const SHADOW_CONFIRM_MAX: Duration = Duration::from_secs(3600);
/// All of a drain: flush, last commits, closing connections.
pub const DRAIN_MAX: Duration = Duration::from_secs(10);

// Guests.

/// Linear memory of one instance. A bound and no reservation: a language with a garbage collector needs some 80 MiB
/// before it collects for the first time.
pub const GUEST_MEMORY_BYTES_MAX: usize = 256 << 20;
/// Time of one call, running or waiting for something other than a core. Beyond, the call is ended like a trap.
pub const GUEST_CALL_MAX: Duration = Duration::from_secs(5);
/// How often the epoch moves: the precision of `GUEST_CALL_MAX`.
pub const GUEST_EPOCH: Duration = Duration::from_millis(10);
/// Bytes that one call may hand back.
pub const GUEST_OUTPUT_BYTES_MAX: usize = 16 << 20;
/// Effects that one call may hand back.
pub const GUEST_EFFECTS_MAX: usize = 100_000;
/// Size of one snapshot. A larger one ends the instance, and a larger saved state is not loaded. From half of it on,
/// the plugin's status warns. It is written whole with every commit: what grows belongs into keyed state.
pub const GUEST_STATE_BYTES_MAX: usize = 8 << 20;
/// The most that `state_bytes_max` may be set to for one plugin.
pub const GUEST_STATE_BYTES_CEILING: usize = 64 << 20;
/// Size of one keyed-state entry's key and value.
pub const GUEST_KEY_BYTES_MAX: usize = 512;
pub const GUEST_VALUE_BYTES_MAX: usize = 1 << 20;
/// Entries and bytes in one answer of `state.scan`; an entry that has more bytes stands alone.
pub const GUEST_SCAN_MAX: u32 = 1_000;
pub const GUEST_SCAN_BYTES_MAX: usize = 4 << 20;
/// Bytes (keys and values) and entries of the keyed state of one task. A commit beyond is refused; its event becomes a
/// dead letter.
pub const KEYED_STATE_BYTES_MAX: u64 = 1 << 30;
pub const KEYED_STATE_ENTRIES_MAX: u64 = 10_000_000;
/// How long an expired entry of keyed state that nobody has read is kept, so that an event that comes late finds it:
/// by the host's clock and by the time of the events that its task has passed.
pub const STATE_EXPIRED_KEEP: Duration = Duration::from_secs(7 * 24 * 3600);
/// Expired entries that one transaction removes, so that commits get their turn in between.
pub const STATE_EXPIRED_ENTRIES_MAX: u64 = 1_000;
/// Log messages per second and instance; what is over is counted and dropped.
pub const GUEST_LOGS_PER_SECOND_MAX: u32 = 100;
/// Bytes of one log message; the rest is cut off.
pub const GUEST_LOG_BYTES_MAX: usize = 4 << 10;
/// Bytes of one component.
pub const COMPONENT_BYTES_MAX: usize = 64 << 20;
/// Stack of a guest. Deeper recursion is a trap. It lies on the stack of the calling thread, which must be larger.
pub const GUEST_STACK_BYTES_MAX: usize = 512 << 10;
/// Elements of one table of function references; large guests (a JavaScript engine) need tens of thousands.
pub const GUEST_TABLE_ELEMENTS_MAX: usize = 100_000;
/// Core instances, linear memories and tables inside one component: what tools link together (Python's 38), and some
/// room.
pub const GUEST_CORE_INSTANCES_MAX: u32 = 64;
pub const GUEST_MEMORIES_MAX: u32 = 2;
pub const GUEST_TABLES_MAX: u32 = 8;
/// Host objects (streams, pollables) that one instance may hold. Beyond, the call ends like a trap.
pub const GUEST_RESOURCES_MAX: usize = 1_024;
/// Bytes of what `describe` answers.
pub const GUEST_MANIFEST_BYTES_MAX: usize = 1 << 20;
/// Bytes of a failure's or trap's message; the rest is cut off.
pub const GUEST_MESSAGE_BYTES_MAX: usize = 8 << 10;
/// Bytes of a trap's backtrace; the rest is cut off. The names in it are the guest's own and may be of any length.
pub const GUEST_BACKTRACE_BYTES_MAX: usize = 8 << 10;
/// Bytes of memory that a core dump of a guest may hold. A larger guest leaves none.
pub const GUEST_CORE_DUMP_BYTES_MAX: u64 = 256 << 20;
/// The most that `memory_bytes_max` and `call_ms_max` may be set to for one plugin.
pub const GUEST_MEMORY_BYTES_CEILING: usize = 2 << 30;
pub const GUEST_CALL_CEILING: Duration = Duration::from_secs(300);
/// Bytes of the precompiled cache. Beyond, the entries that were written first go.
pub const PRECOMPILED_BYTES_MAX: u64 = 1 << 30;
/// Bytes of one precompiled component, which is also the most that the compiler may hand back.
pub const PRECOMPILED_ENTRY_BYTES_MAX: u64 = 256 << 20;
/// Address space of the child process that compiles a component. A JavaScript engine needs three quarters of
/// a gigabyte; a component made to be expensive ends here, and the host does not notice.
pub const COMPILE_MEMORY_BYTES_MAX: u64 = 2 << 30;
/// Wall time of compiling one component, and processor time on one core. A JavaScript engine takes ten seconds.
pub const COMPILE_MAX: Duration = Duration::from_secs(120);
/// How much lower than the host's the priority of the compiling child is.
pub const COMPILE_NICE: i32 = 10;
/// Wall time of `describe`, whatever a call may take otherwise: nobody knows the component yet.
pub const GUEST_DESCRIBE_MAX: Duration = Duration::from_secs(10);
/// Memory of an instance that describes itself; what the plugin may have is known only by its name.
pub const GUEST_DESCRIBE_MEMORY_BYTES_MAX: usize = 256 << 20;
/// Bytes of one call for randomness. It is made in the host, where it would cost the host's memory and time.
pub const GUEST_RANDOM_BYTES_MAX: u64 = 64 << 10;
/// Bytes of the names and values of a plugin's environment variables.
pub const GUEST_ENV_BYTES_MAX: usize = 64 << 10;
/// Hosts in one plugin's list.
pub const GUEST_HTTP_HOSTS_MAX: usize = 256;
/// Channels, or beginnings of their names, that one plugin is granted.
pub const GUEST_CHANNELS_MAX: usize = 64;
/// HTTP requests of one instance, and of all instances of a plugin, that may be under way. More are refused.
pub const GUEST_HTTP_REQUESTS_MAX: usize = 8;
pub const GUEST_HTTP_CONNECTIONS_MAX: usize = 64;
/// Bytes of the body of a guest's HTTP request and of its answer. Beyond, the exchange fails.
pub const GUEST_HTTP_REQUEST_BYTES_MAX: u64 = 4 << 20;
pub const GUEST_HTTP_RESPONSE_BYTES_MAX: u64 = 4 << 20;
/// Bytes of the headers of one request or answer, as they lie in memory.
pub const GUEST_HTTP_HEADER_BYTES_MAX: usize = 32 << 10;
/// Bytes of a request's body that the host holds for a guest at a time.
pub const GUEST_HTTP_CHUNK_BYTES_MAX: usize = 16 << 10;
/// How often a watched plugins directory is looked at. A file must look the same twice before it is taken.
pub const PLUGINS_POLL: Duration = Duration::from_millis(500);
/// The longest wait before a file is tried again that the host could not deal with. It begins with one look and doubles.
pub const PLUGINS_RETRY_MAX: Duration = Duration::from_secs(60);
/// After which something may be tried again for which the plugin store has failed.
pub const PLUGIN_STORAGE_RETRY: Duration = Duration::from_secs(5);
/// Plugins that a start loads at once, for each core: while one reads its file another is verified. The rest wait.
pub const PLUGIN_LOADS_PER_CORE: usize = 2;
/// Plugins that have given their code back after which the heap's free pages go back to the kernel, and how long
/// that waits for more. Fewer leave their place to the next load.
pub const HEAP_TRIM_CODES_MIN: usize = 16;
pub const HEAP_TRIM_WAIT: Duration = Duration::from_secs(1);
/// Guest threads for each core: guests cannot yield, so several share a core.
pub const GUEST_THREADS_PER_CORE: usize = 4;
/// How much lower than the host's the priority of guest threads is: the edge and the committer go first.
pub const GUEST_NICE: i32 = 5;
/// The same for the threads of the back line: they get what the others leave.
pub const GUEST_BACK_NICE: i32 = 19;
/// A call that is this long at work goes on at the priority of the back line.
pub const GUEST_LONG_CALL: Duration = Duration::from_millis(50);
/// Time that a plugin may spend, for one tenant, in calls that come to nothing, before it works in the back line.
/// Half of what was spent is forgotten each second.
pub const GUEST_WASTE_MAX: Duration = Duration::from_millis(50);
/// How long a plugin works in the back line after such a call.
pub const GUEST_BACK_FOR: Duration = Duration::from_secs(5);
/// Threads that may be at work at a lower priority because their call is long, for each core. Beyond, long
/// calls keep their place.
pub const GUEST_STEPPED_BACK_PER_CORE: usize = 8;
/// Wall time of one call, in times of its limit, where it has to wait for a core.
pub const GUEST_CALL_STRETCH_MAX: u32 = 4;

// Traces.

/// Spans that wait for the exporter. When full, further ones are dropped and counted.
pub const SPAN_QUEUE_MAX: usize = 8_192;
/// Spans of one export.
pub const SPAN_BATCH_MAX: usize = 512;
/// How long recorded spans wait for company.
pub const SPAN_EXPORT_WAIT: Duration = Duration::from_millis(500);
/// How long one export may take. Beyond, its spans are dropped and counted.
pub const SPAN_EXPORT_MAX: Duration = Duration::from_secs(5);
/// Traces that one span tells of having worked for: its parent and its links. Of further ones it says nothing.
pub const SPAN_LINKS_MAX: usize = 32;

// Tables.

/// Bytes of a row's key.
pub const ROW_KEY_BYTES_MAX: usize = 1_024;
/// Bytes of a row.
pub const ROW_BYTES_MAX: usize = 1 << 20;
/// Columns of a table and tables of a plugin.
pub const COLUMNS_MAX: usize = 128;
pub const TABLES_MAX: usize = 32;
/// Rows of one query when it does not say, and the most it may ask for when the table does not.
pub const QUERY_ROWS_DEFAULT: u32 = 50;
pub const QUERY_ROWS_MAX: u32 = 1_000;
/// Conditions of one query.
pub const QUERY_CONDITIONS_MAX: usize = 64;
/// How long a delete is remembered, so that a late older write cannot bring the row back.
pub const TOMBSTONE_AGE_MAX: Duration = Duration::from_secs(7 * 24 * 3600);

// Gateway.

/// Bytes of request headers, time to send them, and idle time of a connection.
pub const HEADER_BYTES_MAX: usize = 32 << 10;
pub const HEADER_WAIT_MAX: Duration = Duration::from_secs(10);
/// Longest silence inside a request body.
pub const BODY_IDLE_MAX: Duration = Duration::from_secs(30);
/// Bytes of a body that is read whole (JSON, CloudEvents). NDJSON is streamed and bounded per line and batch.
pub const BODY_BYTES_MAX: usize = 8 << 20;
/// Bytes of one NDJSON upload. Beyond, the rest is refused; what was acknowledged stays.
pub const UPLOAD_BYTES_MAX: u64 = 1 << 30;
/// Bytes of one NDJSON line: a payload and every name at its longest, escaped. A longer line is skipped and answered with an error.
pub const EVENT_LINE_BYTES_MAX: usize = EVENT_PAYLOAD_BYTES_MAX + (64 << 10);
/// Batches of one NDJSON upload that are on their way to the log while the next is read.
pub const UPLOAD_BATCHES_MAX: usize = 4;
/// Answered batches that wait for a client to take them. When full, its upload is not read on.
pub const ANSWER_BATCHES_MAX: usize = 16;
/// Bytes of a saved state that are shown; of a longer one, its beginning. And bytes of a page of keyed state.
pub const STATE_SHOWN_BYTES_MAX: usize = 1 << 20;
/// Entries of one page of keyed state when the request does not say.
pub const STATE_ENTRIES_DEFAULT: u32 = 50;
/// After an upload was cut off, how long and how much of the rest is taken in and thrown away, so that the
/// client gets its answers before the connection closes.
pub const LINGER_WAIT: Duration = Duration::from_millis(200);
pub const LINGER_BYTES_MAX: usize = 16 << 20;
/// What is left of a body that nobody reads is read up to this, so that the connection can go on; else it is closed.
pub const UNREAD_BYTES_MAX: u64 = 64 << 10;
/// Events of one page of a stream when the request does not say.
pub const STREAM_EVENTS_DEFAULT: usize = 100;
/// Connections at once.
pub const CONNECTIONS_MAX: usize = 10_000;
/// The most that `connections_max` may be set to: the file descriptors that a process can ask for.
pub const CONNECTIONS_CEILING: usize = 1_000_000;
/// SSE: silence after which a comment is sent.
pub const SSE_HEARTBEAT: Duration = Duration::from_secs(15);
/// The longest that it may be set to: a client takes three times `SSE_HEARTBEAT` of silence for a dead connection.
pub const SSE_HEARTBEAT_CEILING: Duration = Duration::from_secs(30);
/// How long an answer that follows events or changes stays open while its log cannot be read, such as on a server that
/// restarts or fails over, and how often it asks again. Beyond, it ends with what stands in the way.
pub const LOG_AWAY_MAX: Duration = Duration::from_secs(60);
pub const LOG_AWAY_LOOK_EVERY: Duration = Duration::from_millis(250);
/// A client that takes nothing for this long is cut off, and so is one whose system acknowledges nothing.
pub const WRITE_WAIT_MAX: Duration = Duration::from_secs(30);
/// Live queries: bytes of a query, and of a message on a WebSocket. Beyond, it is refused, and the socket is closed.
pub const LIVE_MESSAGE_BYTES_MAX: usize = 64 << 10;
/// Subscriptions of one WebSocket. More are refused.
pub const LIVE_SUBSCRIPTIONS_MAX: usize = 256;
/// How long a WebSocket may stay without its first command, and how long a posted query may take to arrive. Beyond,
/// it is closed: nobody keeps a place for nothing.
pub const LIVE_FIRST_COMMAND_WAIT_MAX: Duration = Duration::from_secs(10);
/// Bytes of frames after which a write takes in no more; one batch may be larger.
pub const LIVE_WRITE_BYTES: usize = 64 << 10;
/// How long rows that change soon after a write wait for more, so that many of them go in one write.
pub const LIVE_WRITE_PAUSE: Duration = Duration::from_millis(5);
/// Bytes that an idle WebSocket keeps for what may come. A longer message gets room of its own while it comes.
pub const LIVE_READ_BUFFER_BYTES: usize = 128;
/// Bytes that are read from a WebSocket at once. What is not asked for yet of them is kept until it is.
pub const LIVE_READ_BURST_BYTES: usize = 16 << 10;
/// How long a closed WebSocket waits for the client's own close.
pub const LIVE_CLOSE_WAIT_MAX: Duration = Duration::from_secs(1);
/// The least that a client is asked to wait before it comes back, and what is added at random, so that the
/// clients of one host do not come back together.
pub const LIVE_RETRY_WAIT_MIN: Duration = Duration::from_secs(1);
pub const LIVE_RETRY_SPREAD: Duration = Duration::from_secs(5);
/// Requests that a tenant may make in a second, and at once; 0 leaves them unbounded, which is the default: a host
/// of one team needs no bound, and which one is right for several only their operator knows.
pub const TENANT_REQUESTS_PER_S: u32 = 0;
pub const TENANT_REQUESTS_BURST: u32 = 1_000;
/// Tenants whose requests are counted at a time. Beyond, who asked last longest ago begins anew.
pub const RATED_TENANTS_MAX: usize = 10_000;

// Credentials.

/// Bytes of a bearer token. A longer one is refused unread.
pub const TOKEN_BYTES_MAX: usize = 8 << 10;
/// Bytes of the body of a request for a session or a revocation.
pub const AUTH_BODY_BYTES_MAX: u64 = 16 << 10;
/// Characters of a token's subject that stand for it in the log and in `deployed_by`. The rest is cut off.
pub const CALLER_NAME_CHARS_MAX: usize = 200;
/// Bytes of a secret that signs tokens: as many as its hash has. A shorter one is refused at the start.
pub const JWT_SECRET_BYTES_MIN: usize = 32;
/// How far the clocks of an issuer and of this host may be apart.
pub const JWT_LEEWAY: Duration = Duration::from_secs(30);
/// The most that it may be set to: a token is good for this long after its end.
pub const JWT_LEEWAY_CEILING: Duration = Duration::from_secs(300);
/// Bytes and keys of a key set, and time to read it. Beyond, the last good set stays.
pub const JWKS_BYTES_MAX: usize = 256 << 10;
pub const JWKS_KEYS_MAX: usize = 100;
pub const JWKS_WAIT_MAX: Duration = Duration::from_secs(5);
/// How often a key set is read again; and how soon because of a token with an unknown key, however many come.
pub const JWKS_REFRESH: Duration = Duration::from_secs(300);
pub const JWKS_REFRESH_MIN: Duration = Duration::from_secs(10);
/// How long a browser's session is good, if its token is good for longer; how many there may be. More are refused.
pub const SESSION_LIFETIME: Duration = Duration::from_secs(12 * 3600);
pub const SESSIONS_MAX: usize = 10_000;
/// The same for tickets, each of which opens one stream.
pub const TICKET_LIFETIME: Duration = Duration::from_secs(30);
pub const TICKETS_MAX: usize = 10_000;
/// Revocations that are remembered. More are refused: forgetting one would let somebody in again.
pub const REVOCATIONS_MAX: usize = 10_000;
/// How long an open stream waits before it looks again whether its credential has expired: clocks are set.
pub const CREDENTIAL_CHECK: Duration = Duration::from_secs(30);

const _: () = assert!(EVENT_PAYLOAD_BYTES_MAX < BATCH_BYTES_MAX, "any event fits a batch");
const _: () = assert!(BATCH_EVENTS_MAX <= COMMIT_EVENTS_MAX, "any batch fits a commit");
const _: () = assert!(BATCH_BYTES_MAX < GUEST_OUTPUT_BYTES_MAX, "a guest can copy its batch to its output");
const _: () = assert!(
    GUEST_KEY_BYTES_MAX + GUEST_VALUE_BYTES_MAX <= GUEST_SCAN_BYTES_MAX
        && GUEST_SCAN_BYTES_MAX < GUEST_OUTPUT_BYTES_MAX,
    "any entry fits a scan's answer, and the answer fits a call"
);
const _: () = assert!(GUEST_STATE_BYTES_MAX <= GUEST_STATE_BYTES_CEILING, "the default is possible");
const _: () = assert!(BATCH_BYTES_MAX <= PAGE_BYTES_MAX, "a page can hold a batch");
const _: () = assert!(WAL_BYTES_SOFT_MAX < WAL_BYTES_HARD_MAX, "the soft bound comes first");
const _: () = assert!(
    SSE_HEARTBEAT_CEILING.as_secs() < 3 * SSE_HEARTBEAT.as_secs(),
    "a heartbeat comes before a client gives up"
);

/// Rows that a live window holds beyond its limit, so that one that leaves can be followed at once: half as many as
/// its limit, within these.
pub const LIVE_SPARE_ROWS_MIN: usize = 16;
pub const LIVE_SPARE_ROWS_MAX: usize = 64;
/// Different live queries that a host keeps. More are refused.
pub const LIVE_VIEWS_MAX: usize = 50_000;
/// What a live view keeps of its last frames, for clients that come back or are slow.
pub const LIVE_RING_BYTES_MAX: usize = 1 << 20;
/// What all live views of a host keep of them. When there are so many views that each could not have its share of
/// this, a view keeps less, but at least so much.
pub const LIVE_RINGS_BYTES_MAX: usize = 512 << 20;
pub const LIVE_RING_BYTES_MIN: usize = 8 << 10;
/// How long it keeps them, and itself when its last client has left.
pub const LIVE_RING_AGE_MAX: Duration = Duration::from_secs(120);
/// Reads of windows that a host does at the same time; the others wait for their turn.
pub const LIVE_READS_MAX: usize = 4;
/// Changed rows that are kept while views of a table are being read. Beyond them those views are read again.
pub const LIVE_REPLAY_ROWS_MAX: usize = 100_000;
/// Requests of subscribers that may wait for one table's views.
pub const LIVE_COMMANDS_MAX: usize = 1_024;
/// Rows that may match a live query in streamed mode. A query that more rows match is refused.
pub const LIVE_STREAMED_ROWS_MAX: usize = 10_000;
/// How often a table's views are looked over for those that nobody watches any more.
pub const LIVE_SWEEP: Duration = Duration::from_secs(5);
/// How often a view of each table that is watched is compared with the store, one after the other.
pub const LIVE_CHECK_EVERY: Duration = Duration::from_secs(1);
/// A view that differs from rows of which it may not have been told yet is repaired when it is told nothing for so many
/// times of that.
pub const LIVE_DRIFT_CHECKS: u32 = 20;
/// One such comparison is under way in a host, and the next one waits for this many times what the read took: all
/// of them together take no more than the twentieth part of one core.
pub const LIVE_CHECK_SHARE: u32 = 19;
/// Batches that a subscriber takes at a time.
pub const LIVE_TAKEN_BATCHES_MAX: usize = 64;
