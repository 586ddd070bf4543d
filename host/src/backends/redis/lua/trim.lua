-- Gives up the oldest events, by count and by age.
--
-- KEYS: meta, events, prefix of the other streams' indexes
-- ARGV: epoch, events to keep or '', microseconds to keep or '', entries to look through at most
-- Answers {0, trimmed before, trimmed now, whether there is more}, or {1, epoch} when the log is another one.
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
-- The indexes of other streams are cut with the entries that name them. What is empty then goes: a stream of an
-- aggregate that is no more must not stay for ever.
local more, seen, keys = 0, 0, {}
local from = string.format('%.0f-0', trimmed + 1)
while upto > trimmed do
  local page = redis.call('XRANGE', KEYS[2], from, string.format('%.0f', upto), 'COUNT', 16)
  for _, entry in ipairs(page) do
    local fields = entry[2]
    if fields[7] == 's' then
      keys[KEYS[3] .. fields[2] .. ':' .. fields[8]] = true
    elseif fields[7] == 'c' then
      for name in string.gmatch(fields[8], '\t([^\n]+)') do keys[KEYS[3] .. fields[2] .. ':' .. name] = true end
    end
  end
  seen = seen + #page
  if #page < 16 then break end
  from = '(' .. page[16][1]
  if seen >= tonumber(ARGV[4]) then
    local last = tonumber(string.match(page[16][1], '^%d+'))
    if last < upto then upto, more = last, 1 end
    break
  end
end
if upto > trimmed then redis.call('HSET', KEYS[1], 'trimmed', string.format('%.0f', upto)) end
local first = string.format('%.0f-0', upto + 1)
for key in pairs(keys) do
  redis.call('XTRIM', key, 'MINID', '=', first)
  if redis.call('XLEN', key) == 0 then redis.call('DEL', key) end
end
redis.call('XTRIM', KEYS[2], 'MINID', '~', first)
return {0, meta[3], string.format('%.0f', upto), more}
