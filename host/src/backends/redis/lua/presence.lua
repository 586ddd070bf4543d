-- Rooms, their members, and the feeds that tell of them.
--
-- KEYS: the prefix of all keys of rooms: behind it `meta`, a hash of how far each feed is; `due`, a sorted set of rooms by
--       when the next member's time is over; `feed:` and a number, the streams; `rooms:` and a tenant, the set of its
--       rooms with members; `members:` and a room, the hash of its members; `until:` and a room, when whose time is over
-- ARGV: what to do, entries of a feed, milliseconds that a feed stays, members to expire at most, the room; then what
--       each needs. A room is called `feed:tenant:name`
-- Answers {what came of it, members that expired, ...}.
--
-- Each change is told in the feed before it is written, so that a full server refuses it whole.
local P, op, entries_max, keep, budget, room = KEYS[1], ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), ARGV[5]
local clock = redis.call('TIME')
local micros = tonumber(clock[1]) * 1000000 + tonumber(clock[2])
local now = math.floor(micros / 1000)
local expired = 0

local function whole(number) return string.format('%.0f', number) end

-- How far a feed is. One that is new counts from the time on, so that it lies behind all that it was before.
local function reached(feed)
  local at = redis.call('HGET', P .. 'meta', feed)
  if at then return at end
  redis.call('HSET', P .. 'meta', feed, whole(micros))
  redis.call('DEL', P .. 'feed:' .. feed)
  return whole(micros)
end

local function tell(of, kind, member, at, body)
  local feed = string.match(of, '^%d+')
  reached(feed)
  local sequence = whole(redis.call('HINCRBY', P .. 'meta', feed, 1))
  local stream = P .. 'feed:' .. feed
  redis.call('XADD', stream, 'MAXLEN', '~', entries_max, sequence .. '-0', 'r', of, 'k', kind, 'm', member, 't', at, 'b', body)
  redis.call('PEXPIRE', stream, keep)
  return sequence
end

-- Puts a room where its next member's time is over, or forgets it.
local function settle(of)
  local first = redis.call('ZRANGE', P .. 'until:' .. of, 0, 0, 'WITHSCORES')
  if first[1] then
    redis.call('ZADD', P .. 'due', first[2], of)
  else
    redis.call('ZREM', P .. 'due', of)
    redis.call('SREM', P .. 'rooms:' .. string.match(of, '^%d+:([^:]+):'), of)
    redis.call('DEL', P .. 'members:' .. of)
  end
end

local function remove(of, member, kind)
  tell(of, kind, member, '0', '')
  redis.call('ZREM', P .. 'until:' .. of, member)
  redis.call('HDEL', P .. 'members:' .. of, member)
end

local function expire(of)
  if budget <= 0 then return end
  local gone = redis.call('ZRANGEBYSCORE', P .. 'until:' .. of, '-inf', now, 'LIMIT', 0, budget)
  for _, member in ipairs(gone) do remove(of, member, 'x') end
  expired, budget = expired + #gone, budget - #gone
  if #gone > 0 then settle(of) end
end

local function roster(of)
  local answer = redis.call('HGETALL', P .. 'members:' .. of)
  table.insert(answer, 1, reached(string.match(of, '^%d+')))
  return answer
end

local function stay(member, ttl)
  redis.call('ZADD', P .. 'until:' .. room, whole(now + tonumber(ttl)), member)
  settle(room)
end

if op == 'sweep' then
  for _, of in ipairs(redis.call('ZRANGEBYSCORE', P .. 'due', '-inf', now, 'LIMIT', 0, budget)) do
    expire(of)
    settle(of)
  end
  return {'swept', expired}
end

if op == 'reached' then return {'reached', 0, reached(string.match(room, '^%d+'))} end

if op == 'say' then return {'said', 0, tell(room, 'm', ARGV[6], '0', ARGV[7])} end

expire(room)
local members = P .. 'members:' .. room

if op == 'roster' then return {'roster', expired, roster(room)} end

if op == 'leave' then
  if redis.call('HEXISTS', members, ARGV[6]) == 0 then return {'absent', expired} end
  remove(room, ARGV[6], 'l')
  settle(room)
  return {'left', expired}
end

-- join: member, ttl in ms, whether there is a state, the state, rooms of a tenant, members of a room
local member, ttl, given, state, rooms_max, members_max = ARGV[6], ARGV[7], ARGV[8], ARGV[9], ARGV[10], ARGV[11]
local before = redis.call('HGET', members, member)
if not before then
  local rooms = P .. 'rooms:' .. string.match(room, '^%d+:([^:]+):')
  local count = redis.call('HLEN', members)
  if count >= tonumber(members_max) then return {'full', expired, count + 1} end
  if count == 0 then
    local taken = redis.call('SCARD', rooms)
    if taken >= tonumber(rooms_max) then return {'crowded', expired, taken + 1} end
  end
  tell(room, 'j', member, whole(now), state)
  redis.call('HSET', members, member, whole(now) .. ' ' .. state)
  redis.call('SADD', rooms, room)
  stay(member, ttl)
  return {'joined', expired, roster(room)}
end
local space = string.find(before, ' ', 1, true)
if given == '0' or string.sub(before, space + 1) == state then
  stay(member, ttl)
  return {'stays', expired}
end
local sequence = tell(room, 'u', member, '0', state)
redis.call('HSET', members, member, string.sub(before, 1, space) .. state)
stay(member, ttl)
return {'updated', expired, sequence}
