-- Stores a value unless the miss that it was loaded for is no longer the last word.
-- KEYS: the entry, its marks. ARGV: the stamp of the miss, the value, how long it lasts (ms).
-- Answers 1 when it is kept, 2 when somebody was faster, 0 when something moved.
local marks = {}
for i = 2, #KEYS do
  local token = redis.call('GET', KEYS[i])
  if not token then return 0 end
  marks[i - 1] = token
end
local now = table.concat(marks)
local held = redis.call('HMGET', KEYS[1], 'marks', 'value', 'miss')
if held[1] ~= now then return 0 end
if not held[3] or now .. held[3] ~= ARGV[1] then return 0 end
if held[2] then return 2 end
redis.call('HSET', KEYS[1], 'value', ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return 1
