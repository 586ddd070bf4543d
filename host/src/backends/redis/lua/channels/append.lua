-- Appends to a channel what a host has decided to, if everything is still as it was then.
--
-- KEYS: as for all, and then those of the log in the order in which `lua/append.lua` has them
-- ARGV: ..., process, channel, its incarnation, its version, the newest position; senders as JSON; entries and bytes that
--       have to leave; bytes and entries that an archive may hold and how many leave it at once, or '' where they are
--       dropped; what the process may hold, and what it is asked to hold more than now, or ''; bytes of the new entries;
--       how many there are; a lease and its generation, or '' twice; who has appended them (`tenant:plugin`) or '', and
--       how many keys of it are kept; then of each its header, payload, mark, and the key that a repeat of it is told by,
--       or ''; then, where they are events, too, what `lua/append.lua` is asked for
-- Answers {'ok', ..., numbers, bytes of the process}, or {'changed', ..., the record as it is}; {'fenced', ...} when the
-- lease is another one by now; {'repeated', ..., numbers of the entries that were appended before}; {'moved', ...} when
-- the log has other last known values; {'log', ...} when it is another one, or has other change scopes.
local name, channel = ARGV[8], ARGV[9]
local many, by, keys = tonumber(ARGV[20]), ARGV[23], {}
if ARGV[21] ~= '' and call('HGET', KEYS[11] .. ARGV[21], 'generation') ~= ARGV[22] then return answer('fenced') end
if by ~= '' then
  for i = 1, many do keys[i] = ARGV[24 + i * 4] end
  local before = carried_before(by, keys)
  if #before > 0 then return answer('repeated', before) end
end
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

-- The log decides, too, before anything is written.
local write_events
if #ARGV > 24 + many * 4 then
  local asked = {}
  for i = 25 + many * 4, #ARGV do asked[#asked + 1] = ARGV[i] end
  local said
  said, write_events = log_append({unpack(KEYS, 2)}, asked)
  if said[1] ~= 0 then return answer('log') end
  if said[3][1] ~= 1 then return answer('moved') end
end

local entries, growth = many, tonumber(ARGV[19])
tell('a', name, channel, whole(n.newest + entries), of[1])
if write_events then write_events() end
if anew then call('UNLINK', log, marks) end
local new = {}
for i = 1, entries do
  local at = 21 + i * 4
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
if by ~= '' then remember(by, keys, ARGV[24]) end
return answer('ok', text(n), whole(total))
