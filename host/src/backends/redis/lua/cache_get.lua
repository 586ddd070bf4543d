-- A value that was stored under its marks as they are now; otherwise a stamp for whoever loads it.
-- KEYS: the entry, its marks. ARGV: a token that was never used, how long a miss and how long a mark last (ms).
-- Answers {1, value} or {0, stamp}: the marks' tokens and the miss's.
local marks = {}
for i = 2, #KEYS do
  local token = redis.call('GET', KEYS[i])
  if not token then
    token = ARGV[1]
    redis.call('SET', KEYS[i], token, 'PX', ARGV[3])
  elseif redis.call('PTTL', KEYS[i]) < tonumber(ARGV[3]) / 2 then
    redis.call('PEXPIRE', KEYS[i], ARGV[3])
  end
  marks[i - 1] = token
end
local now = table.concat(marks)
local held = redis.call('HMGET', KEYS[1], 'marks', 'value', 'miss')
if held[1] == now then
  if held[2] then return {1, held[2]} end
  if held[3] then return {0, now .. held[3]} end
end
redis.call('DEL', KEYS[1])
redis.call('HSET', KEYS[1], 'marks', now, 'miss', ARGV[1])
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return {0, now .. ARGV[1]}
