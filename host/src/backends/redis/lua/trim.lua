-- Gives up the oldest events, by count and by age.
--
-- Follows `groups/state.lua`: what it takes from groups of consumers is counted, and told them, before it goes.
-- ARGV: ..., events to keep or '', microseconds to keep or '', entries to look through at most
-- Answers {0, trimmed before, trimmed now, whether there is more, losses}, or {1, epoch} when the log is another one.
--
-- The mark is exact, and readers go by it. The stream itself is cut where that is cheap, at or before the mark.
if epoch ~= ARGV[1] then return {1, epoch or ''} end
local position, upto = newest, trimmed
if ARGV[4] ~= '' then upto = math.max(upto, position - tonumber(ARGV[4])) end
if ARGV[5] ~= '' then
  local cutoff = now - tonumber(ARGV[5])
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
  if seen >= tonumber(ARGV[6]) then
    local last = tonumber(string.match(page[16][1], '^%d+'))
    if last < upto then upto, more = last, 1 end
    break
  end
end
if upto > trimmed then
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[6], '-inf', '(' .. text(upto))) do
    local g = open(id)
    if g then
      lose(g, upto, (count_stream(g, g.frontier, upto)), 'retention')
      save(g)
    end
  end
  redis.call('HSET', KEYS[1], 'trimmed', string.format('%.0f', upto))
end
local first = string.format('%.0f-0', upto + 1)
for key in pairs(keys) do
  redis.call('XTRIM', key, 'MINID', '=', first)
  if redis.call('XLEN', key) == 0 then redis.call('DEL', key) end
end
redis.call('XTRIM', KEYS[2], 'MINID', '~', first)
return {0, text(trimmed), text(upto), more, reports}
