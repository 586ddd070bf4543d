-- Changes what is known of artifacts.
--
-- KEYS: the prefix of all keys of artifacts
-- ARGV: what to do, the digest's digits, and what that needs
-- Answers what came of it; for 'keep' also the upload that is there, when it was stored, and after 'again' its pins
--
-- Behind the prefix are
--   all (zset)            the digits of every artifact that is there, with the score 0: in order
--   of:{digits} (hash)    bytes, chunks, upload (which chunks), stored (microseconds of the server's clock)
--   chunk:{upload}:{n}    content; those of an upload that has not come to its end expire
--   pins:{digits} (set)   names
--   notes:{digits} (hash) notes by name
local call = redis.call
local P, op, digits = KEYS[1], ARGV[1], ARGV[2]
local meta = P .. 'of:' .. digits

local function now()
  local clock = call('TIME')
  return string.format('%s%06d', clock[1], tonumber(clock[2]))
end

local function chunks(upload, count, each)
  for n = 0, count - 1 do
    if not each(P .. 'chunk:' .. upload .. ':' .. n) then return false end
  end
  return true
end

if op == 'keep' then
  -- ARGV: upload, chunks, bytes, and the upload that it replaces where what is there is damaged
  local upload, count, bytes, damaged = ARGV[3], tonumber(ARGV[4]), ARGV[5], ARGV[6]
  local known = call('HMGET', meta, 'upload', 'chunks')
  if known[1] and known[1] ~= damaged then return {'known', known[1]} end
  if not chunks(upload, count, function(key) return call('EXISTS', key) == 1 end) then return {'late'} end
  chunks(upload, count, function(key) call('PERSIST', key) return true end)
  local stored = now()
  call('HSET', meta, 'bytes', bytes, 'chunks', count, 'upload', upload, 'stored', stored)
  call('ZADD', P .. 'all', 0, digits)
  if known[1] then
    chunks(known[1], tonumber(known[2]), function(key) call('UNLINK', key) return true end)
  end
  return {'kept', upload, stored}
end

if call('EXISTS', meta) == 0 then return {'missing'} end
if op == 'again' then
  -- ARGV: the upload that was found sound
  if call('HGET', meta, 'upload') ~= ARGV[3] then return {'missing'} end
  local stored = now()
  call('HSET', meta, 'stored', stored)
  return {'done', ARGV[3], stored, unpack(call('SMEMBERS', P .. 'pins:' .. digits))}
elseif op == 'pin' then
  -- ARGV: name, pins at most
  local pins = P .. 'pins:' .. digits
  if call('SISMEMBER', pins, ARGV[3]) == 0 then
    if call('SCARD', pins) >= tonumber(ARGV[4]) then return {'full'} end
    call('SADD', pins, ARGV[3])
  end
elseif op == 'attach' then
  -- ARGV: name, note, notes at most
  local notes = P .. 'notes:' .. digits
  local known = call('HGET', notes, ARGV[3])
  if known and known ~= ARGV[4] then return {'taken'} end
  if not known then
    if call('HLEN', notes) >= tonumber(ARGV[5]) then return {'full'} end
    call('HSET', notes, ARGV[3], ARGV[4])
  end
end
return {'done'}
