-- Makes a process, or changes one, as a host has decided, if everything is still as it was then.
--
-- ARGV: ..., what to do, the process, an incarnation, a version, the process as JSON, names of its channels in order; then
--       create: how many the tenant may have; of each channel its name, the channel as JSON
--       drop: only a plugin and its tenant, a lease and its generation or '' twice, how many keys are kept, and the keys of
--       entries that were refused: whoever carries them again finds them
--       change: the version so far, when it was closed or ''; of each channel that has changed its name, the channel as
--       JSON, whether it is new
-- Answers {'ok', ..., the record}, or {'changed', ..., the record as it is or {}, processes of the tenant}.
local op, name, incarnation, version, process, names = ARGV[8], ARGV[9], ARGV[10], ARGV[11], ARGV[12], ARGV[13]
if op == 'drop' then
  if ARGV[10] ~= '' and call('HGET', KEYS[3] .. ARGV[10], 'generation') ~= ARGV[11] then return answer('fenced') end
  local keys = {}
  for i = 13, #ARGV do keys[i - 12] = ARGV[i] end
  remember(name, keys, ARGV[12])
  return answer('ok')
end

local tenant, plain = string.match(name, '^([^:]+):(.*)$')
local key = process_key(name)
adopt(name)
local of = call('HMGET', key, 'incarnation', 'version')
local of_tenant = call('ZCARD', P .. 'names:' .. tenant)

local function changed() return answer('changed', record(name), of_tenant) end

local function begin(channel)
  call('UNLINK', log_key(name, channel), marks_key(name, channel))
  call('HSET', key, 'senders:' .. channel, '{"senders":[],"closing_entries":0,"closing_bytes":0}', 'numbers:' .. channel, '0 1 1 0 0 ' .. whole(life))
end

if op == 'create' then
  if of[1] or of_tenant >= tonumber(ARGV[14]) then return changed() end
  tell('p', name, '', '0', incarnation)
  call('HSET', key, 'incarnation', incarnation, 'life', whole(life), 'version', version, 'tag', ARGV[6], 'process',
    process, 'bytes', '0', 'names', names)
  for at = 15, #ARGV, 2 do
    begin(ARGV[at])
    call('HSET', key, 'channel:' .. ARGV[at], ARGV[at + 1])
  end
  call('ZADD', P .. 'names:' .. tenant, 0, plain)
  call('ZREM', P .. 'closed', name)
  call('HINCRBY', P .. 'meta', 'processes', 1)
  call('HINCRBY', P .. 'meta', 'channels', (#ARGV - 14) / 2)
  return answer('ok', record(name))
end

if of[1] ~= incarnation or of[2] ~= ARGV[14] then return changed() end
tell('p', name, '', '0', incarnation)
call('HSET', key, 'version', version, 'tag', ARGV[6], 'process', process, 'names', names)
for at = 16, #ARGV, 3 do
  if ARGV[at + 2] == '1' then
    begin(ARGV[at])
    call('HINCRBY', P .. 'meta', 'channels', 1)
  end
  call('HSET', key, 'channel:' .. ARGV[at], ARGV[at + 1])
end
if ARGV[15] ~= '' then call('ZADD', P .. 'closed', ARGV[15], name) end
return answer('ok', record(name))
