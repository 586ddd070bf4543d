-- Appends a control event.
--
-- KEYS: the prefix of all keys of the control feed
-- ARGV: the event's id, its digest, the event, ids that are remembered
-- Answers {'new', version}, {'known', version} when the id has this content already, {'taken', version} when it has another.
--
-- Behind the prefix are
--   meta (hash)       version: the newest that was given
--   events (stream)   entries with the id `{version}-0`: i(d), d(igest), e(vent), and p, the version before
--   ids (hash)        by event id `{version} {digest}`; they outlive the events
--   order (zset)      event ids by version, so that the oldest can be forgotten
--   reports (hash)    by host `{milliseconds of the server's clock} {report}`
--   mark (hash)       version, mark
--
-- A version is the server's time in microseconds, or one more than the last: none is given twice, also when the server
-- has lost its data or got back older ones. Each entry names the version before, so a reader sees what is missing.
local call, format = redis.call, string.format
local P = KEYS[1]
local function whole(number) return format('%.0f', number) end

local known = call('HGET', P .. 'ids', ARGV[1])
if known then
  local version, digest = string.match(known, '^(%d+) (.*)$')
  return {digest == ARGV[2] and 'known' or 'taken', version}
end
local top = call('XREVRANGE', P .. 'events', '+', '-', 'COUNT', 1)[1]
local last = math.max(tonumber(call('HGET', P .. 'meta', 'version') or 0),
  top and tonumber(string.match(top[1], '^%d+')) or 0)
local clock = call('TIME')
local version = math.max(last + 1, tonumber(clock[1]) * 1000000 + tonumber(clock[2]))
local text = whole(version)
-- Of the first one nobody knows what was before.
local before = last > 0 and whole(last) or 'none'
call('XADD', P .. 'events', text .. '-0', 'i', ARGV[1], 'd', ARGV[2], 'e', ARGV[3], 'p', before)
call('HSET', P .. 'meta', 'version', text)
call('HSET', P .. 'ids', ARGV[1], text .. ' ' .. ARGV[2])
call('ZADD', P .. 'order', text, ARGV[1])
local over = call('ZCARD', P .. 'order') - tonumber(ARGV[4])
if over > 0 then
  local oldest = call('ZPOPMIN', P .. 'order', math.min(over, 100))
  for i = 1, #oldest, 2 do call('HDEL', P .. 'ids', oldest[i]) end
end
return {'new', text}
