-- Removes the oldest control events; `append.lua` says what there is.
-- KEYS: the prefix. ARGV: the version up to which, entries that one call removes.
-- Answers how many went, and how many entries were found.
local page = redis.call('XRANGE', KEYS[1] .. 'events', '-', ARGV[1], 'COUNT', ARGV[2])
if #page == 0 then return {0, 0} end
local last = string.match(page[#page][1], '^%d+')
return {redis.call('XTRIM', KEYS[1] .. 'events', 'MINID', '=', string.format('%.0f-0', tonumber(last) + 1)), #page}
