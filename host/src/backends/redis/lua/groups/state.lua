-- What a group of consumers decides: the beginning of every script about groups, and of the one that trims the log.
--
-- KEYS: meta, events, prefixes of the other streams' indexes and of the tenants' indexes, prefix of groups, list of groups
-- ARGV: epoch, time or '' for the server's own, bounds as JSON, ...
--
-- A group is called `tenant:stream:name`. Its hash is at the prefix with that, what belongs to it at that and `/...`:
--   entries (hash)     what was taken in and is not done, by position; see `PHASE` for the fields of one
--   unfinished (zset)  the positions of it; a dead letter that is replayed is not among them
--   queue (zset)       key and position of each entry: by name, so the first of a key is found
--   held (hash)        keys of which one entry is leased, with its position
--   ready (zset)       what may be delivered; due (zset): ends of leases and of waits
--   messages (hash)    what consumers said; lost (zset): what was removed under a lease
--   letters (hash), dead (zset): dead letters; replaying (zset): those that are delivered again
--   seen (zset), flying (hash): when consumers were heard of, and how many entries each has
-- The list of groups has their positions; with `:names` their names in order, with `:due` when to look after each.
--
-- Everything up to `low` is done. Up to `frontier` the stream was taken in: what of it is no entry is done.
local call, format, sub, byte = redis.call, string.format, string.sub, string.byte
local pack, unpack_entry = cmsgpack.pack, cmsgpack.unpack

-- Fields of an entry. Phases: W(aiting behind another of its key), R(eady), L(eased), T(ried, and waits).
local KEY, PHASE, ATTEMPTS, BYTES, REPLAYED, CONSUMER, LIFE, SEQUENCE, AT = 1, 2, 3, 4, 5, 6, 7, 8, 9
local PARTS = {'entries', 'unfinished', 'queue', 'held', 'ready', 'due', 'messages', 'lost', 'letters', 'dead',
  'replaying', 'seen', 'flying'}
local bounds = cjson.decode(ARGV[3])

-- Deliveries, repeats, acknowledgements, failures, ends of leases, dead letters, consumers forgotten, refused receipts.
local tally, reports = {0, 0, 0, 0, 0, 0, 0, 0}, {}
local function count(what) tally[what] = tally[what] + 1 end
local function text(number) return format('%.0f', number) end

local now = tonumber(ARGV[2])
if not now then
  local clock = call('TIME')
  now = tonumber(clock[1]) * 1000000 + tonumber(clock[2])
end
local log = call('HMGET', KEYS[1], 'epoch', 'position', 'trimmed')
local epoch, newest, trimmed = log[1], tonumber(log[2] or 0), tonumber(log[3] or 0)

local function answer(code, ...)
  return {code, table.concat(tally, ' '), reports, ...}
end

local function read(g, position)
  local packed = call('HGET', g.entries, text(position))
  return packed and unpack_entry(packed)
end

local function write(g, position, entry)
  call('HSET', g.entries, text(position), pack(entry))
end

local function member(key, position) return key .. format('%016.0f', position) end

-- The first entry of a key.
local function first_of(g, key)
  local first = call('ZRANGEBYLEX', g.queue, '[' .. key, '[' .. key .. '\255', 'LIMIT', 0, 1)[1]
  return first and tonumber(sub(first, 17))
end

local function promote(g, position, entry)
  if entry[PHASE] == 'W' then
    entry[PHASE] = 'R'
    write(g, position, entry)
    call('ZADD', g.ready, text(position), text(position))
  end
end

-- Lets the entry be delivered whose turn it is in a key.
local function promote_next(g, key)
  if call('HEXISTS', g.held, key) == 1 then return end
  local first = first_of(g, key)
  if first then promote(g, first, read(g, first)) end
end

-- Puts an entry in its place in its key. A replayed one may come before others, never before what is leased.
local function insert(g, position, entry)
  local key = entry[KEY]
  local held, first = call('HEXISTS', g.held, key) == 1, first_of(g, key)
  call('ZADD', g.queue, 0, member(key, position))
  entry[PHASE] = 'W'
  if held or (first and first < position) then return write(g, position, entry) end
  if first and call('ZREM', g.ready, text(first)) == 1 then
    local other = read(g, first)
    other[PHASE] = 'W'
    write(g, first, other)
  end
  promote(g, position, entry)
end

-- Ends a lease or a wait, without saying what comes then.
local function settle(g, position, entry)
  if entry[PHASE] == 'L' then
    call('HDEL', g.held, entry[KEY])
    if call('HINCRBY', g.flying, entry[CONSUMER], -1) <= 0 then call('HDEL', g.flying, entry[CONSUMER]) end
  end
  if entry[PHASE] == 'L' or entry[PHASE] == 'T' then call('ZREM', g.due, text(position)) end
  entry[PHASE] = 'W'
