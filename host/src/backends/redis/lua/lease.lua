-- Asks for a lease, or gives one back.
--
-- KEYS: the lease, a hash: holder, generation, until (microseconds of the server's clock)
-- ARGV: holder, how long in microseconds, or 0 to give it back; then its generation
-- Answers {1, generation} when the asker has it, {0, holder, microseconds that are left} when somebody else has, and
-- {2} for one that was given back or was not the asker's.
--
-- A generation is the time of the grant, or one more than the last: it goes up, also when the server has lost its data.
local clock = redis.call('TIME')
local now = tonumber(clock[1]) * 1000000 + tonumber(clock[2])
local lease = redis.call('HMGET', KEYS[1], 'holder', 'generation', 'until')
local holder, generation, ends = lease[1], tonumber(lease[2] or 0), tonumber(lease[3] or 0)
local ttl = tonumber(ARGV[2])
if ttl == 0 then
  if holder == ARGV[1] and lease[2] == ARGV[3] then redis.call('HSET', KEYS[1], 'holder', '', 'until', '0') end
  return {2}
end
if holder ~= ARGV[1] then
  if holder and holder ~= '' and ends > now then return {0, holder, string.format('%.0f', ends - now)} end
  generation = math.max(generation + 1, now)
end
redis.call('HSET', KEYS[1], 'holder', ARGV[1], 'generation', string.format('%.0f', generation),
  'until', string.format('%.0f', now + ttl))
return {1, string.format('%.0f', generation)}
