-- Compares the log with what a host knows of it, and begins another life of the log where they do not agree.
--
-- KEYS: meta, events, ids, older ids, scopes, tenants, prefix of the tenants' indexes
-- ARGV: known epoch or '', known newest position, id of the newest known entry or '', its time, an epoch to begin,
--       what positions of a new life are rounded up to, what a host has found wrong or '',
--       the version of the change scopes that is known, and they as JSON or '', and for a host that begins with what
--       an earlier run of it has written down: how far it was in the known epoch, or ''; then 1 to look for the index
--       of every tenant, too
-- Answers {epoch, newest, trimmed, where this life began, why it is a new one or '', up to where somebody else has
-- shortened the stream or '', version of the change scopes, and they as JSON}, numbers as text.
--
-- A new life begins far above every position of the former ones, and all before it counts as trimmed: whoever stands
-- there is told that its place is lost, and no position ever means two events.
local meta = redis.call('HMGET', KEYS[1], 'epoch', 'position', 'trimmed', 'base', 'time', 'ids_from', 'tenants',
  'evictions', 'evicted', 'scopes')
local epoch, position, trimmed, base = meta[1], tonumber(meta[2] or 0), tonumber(meta[3] or 0), tonumber(meta[4] or 0)
local known, newest, step = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[6])
local function text(number) return string.format('%.0f', number) end

-- The newest id that the stream has ever had, how many entries it has, and up to where it is gone.
local top, length, gone = 0, 0, 0
if redis.call('EXISTS', KEYS[2]) == 1 then
  local info = redis.call('XINFO', 'STREAM', KEYS[2])
  for i = 1, #info, 2 do
    if info[i] == 'length' then length = info[i + 1] end
    if info[i] == 'last-generated-id' then top = tonumber(string.match(info[i + 1], '^%d+')) end
    if info[i] == 'first-entry' and info[i + 1] then
      local last, count = string.match(info[i + 1][1], '^(%d+)-(%d+)$')
      gone = tonumber(last) - tonumber(count)
    end
  end
end
if top > 4503599627370496 then
  return redis.error_reply('FOREIGN the newest id of ' .. KEYS[2] .. ' is ' .. text(top) .. ', beyond all positions')
end

-- What the server has removed to make room. It does not tell which keys, so any may have been the log's. With a policy
-- `volatile-*` none was: the log's keys have no time to live.
local said = redis.call('INFO', 'server', 'memory', 'stats')
local function field(name) return string.match(said, '\n' .. name .. ':([^\r\n]*)') or '' end
local policy, run, removed = field('maxmemory_policy'), field('run_id'), tonumber(field('evicted_keys')) or 0
local volatile, counted = string.find(policy, '^volatile%-'), run .. ' ' .. text(removed)
local run_then, removed_then = string.match(meta[8] or '', '^(%S*) (%d+)$')
if run_then == run then removed = removed - tonumber(removed_then) end
local evicted = meta[9] == '1' or (epoch and removed > 0 and not volatile)
if policy ~= 'noeviction' and not volatile and field('maxmemory') ~= '0' then
  -- What is lost is looked at once nothing more goes.
  if evicted then redis.pcall('HSET', KEYS[1], 'evicted', '1') end
  return redis.error_reply('EVICTS the server removes keys to make room, those of the log too (maxmemory-policy ' ..
    policy .. '); set it to noeviction, or to a policy volatile-*')
end

-- Which key is not there that has to be, or ''.
local function missing()
  local ids_from = tonumber(meta[6] or 0)
  if tonumber(meta[7] or 0) > redis.call('SCARD', KEYS[6]) then return 'the list of tenants is gone' end
  if position > ids_from and redis.call('EXISTS', KEYS[3]) == 0 then return 'the ids of events are gone' end
  if ids_from > base and redis.call('EXISTS', KEYS[4]) == 0 then return 'the older ids of events are gone' end
  if tonumber(meta[10] or 0) > 0 and redis.call('EXISTS', KEYS[5]) == 0 then return 'the change scopes are gone' end
  if ARGV[11] == '1' then
    for _, tenant in ipairs(redis.call('SMEMBERS', KEYS[6])) do
      if redis.call('EXISTS', KEYS[7] .. tenant) == 0 then return 'the index of the tenant ' .. tenant .. ' is gone' end
    end
  end
  return ''
