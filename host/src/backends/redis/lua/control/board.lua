-- What hosts and their controller tell each other; `append.lua` says what there is.
-- KEYS: the prefix. ARGV: what to do, then
--   report: the host, its report
--   mark: its version, the mark. Answers 0 where one of a higher version stands.
local call = redis.call
local P = KEYS[1]
if ARGV[1] == 'report' then
  local clock = call('TIME')
  local now = string.format('%.0f', tonumber(clock[1]) * 1000 + math.floor(tonumber(clock[2]) / 1000))
  call('HSET', P .. 'reports', ARGV[2], now .. ' ' .. ARGV[3])
  return 1
end
local known = call('HGET', P .. 'mark', 'version')
if known and tonumber(known) > tonumber(ARGV[2]) then return 0 end
call('HSET', P .. 'mark', 'version', ARGV[2], 'mark', ARGV[3])
return 1