end

local function release(g, position, entry)
  settle(g, position, entry)
  write(g, position, entry)
  promote_next(g, entry[KEY])
end

local function try_again(g, position, entry, due)
  settle(g, position, entry)
  entry[PHASE], entry[AT] = 'T', due
  write(g, position, entry)
  call('ZADD', g.due, text(due), text(position))
  promote_next(g, entry[KEY])
  return due
end

local function remove(g, position, entry)
  if entry[PHASE] == 'R' then call('ZREM', g.ready, text(position)) end
  settle(g, position, entry)
  call('HDEL', g.entries, text(position))
  call('HDEL', g.messages, text(position))
  call('ZREM', g.queue, member(entry[KEY], position))
  promote_next(g, entry[KEY])
end

local function settle_low(g)
  local first = call('ZRANGE', g.unfinished, 0, 0)[1]
  g.low = math.max(g.low, first and tonumber(first) - 1 or g.frontier)
end

-- The entry is done.
local function finish(g, position, entry)
  remove(g, position, entry)
  call('ZREM', g.unfinished, text(position))
  -- Also one that the group was moved back before: what is done needs no letter.
  if call('ZREM', g.dead, text(position)) == 1 then
    call('HDEL', g.letters, text(position))
    call('ZREM', g.replaying, text(position))
  end
  settle_low(g)
end

-- Seven bits a byte, the lowest first: the number and what comes next.
local function number_at(bytes, at)
  local number, scale = 0, 1
  while true do
    local b = byte(bytes, at)
    at = at + 1
    if b < 128 then return number + b * scale, at end
    number, scale = number + (b - 128) * scale, scale * 128
  end
end

-- The bytes of an event, as they lie in the log; nil when it is not there.
local function body_of(g, position)
  local entry = call('XRANGE', KEYS[2], text(position) .. '-0', '+', 'COUNT', 1)[1]
  if not entry then return nil end
  local last, events = string.match(entry[1], '^(%d+)-(%d+)$')
  local whole, skip = entry[2][6], position - (tonumber(last) - tonumber(events) + 1)
  if skip < 0 or entry[2][2] ~= g.tenant then return nil end
  local at = 2
  for skipped = 0, skip do
    local begin, length, sum = at, 0, 0
    for _ = 1, 4 do length, at = number_at(whole, at) end
    for _ = 1, 9 do
      length, at = number_at(whole, at)
      sum = sum + length
    end
    at = at + sum
    if skipped == skip then return sub(whole, begin, at - 1) end
  end
end

-- Events of the group's stream between two positions, and whether there may be more: a bound ends the count.
local function count_stream(g, after, upto)
  if upto <= after then return 0, 0 end
  local events, seen, from = 0, 0, text(after + 1) .. '-0'
  while seen < bounds.count do
    local page = call('XRANGE', g.index, from, '+', 'COUNT', 512)
    for _, found in ipairs(page) do
      local last, many = string.match(found[1], '^(%d+)-(%d+)$')
      last, many = tonumber(last), math.max(tonumber(many), 1)
      if last - many + 1 > upto then return events, 0 end
      events = events + math.min(last, upto) - math.max(last - many, after)
    end
    if #page < 512 then return events, 0 end
    seen, from = seen + 512, '(' .. page[512][1]
  end
  return events, 1
end