end

local function verified()
  if ARGV[3] == '' or newest <= trimmed then return true end
  local entry = redis.call('XRANGE', KEYS[2], ARGV[3], ARGV[3])[1]
  return entry and entry[2][3] == 'a' and entry[2][4] == ARGV[4]
end

local why = ''
if not epoch then
  if known ~= '' then why = 'the log is gone'
  elseif top > 0 then why = 'the log has lost its counters' end
elseif known == epoch then
  if ARGV[7] ~= '' then why = ARGV[7]
  elseif position < newest then why = 'the newest position went back'
  elseif not verified() then why = 'another event stands at a known position' end
elseif known ~= '' and ARGV[10] ~= '' then
  -- Not for a host that begins to decide: it may have been given the address of somebody else's log. A later life of its
  -- own begins above what it has written down, and never at 0: that is a log's first life.
  if base < tonumber(ARGV[10]) or (base == 0 and newest > 0) then
    return redis.error_reply('OTHERLOG the log has epoch ' .. epoch .. ', this host has worked with ' .. known)
  end
elseif known ~= '' and base < newest then
  why = 'another life of the log has positions that are known'
end
if why == '' and epoch then
  if top > position then why = 'the stream has entries that the log did not write'
  elseif length == 0 and position > trimmed then why = 'the events are gone'
  elseif evicted then why = 'the server has removed keys to make room'
  else why = missing() end
end
if meta[8] ~= counted then
  -- A full server refuses this: then it is written another time.
  redis.pcall('HSET', KEYS[1], 'evictions', counted)
end

local cut = ''
if why ~= '' or not epoch then
  base = 0
  if why ~= '' then base = (math.floor(math.max(position, newest, top) / step) + 1) * step end
  epoch, position, trimmed = ARGV[5], base, base
  redis.call('HSET', KEYS[1], 'epoch', epoch, 'position', text(base), 'trimmed', text(base), 'base', text(base),
    'time', meta[5] or '0', 'ids_from', text(base), 'evictions', counted)
  redis.call('HDEL', KEYS[1], 'evicted')
  -- Each tenant has an index from its first event on, be it an empty one.
  local tenants = redis.call('TYPE', KEYS[6]).ok == 'set' and redis.call('SMEMBERS', KEYS[6]) or {}
  for _, tenant in ipairs(tenants) do
    local index = KEYS[7] .. tenant
    local kind = redis.call('TYPE', index).ok
    if kind == 'stream' or kind == 'none' then
      redis.call('UNLINK', index)
      redis.call('XADD', index, text(base) .. '-1', '', '')
      redis.call('XTRIM', index, 'MAXLEN', 0)
    end
  end
  redis.call('HSET', KEYS[1], 'tenants', #tenants)
  -- A log that was emptied does not know what plugins have declared; a host that was there does.
  if redis.call('EXISTS', KEYS[5]) == 0 and (ARGV[9] ~= '' or meta[10]) then
    redis.call('SET', KEYS[5], ARGV[9])
    redis.call('HSET', KEYS[1], 'scopes', text(math.max(tonumber(ARGV[8]), tonumber(meta[10] or 0)) + 1))
  end
  -- Ids of a former life would make new events look like repeats. What is no hash is not ours, and stays.
  for i = 3, 4 do
    if redis.call('TYPE', KEYS[i]).ok == 'hash' then redis.call('UNLINK', KEYS[i]) end
  end
elseif length > 0 and gone > trimmed then
  -- Somebody else has shortened the stream. What is gone is at least known to be gone.
  trimmed, cut = gone, text(gone)
  redis.call('HSET', KEYS[1], 'trimmed', text(gone))
end
local scopes = redis.call('HGET', KEYS[1], 'scopes') or '0'
return {epoch, text(position), text(trimmed), text(base), why, cut, scopes, redis.call('GET', KEYS[5]) or ''}
