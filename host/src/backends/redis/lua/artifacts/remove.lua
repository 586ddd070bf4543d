-- Looks for artifacts that nobody pins and that are old enough, and removes them. `change.lua` says which keys there are.
--
-- KEYS: the prefix of all keys of artifacts
-- ARGV: how old (microseconds), whether to remove them, after which digits, how many to look at
-- Answers the digits up to which it has looked (empty at the end), and of each that goes digits, bytes and when it was stored.
local call = redis.call
local P, age, removes, after, most = KEYS[1], tonumber(ARGV[1]), ARGV[2] == '1', ARGV[3], tonumber(ARGV[4])
local clock = call('TIME')
local now = tonumber(clock[1]) * 1000000 + tonumber(clock[2])
local found = call('ZRANGEBYLEX', P .. 'all', after == '' and '-' or '(' .. after, '+', 'LIMIT', 0, most)
local gone = {}
for _, digits in ipairs(found) do
  local meta = P .. 'of:' .. digits
  local known = call('HMGET', meta, 'bytes', 'stored', 'upload', 'chunks')
  local old = known[2] and now - tonumber(known[2]) >= age
  if old and call('SCARD', P .. 'pins:' .. digits) == 0 then
    gone[#gone + 1] = {digits, known[1], known[2]}
    if removes then
      call('ZREM', P .. 'all', digits)
      call('UNLINK', meta, P .. 'notes:' .. digits)
      for n = 0, tonumber(known[4]) - 1 do call('UNLINK', P .. 'chunk:' .. known[3] .. ':' .. n) end
    end
  end
end
return {#found == most and found[#found] or '', gone}
