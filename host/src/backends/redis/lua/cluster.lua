-- Members of a fleet, and what they tell each other.
--
-- KEYS: the prefix of all keys of the fleet: behind it `meta`, a hash of the last epoch and the view's, and the server's
--       history; `until`, a sorted set of members by when their time is over; `epochs`, the hash of who is alive; and by
--       incarnation, called `name:epoch`, `at:`, a hash of the last numbers (c, d), `control:` and `delta:`, the streams,
--       `answers:`, a hash
-- ARGV: what to do, a member, its epoch, milliseconds that it lives from now on; then what each needs
-- Answers {what came of it, ...}; {'gone', which} when one is not alive: 1 the first, 2 the second.
local P, op, member, epoch, ttl = KEYS[1], ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local clock = redis.call('TIME')
local micros = tonumber(clock[1]) * 1000000 + tonumber(clock[2])
local now = math.floor(micros / 1000)

local function whole(number) return string.format('%.0f', number) end

-- The next epoch: the time, or one more than the last, so that it is above those that a server has forgotten, whether
-- it has lost all of them or the newest only.
local function grown(field)
  local last = tonumber(redis.call('HGET', P .. 'meta', field) or 0)
  local fresh = whole(math.max(last + 1, micros))
  redis.call('HSET', P .. 'meta', field, fresh)
  return fresh
end

local function forget(name)
  local of = name .. ':' .. (redis.call('HGET', P .. 'epochs', name) or '')
  redis.call('DEL', P .. 'at:' .. of, P .. 'control:' .. of, P .. 'delta:' .. of, P .. 'answers:' .. of)
  redis.call('HDEL', P .. 'epochs', name)
  redis.call('ZREM', P .. 'until', name)
end

local function alive(name, of) return redis.call('HGET', P .. 'epochs', name) == of end

-- A server that was started again, restored or promoted may have lost the newest of what it had told, and would give the
-- same numbers to something else. So nobody outlives the server's run, nor its change to the primary, which leaves the
-- former primary's replication id as the second one: all have to enter again.
local said = redis.call('INFO', 'server', 'replication')
local function field(name) return string.match(said, '\n' .. name .. ':([^\r\n]*)') or '' end
local history = field('run_id') .. ' ' .. field('master_replid2')
if redis.call('HGET', P .. 'meta', 'history') ~= history then
  for _, name in ipairs(redis.call('HKEYS', P .. 'epochs')) do forget(name) end
  grown('view')
  redis.call('HSET', P .. 'meta', 'history', history)
end

local over = redis.call('ZRANGEBYSCORE', P .. 'until', '-inf', now)
if #over > 0 then
  grown('view')
  for _, name in ipairs(over) do forget(name) end
end

if op == 'live' then
  local answer = redis.call('HGETALL', P .. 'epochs')
  table.insert(answer, 1, redis.call('HGET', P .. 'meta', 'view') or grown('view'))
  return {'ok', answer}
end

if op == 'enter' then
  local fresh = grown('epoch')
  grown('view')
  forget(member)
  redis.call('HSET', P .. 'epochs', member, fresh)
  redis.call('ZADD', P .. 'until', whole(now + tonumber(ttl)), member)
  return {'ok', fresh}
end

if not alive(member, epoch) then return {'gone', 1} end
local mine = member .. ':' .. epoch

if op == 'check' then
  local at = redis.call('HMGET', P .. 'at:' .. mine, 'c', 'd')
  return {'ok', {at[1] or '0', at[2] or '0'}}
end

if op == 'heartbeat' then
  redis.call('ZADD', P .. 'until', whole(now + tonumber(ttl)), member)
  return {'ok'}
end

if op == 'leave' then
  grown('view')
  forget(member)
  return {'ok'}
end

-- sequence, answer, milliseconds to keep answers, how many are kept: those of the newest messages
if op == 'acknowledge' then
  local id = ARGV[5] .. '-0'
  if #redis.call('XRANGE', P .. 'control:' .. mine, id, id) == 1 then
    local answers, kept = P .. 'answers:' .. mine, tonumber(ARGV[8])
    redis.call('HSET', answers, ARGV[5], ARGV[6])
    redis.call('PEXPIRE', answers, ARGV[7])
    redis.call('XDEL', P .. 'control:' .. mine, id)
    -- In order, the oldest is this one; who acknowledges in another order makes the script look for it.
    if redis.call('HLEN', answers) > kept then redis.call('HDEL', answers, whole(tonumber(ARGV[5]) - kept)) end
    if redis.call('HLEN', answers) > kept then
      local all = redis.call('HKEYS', answers)
      table.sort(all, function(one, other) return tonumber(one) < tonumber(other) end)
      for i = 1, #all - kept do redis.call('HDEL', answers, all[i]) end
    end
  end
  return {'ok'}
end

-- sequence
if op == 'answer' then
  local answer = redis.call('HGET', P .. 'answers:' .. mine, ARGV[5])
  if answer then return {'ok', answer} end
  local id = ARGV[5] .. '-0'
  if #redis.call('XRANGE', P .. 'control:' .. mine, id, id) == 1 then return {'waits'} end
  return {'gone', 1}
end

-- to whom, their epoch, how many they have at most, and payloads
local to, their = ARGV[5], ARGV[6]
if not alive(to, their) then return {'gone', 2} end
local theirs = to .. ':' .. their
local max, last = tonumber(ARGV[7]), '0'

-- Adds an entry under the next number, of which a stream that is cut keeps about so many; answers the number. Where the
-- server has lost the count but not the stream, it goes on after the stream.
local function add(field, stream, cut, payload)
  local number = redis.call('HINCRBY', P .. 'at:' .. theirs, field, 1)
  local function put(how)
    local entry = {whole(number) .. '-0', 'f', member, 'e', epoch, 'p', payload}
    if cut then return how('XADD', stream, 'MAXLEN', '~', cut, unpack(entry)) end
    return how('XADD', stream, unpack(entry))
  end
  local added = put(redis.pcall)
  if type(added) == 'table' and added.err then
    if string.find(added.err, 'equal or smaller', 1, true) then
      local about = redis.call('XINFO', 'STREAM', stream)
      for i = 1, #about, 2 do
        if about[i] == 'last-generated-id' then number = tonumber(string.match(about[i + 1], '^%d+')) + 1 end
      end
      redis.call('HSET', P .. 'at:' .. theirs, field, whole(number))
    end
    put(redis.call)
  end
  return whole(number)
end

if op == 'send' then
  local held = redis.call('XLEN', P .. 'control:' .. theirs)
  if held >= max then return {'full', held + 1} end
  return {'ok', add('c', P .. 'control:' .. theirs, nil, ARGV[8])}
end
last = redis.call('HGET', P .. 'at:' .. theirs, 'd') or '0'
for i = 8, #ARGV do last = add('d', P .. 'delta:' .. theirs, max, ARGV[i]) end
return {'ok', last}
