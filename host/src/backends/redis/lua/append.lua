-- Appends a group of requests, each all or nothing, and answers their positions.
--
-- KEYS: meta, events, ids, older ids, tenants, prefix of the tenants' indexes
-- ARGV: epoch, dedup window, bytes of an entry; then for each request: tenant, number of events, and for each event
--       the key of its id, the hash of its content, its bytes
-- Answers {0, newest, answer...}, one answer for each request: {1, first position} when all are new,
-- {3, position...} with a minus before a known one, {2, index, position, hash} when an id is taken.
-- {1, epoch} says that the log is another one; nothing was written then.
--
-- Whatever can be refused (a wrong type, no memory, a read-only server) is met before or in the first write: a script
-- is never rolled back.
local meta = redis.call('HMGET', KEYS[1], 'epoch', 'position', 'trimmed', 'time', 'ids_from')
if meta[1] ~= ARGV[1] then return {1, meta[1] or ''} end
local window, entry_bytes = tonumber(ARGV[2]), tonumber(ARGV[3])
local position, trimmed, ids_from = tonumber(meta[2]), tonumber(meta[3]), tonumber(meta[5])
local horizon = math.max(trimmed, position - window)
local format, sub = string.format, string.sub

local answers, fresh, ids, chunks, tenants = {}, {}, {}, {}, {}

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

local function place(tenant, body, at)
  local chunk = chunks[#chunks]
  if not chunk or chunk.tenant ~= tenant or chunk.bytes + #body > entry_bytes then
    chunk = {tenant = tenant, bytes = 0, bodies = {'\1'}}
    chunks[#chunks + 1] = chunk
    tenants[tenant] = true
  end
  chunk.bytes = chunk.bytes + #body
  chunk.bodies[#chunk.bodies + 1] = body
  chunk.last = at
end

-- One request, whose events begin at ARGV[at].
local function apply(tenant, count, at)
  local keys = {}
  for i = 1, count do keys[i] = ARGV[at + (i - 1) * 3] end
  local found = known(keys)
  local answer, added, newest = {3}, {}, position
  for i = 1, count do
    local value = fresh[keys[i]]
    if not value and found[i] and tonumber(sub(found[i], 17)) > horizon then value = found[i] end
    if value then
      local first = tonumber(sub(value, 17))
      if sub(value, 1, 16) ~= ARGV[at + (i - 1) * 3 + 1] then return {2, i - 1, first, sub(value, 1, 16)} end
      answer[i + 1] = -first
    else
      newest = newest + 1
      added[#added + 1] = i
      answer[i + 1] = newest
    end
  end
  for n = 1, #added do
    local i, mine = added[n], position + n
    local value = ARGV[at + (i - 1) * 3 + 1] .. format('%.0f', mine)
    fresh[keys[i]] = value
    ids[#ids + 1] = keys[i]
    ids[#ids + 1] = value
    place(tenant, ARGV[at + (i - 1) * 3 + 2], mine)
  end
  local first = position + 1
  position = newest
  if #added == count then return {1, first} end
  return answer
end

local at = 4
while at <= #ARGV do
  local count = tonumber(ARGV[at + 1])
  answers[#answers + 1] = apply(ARGV[at], count, at + 2)
  at = at + 2 + count * 3
end

if #chunks > 0 then
  local clock = redis.call('TIME')
  local time = math.max(tonumber(clock[1]) * 1000000 + tonumber(clock[2]), tonumber(meta[4]))
  redis.call('SCARD', KEYS[5])
  for tenant in pairs(tenants) do redis.call('XLEN', KEYS[6] .. tenant) end
  for _, chunk in ipairs(chunks) do
    local id = format('%.0f-%d', chunk.last, #chunk.bodies - 1)
    redis.call('XADD', KEYS[2], id, 't', chunk.tenant, 'a', format('%.0f', time), 'e', table.concat(chunk.bodies))
    redis.call('XADD', KEYS[6] .. chunk.tenant, id, '', '')
  end
  for tenant in pairs(tenants) do
    if redis.call('SISMEMBER', KEYS[5], tenant) == 0 then redis.call('SADD', KEYS[5], tenant) end
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
