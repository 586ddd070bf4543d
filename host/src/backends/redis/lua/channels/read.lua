-- Reads processes and channels.
--
-- ARGV: ..., what to do, then
--       look: nothing
--       process: a process
--       head: a process, a channel
--       page: a process, a channel, a position, entries and bytes at most, 1 to answer one entry even if it is larger
--       find: a process, a channel, up to which place, how many are looked at, marks of entries without their bytes, each
--       followed by the bytes it is looked for with
--       list: a tenant, a name, how many
--       carried: a process, a plugin and its tenant, keys of entries that the plugin has appended
--       stats: nothing
local op, name = ARGV[8], ARGV[9]

if op == 'look' then return answer('ok') end

if op == 'stats' then
  local of = call('HMGET', P .. 'meta', 'processes', 'channels')
  return answer('ok', of[1] or '0', of[2] or '0')
end

if op == 'list' then
  local from = ARGV[10] == '' and '-' or '(' .. ARGV[10]
  local found = {}
  for _, plain in ipairs(call('ZRANGEBYLEX', P .. 'names:' .. name, from, '+', 'LIMIT', 0, ARGV[11])) do
    local of = call('HMGET', process_key(name .. ':' .. plain), 'version', 'process')
    local at = #found
    found[at + 1], found[at + 2], found[at + 3] = plain, of[1] or '', of[2] or ''
  end
  return answer('ok', found)
end

adopt(name)
if op == 'process' then
  return answer('ok', record(name), call('ZCARD', P .. 'names:' .. string.match(name, '^[^:]+')))
end

if op == 'carried' then
  local keys = {}
  for i = 11, #ARGV do keys[i - 10] = ARGV[i] end
  return answer('ok', carried_before(ARGV[10], keys))
end

local channel = ARGV[10]
if op == 'head' then return answer('ok', record(name, channel)) end

local text_of = call('HGET', process_key(name), 'numbers:' .. channel)
if not text_of then return answer('ok', record(name, channel), {}, 0) end
local n, log, marks = numbers(text_of), log_key(name, channel), marks_key(name, channel)
damaged(name, channel, n)

if op == 'page' then
  local from = math.min(math.max(tonumber(ARGV[11]), n.oldest - 1), n.newest)
  local place, most, bytes, least = from + 1 - n.oldest, tonumber(ARGV[12]), tonumber(ARGV[13]), tonumber(ARGV[14])
  local found, sum, full = 0, 0, false
  while found < most and not full do
    local some = call('LRANGE', marks, whole(place + found), whole(place + math.min(found + 256, most) - 1))
    if #some == 0 then break end
    for _, mark in ipairs(some) do
      local size = tonumber(string.match(mark, '^%d+'))
      if sum + size > bytes and found >= least then
        full = true
        break
      end
      found, sum = found + 1, sum + size
    end
  end
  local entries = {}
  if found > 0 then entries = call('XRANGE', log, whole(from + 1) .. '-0', whole(from + found) .. '-0') end
  return answer('ok', record(name, channel), entries, full and 1 or 0)
end

-- From the newest on: repeats are of late. Each is answered by its number among those asked for, its position, and where
-- it has as many bytes as it is looked for with, what it is.
local wanted, left = {}, 0
for at = 13, #ARGV, 2 do
  local with = wanted[ARGV[at]]
  if not with then
    with = {}
    wanted[ARGV[at]], left = with, left + 1
  end
  with[#with + 1] = at
end
local upto = n.newest + 1 - n.oldest
if ARGV[11] ~= '' then upto = math.min(upto, tonumber(ARGV[11]) - n.oldest) end
local low = math.max(0, upto - tonumber(ARGV[12]))
local found = {}
while left > 0 and upto > low do
  local from = math.max(low, upto - 256)
  local some = call('LRANGE', marks, whole(from), whole(upto - 1))
  for i = #some, 1, -1 do
    local bytes, rest = string.match(some[i], '^(%d+):(.*)$')
    local with = wanted[rest]
    if with then
      wanted[rest], left = nil, left - 1
      local position = whole(n.oldest + from + i - 1)
      for _, at in ipairs(with) do
        local entry = ARGV[at + 1] == bytes and call('XRANGE', log, position .. '-0', position .. '-0') or {}
        found[#found + 1] = {(at - 13) / 2, position, entry}
      end
    end
  end
  upto = from
end
local more = left > 0 and low > 0
return answer('ok', record(name, channel), found, more and whole(n.oldest + low) or '0')
