;; The guest of the conformance kit without any SDK: the world `millrace:processor@0.1.0` as it crosses, byte by byte.
;; tests/kit/README.md has the rules that it follows, wit/v0.1/ what the numbers mean.
;;
;; Memory, from 0: places for answers of the host (0x100), the answers of the exports (0x200 to 0x2ff), text (0x400),
;; the manifest (0x800), the key of the event at hand (0x4000); the records of effects (0x10000); their arena (0x90000);
;; what the batch wrote to the keyed state (0x890000); and what the host hands over (0x8d0000 and on), which is forgotten
;; at the end of each call.
(component
  (import "millrace:processor/log@0.1.0" (instance $log
    (type $l (enum "debug" "info" "warn" "error"))
    (export "level" (type $level (eq $l)))
    (export "write" (func (param "level" $level) (param "message" string)))))
  (import "millrace:processor/config@0.1.0" (instance $config
    (export "get" (func (param "name" string) (result (option string))))))
  (import "millrace:processor/state@0.1.0" (instance $state
    (type $value' (record (field "value" (list u8)) (field "expires-at" s64)))
    (export "entry-value" (type $value (eq $value')))
    (type $entry' (record (field "key" (list u8)) (field "value" (list u8)) (field "expires-at" s64)))
    (export "entry" (type $entry (eq $entry')))
    (type $page' (record (field "entries" (list $entry)) (field "more" bool)))
    (export "page" (type $page (eq $page')))
    (export "get" (func (param "key" (list u8)) (result (option $value))))
    (export "scan" (func (param "prefix" (list u8)) (param "after" (option (list u8))) (param "limit" u32)
      (result $page)))))

  ;; Memory and its allocator, which the host wants before it hands its functions over.
  (core module $Memory
    (memory (export "memory") 141)
    (global $heap (export "heap") (mut i32) (i32.const 0x8d0000))
    (func (export "realloc") (param $old i32) (param $had i32) (param $align i32) (param $size i32) (result i32)
      (local.set $old (i32.and (i32.add (global.get $heap) (i32.const 7)) (i32.const -8)))
      (global.set $heap (i32.add (local.get $old) (local.get $size)))
      (block $fits (loop $more
        (br_if $fits (i32.le_u (global.get $heap) (i32.shl (memory.size) (i32.const 16))))
        (if (i32.eq (memory.grow (i32.const 64)) (i32.const -1)) (then (unreachable)))
        (br $more)))
      (local.get $old)))
  (core instance $m (instantiate $Memory))
  (alias core export $m "memory" (core memory $memory))
  (alias core export $m "realloc" (core func $realloc))
  (core func $log-core (canon lower (func $log "write") (memory $memory)))
  (core func $config-core (canon lower (func $config "get") (memory $memory) (realloc $realloc)))
  (core func $get-core (canon lower (func $state "get") (memory $memory) (realloc $realloc)))
  (core func $scan-core (canon lower (func $state "scan") (memory $memory) (realloc $realloc)))

  (core module $Guest
    (import "m" "memory" (memory 0))
    (import "m" "heap" (global $heap (mut i32)))
    (import "host" "log" (func $log (param i32 i32 i32)))
    ;; These two answer at 0x100.
    (import "host" "config" (func $config (param i32 i32 i32)))
    (import "host" "get" (func $state-get (param i32 i32 i32)))
    (import "host" "scan" (func $state-scan (param i32 i32 i32 i32 i32 i32 i32)))

    ;; The state: how many events were handled, and the hash of their payloads.
    (global $count (mut i64) (i64.const 0))
    (global $hash (mut i32) (i32.const 0x811c9dc5))
    ;; Where the next byte and the next record of effects go, and how many entries the batch wrote.
    (global $out (mut i32) (i32.const 0x90000))
    (global $record (mut i32) (i32.const 0x10000))
    (global $written (mut i32) (i32.const 0))
    ;; The event at hand: its record, its bytes, its place in the batch, the length of its key, its time, and how many
    ;; entries it has deleted because they were over.
    (global $event (mut i32) (i32.const 0))
    (global $base (mut i32) (i32.const 0))
    (global $index (mut i32) (i32.const 0))
    (global $key-bytes (mut i32) (i32.const 0))
    (global $deletes (mut i32) (i32.const 0))

    ;; --- Text and the manifest. ---
    (data (i32.const 0x400)
      "event_id" "aggregate" "number" "happened_at" "place" "schema" "depth" "scope" "kind" "cursor" "trace" "payload"
      "doc" "odd" "bits" "nothing" "value" "entries" "rows" "reads" "of-owner" "owner" "thing" "kit" "*" "other*"
      "kit-wat" "1.2.3-kit.1" "Does what the type of an event says: é" "k/2" "key" "kit.copy" "put" "del" "emit"
      "emit.derived" "many" "sput" "sput.until" "sget" "sdel" "sscan" "cfg" "log" "retry" "reject" "fatal" "k/1"
      "the kit reads k/1, and k/2 of 16 bytes" "flush_fails" "flush" "kit.flush" "\"tick\"" "\"shutdown\"" "\"swap\"")
    (data (i32.const 0x600) "append.data" "append.end" "append.error" "emit.now")
    (data (i32.const 0x800) "\00\04\00\00\08\00\00\00\03\00\01\00") ;; rows.event_id: text
    (data (i32.const 0x80c) "\08\04\00\00\09\00\00\00\03\00\00\00") ;; rows.aggregate: text
    (data (i32.const 0x818) "\11\04\00\00\06\00\00\00\01\00\00\01") ;; rows.number: int
    (data (i32.const 0x824) "\17\04\00\00\0b\00\00\00\06\00\01\01") ;; rows.happened_at: timestamp
    (data (i32.const 0x830) "\22\04\00\00\05\00\00\00\01\00\00\00") ;; rows.place: int
    (data (i32.const 0x83c) "\27\04\00\00\06\00\00\00\01\00\00\00") ;; rows.schema: int
    (data (i32.const 0x848) "\2d\04\00\00\05\00\00\00\01\00\00\00") ;; rows.depth: int
    (data (i32.const 0x854) "\32\04\00\00\05\00\00\00\03\01\00\00") ;; rows.scope: text
    (data (i32.const 0x860) "\37\04\00\00\04\00\00\00\03\01\00\00") ;; rows.kind: text
    (data (i32.const 0x86c) "\3b\04\00\00\06\00\00\00\03\01\00\00") ;; rows.cursor: text
    (data (i32.const 0x878) "\41\04\00\00\05\00\00\00\03\01\00\00") ;; rows.trace: text
    (data (i32.const 0x884) "\46\04\00\00\07\00\00\00\04\00\00\00") ;; rows.payload: bytes
    (data (i32.const 0x890) "\4d\04\00\00\03\00\00\00\05\00\00\00") ;; rows.doc: json
    (data (i32.const 0x89c) "\50\04\00\00\03\00\00\00\00\00\00\00") ;; rows.odd: bool
    (data (i32.const 0x8a8) "\53\04\00\00\04\00\00\00\02\00\00\00") ;; rows.bits: float
    (data (i32.const 0x8b4) "\57\04\00\00\07\00\00\00\03\01\01\01") ;; rows.nothing: text
    (data (i32.const 0x8c0) "\5e\04\00\00\05\00\00\00\04\01\00\00") ;; reads.value: bytes
    (data (i32.const 0x8cc) "\63\04\00\00\07\00\00\00\01\01\00\00") ;; reads.entries: int
    ;; table rows: its columns, versioned, a window of 77
    (data (i32.const 0x900) "\6a\04\00\00\04\00\00\00\00\08\00\00\10\00\00\00\01\00\00\00\4d\00\00\00")
    (data (i32.const 0x918) "\6e\04\00\00\05\00\00\00\c0\08\00\00\02\00\00\00\00\00\00\00\e8\03\00\00") ;; table reads
    ;; scopes of changes: id, tenant, a field
    (data (i32.const 0x940) "\00\00\00\00\00\00\00\00\00\00\00\00\00\00\00\00\00\00\00\00\01\00\00\00\00\00\00\00\00\00\00\00\00\00\00\00\00\00\00\00\02\00\00\00\73\04\00\00\08\00\00\00\7b\04\00\00\05\00\00\00")
    (data (i32.const 0x97c) "\01\00\00\00\00\00\00\00\00\00\00\00\00\00\00\00\00\00\00\00") ;; and tenant alone
    ;; changes of thing and of kit
    (data (i32.const 0x9a0) "\80\04\00\00\05\00\00\00\40\09\00\00\03\00\00\00\85\04\00\00\03\00\00\00\7c\09\00\00\01\00\00\00")
    ;; types, aggregates
    (data (i32.const 0x9c0) "\88\04\00\00\01\00\00\00\80\04\00\00\05\00\00\00\89\04\00\00\06\00\00\00")
    ;; the manifest
    (data (i32.const 0xa00) "\8f\04\00\00\07\00\00\00\96\04\00\00\0b\00\00\00\a1\04\00\00\27\00\00\00\01\00\00\00\c8\04\00\00\03\00\00\00\01\00\00\00\cb\04\00\00\03\00\00\00\c0\09\00\00\01\00\00\00\c8\09\00\00\02\00\00\00\00\09\00\00\02\00\00\00\00\00\00\00\00\00\00\00\01\00\00\00\e8\03\00\00\a0\09\00\00\02\00\00\00")

    ;; --- The event at hand. ---

    ;; Parts: 0 id, 1 aggregate, 2 agg-id, 3 type, 4 scope, 5 kind, 6 cursor, 7 trace context, 8 payload.
    (func $from (param $part i32) (result i32)
      (i32.add (global.get $base)
        (if (result i32) (local.get $part)
          (then (i32.load offset=32 (i32.add (global.get $event) (i32.shl (local.get $part) (i32.const 2)))))
          (else (i32.const 0)))))
    (func $length (param $part i32) (result i32)
      (i32.sub
        (i32.add (global.get $base)
          (i32.load offset=36 (i32.add (global.get $event) (i32.shl (local.get $part) (i32.const 2)))))
        (call $from (local.get $part))))
    (func $position (result i64) (i64.load (global.get $event)))
    (func $version (result i64) (i64.load offset=8 (global.get $event)))
    (func $at (result i64) (i64.load offset=16 (global.get $event)))
    (func $schema (result i32) (i32.load offset=24 (global.get $event)))
    (func $depth (result i32) (i32.load offset=28 (global.get $event)))

    ;; Puts the key that the event is about at 0x4000.
    (func $take-key (local $n i32)
      (global.set $key-bytes (call $length (i32.const 2)))
      (memory.copy (i32.const 0x4000) (call $from (i32.const 2)) (global.get $key-bytes))
      (if (i32.eq (call $schema) (i32.const 2)) (then
        (block $done (loop $next
          (br_if $done (i32.eq (local.get $n) (global.get $key-bytes)))
          (i32.store8 offset=0x4000 (local.get $n)
            (i32.xor (i32.load8_u offset=0x4000 (local.get $n)) (i32.const 0x80)))
          (local.set $n (i32.add (local.get $n) (i32.const 1)))
          (br $next))))))

    ;; --- Bytes. ---

    ;; Below, the same and above as -1, 0 and 1.
    (func $compare (param $a i32) (param $a-bytes i32) (param $b i32) (param $b-bytes i32) (result i32)
      (local $n i32) (local $left i32) (local $right i32)
      (loop $next (result i32)
        (if (i32.eq (local.get $n) (local.get $a-bytes)) (then
          (return (i32.sub (i32.const 0) (i32.lt_u (local.get $n) (local.get $b-bytes))))))
        (if (i32.eq (local.get $n) (local.get $b-bytes)) (then (return (i32.const 1))))
        (local.set $left (i32.load8_u (i32.add (local.get $a) (local.get $n))))
        (local.set $right (i32.load8_u (i32.add (local.get $b) (local.get $n))))
        (if (i32.lt_u (local.get $left) (local.get $right)) (then (return (i32.const -1))))
        (if (i32.gt_u (local.get $left) (local.get $right)) (then (return (i32.const 1))))
        (local.set $n (i32.add (local.get $n) (i32.const 1)))
        (br $next)))

    (func $is-type (param $text i32) (param $bytes i32) (result i32)
      (i32.eqz (call $compare (call $from (i32.const 3)) (call $length (i32.const 3))
        (local.get $text) (local.get $bytes))))

    (func $begins (param $key i32) (param $bytes i32) (param $prefix i32) (param $prefix-bytes i32) (result i32)
      (if (i32.lt_u (local.get $bytes) (local.get $prefix-bytes)) (then (return (i32.const 0))))
      (i32.eqz (call $compare (local.get $key) (local.get $prefix-bytes)
        (local.get $prefix) (local.get $prefix-bytes))))

    ;; FNV-1a.
    (func $hashed (param $hash i32) (param $from i32) (param $bytes i32) (result i32)
      (local $to i32)
      (local.set $to (i32.add (local.get $from) (local.get $bytes)))
      (block $done (loop $next
        (br_if $done (i32.eq (local.get $from) (local.get $to)))
        (local.set $hash (i32.mul (i32.const 16777619)
          (i32.xor (local.get $hash) (i32.load8_u (local.get $from)))))
        (local.set $from (i32.add (local.get $from) (i32.const 1)))
        (br $next)))
      (local.get $hash))

    ;; --- What is asked for. ---

    (func $room (param $bytes i32)
      (if (i32.gt_u (i32.add (global.get $out) (local.get $bytes)) (i32.const 0x890000)) (then (unreachable))))
    (func $append (param $from i32) (param $bytes i32)
      (call $room (local.get $bytes))
      (memory.copy (global.get $out) (local.get $from) (local.get $bytes))
      (global.set $out (i32.add (global.get $out) (local.get $bytes))))
    (func $append-part (param $part i32)
      (call $append (call $from (local.get $part)) (call $length (local.get $part))))
    (func $byte (param $byte i32)
      (call $room (i32.const 1))
      (i32.store8 (global.get $out) (local.get $byte))
      (global.set $out (i32.add (global.get $out) (i32.const 1))))

    ;; A cell with a number, and one with bytes; the first byte is its tag.
    (func $cell-8 (param $tag i32) (param $value i64)
      (call $byte (local.get $tag))
      (call $room (i32.const 8))
      (i64.store (global.get $out) (local.get $value))
      (global.set $out (i32.add (global.get $out) (i32.const 8))))
    (func $cell-bytes (param $tag i32) (param $from i32) (param $bytes i32)
      (call $byte (local.get $tag))
      (call $room (i32.const 4))
      (i32.store (global.get $out) (local.get $bytes))
      (global.set $out (i32.add (global.get $out) (i32.const 4)))
      (call $append (local.get $from) (local.get $bytes)))
    (func $cell-part (param $tag i32) (param $part i32)
      (call $cell-bytes (local.get $tag) (call $from (local.get $part)) (call $length (local.get $part))))
    (func $cell-optional (param $part i32)
      (if (call $length (local.get $part))
        (then (call $cell-part (i32.const 5) (local.get $part)))
        (else (call $byte (i32.const 0)))))

    ;; An effect whose bytes were appended from $start on.
    (func $effect (param $kind i32) (param $table i32) (param $version i64) (param $at i64) (param $schema i32)
      (param $start i32) (param $key i32) (param $aggregate i32) (param $type i32) (param $id i32)
      (local $r i32)
      (local.set $r (global.get $record))
      (if (i32.gt_u (i32.add (local.get $r) (i32.const 56)) (i32.const 0x90000)) (then (unreachable)))
      (i32.store (local.get $r) (local.get $kind))
      (i32.store offset=4 (local.get $r) (local.get $table))
      (i32.store offset=8 (local.get $r) (global.get $index))
      (i32.store offset=12 (local.get $r) (local.get $schema))
      (i64.store offset=16 (local.get $r) (local.get $version))
      (i64.store offset=24 (local.get $r) (local.get $at))
      (i32.store offset=32 (local.get $r) (i32.sub (local.get $start) (i32.const 0x90000)))
      (i32.store offset=36 (local.get $r) (local.get $key))
      (i32.store offset=40 (local.get $r) (local.get $aggregate))
      (i32.store offset=44 (local.get $r) (local.get $type))
      (i32.store offset=48 (local.get $r) (local.get $id))
      ;; The body is what is left.
      (i32.store offset=52 (local.get $r)
        (i32.sub (i32.sub (global.get $out) (local.get $start))
          (i32.add (i32.add (local.get $key) (local.get $aggregate))
            (i32.add (local.get $type) (local.get $id)))))
      (global.set $record (i32.add (local.get $r) (i32.const 56))))

    ;; A row of `reads`; $entries is -1 for a null.
    (func $read (param $key i32) (param $key-bytes i32) (param $version i64)
      (param $has i32) (param $value i32) (param $bytes i32) (param $entries i64)
      (local $start i32)
      (local.set $start (global.get $out))
      (call $append (local.get $key) (local.get $key-bytes))
      (if (local.get $has)
        (then (call $cell-bytes (i32.const 6) (local.get $value) (local.get $bytes)))
        (else (call $byte (i32.const 0))))
      (if (i64.lt_s (local.get $entries) (i64.const 0))
        (then (call $byte (i32.const 0)))
        (else (call $cell-8 (i32.const 3) (local.get $entries))))
      (call $effect (i32.const 0) (i32.const 1) (local.get $version) (i64.const 0) (i32.const 0)
        (local.get $start) (local.get $key-bytes) (i32.const 0) (i32.const 0) (i32.const 0)))

    ;; The same under the agg-id and the event's version, without a count.
    (func $read-value (param $has i32) (param $value i32) (param $bytes i32)
      (call $read (call $from (i32.const 2)) (call $length (i32.const 2)) (call $version)
        (local.get $has) (local.get $value) (local.get $bytes) (i64.const -1)))

    (func $put (local $start i32)
      (local.set $start (global.get $out))
      (call $append-part (i32.const 2))
      (call $cell-part (i32.const 5) (i32.const 0))
      (call $cell-part (i32.const 5) (i32.const 1))
      (call $cell-8 (i32.const 3) (call $version))
      (call $cell-8 (i32.const 8) (call $at))
      (call $cell-8 (i32.const 3) (call $position))
      (call $cell-8 (i32.const 3) (i64.extend_i32_u (call $schema)))
      (call $cell-8 (i32.const 3) (i64.extend_i32_u (call $depth)))
      (call $cell-optional (i32.const 4))
      (call $cell-optional (i32.const 5))
      (call $cell-optional (i32.const 6))
      (call $cell-optional (i32.const 7))
      (call $cell-part (i32.const 6) (i32.const 8))
      (call $cell-part (i32.const 7) (i32.const 8))
      (call $byte (i32.add (i32.const 1) (i32.and (i32.wrap_i64 (call $version)) (i32.const 1))))
      (call $cell-8 (i32.const 4) (call $position))
      (call $byte (i32.const 0))
      (call $effect (i32.const 0) (i32.const 0) (call $version) (i64.const 0) (i32.const 0)
        (local.get $start) (call $length (i32.const 2)) (i32.const 0) (i32.const 0) (i32.const 0)))

    (func $delete (local $start i32)
      (local.set $start (global.get $out))
      (call $append-part (i32.const 2))
      (call $effect (i32.const 1) (i32.const 0) (call $version) (i64.const 0) (i32.const 0)
        (local.get $start) (call $length (i32.const 2)) (i32.const 0) (i32.const 0) (i32.const 0)))

    (func $emit (param $with-id i32) (local $start i32)
      (local.set $start (global.get $out))
      (call $append-part (i32.const 2))
      (call $append (i32.const 0x485) (i32.const 3))
      (call $append (i32.const 0x4ce) (i32.const 8))
      (if (local.get $with-id) (then (call $append-part (i32.const 0))))
      (call $append-part (i32.const 8))
      (call $effect (i32.const 4) (i32.const 0) (call $version) (call $at) (call $schema)
        (local.get $start) (call $length (i32.const 2)) (i32.const 3) (i32.const 8)
        (i32.mul (local.get $with-id) (call $length (i32.const 0)))))

    ;; An entry of this type; the text of its error is the cursor.
    (func $entry (param $type i32) (param $type-bytes i32) (param $error-bytes i32) (local $start i32) (local $has i32)
      (local.set $start (global.get $out))
      (local.set $has (i32.ne (call $schema) (i32.const 2)))
      (call $append-part (i32.const 2))
      (call $append-part (i32.const 1))
      (call $append (local.get $type) (local.get $type-bytes))
      (if (local.get $error-bytes) (then (call $append-part (i32.const 6))))
      (if (local.get $has) (then (call $append-part (i32.const 8))))
      (call $effect (i32.const 5) (i32.const 0) (i64.extend_i32_u (call $depth)) (i64.const 0) (local.get $has)
        (local.get $start) (call $length (i32.const 2)) (call $length (i32.const 1))
        (local.get $type-bytes) (local.get $error-bytes)))

    (func $many (local $n i64)
      (block $done (loop $next
        (br_if $done (i64.eq (local.get $n) (i64.extend_i32_u (call $schema))))
        (local.set $n (i64.add (local.get $n) (i64.const 1)))
        (call $read (call $from (i32.const 2)) (call $length (i32.const 2)) (local.get $n)
          (i32.const 0) (i32.const 0) (i32.const 0) (local.get $n))
        (br $next))))

    ;; --- Keyed state. ---

    ;; What this batch wrote: 32 bytes an entry: key and its bytes, value and its bytes, expiry, whether it is there.
    (func $find-written (param $key i32) (param $bytes i32) (result i32)
      (local $n i32) (local $entry i32)
      (local.set $entry (i32.const 0x890000))
      (loop $next (result i32)
        (if (i32.eq (local.get $n) (global.get $written)) (then (return (i32.const 0))))
        (if (i32.eqz (call $compare (i32.load (local.get $entry)) (i32.load offset=4 (local.get $entry))
              (local.get $key) (local.get $bytes)))
          (then (return (local.get $entry))))
        (local.set $entry (i32.add (local.get $entry) (i32.const 32)))
        (local.set $n (i32.add (local.get $n) (i32.const 1)))
        (br $next)))

    (func $note-written (param $key i32) (param $bytes i32) (param $value-bytes i32) (param $expires i64)
      (param $there i32) (local $entry i32)
      (local.set $entry (call $find-written (local.get $key) (local.get $bytes)))
      (if (i32.eqz (local.get $entry)) (then
        (if (i32.eq (global.get $written) (i32.const 8192)) (then (unreachable)))
        (local.set $entry (i32.add (i32.const 0x890000) (i32.shl (global.get $written) (i32.const 5))))
        (global.set $written (i32.add (global.get $written) (i32.const 1)))))
      (i32.store (local.get $entry) (local.get $key))
      (i32.store offset=4 (local.get $entry) (local.get $bytes))
      (i32.store offset=8 (local.get $entry) (i32.add (local.get $key) (local.get $bytes)))
      (i32.store offset=12 (local.get $entry) (local.get $value-bytes))
      (i64.store offset=16 (local.get $entry) (local.get $expires))
      (i32.store offset=24 (local.get $entry) (local.get $there)))

    ;; Writes the payload under the event's key; 0 is never.
    (func $state-put (param $expires i64) (local $start i32)
      (local.set $start (global.get $out))
      (call $append (i32.const 0x4000) (global.get $key-bytes))
      (call $append-part (i32.const 8))
      (call $note-written (local.get $start) (global.get $key-bytes) (call $length (i32.const 8))
        (local.get $expires) (i32.const 1))
      (call $effect (i32.const 2) (i32.const 0) (i64.const 0) (local.get $expires) (i32.const 0)
        (local.get $start) (global.get $key-bytes) (i32.const 0) (i32.const 0) (i32.const 0)))

    (func $state-delete (param $key i32) (param $bytes i32) (local $start i32)
      (local.set $start (global.get $out))
      (call $append (local.get $key) (local.get $bytes))
      (call $note-written (local.get $start) (local.get $bytes) (i32.const 0) (i64.const 0) (i32.const 0))
      (call $effect (i32.const 3) (i32.const 0) (i64.const 0) (i64.const 0) (i32.const 0)
        (local.get $start) (local.get $bytes) (i32.const 0) (i32.const 0) (i32.const 0)))

    ;; Whether an entry is over for this event; if so it is deleted, as far as the event's share goes.
    (func $is-over (param $key i32) (param $bytes i32) (param $expires i64) (result i32)
      (if (i64.eqz (local.get $expires)) (then (return (i32.const 0))))
      (if (i64.lt_s (call $at) (local.get $expires)) (then (return (i32.const 0))))
      (if (i32.lt_u (global.get $deletes) (i32.const 64)) (then
        (global.set $deletes (i32.add (global.get $deletes) (i32.const 1)))
        (call $state-delete (local.get $key) (local.get $bytes))))
      (i32.const 1))

    (func $state-read (local $entry i32) (local $value i32) (local $bytes i32) (local $expires i64)
      (local.set $entry (call $find-written (i32.const 0x4000) (global.get $key-bytes)))
      (if (local.get $entry)
        (then
          (if (i32.eqz (i32.load offset=24 (local.get $entry))) (then
            (return (call $read-value (i32.const 0) (i32.const 0) (i32.const 0)))))
          (local.set $value (i32.load offset=8 (local.get $entry)))
          (local.set $bytes (i32.load offset=12 (local.get $entry)))
          (local.set $expires (i64.load offset=16 (local.get $entry))))
        (else
          (call $state-get (i32.const 0x4000) (global.get $key-bytes) (i32.const 0x100))
          (if (i32.eqz (i32.load8_u (i32.const 0x100))) (then
            (return (call $read-value (i32.const 0) (i32.const 0) (i32.const 0)))))
          (local.set $value (i32.load (i32.const 0x108)))
          (local.set $bytes (i32.load (i32.const 0x10c)))
          (local.set $expires (i64.load (i32.const 0x110)))))
      (if (call $is-over (i32.const 0x4000) (global.get $key-bytes) (local.get $expires))
        (then (call $read-value (i32.const 0) (i32.const 0) (i32.const 0)))
        (else (call $read-value (i32.const 1) (local.get $value) (local.get $bytes)))))

    ;; The first entry of this batch under the event's key and, where there is one, after the entry at $last.
    (func $next-written (param $last i32) (param $last-bytes i32) (result i32)
      (local $n i32) (local $entry i32) (local $best i32) (local $key i32) (local $bytes i32)
      (local.set $entry (i32.const 0x890000))
      (block $done (loop $next
        (br_if $done (i32.eq (local.get $n) (global.get $written)))
        (local.set $key (i32.load (local.get $entry)))
        (local.set $bytes (i32.load offset=4 (local.get $entry)))
        (block $not
          (br_if $not (i32.eqz (call $begins (local.get $key) (local.get $bytes)
            (i32.const 0x4000) (global.get $key-bytes))))
          (if (local.get $last) (then
            (br_if $not (i32.le_s
              (call $compare (local.get $key) (local.get $bytes) (local.get $last) (local.get $last-bytes))
              (i32.const 0)))))
          (if (local.get $best) (then
            (br_if $not (i32.gt_s
              (call $compare (local.get $key) (local.get $bytes)
                (i32.load (local.get $best)) (i32.load offset=4 (local.get $best)))
              (i32.const 0)))))
          (local.set $best (local.get $entry)))
        (local.set $entry (i32.add (local.get $entry) (i32.const 32)))
        (local.set $n (i32.add (local.get $n) (i32.const 1)))
        (br $next)))
      (local.get $best))

    (func $state-walk
      (local $page i32) (local $entries i32) (local $more i32) (local $asked i32) (local $asked-bytes i32)
      (local $last i32) (local $last-bytes i32) (local $theirs i32) (local $ours i32) (local $order i32)
      (local $value i32) (local $bytes i32) (local $expires i64) (local $found i32) (local $hash i32)
      (local.set $hash (i32.const 0x811c9dc5))
      (local.set $more (i32.const 1))
      (block $done (loop $next
        ;; A depth of 0 is no limit.
        (br_if $done (i32.and (i32.ne (call $depth) (i32.const 0)) (i32.eq (local.get $found) (call $depth))))
        (if (i32.and (local.get $more) (i32.eqz (local.get $entries))) (then
          (call $state-scan (i32.const 0x4000) (global.get $key-bytes)
            (i32.ne (local.get $asked) (i32.const 0)) (local.get $asked) (local.get $asked-bytes)
            (i32.const 1000) (i32.const 0x100))
          (local.set $page (i32.load (i32.const 0x100)))
          (local.set $entries (i32.load (i32.const 0x104)))
          (local.set $more (i32.load8_u (i32.const 0x108)))
          (if (local.get $entries) (then
            (local.set $theirs
              (i32.add (local.get $page) (i32.mul (i32.sub (local.get $entries) (i32.const 1)) (i32.const 24))))
            (local.set $asked (i32.load (local.get $theirs)))
            (local.set $asked-bytes (i32.load offset=4 (local.get $theirs)))))))
        (local.set $theirs (select (local.get $page) (i32.const 0) (local.get $entries)))
        (local.set $ours (call $next-written (local.get $last) (local.get $last-bytes)))
        (br_if $done (i32.eqz (i32.or (local.get $theirs) (local.get $ours))))
        ;; Which of the two comes first: ours where they are the same.
        (local.set $order (i32.const -1))
        (if (i32.eqz (local.get $ours)) (then (local.set $order (i32.const 1))))
        (if (i32.and (i32.ne (local.get $theirs) (i32.const 0)) (i32.ne (local.get $ours) (i32.const 0))) (then
          (local.set $order (call $compare
            (i32.load (local.get $ours)) (i32.load offset=4 (local.get $ours))
            (i32.load (local.get $theirs)) (i32.load offset=4 (local.get $theirs))))))
        (if (i32.ge_s (local.get $order) (i32.const 0)) (then
          (local.set $page (i32.add (local.get $page) (i32.const 24)))
          (local.set $entries (i32.sub (local.get $entries) (i32.const 1)))))
        (if (i32.gt_s (local.get $order) (i32.const 0)) (then (local.set $ours (local.get $theirs))))
        ;; Both kinds of entries begin with the same five numbers.
        (local.set $last (i32.load (local.get $ours)))
        (local.set $last-bytes (i32.load offset=4 (local.get $ours)))
        (local.set $value (i32.load offset=8 (local.get $ours)))
        (local.set $bytes (i32.load offset=12 (local.get $ours)))
        (local.set $expires (i64.load offset=16 (local.get $ours)))
        (if (i32.le_s (local.get $order) (i32.const 0)) (then
          (br_if $next (i32.eqz (i32.load offset=24 (local.get $ours))))))
        (br_if $next (call $is-over (local.get $last) (local.get $last-bytes) (local.get $expires)))
        (local.set $found (i32.add (local.get $found) (i32.const 1)))
        (local.set $hash (call $hashed
          (call $hashed (local.get $hash) (local.get $last) (local.get $last-bytes))
          (local.get $value) (local.get $bytes)))
        (br $next)))
      (i32.store (i32.const 0x140) (local.get $hash))
      (call $read (call $from (i32.const 0)) (call $length (i32.const 0)) (call $version)
        (i32.const 1) (i32.const 0x140) (i32.const 4) (i64.extend_i32_u (local.get $found))))

    ;; --- What an event's type asks for. ---

    ;; Asks for what must be dropped with the event.
    (func $failing (param $kind i32) (result i32)
      (call $read-value (i32.const 0) (i32.const 0) (i32.const 0))
      (call $state-put (i64.const 0))
      (local.get $kind))

    (func $end (result i64) (local $at i64)
      (local.set $at (i64.add (call $at) (i64.const 1000000)))
      (select (local.get $at) (i64.const 1) (i64.ge_s (local.get $at) (i64.const 1))))

    (func $setting
      (call $config (call $from (i32.const 2)) (call $length (i32.const 2)) (i32.const 0x100))
      (call $read-value (i32.load8_u (i32.const 0x100)) (i32.load (i32.const 0x104)) (i32.load (i32.const 0x108))))

    ;; The kind of its failure, -1 for none.
    (func $act (result i32)
      (call $take-key)
      (if (call $is-type (i32.const 0x4d6) (i32.const 3)) (then (call $put)))
      (if (call $is-type (i32.const 0x4d9) (i32.const 3)) (then (call $delete)))
      (if (call $is-type (i32.const 0x4dc) (i32.const 4)) (then (call $emit (i32.const 1))))
      (if (call $is-type (i32.const 0x4e0) (i32.const 12)) (then (call $emit (i32.const 0))))
      (if (call $is-type (i32.const 0x621) (i32.const 8)) (then (call $emit (i32.const 1))))
      (if (call $is-type (i32.const 0x600) (i32.const 11)) (then (call $entry (i32.const 0x607) (i32.const 4) (i32.const 0))))
      (if (call $is-type (i32.const 0x60b) (i32.const 10)) (then (call $entry (i32.const 0x612) (i32.const 3) (i32.const 0))))
      (if (call $is-type (i32.const 0x615) (i32.const 12)) (then
        (call $entry (i32.const 0x61c) (i32.const 5) (call $length (i32.const 6)))))
      (if (call $is-type (i32.const 0x4ec) (i32.const 4)) (then (call $many)))
      (if (call $is-type (i32.const 0x4f0) (i32.const 4)) (then (call $state-put (i64.const 0))))
      (if (call $is-type (i32.const 0x4f4) (i32.const 10)) (then (call $state-put (call $end))))
      (if (call $is-type (i32.const 0x4fe) (i32.const 4)) (then (call $state-read)))
      (if (call $is-type (i32.const 0x502) (i32.const 4)) (then (call $state-delete (i32.const 0x4000) (global.get $key-bytes))))
      (if (call $is-type (i32.const 0x506) (i32.const 5)) (then (call $state-walk)))
      (if (call $is-type (i32.const 0x50b) (i32.const 3)) (then (call $setting)))
      (if (call $is-type (i32.const 0x50e) (i32.const 3)) (then
        (call $log (i32.const 1) (call $from (i32.const 8)) (call $length (i32.const 8)))))
      (if (call $is-type (i32.const 0x511) (i32.const 5)) (then (return (call $failing (i32.const 0)))))
      (if (call $is-type (i32.const 0x516) (i32.const 6)) (then (return (call $failing (i32.const 1)))))
      (if (call $is-type (i32.const 0x51c) (i32.const 5)) (then (return (call $failing (i32.const 2)))))
      (i32.const -1))

    ;; --- The exports. ---

    (func $begin
      (global.set $out (i32.const 0x90000))
      (global.set $record (i32.const 0x10000))
      (global.set $written (i32.const 0))
      (global.set $index (i32.const 0)))

    ;; Effects as they cross, and what the host handed over is forgotten.
    (func $answer-effects (param $to i32)
      (i32.store (local.get $to) (i32.const 0x90000))
      (i32.store offset=4 (local.get $to) (i32.sub (global.get $out) (i32.const 0x90000)))
      (i32.store offset=8 (local.get $to) (i32.const 0x10000))
      (i32.store offset=12 (local.get $to) (i32.sub (global.get $record) (i32.const 0x10000)))
      (global.set $heap (i32.const 0x8d0000)))

    ;; A failure as it crosses, its message cut between two letters.
    (func $answer-failure (param $to i32) (param $kind i32) (param $message i32) (param $bytes i32)
      (if (i32.gt_u (local.get $bytes) (i32.const 4096)) (then
        (local.set $bytes (i32.const 4096))
        (block $done (loop $next
          (br_if $done (i32.ne (i32.const 0x80)
            (i32.and (i32.load8_u (i32.add (local.get $message) (local.get $bytes))) (i32.const 0xc0))))
          (local.set $bytes (i32.sub (local.get $bytes) (i32.const 1)))
          (br $next)))))
      (i32.store (local.get $to) (global.get $index))
      (i32.store offset=4 (local.get $to) (local.get $kind))
      (i32.store offset=8 (local.get $to) (local.get $message))
      (i32.store offset=12 (local.get $to) (local.get $bytes)))

    (func (export "describe") (result i32) (i32.const 0xa00))

    (func (export "load")
      (param $tenant i32) (param $tenant-bytes i32) (param $lane i32) (param $lanes i32)
      (param $has i32) (param $type i32) (param $type-bytes i32) (param $state i32) (param $bytes i32) (result i32)
      (global.set $heap (i32.const 0x8d0000))
      (global.set $count (i64.const 0))
      (global.set $hash (i32.const 0x811c9dc5))
      (i32.store (i32.const 0x200) (i32.const 0))
      (if (i32.eqz (local.get $has)) (then (return (i32.const 0x200))))
      (if (i32.eqz (call $compare (local.get $type) (local.get $type-bytes) (i32.const 0x521) (i32.const 3))) (then
        (global.set $count (i64.extend_i32_u (local.get $bytes)))
        (return (i32.const 0x200))))
      (if (i32.eqz (call $compare (local.get $type) (local.get $type-bytes) (i32.const 0x4c8) (i32.const 3))) (then
        (if (i32.eq (local.get $bytes) (i32.const 16)) (then
          (global.set $count (i64.load (local.get $state)))
          (global.set $hash (i32.load offset=8 (local.get $state)))
          (return (i32.const 0x200))))))
      (i32.store (i32.const 0x200) (i32.const 1))
      (call $store-two (i32.const 0x204) (i32.const 0x524) (i32.const 38))
      (i32.const 0x200))

    (func $store-two (param $to i32) (param $a i32) (param $b i32)
      (i32.store (local.get $to) (local.get $a))
      (i32.store offset=4 (local.get $to) (local.get $b)))

    (func (export "handle")
      (param $arena i32) (param $arena-bytes i32) (param $events i32) (param $bytes i32) (result i32)
      (local $kind i32) (local $out i32) (local $record i32) (local $all i32)
      (call $begin)
      (memory.fill (i32.const 0x240) (i32.const 0) (i32.const 40))
      (local.set $all (i32.div_u (local.get $bytes) (i32.const 72)))
      (block $done (loop $next
        (br_if $done (i32.eq (global.get $index) (local.get $all)))
        (global.set $event (i32.add (local.get $events) (i32.mul (global.get $index) (i32.const 72))))
        (global.set $base (i32.add (local.get $arena) (i32.load offset=32 (global.get $event))))
        (global.set $deletes (i32.const 0))
        (local.set $out (global.get $out))
        (local.set $record (global.get $record))
        (local.set $kind (call $act))
        (if (i32.ge_s (local.get $kind) (i32.const 0)) (then
          (global.set $out (local.get $out))
          (global.set $record (local.get $record))
          (i32.store (i32.const 0x254) (i32.const 1))
          (call $answer-failure (i32.const 0x258) (local.get $kind)
            (call $from (i32.const 8)) (call $length (i32.const 8)))
          (br $done)))
        (global.set $count (i64.add (global.get $count) (i64.const 1)))
        (global.set $hash
          (call $hashed (global.get $hash) (call $from (i32.const 8)) (call $length (i32.const 8))))
        (global.set $index (i32.add (global.get $index) (i32.const 1)))
        (br $next)))
      (i32.store (i32.const 0x240) (global.get $index))
      (call $answer-effects (i32.const 0x244))
      (i32.const 0x240))

    (func (export "flush") (param $reason i32) (result i32)
      (call $begin)
      (call $config (i32.const 0x54a) (i32.const 11) (i32.const 0x100))
      (if (i32.load8_u (i32.const 0x100)) (then
        (global.set $heap (i32.const 0x8d0000))
        (i32.store (i32.const 0x280) (i32.const 1))
        (call $answer-failure (i32.const 0x284) (i32.const 0)
          (i32.load (i32.const 0x104)) (i32.load (i32.const 0x108)))
        (return (i32.const 0x280))))
      (if (i32.and (global.get $hash) (i32.const 1)) (then
        (call $append (i32.const 0x555) (i32.const 5))
        (call $append (i32.const 0x485) (i32.const 3))
        (call $append (i32.const 0x55a) (i32.const 9))
        (if (i32.eqz (local.get $reason)) (then (call $append (i32.const 0x563) (i32.const 6))))
        (if (i32.eq (local.get $reason) (i32.const 1)) (then (call $append (i32.const 0x569) (i32.const 10))))
        (if (i32.eq (local.get $reason) (i32.const 2)) (then (call $append (i32.const 0x573) (i32.const 6))))
        (call $effect (i32.const 4) (i32.const 0)
          (i64.add (global.get $count) (i64.const 1)) (global.get $count) (i32.const 1)
          (i32.const 0x90000) (i32.const 5) (i32.const 3) (i32.const 9) (i32.const 0))))
      (i32.store (i32.const 0x280) (i32.const 0))
      (call $answer-effects (i32.const 0x284))
      (i32.const 0x280))

    (func (export "snapshot") (result i32)
      (i64.store (i32.const 0x2c8) (global.get $count))
      (i64.store (i32.const 0x2d0) (i64.extend_i32_u (global.get $hash)))
      (call $store-two (i32.const 0x2c0) (i32.const 0x2c8) (i32.const 16))
      (i32.const 0x2c0)))

  (core instance $g (instantiate $Guest (with "m" (instance $m)) (with "host" (instance
    (export "log" (func $log-core)) (export "config" (func $config-core))
    (export "get" (func $get-core)) (export "scan" (func $scan-core))))))

  ;; --- The world's types. An exported function may only speak of exported ones. ---
  (type $effects' (record (field "arena" (list u8)) (field "records" (list u8))))
  (export $effects "effects" (type $effects'))
  (type $failure-kind' (enum "retry" "reject" "fatal"))
  (export $failure-kind "failure-kind" (type $failure-kind'))
  (type $failure' (record (field "index" u32) (field "kind" $failure-kind) (field "message" string)))
  (export $failure "failure" (type $failure'))
  (type $outcome' (record (field "handled" u32) (field "effects" $effects)
    (field "failure" (option $failure))))
  (export $outcome "outcome" (type $outcome'))
  (type $flush-reason' (enum "tick" "shutdown" "swap"))
  (export $flush-reason "flush-reason" (type $flush-reason'))
  (type $saved-state' (record (field "content-type" string) (field "state" (list u8))))
  (export $saved-state "saved-state" (type $saved-state'))
  (type $context' (record (field "tenant" string) (field "lane" u32) (field "lanes" u32)))
  (export $context "context" (type $context'))
  (type $ordering-key' (variant (case "aggregate") (case "payload-field" string) (case "single")))
  (export $ordering-key "ordering-key" (type $ordering-key'))
  (type $subscription' (record (field "types" (list string)) (field "aggregates" (list string))))
  (export $subscription "subscription" (type $subscription'))
  (type $column-type' (enum "bool" "int" "float" "text" "bytes" "json" "timestamp"))
  (export $column-type "column-type" (type $column-type'))
  (type $column' (record (field "name" string) (field "type" $column-type) (field "nullable" bool)
    (field "filterable" bool) (field "sortable" bool)))
  (export $column "column" (type $column'))
  (type $table' (record (field "name" string) (field "columns" (list $column)) (field "versioned" bool)
    (field "window-rows-max" u32)))
  (export $table "table" (type $table'))
  (type $change-field' (record (field "name" string) (field "member" string)))
  (export $change-field "change-field" (type $change-field'))
  (type $change-scope' (variant (case "id") (case "tenant") (case "field" $change-field)))
  (export $change-scope "change-scope" (type $change-scope'))
  (type $change-scopes' (record (field "aggregate" string) (field "scopes" (list $change-scope))))
  (export $change-scopes "change-scopes" (type $change-scopes'))
  (type $manifest' (record (field "name" string) (field "version" string) (field "summary" string)
    (field "state-content-type" (option string)) (field "ordering-key" $ordering-key)
    (field "subscription" $subscription) (field "tables" (list $table)) (field "grants" (list string))
    (field "flush-interval-ms" (option u32)) (field "changes" (list $change-scopes))))
  (export $manifest "manifest" (type $manifest'))
  (type $event-records (list u8))

  (func $describe (result $manifest) (canon lift (core func $g "describe") (memory $memory) (realloc $realloc)))
  (func $load (param "context" $context) (param "saved" (option $saved-state)) (result (result (error string)))
    (canon lift (core func $g "load") (memory $memory) (realloc $realloc)))
  (func $handle (param "arena" (list u8)) (param "events" $event-records) (result $outcome)
    (canon lift (core func $g "handle") (memory $memory) (realloc $realloc)))
  (func $flush (param "reason" $flush-reason) (result (result $effects (error $failure)))
    (canon lift (core func $g "flush") (memory $memory) (realloc $realloc)))
  (func $snapshot (result (list u8)) (canon lift (core func $g "snapshot") (memory $memory) (realloc $realloc)))
  (instance $handler
    (export "describe" (func $describe)) (export "load" (func $load)) (export "handle" (func $handle))
    (export "flush" (func $flush)) (export "snapshot" (func $snapshot)))
  (export "millrace:processor/handler@0.1.0" (instance $handler)))
