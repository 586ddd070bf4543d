-- Appends a group of requests, each all or nothing, and answers their positions.
--
-- KEYS: meta, events, ids, older ids, tenants, and prefixes: of the tenants' indexes, of the other streams' indexes, of
--       the last known values of fields, of the names of the tenants' streams,
--       of leases
-- ARGV: epoch, dedup window, bytes of an entry, version of the change scopes, streams of a tenant; then for each
--       request: tenant, stream or '' for events, the name of a lease and its generation or '' twice, number of events, and for each event the key of its id, the hash of
--       its content, its bytes, and '' or its change streams: five texts with their length before them, the streams'
--       names by line, and the aggregate, the key, the expected text and the new text of the last known values
-- Answers {0, newest, answer...}, one answer for each request: {1, first position} when all are new,
-- {3, position...} with a minus before a known one, {2, index, position, hash} when an id is taken,
-- {4, index, position...} when the last known values are others than expected, with the positions of the events before,
-- {5} when the tenant has too many streams, {6} when the lease is another one by now.
-- {1, epoch} says that the log is another one, or has other change scopes; nothing was written then.
--
-- Whatever can be refused (a wrong type, no memory, a read-only server) is met before or in the first write: a script
-- is never rolled back.
local meta = redis.call('HMGET', KEYS[1], 'epoch', 'position', 'trimmed', 'time', 'ids_from', 'scopes')
if meta[1] ~= ARGV[1] or (meta[6] or '0') ~= ARGV[4] then return {1, meta[1] or ''} end
local window, entry_bytes, streams_max = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[5])
local position, trimmed, ids_from = tonumber(meta[2]), tonumber(meta[3]), tonumber(meta[5])
local horizon = math.max(trimmed, position - window)
local format, sub = string.format, string.sub

local answers, fresh, ids, chunks = {}, {}, {}, {}
-- Of the whole group: last known values by aggregate and key, streams that are new by tenant, entries of change streams.
local values, begun, changes = {}, {}, {}

