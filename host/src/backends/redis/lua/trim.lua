-- Gives up the oldest events, by count and by age.
--
-- KEYS: meta, events
-- ARGV: epoch, events to keep or '', microseconds to keep or ''
-- Answers {0, trimmed before, trimmed now}, or {1, epoch} when the log is another one.
--
-- The mark is exact, and readers go by it. The stream itself is cut where that is cheap, at or before the mark.
local meta = redis.call('HMGET', KEYS[1], 'epoch', 'position', 'trimmed')
if meta[1] ~= ARGV[1] then return {1, meta[1] or ''} end
local position, trimmed = tonumber(meta[2]), tonumber(meta[3])
local upto = trimmed
if ARGV[2] ~= '' then upto = math.max(upto, position - tonumber(ARGV[2])) end
if ARGV[3] ~= '' then
  local clock = redis.call('TIME')
  local cutoff = tonumber(clock[1]) * 1000000 + tonumber(clock[2]) - tonumber(ARGV[3])
  -- Times of append never go back, so the last old entry is found by halving.
  local low, high = upto, position
  while low < high do
    local middle = math.floor((low + high) / 2)
    local entry = redis.call('XRANGE', KEYS[2], string.format('%.0f-0', middle + 1), '+', 'COUNT', 1)[1]
    if entry and tonumber(entry[2][4]) < cutoff then
      low = tonumber(string.match(entry[1], '^%d+'))
    else
      high = middle
    end
  end
  upto = math.max(upto, low)
end
if upto > trimmed then redis.call('HSET', KEYS[1], 'trimmed', string.format('%.0f', upto)) end
redis.call('XTRIM', KEYS[2], 'MINID', '~', string.format('%.0f-0', upto + 1))
return {0, meta[3], string.format('%.0f', upto)}