local function report(g, events, upto, why)
  reports[#reports + 1] = {g.id, text(events), text(upto), g.lost_at or '', g.options.on_lost, why, text(now)}
  g.lost, g.lost_until, g.lost_at = g.lost + events, upto, text(now)
end

-- Gives up everything up to a position that is not done. Answers how many entries that are.
local function forget(g, upto)
  local gone = call('ZRANGEBYSCORE', g.unfinished, '-inf', text(upto))
  for _, name in ipairs(gone) do
    local position = tonumber(name)
    local entry = read(g, position)
    if entry then
      if entry[PHASE] == 'L' then call('ZADD', g.lost_leases, name, name) end
      remove(g, position, entry)
      call('ZREM', g.replaying, name)
    end
  end
  call('ZREMRANGEBYSCORE', g.unfinished, '-inf', text(upto))
  call('ZREMRANGEBYRANK', g.lost_leases, 0, -bounds.lost - 1)
  return #gone
end

-- What becomes of a group when everything up to a position goes. `untaken`: what of it was not yet taken in.
local function lose(g, upto, untaken, why)
  local lost = call('ZCOUNT', g.unfinished, '-inf', text(upto)) + untaken
  if lost > 0 then
    local goes = g.options.on_lost == 'tail' and math.max(newest, upto) or upto
    if goes > upto then untaken = untaken + (count_stream(g, math.max(g.frontier, upto), goes)) end
    report(g, forget(g, goes) + untaken, goes, why)
    if g.options.on_lost == 'stop' then g.stopped = 1 end
    g.frontier = math.max(g.frontier, goes)
  end
  g.frontier = math.max(g.frontier, upto)
  g.low = math.max(g.low, upto)
  settle_low(g)
  g.changed = true
end

-- How much there is of each: when parts of a group were removed by somebody else, this is another one.
local function shape(g)
  return call('HLEN', g.entries) .. ' ' .. call('ZCARD', g.unfinished) .. ' ' .. call('ZCARD', g.queue) .. ' '
    .. call('HLEN', g.letters) .. ' ' .. call('HLEN', g.held) .. ' ' .. call('ZCARD', g.ready) .. ' '
    .. call('ZCARD', g.due)
end

-- Forgets what was taken in: the group goes on behind a position, with the dead letters that are being replayed.
local function begin_at(g, position)
  for _, part in ipairs({'entries', 'unfinished', 'queue', 'held', 'ready', 'due', 'messages', 'lost', 'flying'}) do
    call('DEL', g.key .. '/' .. part)
  end
  g.low, g.frontier = position, position
  for _, name in ipairs(call('ZRANGE', g.replaying, 0, -1)) do
    local letter = call('HGET', g.letters, name)
    if letter then
      letter = unpack_entry(letter)
      insert(g, tonumber(name), {letter[7], 'W', 0, letter[8], 1, '', '', 0, 0})
    end
  end
  g.changed = true
end

-- The group, with what has happened to the log since taken in; nil when there is none.
local function open(id)
  local key = KEYS[5] .. id
  local found = call('HMGET', key, 'incarnation', 'epoch', 'options', 'low', 'frontier', 'sequence', 'lost', 'lost_until',
    'lost_at', 'stopped', 'created', 'shape', 'looked')
  if not found[1] then return nil end
  local g = {id = id, key = key, incarnation = found[1], epoch = found[2], options_text = found[3],
    options = cjson.decode(found[3]), low = tonumber(found[4]), frontier = tonumber(found[5]),
    sequence = tonumber(found[6]), lost = tonumber(found[7]), lost_until = tonumber(found[8]),
    lost_at = found[9], stopped = tonumber(found[10]), created = found[11],
    looked = tonumber(found[13] or 0)}
  for _, part in ipairs(PARTS) do g[part == 'lost' and 'lost_leases' or part] = key .. '/' .. part end
  g.tenant, g.stream = string.match(id, '^([^:]*):(.*):[^:]*$')
  g.index = g.stream == 'events' and KEYS[4] .. g.tenant or KEYS[3] .. g.tenant .. ':' .. g.stream
  if found[12] ~= shape(g) then
    -- At least once: what is not known to be done comes again.
    report(g, 0, g.low, 'damaged')
    for _, part in ipairs({'letters', 'dead', 'replaying'}) do call('DEL', g[part]) end
    g.incarnation = text(tonumber(g.incarnation) + 1)
    begin_at(g, g.low)
  end
  if epoch and g.epoch ~= epoch then
    -- How much the former life had beyond what was taken in, nobody knows any more.
    g.epoch = epoch
    lose(g, trimmed, call('ZCARD', g.unfinished) == 0 and 1 or 0, 'epoch')
  elseif trimmed > g.low then
    -- Somebody else has shortened the log: the script that trims leaves no group behind.
    lose(g, trimmed, g.frontier < trimmed and 1 or 0, 'foreign')
  end
  return g
end

local function save(g)
  if not g.changed then return end
  settle_low(g)
  call('HSET', g.key, 'incarnation', g.incarnation, 'epoch', g.epoch, 'options', g.options_text, 'low', text(g.low),
    'frontier', text(g.frontier), 'sequence', text(g.sequence), 'lost', text(g.lost), 'lost_until', text(g.lost_until),
    'stopped', g.stopped, 'created', g.created, 'shape', shape(g), 'looked', text(g.looked))
  if g.lost_at then call('HSET', g.key, 'lost_at', g.lost_at) end
  call('ZADD', KEYS[6], text(g.low), g.id)
  local due, seen = call('ZRANGE', g.due, 0, 0, 'WITHSCORES')[2], call('ZRANGE', g.seen, 0, 0, 'WITHSCORES')[2]
  -- A consumer that holds something is not forgotten, however long it is silent: that is not looked at all the time.
  local silent = seen and math.max(tonumber(seen) + bounds.idle, g.looked + 1000000)
  local at = math.min(tonumber(due) or math.huge, silent or math.huge)
  if at < math.huge then
    call('ZADD', KEYS[6] .. ':due', text(at), g.id)
  else
    call('ZREM', KEYS[6] .. ':due', g.id)
  end
end