-- What is known under some keys, newer before older.
local function known(keys)
  local found = redis.call('HMGET', KEYS[3], unpack(keys))
  local missing, places = {}, {}
  for i = 1, #keys do
    if not found[i] then
      missing[#missing + 1] = keys[i]
      places[#places + 1] = i
    end
  end
  if #missing > 0 and redis.call('EXISTS', KEYS[4]) == 1 then
    local older = redis.call('HMGET', KEYS[4], unpack(missing))
    for i = 1, #missing do found[places[i]] = older[i] end
  end
  return found
end

-- Notes that the next event of an entry is in a stream, and where it lies there.
local function index(chunk, name, body, at)
  changes[#changes + 1] =
    {KEYS[7] .. chunk.tenant .. ':' .. name, format('%.0f-0', at), format('%d %d', chunk.bytes + 1, #body)}
end

-- Puts an event into an entry.
local function place(tenant, stream, body, at, names)
  local chunk = chunks[#chunks]
  if not chunk or chunk.tenant ~= tenant or chunk.stream ~= stream or chunk.bytes + #body > entry_bytes then
    chunk = {tenant = tenant, stream = stream, bytes = 0, bodies = {'\1'}, marks = {}}
    chunks[#chunks + 1] = chunk
  end
  if stream ~= '' then index(chunk, stream, body, at) end
  if names then
    for name in string.gmatch(names, '[^\n]+') do
      chunk.marks[#chunk.marks + 1] = format('%d\t%s', #chunk.bodies - 1, name)
      index(chunk, name, body, at)
    end
  end
  chunk.bytes = chunk.bytes + #body
  chunk.bodies[#chunk.bodies + 1] = body
  chunk.last = at
end

-- Whether a tenant may write to a stream. One that is new counts from here on.
local function admitted(tenant, stream)
  if stream == '' then return true end
  local mine = begun[tenant] or {count = 0, names = {}}
  if mine.names[stream] or redis.call('SISMEMBER', KEYS[9] .. tenant, stream) == 1 then return true end
  if redis.call('SCARD', KEYS[9] .. tenant) + mine.count >= streams_max then return false end
  mine.names[stream], mine.count = true, mine.count + 1
  begun[tenant] = mine
  return true
end

-- One request, whose events begin at ARGV[at].
local function apply(tenant, stream, count, at)
  if not admitted(tenant, stream) then return {5} end
  local keys = {}
  for i = 1, count do keys[i] = ARGV[at + (i - 1) * 4] end
  local found = known(keys)
  local answer, added, newest = {3}, {}, position
  -- Of this request alone: what is refused leaves nothing.
  local names, later = {}, {}
  for i = 1, count do
    local value = fresh[keys[i]]
    if not value and found[i] and tonumber(sub(found[i], 17)) > horizon then value = found[i] end
    if value then
      local first = tonumber(sub(value, 17))
      if sub(value, 1, 16) ~= ARGV[at + (i - 1) * 4 + 1] then return {2, i - 1, first, sub(value, 1, 16)} end
      answer[i + 1] = -first
    else
      local described = ARGV[at + (i - 1) * 4 + 3]
      if described ~= '' then
        local aggregate, key, expected, new
        names[i], aggregate, key, expected, new = struct.unpack('>I4c0I4c0I4c0I4c0I4c0', described)
        if aggregate ~= '' then
          local of = aggregate .. '\0' .. key
          local now = later[of] or values[of]
          now = now and now.text or (not now and redis.call('HGET', KEYS[8] .. aggregate, key)) or ''
          if now ~= expected then
            table.remove(answer, 1)
            return {4, i - 1, unpack(answer)}
          end
          if new ~= now then later[of] = {aggregate = aggregate, key = key, text = new} end
        end
      end
      newest = newest + 1
      added[#added + 1] = i
      answer[i + 1] = newest
    end
  end
  for of, value in pairs(later) do values[of] = value end
  local next_id = #ids
  for n = 1, #added do
    local i, mine = added[n], position + n
    local from = at + (i - 1) * 4
    -- In whole numbers below 10^14 this is what the format would write.
    local value = ARGV[from + 1] .. (mine < 1e14 and mine or format('%.0f', mine))
    fresh[keys[i]] = value
    ids[next_id + 1], ids[next_id + 2] = keys[i], value
    next_id = next_id + 2
    place(tenant, stream, ARGV[from + 2], mine, names[i])
  end
  local first = position + 1
  position = newest
  if #added == count then return {1, first} end
  return answer
end

local at = 6
while at <= #ARGV do
  local lease, count = ARGV[at + 2], tonumber(ARGV[at + 4])
  if lease ~= '' and redis.call('HGET', KEYS[10] .. lease, 'generation') ~= ARGV[at + 3] then
    answers[#answers + 1] = {6}
  else
    answers[#answers + 1] = apply(ARGV[at], ARGV[at + 1], count, at + 5)
  end
  at = at + 5 + count * 4
end

if #chunks > 0 then
  local clock = redis.call('TIME')
  local time = math.max(tonumber(clock[1]) * 1000000 + tonumber(clock[2]), tonumber(meta[4]))
  redis.call('SCARD', KEYS[5])
  for _, chunk in ipairs(chunks) do redis.call('XLEN', KEYS[6] .. chunk.tenant) end
  for _, change in ipairs(changes) do redis.call('XLEN', change[1]) end
  for _, chunk in ipairs(chunks) do
    local id = format('%.0f-%d', chunk.last, #chunk.bodies - 1)
    local entry = {'t', chunk.tenant, 'a', format('%.0f', time), 'e', table.concat(chunk.bodies)}
    if chunk.stream ~= '' then
      entry[7], entry[8] = 's', chunk.stream
    elseif #chunk.marks > 0 then
      entry[7], entry[8] = 'c', table.concat(chunk.marks, '\n')
    end
    redis.call('XADD', KEYS[2], id, unpack(entry))
    if chunk.stream == '' then
      redis.call('XADD', KEYS[6] .. chunk.tenant, id, '', '')
      if redis.call('SISMEMBER', KEYS[5], chunk.tenant) == 0 then redis.call('SADD', KEYS[5], chunk.tenant) end
    end
  end
  for _, change in ipairs(changes) do redis.call('XADD', change[1], change[2], 'o', change[3]) end
  for tenant, mine in pairs(begun) do
    for stream in pairs(mine.names) do redis.call('SADD', KEYS[9] .. tenant, stream) end
  end
  for _, value in pairs(values) do
    if value.text == '' then
      redis.call('HDEL', KEYS[8] .. value.aggregate, value.key)
    else
      redis.call('HSET', KEYS[8] .. value.aggregate, value.key, value.text)
    end
  end
  -- Two hashes of ids, the older one of which goes as a whole, hold the window and at most as much again.
  if position - ids_from > window then
    redis.call('UNLINK', KEYS[4])
    if redis.call('EXISTS', KEYS[3]) == 1 then redis.call('RENAME', KEYS[3], KEYS[4]) end
    ids_from = position - #ids / 2
  end
  for from = 1, #ids, 1000 do
    redis.call('HSET', KEYS[3], unpack(ids, from, math.min(from + 999, #ids)))
  end
  redis.call('HSET', KEYS[1], 'position', format('%.0f', position), 'time', format('%.0f', time),
    'ids_from', format('%.0f', ids_from))
end
return {0, position, unpack(answers)}
