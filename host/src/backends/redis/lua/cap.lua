-- Drops the oldest entries of change streams that have a quarter more than they keep.
--
-- Follows `groups/state.lua`: what it takes from groups of consumers is counted, and told them, before it goes.
-- ARGV: ..., entries to keep, entries that go at most, the streams as `tenant:name`
-- Answers {0, how many went, whether there is more, losses}, or {1, epoch} when the log is another one.
if epoch ~= ARGV[1] then return {1, epoch or ''} end
local keep, left, gone, more = tonumber(ARGV[4]), tonumber(ARGV[5]), 0, 0
local spare = math.floor(keep / 4)

local by_stream
local function groups_on(stream)
  if not by_stream then
    by_stream = {}
    for _, id in ipairs(call('ZRANGE', KEYS[6], 0, -1)) do
      local name = string.match(id, '^(.*):[^:]*$') or ''
      by_stream[name] = by_stream[name] or {}
      table.insert(by_stream[name], id)
    end
  end
  return by_stream[stream] or {}
end

for i = 6, #ARGV do
  local index = KEYS[3] .. ARGV[i]
  local over = call('XLEN', index) - keep
  if over > spare then
    if left == 0 then
      more = 1
      break
    end
    local some = math.min(over, left)
    local page = call('XRANGE', index, '-', '+', 'COUNT', some)
    local last = page[#page][1]
    local upto = tonumber(string.match(last, '^%d+'))
    for _, id in ipairs(groups_on(ARGV[i])) do
      local g = open(id)
      if g then
        if g.low < upto then lose(g, upto, (count_stream(g, g.frontier, upto)), 'cap') end
        save(g)
      end
    end
    -- Of what is deleted by its id a stream remembers the newest: readers are told up to where it has lost something.
    call('XDEL', index, last)
    call('XTRIM', index, 'MINID', '=', last)
    gone, left = gone + some, left - some
    if over - some > spare then more = 1 end
  end
end
return {0, gone, more, reports}
