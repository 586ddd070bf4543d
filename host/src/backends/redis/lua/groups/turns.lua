-- What a group does when time passes and consumers speak: follows `state.lua` in every script but the one that trims.

-- Makes an entry a dead letter; its key goes on. While there is no place for one, it is tried again later: then answers
-- when.
local function bury(g, position, entry, reason)
  local name, body = text(position), nil
  -- One that the group was moved back before takes its own place.
  local placed = call('ZSCORE', g.dead, name) and not call('ZSCORE', g.replaying, name)
  if not placed and call('ZCARD', g.dead) - call('ZCARD', g.replaying) >= bounds.dead then
    return try_again(g, position, entry, now + g.options.backoff_ms_max * 1000)
  end
  if entry[REPLAYED] == 1 then
    local letter = call('HGET', g.letters, name)
    body = letter and unpack_entry(letter)[6]
  else
    body = body_of(g, position)
  end
  call('ZREM', g.replaying, name)
  local message = call('HGET', g.messages, name) or ''
  remove(g, position, entry)
  call('ZREM', g.unfinished, name)
  if body then
    count(6)
    call('HSET', g.letters, name, pack({entry[ATTEMPTS], reason, message, entry[CONSUMER], text(now), body, entry[KEY],
      entry[BYTES]}))
    call('ZADD', g.dead, name, name)
  else
    report(g, 1, position, 'foreign')
  end
  settle_low(g)
end

-- Ends a lease or a wait whose time has come.
local function expire(g, position, entry)
  g.changed = true
  if entry[PHASE] == 'L' then
    count(5)
    if entry[ATTEMPTS] >= g.options.attempts_max then return bury(g, position, entry, 'lease_expired') end
  end
  release(g, position, entry)
end

local function tick(g)
  for _, name in ipairs(call('ZRANGEBYSCORE', g.due, '-inf', text(now), 'LIMIT', 0, bounds.due)) do
    local entry = read(g, tonumber(name))
    if entry then expire(g, tonumber(name), entry) else call('ZREM', g.due, name) end
  end
end

-- Forgets consumers that hold nothing and were not heard of for long.
local function reap(g)
  g.looked = now
  for _, name in ipairs(call('ZRANGEBYSCORE', g.seen, '-inf', text(now - bounds.idle))) do
    if call('HEXISTS', g.flying, name) == 0 then
      call('ZREM', g.seen, name)
      count(7)
      g.changed = true
    end
  end
end

-- Remembers that a consumer lives. Answers how many there would be when there are too many.
local function see(g, name, consumers_max)
  local seen = call('ZSCORE', g.seen, name)
  if not seen then
    if call('ZCARD', g.seen) >= consumers_max then reap(g) end
    local consumers = call('ZCARD', g.seen)
    if consumers >= consumers_max then return consumers + 1 end
  end
  -- A consumer that waits is heard of all the time: not each time is worth a write.
  if not seen or now - tonumber(seen) >= 1000000 then
    call('ZADD', g.seen, text(now), name)
    g.changed = true
  end
end

-- How a group stands.
local function status(g)
  local unfinished = call('ZRANGE', g.unfinished, 0, 0)[1]
  local oldest = unfinished
  if not oldest and newest > g.frontier then
    -- The first event of the stream that was not taken in; in an entry it may follow others that were.
    local found = call('XRANGE', g.index, text(g.frontier + 1) .. '-0', '+', 'COUNT', 1)[1]
    oldest = found and string.match(found[1], '^%d+')
  end
  local entry = oldest and call('XRANGE', KEYS[2], oldest .. '-0', '+', 'COUNT', 1)[1]
  local ahead, is_least = count_stream(g, g.frontier, newest)
  local leased, waits = call('HLEN', g.held), call('ZCARD', g.due)
  return {g.options_text, g.created, text(g.low), text(g.frontier), call('ZCARD', g.unfinished) + ahead, is_least,
    entry and entry[2][4] or '', leased, waits - leased, call('HLEN', g.entries) - waits,
    call('ZCARD', g.dead) - call('ZCARD', g.replaying), call('ZCARD', g.seen), text(g.lost), text(g.lost_until),
    g.lost_at or '', g.stopped}
end

-- The group that a call is about, or what is answered instead.
local function opened()
  if call('EXISTS', KEYS[5] .. ARGV[4]) == 0 then return nil, answer('unknown') end
  if epoch ~= ARGV[1] then return nil, answer('log') end
  return open(ARGV[4])
end
