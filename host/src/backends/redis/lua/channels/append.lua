-- Appends to a channel what a host has decided to, if everything is still as it was then.
--
-- ARGV: ..., process, channel, its incarnation, its version, the newest position; senders as JSON; entries and bytes that
--       have to leave; bytes and entries that an archive may hold and how many leave it at once, or '' where they are
--       dropped; what the process may hold, and what it is asked to hold more than now, or ''; bytes of the new entries;
--       then of each its header, payload, mark
-- Answers {'ok', ..., numbers, bytes of the process}, or {'changed', ..., the record as it is}.
local name, channel = ARGV[8], ARGV[9]
adopt(name)
local key, log, marks = process_key(name), log_key(name, channel), marks_key(name, channel)
local of = call('HMGET', key, 'incarnation', 'version', 'bytes', 'channel:' .. channel, 'numbers:' .. channel)

local function changed() return answer('changed', record(name, channel)) end

if of[1] ~= ARGV[10] or of[2] ~= ARGV[11] or not of[4] then return changed() end
local n, total = numbers(of[5]), tonumber(of[3])
-- What a channel had in an earlier life goes, now that something comes: a position never means two entries.
local anew = n.life < life
if anew then
  total = math.max(0, total - n.bytes - n.archived)
  n.newest = math.max(life * STEP, n.newest)
  n.oldest, n.hot, n.bytes, n.archived, n.life = n.newest + 1, n.newest + 1, 0, 0, life
end
if whole(n.newest) ~= ARGV[12] then return changed() end
if not anew and damaged(name, channel, n) then return changed() end
if ARGV[18] ~= '' and total + tonumber(ARGV[18]) > tonumber(ARGV[17]) then return changed() end

-- At least so many entries from a place on, and at least so many bytes: how many, and their bytes.
local function first(from, entries, bytes)
  local found, sum = 0, 0
  while found < entries or sum < bytes do
    local some = call('LRANGE', marks, whole(from + found), whole(from + found + 255))
    if #some == 0 then break end
    for _, mark in ipairs(some) do
      if found >= entries and sum >= bytes then break end
      found, sum = found + 1, sum + tonumber(string.match(mark, '^%d+'))
    end
  end
  return found, sum
end

local entries, growth = (#ARGV - 19) / 3, tonumber(ARGV[19])
tell('a', name, channel, whole(n.newest + entries), of[1])
if anew then call('UNLINK', log, marks) end
local new = {}
for i = 1, entries do
  local at = 17 + i * 3
  call('XADD', log, whole(n.newest + i) .. '-0', 'h', ARGV[at], 'p', ARGV[at + 1])
  new[i] = ARGV[at + 2]
end
for from = 1, entries, 1000 do call('RPUSH', marks, unpack(new, from, math.min(from + 999, entries))) end
n.newest, n.bytes, total = n.newest + entries, n.bytes + growth, total + growth

local over_entries, over_bytes, gone, freed = tonumber(ARGV[14]), tonumber(ARGV[15]), 0, 0
if ARGV[16] == '' then
  gone, freed = first(0, over_entries, over_bytes)
  n.oldest, n.bytes = n.oldest + gone, n.bytes - freed
  n.hot = n.oldest
else
  local put, size = first(n.hot - n.oldest, over_entries, over_bytes)
  n.hot, n.bytes, n.archived = n.hot + put, n.bytes - size, n.archived + size
  local bytes_max, entries_max, once = string.match(ARGV[16], '^(%d+) (%d+) (%d+)$')
  local over = math.min(n.hot - n.oldest - tonumber(entries_max), tonumber(once))
  gone, freed = first(0, over, n.archived - tonumber(bytes_max))
  n.oldest, n.archived = n.oldest + gone, n.archived - freed
end
if gone > 0 then
  total = total - freed
  call('XTRIM', log, 'MINID', '=', whole(n.oldest) .. '-0')
  call('LTRIM', marks, whole(gone), '-1')
end
call('HSET', key, 'senders:' .. channel, ARGV[13], 'numbers:' .. channel, text(n), 'bytes', whole(total))
return answer('ok', text(n), whole(total))
